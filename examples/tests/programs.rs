//! Every program of this crate runs to its end and says what it is there to say. Answers of the
//! built-in model are left open: they change with its weights.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

/// What a program prints, line by line.
fn lines(program: &str, args: &[&str]) -> Vec<String> {
    let ended = Command::new(program).args(args).output().unwrap();
    let err = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{program}: {err}");
    String::from_utf8(ended.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn ask_prints_an_answer_and_its_cost() {
    let out = lines(env!("CARGO_BIN_EXE_ask"), &[]);
    assert!(out[0].trim().len() > 5, "{out:?}");
    assert!(out[1].starts_with("64 of 256 visual tokens, "), "{out:?}");
}

#[test]
fn batch_answers_every_picture_under_its_own_chain() {
    let out = lines(env!("CARGO_BIN_EXE_batch"), &[]);
    let pictures = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/images")).unwrap();
    let pictures = pictures.filter(|e| {
        let path = e.as_ref().unwrap().path();
        path.extension().is_some_and(|e| e == "png" || e == "jpg")
    });
    assert_eq!(out.len(), pictures.count());
    let kept = ["[256 of 256 tokens, none]", "[64 of 256 tokens, vtc_cls:keep=64]"];
    for (line, kept) in out.iter().zip(kept) {
        assert!(line.contains(kept), "{line}");
    }
}

#[test]
fn a_pruner_of_ones_own_stands_in_a_chain() {
    let out = lines(env!("CARGO_BIN_EXE_custom_pruner"), &[]);
    let row = |name: &str| out.iter().find(|l| l.starts_with(name)).unwrap();
    assert!(row("centre").contains("256 -> 64"), "{out:?}");
    assert!(row("fastv").contains("64 -> 32"), "{out:?}");
}

#[test]
fn a_pruner_of_ones_own_reaches_every_command() {
    const PROGRAM: &str = env!("CARGO_BIN_EXE_own_command");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    // Two pictures are enough.
    let images = at("images");
    std::fs::create_dir(&images).unwrap();
    let (cat, square) = (at("images/cat.jpg"), at("images/square.png"));
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/images");
    std::fs::copy(format!("{ours}/photo-cat.jpg"), &cat).unwrap();
    std::fs::copy(format!("{ours}/word-so-blue-circle.png"), &square).unwrap();

    let out = lines(PROGRAM, &["pruners"]);
    assert!(out.iter().any(|l| l.starts_with("centre ")), "{out:?}");
    assert!(out.iter().any(|l| l.starts_with("vtc_cls ")), "{out:?}");
    let out = lines(PROGRAM, &["pruners", "centre"]);
    assert!(out[0] == "centre", "{out:?}");
    let out = lines(PROGRAM, &["explain", "--prune", "centre:keep=64:across=2.0"]);
    assert!(out.iter().any(|l| l.contains("centre") && l.contains("256 -> 64")), "{out:?}");
    let out = lines(PROGRAM, &["ask", &cat, "What?", "--prune", "centre:keep=16"]);
    assert!(!out.concat().trim().is_empty());

    let records = at("captions.jsonl");
    let chain = ["--prune", "centre:keep=32"];
    lines(
        PROGRAM,
        &[&["caption", &images, "-o", &records, "--max-tokens", "4"], &chain[..]].concat(),
    );
    let text = std::fs::read_to_string(&records).unwrap();
    assert_eq!(text.matches(r#""prune":"centre:keep=32""#).count(), 2, "{text}");

    let map = at("map.html");
    lines(PROGRAM, &[&["inspect", "-i", &square, "--out", &map], &chain[..]].concat());
    assert!(std::fs::read_to_string(&map).unwrap().contains("centre"));

    let (scores, tuned) = (at("eval"), at("tune"));
    let eval = ["eval", &images, "--pruners", "centre", "--keep", "64", "--seeds", "1"];
    let out = lines(PROGRAM, &[&eval[..], &["--max-tokens", "4", "--out", &scores]].concat());
    assert!(out.iter().any(|l| l.contains("centre")), "{out:?}");
    let ranges = "centre:across={across:0.25..4}:keep={keep}";
    let tune = ["tune", "--pruner", ranges, "--keep", "64", "--images", &images, "--evals", "3"];
    lines(PROGRAM, &[&tune[..], &["--prompt", "What?", "--out", &tuned]].concat());
    let chain = std::fs::read_to_string(format!("{tuned}/chain.toml")).unwrap();
    assert!(chain.contains("centre") && chain.contains("keep = 64"), "{chain}");
}

#[test]
fn a_deadline_that_has_passed_is_told() {
    let out = lines(env!("CARGO_BIN_EXE_deadline"), &["0"]);
    assert!(out[0].contains("deadline"), "{out:?}");
    let out = lines(env!("CARGO_BIN_EXE_deadline"), &["600000"]);
    assert!(out[0].starts_with("in time: "), "{out:?}");
}
