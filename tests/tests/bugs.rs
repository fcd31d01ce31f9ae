//! Faults that users of vision-language runtimes reported elsewhere do not happen here: every case
//! of `golden/bugs`.
//!
//! A case is a tiny model with a fault ([`secateur_tests::bug`]) and what is right: tensors that
//! transformers gave (`tests/make_bugs.py` makes some of them), a refusal with its words, or a run
//! that ends well. `CASE=words` runs those whose name contains the words. Cases of the command stand in `runtime/cli/tests`.

use std::path::Path;

use secateur::trace::{Histories, Tensors};
use secateur::{Clip, Precision, Request, VideoInfo, Vlm};
use secateur_tests::bug::{Bug, Expect};
use secateur_tests::{difference, golden, tensors};

fn run(case: &Path, bug: &Bug, model: &Path) -> Result<Tensors, secateur::Error> {
    let mut builder = Vlm::builder(model).precision(Precision::F32).threads(2);
    if let Some(adapter) = &bug.adapter {
        builder = builder.adapter(case.join(adapter));
    }
    let vlm = builder.open()?;
    let mut request = Request::new(bug.prompt.clone()).max_tokens(bug.max_tokens);
    if !bug.chat {
        request = request.raw_prompt();
    }
    for picture in &bug.images {
        request = request.path(Bug::picture(case, picture))?;
    }
    if !bug.frames.is_empty() {
        let limits = secateur::image::Limits::default();
        let mut frames = Vec::new();
        for frame in &bug.frames {
            let clip = secateur::image::load(&Bug::picture(case, frame), &limits)?;
            frames.extend(clip.frames().iter().cloned());
        }
        let info = VideoInfo { fps: Some(2.0), duration_s: None };
        request = request.clip(Clip::from_frames("video", frames, info)?);
    }
    vlm.trace(&request, &Histories::new())
}

/// An error with its causes, as the command prints it.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What is wrong with one case, if anything is.
fn check(case: &Path) -> Result<(), String> {
    let bug = Bug::read(case);
    let tmp = tempfile::tempdir().expect("a folder");
    let model = tmp.path().join("model");
    bug.build(case, &model);
    match (&bug.expect, run(case, &bug, &model)) {
        (Expect::Fails(words), Err(error)) => {
            let said = whole(&error).to_lowercase();
            let silent: Vec<_> =
                words.iter().filter(|w| !said.contains(&w.to_lowercase())).collect();
            if silent.is_empty() { Ok(()) } else { Err(format!("no {silent:?} in: {said}")) }
        }
        (Expect::Fails(_), Ok(_)) => Err("it runs; a refusal is right".into()),
        (_, Err(error)) => Err(whole(&error)),
        (Expect::Runs(wanted), Ok(_)) => {
            assert!(wanted, "{}: `runs` is true or absent", case.display());
            Ok(())
        }
        (Expect::Tensors(wanted), Ok(got)) => {
            assert!(wanted, "{}: `tensors` is true or absent", case.display());
            let want = tensors(&case.join("expected.safetensors"));
            assert!(!want.is_empty(), "{}: nothing is expected", case.display());
            let wrong: Vec<String> = want
                .iter()
                .filter_map(|(name, value)| difference(name, value, &got, bug.tolerance))
                .collect();
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n    ")) }
        }
    }
}

#[test]
fn reported_faults_of_models_and_inputs_do_not_happen() {
    let filter = std::env::var("CASE").unwrap_or_default();
    let mut cases: Vec<_> = std::fs::read_dir(golden().join("bugs"))
        .expect("the cases")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("case.json").is_file())
        .filter(|path| path.to_string_lossy().contains(&filter))
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no case matches CASE={filter}");
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let name = case.file_name().unwrap_or_default().to_string_lossy();
            check(case).err().map(|wrong| format!("{name}:\n    {wrong}"))
        })
        .collect();
    let (failed, all) = (failures.len(), cases.len());
    assert!(failures.is_empty(), "{failed} of {all} cases:\n{}", failures.join("\n"));
}
