//! `eval`, `tune` and `calibrate` through the real program, on the built-in model.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn eval_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/embedded/eval")
}

fn secateur(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_secateur"))
        .args(args)
        .env_clear()
        .output()
        .expect("the program starts")
}

fn ok(args: &[&str]) -> String {
    let output = secateur(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {:?}\n{error}", output.status);
    String::from_utf8(output.stdout).expect("results are text")
}

fn text(path: &Path) -> String {
    path.to_str().expect("temporary folders have plain names").to_owned()
}

/// A folder with copies of a few pictures of the committed set.
fn pictures(count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for i in 0..count {
        let name = format!("{i:04}.png");
        std::fs::copy(eval_folder().join(&name), folder.path().join(&name)).expect("a copy");
    }
    folder
}

#[test]
fn eval_compares_chains_and_a_second_run_asks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(folder.path());
    let questions = text(&eval_folder().join("questions.jsonl"));
    let args = [
        "eval",
        "--questions",
        &questions,
        "--pruners",
        "vtc_cls,fastv,vla_pruner",
        "--keep",
        "64,16",
        "--limit",
        "4",
        "--seeds",
        "2",
        "--out",
        &out,
    ];
    let table = ok(&args);
    for name in ["none", "vtc_cls", "fastv", "vla_pruner", "random", "grid", "pool"] {
        assert!(table.contains(name), "{name} in\n{table}");
    }
    let log = folder.path().join("answers.jsonl");
    let answers = std::fs::read_to_string(&log).unwrap();
    // A head line; one unpruned run, three pruners, two seeds, two more baselines at two budgets.
    assert_eq!(answers.lines().count(), 1 + 4 * (1 + 2 * (3 + 2 + 2)));
    let svg = std::fs::read_to_string(folder.path().join("score.svg")).unwrap();
    assert!(svg.contains(">vtc_cls<") && folder.path().join("score.png").is_file());
    let summary = std::fs::read_to_string(folder.path().join("summary.md")).unwrap();
    assert!(summary.contains("| `pool` |") && summary.contains("By task at 16 tokens"));

    // Times differ from run to run; counts do not, and nothing is asked again.
    assert_eq!(ok(&args), table);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), answers);
    let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(answers.len() as u64 - 20).unwrap();
    ok(&args);
    let again = std::fs::read_to_string(&log).unwrap();
    assert_eq!(again.lines().count(), answers.lines().count());
}

#[test]
fn eval_of_a_folder_measures_agreement() {
    let (pictures, folder) = (pictures(2), tempfile::tempdir().unwrap());
    let (dir, out) = (text(pictures.path()), text(folder.path()));
    let output = secateur(&[
        "eval",
        &dir,
        "--chains",
        "grid:keep={keep}",
        "vtc_cls:keep=200",
        "vtc_cls:keep=256",
        "--keep",
        "16",
        "--out",
        &out,
        "--json",
        "--max-tokens",
        "24",
    ]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    // Seven runs of two questions: the unpruned model, two chains, three seeds, `pool`; the chain
    // that keeps everything is not asked.
    assert!(error.contains("2 pictures encoded, 12 answers from the same rows"), "{error}");
    let json = String::from_utf8(output.stdout).expect("results are text");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let of = |name: &str| rows.iter().find(|r| r["name"] == name).unwrap();
    assert_eq!(of("none")["same"]["mean"], 1.0);
    assert_eq!(of("vtc_cls:keep=256")["words"]["mean"], 1.0);
    assert_eq!(of("grid")["visual_mean"], 16.0);
    assert!(of("grid")["score"].is_null());
}

#[test]
fn a_line_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("q.jsonl");
    std::io::Write::write_all(&mut std::fs::File::create(&file).unwrap(), b"{\"id\": 1}\n")
        .unwrap();
    let output = secateur(&["eval", "--questions", &text(&file), "--out", &text(folder.path())]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("q.jsonl, line 1: no `image`"), "{error}");
}

#[test]
fn tune_goes_on_where_it_was_stopped_and_writes_a_chain() {
    let (pictures, folder) = (pictures(4), tempfile::tempdir().unwrap());
    let (dir, out) = (text(pictures.path()), text(folder.path()));
    let run = |evals: &str| {
        ok(&[
            "tune", "--images", &dir, "--keep", "0.1", "--evals", evals, "--limit", "2", "--out",
            &out,
        ])
    };
    run("2");
    let said = run("5");
    assert!(said.contains("held out:"), "{said}");
    let log = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
    let tried = log.lines().filter(|l| l.contains("\"eval\":")).count();
    assert_eq!(tried, 5);
    assert!(log.lines().last().unwrap().contains("\"holdout\""));
    assert!(folder.path().join("search.png").is_file());
    let chain = text(&folder.path().join("chain.toml"));
    assert!(ok(&["explain", "--prune", &chain]).contains("vflowopt"));
}

#[test]
fn calibrate_writes_a_trend_that_a_chain_can_name() {
    let folder = tempfile::tempdir().unwrap();
    // A hundred pictures, as the command advises: a curve of a few need not be positive.
    let dir = text(&eval_folder());
    for form in ["exp", "cubic"] {
        let file = folder.path().join(format!("{form}.toml"));
        let said = ok(&[
            "calibrate",
            "--images",
            &dir,
            "--layer",
            "1",
            "--form",
            form,
            "--out",
            &text(&file),
        ]);
        assert!(said.contains("trend={kind="), "{said}");
        assert!(file.with_extension("png").is_file());
        let chain = format!("fastv:layer=1:keep=16:debias={{trend={{file={}}}}}", text(&file));
        assert!(ok(&["explain", "--prune", &chain]).contains("fastv"));
    }
}
