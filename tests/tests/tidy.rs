//! House rules that no compiler checks.

use std::path::Path;

use secateur_tests::workspace_files;

/// Longer files are one concept only by this word.
const LONG: &[&str] = &[];
const MOST_LINES: usize = 700;

fn sources(ending: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    workspace_files()
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == ending))
        .map(|p| {
            let text = std::fs::read_to_string(root.join(&p)).expect("text");
            (p.display().to_string(), text)
        })
        .collect()
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent: Vec<String> = sources("rs")
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "no `//!` header: {silent:?}");
}

#[test]
fn no_file_is_longer_than_one_concept() {
    let long: Vec<String> = sources("rs")
        .into_iter()
        .filter(|(path, text)| !LONG.contains(&path.as_str()) && text.lines().count() > MOST_LINES)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines: {long:?}");
}

#[test]
fn names_say_what_a_thing_is() {
    let banned = ["Manager", "Helper", "Utils", "Handler"];
    let mut found = Vec::new();
    for (path, text) in sources("rs") {
        if path.ends_with("tidy.rs") {
            continue;
        }
        for (i, line) in text.lines().enumerate() {
            let defines = ["struct ", "enum ", "trait ", "mod "].iter().any(|k| line.contains(k));
            if defines && banned.iter().any(|b| line.contains(b)) {
                found.push(format!("{path}:{}", i + 1));
            }
        }
    }
    assert!(found.is_empty(), "vague names: {found:?}");
}

#[test]
fn no_machine_path_is_in_the_tree() {
    let mut found = Vec::new();
    for ending in ["rs", "md", "toml", "py", "json", "yml", "sh"] {
        for (path, text) in sources(ending) {
            if path.ends_with("tidy.rs") {
                continue;
            }
            for folder in ["work", "root", "home"] {
                let bad = format!("/{folder}/");
                if text.contains(&bad) {
                    found.push(format!("{path}: {bad}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "machine paths: {found:?}");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME")];
    let found: Vec<String> = sources("rs")
        .into_iter()
        .filter(|(_, text)| marks.iter().any(|m| text.contains(m)))
        .map(|(path, _)| path)
        .collect();
    assert!(found.is_empty(), "unfinished: {found:?}");
}
