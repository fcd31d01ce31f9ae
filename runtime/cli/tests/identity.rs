//! One picture is one item, whatever was typed to reach it, and two pictures are two.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{picture, pictures, put, run, secateur, texts};

const QUICK: [&str; 4] = ["--max-tokens", "4", "--dtype", "f32"];

fn caption(folder: &Path, args: &[&str]) -> (i32, String, String) {
    texts(&run(folder, &[&["caption"], args, &QUICK[..]].concat()))
}

/// Folders `a` and `b` that both hold an `x.png`, of other content.
fn two() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (i, name) in ["a", "b"].iter().enumerate() {
        fs::create_dir(folder.path().join(name)).unwrap();
        picture(i as u32).save(folder.path().join(name).join("x.png")).unwrap();
    }
    folder
}

/// A folder `p` with `p/top.png` and `p/sub/x.png`.
fn nested() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("p/sub")).unwrap();
    picture(1).save(folder.path().join("p/top.png")).unwrap();
    picture(2).save(folder.path().join("p/sub/x.png")).unwrap();
    folder
}

fn lines(folder: &Path, name: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn two_folders_with_the_same_names_are_two_pictures_in_one_file() {
    let folder = two();
    for root in ["a", "b"] {
        let (code, _, err) = caption(folder.path(), &[root, "-o", "all.jsonl"]);
        assert_eq!(code, 0, "{err}");
        assert!(err.contains("1 picture captioned"), "{err}");
    }
    let (_, _, err) = caption(folder.path(), &["a", "b", "-o", "all.jsonl"]);
    assert!(err.contains("0 pictures captioned") && err.contains("2 done before"), "{err}");
    // Made anew, each replaces its own line.
    let args = ["b", "-o", "all.jsonl", "--seed", "3", "--on-existing", "overwrite"];
    assert_eq!(caption(folder.path(), &args).0, 0);
    let lines = lines(folder.path(), "all.jsonl");
    let root = |name: &str| folder.path().canonicalize().unwrap().join(name);
    let seed = |name: &str| {
        let of_root = |l: &&serde_json::Value| l["file"]["root"] == root(name).to_str().unwrap();
        lines.iter().find(of_root).map(|l| l["seed"].clone())
    };
    assert_eq!((lines.len(), seed("a"), seed("b")), (2, Some(0.into()), Some(3.into())));
}

#[test]
fn one_file_reached_by_two_roots_is_one_picture() {
    let folder = nested();
    let here = folder.path().join("p");
    let here = here.to_str().unwrap();
    std::os::unix::fs::symlink("p", folder.path().join("q")).unwrap();
    for args in [&["-r", "p"][..], &["p/sub"], &["-r", here], &["p/sub/x.png"], &["-r", "q"]] {
        let (code, _, err) = caption(folder.path(), &[args, &["-o", "all.jsonl"]].concat());
        assert_eq!(code, 0, "{err}");
        assert_eq!(lines(folder.path(), "all.jsonl").len(), 2, "{args:?}");
    }
    let (code, out, _) = caption(folder.path(), &["-r", "p", "q", "p/sub", here, "-o", "-"]);
    assert_eq!((code, out.lines().count()), (0, 2));
}

#[test]
fn two_folders_with_the_same_names_collide_in_an_output_folder_before_anything_runs() {
    let folder = two();
    assert_eq!(caption(folder.path(), &["a", "-o", "out"]).0, 0);
    let before = support::tree(folder.path());
    for mode in ["skip", "overwrite", "append"] {
        let (code, _, err) = caption(folder.path(), &["b", "-o", "out", "--on-existing", mode]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("a/x.png") && err.contains("b/x.png"), "{err}");
    }
    assert_eq!(support::tree(folder.path()), before);
    // Named together they have a place each, and the one that is done stays.
    let (code, _, err) = caption(folder.path(), &["a", "b", "-o", "out"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("1 picture captioned") && err.contains("1 done before"), "{err}");
    assert!(folder.path().join("out/b/x.txt").is_file());
}

#[test]
fn pictures_that_differ_in_their_ending_collide_across_runs_too() {
    let folder = two();
    picture(9).save(folder.path().join("a/x.jpg")).unwrap();
    assert_eq!(caption(folder.path(), &["a", "--exclude", "*.jpg"]).0, 0);
    let (code, _, err) = caption(folder.path(), &["a", "--exclude", "*.png"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("x.png") && err.contains("x.jpg"), "{err}");
    // The picture was converted: what is left takes the file over.
    fs::remove_file(folder.path().join("a/x.png")).unwrap();
    assert_eq!(caption(folder.path(), &["a"]).0, 0);
}

#[test]
fn a_folder_that_was_moved_goes_on() {
    for output in [&["-o", "all.jsonl"][..], &["-o", "out"], &[]] {
        let folder = pictures(3);
        assert_eq!(caption(folder.path(), &[&["in"], output].concat()).0, 0);
        fs::rename(folder.path().join("in"), folder.path().join("moved")).unwrap();
        let (code, _, err) = caption(folder.path(), &[&["moved"], output].concat());
        assert_eq!(code, 0, "{err}");
        assert!(err.contains("0 pictures captioned") && err.contains("3 done before"), "{err}");
    }
}

#[test]
fn a_picture_that_changed_is_redone_under_overwrite_and_reported_under_skip() {
    for output in [&["-o", "all.jsonl"][..], &["-o", "out"], &[]] {
        let folder = pictures(3);
        let run = |more: &[&str]| {
            let (code, _, err) = caption(folder.path(), &[&["in"], output, more].concat());
            assert_eq!(code, 0, "{err}");
            err
        };
        run(&[]);
        picture(9).save(folder.path().join("in/001.png")).unwrap();
        // Touched, and the same.
        let bytes = fs::read(folder.path().join("in/002.png")).unwrap();
        put(&folder.path().join("in/002.png"), &bytes);
        for mode in ["skip", "append"] {
            let err = run(&["--on-existing", mode]);
            assert!(
                err.contains("0 pictures captioned") && err.contains("1 picture changed"),
                "{err}"
            );
        }
        assert!(run(&["--on-existing", "overwrite"]).contains("1 picture captioned"));
        assert!(run(&["--on-existing", "overwrite"]).contains("0 pictures captioned"));
        assert!(run(&["--force"]).contains("3 pictures captioned"));
    }
}

#[test]
fn append_runs_once_an_item_whatever_root_is_typed() {
    for roots in [[&["-r", "p"][..], &["p/sub"]], [&["p/sub"], &["-r", "p"]]] {
        for output in [&[][..], &["-o", "out"], &["-o", "all.jsonl"]] {
            let folder = nested();
            put(&folder.path().join("p/sub/x.txt"), b"mine");
            let mode = ["--on-existing", "append", "--separator", "|"];
            for root in roots.iter().chain(&roots) {
                let args = [*root, output, &mode].concat();
                let (code, _, err) = caption(folder.path(), &args);
                assert_eq!(code, 0, "{err}");
            }
            let all: Vec<u8> = support::tree(folder.path())
                .into_iter()
                .filter(|(name, _)| name.extension().is_some_and(|e| e == "txt" || e == "jsonl"))
                .flat_map(|(_, bytes)| bytes)
                .collect();
            let joins = all.iter().filter(|&&b| b == b'|').count();
            // Beside the picture stands a text of the user; elsewhere nothing does.
            assert_eq!(joins, usize::from(output.is_empty()), "{roots:?} {output:?}");
        }
    }
}

#[test]
fn two_endings_are_two_captions_and_neither_forgets_what_it_was_joined_to() {
    let folder = two();
    put(&folder.path().join("a/x.txt"), b"mine");
    let mode = ["--on-existing", "append", "--separator", "|"];
    let txt = [&["a"], &mode[..]].concat();
    let cap = [&["a", "--extension", "cap", "--seed", "4"], &mode[..]].concat();
    for args in [&txt, &cap, &txt, &cap] {
        assert_eq!(caption(folder.path(), args).0, 0);
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("a/x.txt").matches('|').count(), 1);
    assert_eq!(read("a/x.cap").matches('|').count(), 0);
}

#[test]
fn two_writers_on_a_folder_and_on_a_part_of_it_are_refused() {
    for (first, second, lock) in [
        (["-r", "p"].as_slice(), ["p/sub"].as_slice(), "p/.secateur/lock"),
        (&["p/sub"], &["-r", "p"], "p/sub/.secateur/lock"),
    ] {
        let folder = nested();
        for i in 0..60 {
            picture(i).save(folder.path().join(format!("p/sub/{i:03}.png"))).unwrap();
        }
        let mut child = secateur(folder.path())
            .arg("caption")
            .args(first)
            .args(QUICK)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lock = folder.path().join(lock);
        let patience = Instant::now();
        while fs::metadata(&lock).map_or(0, |m| m.len()) == 0 {
            assert!(patience.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(2));
        }
        let (code, _, err) = caption(folder.path(), second);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(&format!("process {}", child.id())), "{err}");
    }
}

#[test]
fn records_of_an_earlier_version_are_read_and_kept() {
    let folder = two();
    assert_eq!(caption(folder.path(), &["a", "-o", "all.jsonl"]).0, 0);
    let mut line = lines(folder.path(), "all.jsonl").remove(0);
    line.as_object_mut().unwrap().remove("file");
    put(&folder.path().join("all.jsonl"), format!("{line}\n").as_bytes());
    let (code, _, err) = caption(folder.path(), &["a", "-o", "all.jsonl"]);
    assert_eq!(code, 0);
    assert!(err.contains("earlier version") && err.contains("1 done before"), "{err}");
    assert_eq!(lines(folder.path(), "all.jsonl"), [line]);
}

#[test]
fn media_that_are_not_read_are_counted_and_said() {
    let folder = pictures(1);
    for name in ["a.heic", "b.HEIC", "c.cr3", "notes.txt", "d.json"] {
        put(&folder.path().join("in").join(name), b"");
    }
    let (code, _, err) = caption(folder.path(), &["in"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("skipped 3: .heic 2") && err.contains(".cr3 1"), "{err}");
    fs::remove_file(folder.path().join("in/000.png")).unwrap();
    let (_, _, err) = caption(folder.path(), &["in"]);
    assert!(err.contains("no picture found") && err.contains("skipped 3"), "{err}");
}

#[test]
fn an_output_that_looks_like_a_table_is_an_error() {
    let folder = pictures(1);
    for name in ["x.csv", "x.json", "x.txt"] {
        let (code, _, err) = caption(folder.path(), &["in", "-o", name]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(name) && err.contains("FILE.jsonl"), "{err}");
        assert!(!folder.path().join(name).exists());
    }
    assert_eq!(caption(folder.path(), &["in", "-o", "x.csv/"]).0, 0);
    assert!(folder.path().join("x.csv/000.txt").is_file());
}

#[test]
fn a_job_that_stops_says_how_many_were_not_tried_and_a_timeout_names_its_picture() {
    let folder = pictures(0);
    for i in 0..9 {
        put(&folder.path().join(format!("in/{i}.png")), b"bad");
    }
    let most = ["in", "-o", "-", "-b", "1", "--max-failures", "3"];
    let (code, _, err) = caption(folder.path(), &most);
    assert_eq!(code, 4);
    assert!(err.contains("stopped by --max-failures 3; 5 not tried"), "{err}");
    let (_, _, err) = caption(folder.path(), &["in", "-o", "-", "-b", "1", "--fail-fast"]);
    assert!(err.contains("stopped by --fail-fast; 8 not tried"), "{err}");

    let folder = pictures(1);
    let (code, out, err) = caption(folder.path(), &["in", "-o", "-", "--item-timeout", "1ms"]);
    assert_eq!(code, 3, "{err}");
    let record = &support::records(&out)["000.png"];
    assert_eq!(record["error"]["kind"], "timeout");
    assert!(record["error"]["message"].as_str().unwrap().contains("in/000.png"), "{record}");
}
