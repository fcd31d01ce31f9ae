//! Whole runs equal the reference: every tensor of every case in `golden/open`.
//!
//! The cases were made by transformers and by the papers' released code on tiny random models.
//! `CASE=words` runs those whose name contains the words. A case's tolerance is the largest
//! `max|a - b| / max|b|` of a float tensor in f32; integers must be equal.

use std::collections::BTreeMap;
use std::path::Path;

use secateur::ChainSpec;
use secateur_tests::open::{Case, read_case, run};
use secateur_tests::{Golden, difference, golden, tensors};

/// Runs all cases that `CASE` selects; `model` gives the model of a case, or `None` to pass it by.
fn check_all(model: impl Fn(&Case) -> Option<String>) {
    let filter = std::env::var("CASE").unwrap_or_default();
    let mut names: Vec<_> = std::fs::read_dir(golden().join("open"))
        .expect("golden cases")
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.to_string_lossy().contains(&filter))
        .collect();
    names.sort();
    let (mut failures, mut ran) = (Vec::new(), 0);
    for folder in names {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut case = read_case(&name);
        let Some(model) = model(&case) else { continue };
        case.model = model;
        ran += 1;
        match run(&folder, &case) {
            Err(error) => failures.push(format!("{name}: {error}")),
            Ok(got) => {
                let want = tensors(&folder.join("expected.safetensors"));
                let wrong: Vec<String> = want
                    .iter()
                    .filter_map(|(tensor, value)| difference(tensor, value, &got, case.tolerance))
                    .collect();
                if !wrong.is_empty() {
                    failures.push(format!("{name}:\n    {}", wrong.join("\n    ")));
                }
            }
        }
    }
    assert!(ran > 0, "no case matches CASE={filter}");
    assert!(failures.is_empty(), "{} of {ran} cases:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn whole_runs_equal_the_reference() {
    check_all(|case| Some(case.model.clone()));
}

/// The same models as GGUF pairs, from llama.cpp's own converter where it reads the tiny model (the
/// Qwen families, the decoder of LLaVA, the tower of SmolVLM) and else written as it writes them.
#[test]
fn whole_runs_of_gguf_pairs_equal_the_reference() {
    let pairs = tempfile::tempdir().expect("a folder");
    // Pixel budgets and the side of Qwen2.5-VL's windows are in no GGUF file: those of the tiny
    // models lie beside it.
    let beside = ["preprocessor_config.json", "video_preprocessor_config.json"];
    for entry in std::fs::read_dir(golden().join("gguf")).expect("pairs").flatten() {
        let name = entry.file_name();
        let (from, to) = (golden().join("models").join(&name), pairs.path().join(&name));
        std::fs::create_dir_all(&to).expect("a folder");
        for file in ["model.gguf", "mmproj.gguf"] {
            std::fs::copy(entry.path().join(file), to.join(file)).expect("a copy");
        }
        let windows = (name == "qwen2.5-vl-tiny").then_some("config.json");
        for file in beside.into_iter().chain(windows) {
            if from.join(file).is_file() {
                std::fs::copy(from.join(file), to.join(file)).expect("a copy");
            }
        }
    }
    check_all(|case| {
        let model = pairs.path().join(Path::new(&case.model).file_name()?).join("model.gguf");
        model.is_file().then(|| model.display().to_string())
    });
}

/// What transformers says when its language model is given the rows that a pruner kept, with their
/// positions: made by `tests/check_pruned.py` from the dense cases.
#[test]
fn pruned_runs_equal_the_reference_on_the_kept_rows() {
    let all = tensors(&golden().join("pruned.safetensors"));
    let mut runs: BTreeMap<(&str, &str), Vec<(&str, &Golden)>> = BTreeMap::new();
    for (key, tensor) in &all {
        let parts: Vec<&str> = key.split('|').collect();
        let [case, chain, name] = parts[..] else { panic!("{key}: expected CASE|CHAIN|NAME") };
        runs.entry((case, chain)).or_default().push((name, tensor));
    }
    assert!(runs.len() >= 70, "{} runs", runs.len());
    let mut failures = Vec::new();
    for ((name, chain), want) in runs {
        let mut case = read_case(name);
        case.spec = Some(ChainSpec::parse(chain).expect("a chain"));
        case.preprocessing_backend = None;
        case.ignore_eos = true;
        case.max_new_tokens = 5;
        match run(&golden().join("open").join(name), &case) {
            Err(error) => failures.push(format!("{name}, {chain}: {error}")),
            Ok(got) => failures.extend(want.iter().filter_map(|(tensor, want)| {
                let wrong = difference(tensor, want, &got, case.tolerance)?;
                Some(format!("{name}, {chain}: {wrong}"))
            })),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
