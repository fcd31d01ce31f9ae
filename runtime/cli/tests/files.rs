//! Files that are not ours stay as they are, whatever a folder holds under the names that we use.
#![cfg(unix)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{pictures, put, run, secateur, texts};

const QUICK: [&str; 4] = ["--max-tokens", "4", "--dtype", "f32"];

fn caption(folder: &Path, args: &[&str]) -> (i32, String, String) {
    texts(&run(folder, &[&["caption"], args, &QUICK[..]].concat()))
}

/// A link (relative to the working folder) that stands where a file or folder of ours would be.
struct Trap {
    link: &'static str,
    to: &'static str,
    args: &'static [&'static str],
}

const TEXT: &[&str] = &["caption", "in"];
const MIRROR: &[&str] = &["caption", "in", "-r", "-o", "out"];
const LINES: &[&str] = &["caption", "in", "-o", "f.jsonl"];
const EVAL: &[&str] = &["eval", "in", "--out", "out", "--keep", "64", "--pruners", "grid"];

#[test]
fn a_link_in_place_of_a_file_of_ours_is_refused_by_name_and_not_followed() {
    for Trap { link, to, args } in [
        Trap { link: "in/.secateur/lock", to: "theirs/file", args: TEXT },
        Trap { link: "in/.secateur/journal.jsonl", to: "theirs/file", args: TEXT },
        Trap { link: "in/.secateur/journal.jsonl", to: "theirs/new", args: TEXT },
        Trap { link: "in/.secateur", to: "theirs", args: TEXT },
        Trap { link: "in/.000.txt.secateur-tmp", to: "theirs/file", args: TEXT },
        Trap { link: "in/.000.txt.secateur-tmp", to: "theirs/new", args: TEXT },
        Trap { link: "out/.secateur", to: "theirs", args: MIRROR },
        Trap { link: "out/sub", to: "theirs", args: MIRROR },
        Trap { link: "out/.secateur/lock", to: "theirs/file", args: MIRROR },
        Trap { link: ".f.jsonl.lock", to: "theirs/file", args: LINES },
        Trap { link: "f.jsonl", to: "theirs/lines.jsonl", args: LINES },
        Trap { link: "f.jsonl", to: "theirs/new", args: LINES },
        Trap { link: "out/.lock", to: "theirs/file", args: EVAL },
        Trap { link: "out/answers.jsonl", to: "theirs/lines.jsonl", args: EVAL },
        Trap { link: "out/.summary.json.secateur-tmp", to: "theirs/file", args: EVAL },
    ] {
        let folder = pictures(1);
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("in/sub")).unwrap();
        support::picture(3).save(at("in/sub/x.png")).unwrap();
        fs::create_dir(at("theirs")).unwrap();
        put(&at("theirs/file"), b"theirs");
        put(&at("theirs/lines.jsonl"), b"");
        fs::create_dir_all(at(link).parent().unwrap()).unwrap();
        symlink(at(to), at(link)).unwrap();
        let before = support::tree(&at("theirs"));
        let (code, _, err) = texts(&run(folder.path(), &[args, &["--max-tokens", "4"]].concat()));
        assert_eq!(code, 1, "{link}: {err}");
        let name = Path::new(link).file_name().unwrap().to_str().unwrap();
        assert!(err.contains(name) && err.contains("symbolic link"), "{link}: {err}");
        assert_eq!(support::tree(&at("theirs")), before, "{link} -> {to}");
        assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
    }
}

#[test]
fn a_hard_link_in_place_of_a_journal_is_refused() {
    for (link, args) in [
        ("in/.secateur/lock", &["in"][..]),
        ("in/.secateur/journal.jsonl", &["in"]),
        ("f.jsonl", &["in", "-o", "f.jsonl"]),
    ] {
        let folder = pictures(1);
        put(&folder.path().join("theirs"), b"");
        fs::create_dir_all(folder.path().join(link).parent().unwrap()).unwrap();
        fs::hard_link(folder.path().join("theirs"), folder.path().join(link)).unwrap();
        let (code, _, err) = caption(folder.path(), args);
        assert_eq!(code, 1, "{link}: {err}");
        assert!(err.contains("hard link"), "{link}: {err}");
        assert_eq!(fs::read(folder.path().join("theirs")).unwrap(), b"");
    }
}

#[test]
fn a_linked_root_that_was_typed_is_followed() {
    let folder = pictures(1);
    symlink("in", folder.path().join("typed")).unwrap();
    fs::create_dir(folder.path().join("real")).unwrap();
    symlink("real", folder.path().join("out")).unwrap();
    assert_eq!(caption(folder.path(), &["typed"]).0, 0);
    assert!(folder.path().join("in/000.txt").is_file());
    assert_eq!(caption(folder.path(), &["typed", "-o", "out"]).0, 0);
    assert!(folder.path().join("real/000.txt").is_file());
}

#[test]
fn a_text_file_that_is_a_link_is_replaced_by_overwrite_and_refused_by_append() {
    let folder = pictures(1);
    let at = |name: &str| folder.path().join(name);
    put(&at("theirs"), b"secret");
    symlink("../theirs", at("in/000.txt")).unwrap();
    let is_link = || fs::symlink_metadata(at("in/000.txt")).unwrap().is_symlink();
    assert_eq!(caption(folder.path(), &["in"]).0, 0);
    assert!(is_link());
    for mode in ["append", "prepend"] {
        let (code, _, err) = caption(folder.path(), &["in", "--on-existing", mode]);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("000.txt") && err.contains("symbolic link"), "{err}");
        assert!(is_link());
    }
    assert_eq!(caption(folder.path(), &["in", "--on-existing", "overwrite"]).0, 0);
    assert!(!is_link() && !fs::read_to_string(at("in/000.txt")).unwrap().contains("secret"));
    assert_eq!(fs::read(at("theirs")).unwrap(), b"secret");
}

#[test]
fn captions_do_not_leave_the_folder_through_a_link_that_is_followed_to_pictures() {
    let folder = pictures(1);
    fs::create_dir(folder.path().join("theirs")).unwrap();
    support::picture(4).save(folder.path().join("theirs/x.png")).unwrap();
    symlink("../theirs", folder.path().join("in/link")).unwrap();
    let (code, _, err) = caption(folder.path(), &["in", "-r", "--follow"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("link is a symbolic link") && err.contains("--output"), "{err}");
    assert_eq!(caption(folder.path(), &["in", "-r", "--follow", "-o", "out"]).0, 0);
    assert!(folder.path().join("out/link/x.txt").is_file());
    assert!(!folder.path().join("theirs/x.txt").exists());
}

#[test]
fn the_configuration_of_a_working_folder_does_not_say_what_is_run_or_written() {
    let folder = pictures(1);
    let file = folder.path().join("secateur.toml");
    for line in [
        "output = \"elsewhere\"",
        "extension = \".png\"",
        "on_existing = \"overwrite\"",
        "model = \"m\"",
        "encoder = \"x.onnx\"",
        "onnx_library = \"x.so\"",
        "mmproj = \"m.gguf\"",
        "recursive = true",
        "follow = true",
        "force = true",
        "prompt = \"@/etc/hostname\"",
        "prune = \"chain.toml\"",
        "max_pixels = \"1G\"",
    ] {
        put(&file, format!("[caption]\n{line}\n").as_bytes());
        let (code, _, err) = caption(folder.path(), &["in"]);
        let key = line.split(' ').next().unwrap();
        assert_eq!(code, 2, "{line}: {err}");
        for part in [&format!("secateur.toml: `{key}`"), "--config", "SECATEUR_", "config.toml"] {
            assert!(err.contains(part), "{line}: {err}");
        }
    }
    assert!(!folder.path().join("in/000.txt").exists());
    put(&file, b"[caption]\nextension = \".cap\"\n");
    // Naming the file says that it is meant.
    assert_eq!(caption(folder.path(), &["in", "--config", "secateur.toml"]).0, 0);
    assert!(folder.path().join("in/000.cap").is_file());
    put(
        &file,
        b"prompt = \"What is it?\"\nprune = \"grid:keep=64\"\n[caption]\nmax_pixels = 5000\n",
    );
    let (code, out, err) = caption(folder.path(), &["in", "-o", "-"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("grid:keep=64"), "{out}");
    // The user's own file says what it likes.
    fs::remove_file(&file).unwrap();
    fs::create_dir_all(folder.path().join(".config/secateur")).unwrap();
    put(&folder.path().join(".config/secateur/config.toml"), b"[caption]\nextension = \".own\"\n");
    assert_eq!(caption(folder.path(), &["in"]).0, 0);
    assert!(folder.path().join("in/000.own").is_file());
}

#[test]
fn an_output_that_is_removed_meanwhile_is_no_success() {
    for (args, sign) in
        [(["in", "-o", "out/c.jsonl"], "out/c.jsonl"), (["in", "-o", "out"], "out/000.txt")]
    {
        let folder = pictures(24);
        let child = secateur(folder.path())
            .arg("caption")
            .args(args)
            .args(QUICK)
            .args(["-b", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let sign = folder.path().join(sign);
        let patience = Instant::now();
        while fs::metadata(&sign).map_or(0, |m| m.len()) == 0 {
            assert!(patience.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(2));
        }
        while fs::remove_dir_all(folder.path().join("out")).is_err() {
            assert!(patience.elapsed() < Duration::from_secs(60));
        }
        let (code, _, err) = texts(&child.wait_with_output().unwrap());
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("removed or replaced") || err.contains("cannot write"), "{err}");
        assert!(!err.contains("captioned in"), "{err}");
    }
}

#[test]
fn a_pipe_given_by_name_is_a_record_and_no_wait() {
    let folder = pictures(1);
    for name in ["in/pipe.png", "in/pipe.mp4"] {
        let made = Command::new("mkfifo").arg(folder.path().join(name)).status().unwrap();
        assert!(made.success());
    }
    let args = ["in/000.png", "in/pipe.png", "in/pipe.mp4", "/dev/null", "-o", "-"];
    let (code, out, err) = caption(folder.path(), &args);
    assert_eq!(code, 3, "{err}");
    let records = support::records(&out);
    assert_eq!(records["in/000.png"]["status"], "ok");
    for name in ["in/pipe.png", "in/pipe.mp4", "/dev/null"] {
        assert_eq!(records[name]["status"], "error", "{name}");
    }
    let error = &records["in/pipe.png"]["error"];
    assert_eq!(error["kind"], "unsupported_format");
    assert!(error["message"].as_str().unwrap().contains("not a regular file"), "{error}");
    // In a folder it is none of the pictures.
    assert_eq!(caption(folder.path(), &["in"]).0, 0);
}

#[test]
fn a_pipe_among_the_files_of_a_model_is_an_error_and_no_wait() {
    let folder = pictures(1);
    fs::create_dir(folder.path().join("m")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        let made = Command::new("mkfifo").arg(folder.path().join("m").join(name)).status().unwrap();
        assert!(made.success());
    }
    let (code, _, err) = caption(folder.path(), &["in", "-m", "m"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("m/config.json") && err.contains("regular file"), "{err}");
}

#[test]
fn a_picture_of_a_folder_that_is_not_there_fails_alone_and_makes_no_folder() {
    let folder = pictures(1);
    let (code, _, err) = caption(folder.path(), &["gone/x.png", "in/000.png"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("1 picture captioned") && err.contains("not_found"), "{err}");
    assert!(folder.path().join("in/000.txt").is_file() && !folder.path().join("gone").exists());
}
