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
fn a_deadline_that_has_passed_is_told() {
    let out = lines(env!("CARGO_BIN_EXE_deadline"), &["0"]);
    assert!(out[0].contains("deadline"), "{out:?}");
    let out = lines(env!("CARGO_BIN_EXE_deadline"), &["600000"]);
    assert!(out[0].starts_with("in time: "), "{out:?}");
}
