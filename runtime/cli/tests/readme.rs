//! Every command that the README prints works as printed, in that order, in a folder that holds what
//! the README speaks of.
//!
//! Commands that download run against a hub of our own in `hub.rs`; those that need a feature run in
//! builds that have it. `SECATEUR_FULL=1` runs the slow ones too.
#![cfg(unix)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Commands that something else runs, and what.
const ELSEWHERE: &[(&str, &str)] = &[
    ("cargo test --workspace", "`.ci/run`"),
    ("cargo install --path", "the user's own folder of programs"),
    ("cargo build --release --features", "`.ci/run`"),
    ("-m HuggingFaceTB/", "`hub.rs`, against a hub of its own"),
    ("models HuggingFaceTB/", "`hub.rs`, against a hub of its own"),
    ("--encoder tower.onnx", "`onnx.rs`"),
    ("--adapter ./adapter", "`adapter.rs`"),
    ("export ORT_DYLIB_PATH", "`.ci/run`"),
];

/// Commands that take minutes in a build for tests.
const SLOW: &[&str] = &["secateur eval "];

/// Commands of films.
const VIDEO: &[&str] = &["caption films", "scans --frames", "film.mp4"];

fn has(command: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| command.contains(part))
}

/// Copies the files of a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
}

/// A folder with what the README's commands name.
fn prepared() -> tempfile::TempDir {
    let folder = support::pictures(0);
    let at = |name: &str| folder.path().join(name);
    let repository = support::repository();
    let golden = repository.join("tests/golden");
    copy(&repository.join("examples/images"), &at("examples/images"));
    copy(&golden.join("models/llava-1.5-tiny"), &at("model"));
    fs::create_dir_all(at("models/embedded/eval")).expect("a folder");
    copy(&repository.join("models/embedded/eval"), &at("models/embedded/eval"));
    for photos in ["photos", "scans/one"] {
        fs::create_dir_all(at(photos)).expect("a folder");
        for i in 0..3 {
            support::picture(4).save(at(photos).join(format!("{i}.png"))).expect("a picture");
        }
    }
    fs::copy(repository.join("examples/images/photo-cat.jpg"), at("cat.jpg")).expect("a copy");
    let pair = golden.join("gguf/smolvlm-tiny");
    for (from, to) in [
        ("model.gguf", "Qwen2.5-VL-3B-Instruct-Q4_K_M.gguf"),
        ("mmproj.gguf", "mmproj-Qwen2.5-VL-3B-Instruct.gguf"),
        ("model.gguf", "model.gguf"),
        ("mmproj.gguf", "projector.gguf"),
    ] {
        fs::copy(pair.join(from), at(to)).expect("a copy");
    }
    fs::create_dir_all(at("films")).expect("a folder");
    for film in ["films/a.mp4", "film.mp4"] {
        fs::copy(golden.join("videos/ten.mp4"), at(film)).expect("a copy");
    }
    // `secateur` is on the path, and `cargo run --release --` is that program.
    fs::create_dir_all(at("bin")).expect("a folder");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_secateur"), at("bin/secateur")).expect("a link");
    support::put(
        &at("bin/cargo"),
        b"#!/bin/sh\n[ \"$1 $2 $3\" = 'run --release --' ] || exit 90\nshift 3\nexec secateur \"$@\"\n",
    );
    fs::set_permissions(at("bin/cargo"), fs::Permissions::from_mode(0o755)).expect("permissions");
    folder
}

#[test]
fn the_readmes_commands_work_as_printed() {
    let folder = prepared();
    let commands = support::readme_commands();
    assert!(commands.len() > 15, "the README prints commands: {commands:?}");
    for (part, by) in ELSEWHERE {
        assert!(commands.iter().any(|c| c.contains(part)), "no command {part} is left for {by}");
    }
    let mut failed = Vec::new();
    for command in &commands {
        if ELSEWHERE.iter().any(|(part, _)| command.contains(part))
            || has(command, VIDEO) && cfg!(not(feature = "video"))
            || has(command, SLOW) && std::env::var_os("SECATEUR_FULL").is_none()
        {
            continue;
        }
        let path = format!("{}:/usr/bin:/bin", folder.path().join("bin").display());
        let ran = Command::new("sh")
            .args(["-c", command])
            .current_dir(folder.path())
            .env_clear()
            .envs([("PATH", path.as_str()), ("SECATEUR_THREADS", "1")])
            .env("HOME", folder.path())
            .output()
            .expect("a shell");
        if !ran.status.success()
            || ran.stdout.is_empty() && !command.contains(" --out ") && !command.contains(" -o ")
        {
            failed.push(format!(
                "{command}: {:?} {}",
                ran.status,
                String::from_utf8_lossy(&ran.stderr)
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    for made in ["map.html", "map.png", "captions.jsonl"] {
        assert!(folder.path().join(made).is_file(), "{made} was not made");
    }
}

#[test]
fn the_readmes_links_lead_somewhere() {
    let repository = support::repository();
    let readme = fs::read_to_string(repository.join("README.md")).expect("the README");
    let headings: Vec<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    for part in readme.split("](").skip(1) {
        let target = part.split(')').next().unwrap_or_default();
        match target.strip_prefix('#') {
            Some(heading) => {
                assert!(headings.iter().any(|h| h == heading), "no heading #{heading}")
            }
            None if target.starts_with("http") => {}
            None => assert!(repository.join(target).exists(), "the README's link {target}"),
        }
    }
}
