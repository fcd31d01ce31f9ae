//! `caption` through the real program: outputs, resuming, modes, exit codes.

mod support;

use std::fs;

use support::{pictures, put, records, run, secateur, texts, tree};

const QUICK: [&str; 4] = ["--max-tokens", "6", "--dtype", "f32"];

fn caption(folder: &tempfile::TempDir, args: &[&str]) -> (i32, String, String) {
    let mut all = vec!["caption"];
    all.extend(args);
    all.extend(QUICK);
    texts(&run(folder.path(), &all))
}

#[test]
fn captions_land_beside_the_pictures_and_on_stdout() {
    let folder = pictures(3);
    let (code, out, err) = caption(&folder, &["in"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.lines().count(), 3);
    for i in 0..3 {
        let text = fs::read_to_string(folder.path().join(format!("in/00{i}.txt"))).unwrap();
        assert!(text.ends_with('\n') && text.trim().len() > 1, "{text:?}");
        assert!(out.contains(&format!("in/00{i}.png  {}", text.trim())), "{out}");
    }
    for word in ["3 pictures captioned", "prefill", "visual tokens a picture"] {
        assert!(err.contains(word), "{err}");
    }
}

#[test]
fn a_second_run_has_nothing_to_do() {
    let folder = pictures(3);
    assert_eq!(caption(&folder, &["in"]).0, 0);
    let before = tree(folder.path());
    let (code, out, err) = caption(&folder, &["in"]);
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("3 done before"), "{err}");
    assert_eq!(tree(folder.path()), before);
}

#[test]
fn json_lines_go_to_stdout_when_asked_for() {
    let folder = pictures(2);
    let (code, out, _) = caption(&folder, &["in", "--format", "jsonl"]);
    assert_eq!(code, 0);
    let records = records(&out);
    assert_eq!(records.keys().collect::<Vec<_>>(), ["000.png", "001.png"]);
    let first = &records["000.png"];
    assert_eq!(first["schema"], "secateur.caption/1");
    assert_eq!(first["status"], "ok");
    assert_eq!(first["image"]["width"], 48);
    assert_eq!(first["tokens"]["visual_kept"], serde_json::json!([]));
    // Nothing was left behind.
    assert_eq!(tree(folder.path()).len(), 2);
    assert!(!folder.path().join("in/.secateur").exists());
}

#[test]
fn a_chain_shows_in_the_records() {
    let folder = pictures(1);
    let (code, out, err) = caption(&folder, &["in", "-o", "-", "--prune", "vtc_cls:keep=32"]);
    assert_eq!(code, 0, "{err}");
    let record = &records(&out)["000.png"];
    assert_eq!(record["prune"], "vtc_cls:keep=32");
    assert_eq!(record["tokens"]["visual_kept"][0]["kept"], 32);
}

#[test]
fn a_mirror_of_the_tree_is_made_below_the_output() {
    let folder = pictures(1);
    fs::create_dir(folder.path().join("in/sub")).unwrap();
    support::picture(5).save(folder.path().join("in/sub/x.png")).unwrap();
    let (code, _, err) = caption(&folder, &["in", "-r", "-o", "out", "--extension", "cap"]);
    assert_eq!(code, 0, "{err}");
    assert!(folder.path().join("out/000.cap").is_file());
    assert!(folder.path().join("out/sub/x.cap").is_file());
    assert!(!folder.path().join("in/000.cap").exists());
}

#[test]
fn modes_for_what_exists() {
    let folder = pictures(1);
    let text = folder.path().join("in/000.txt");
    put(&text, b"mine\n");
    let read = || fs::read_to_string(&text).unwrap();
    assert_eq!(caption(&folder, &["in"]).0, 0);
    assert_eq!(read(), "mine\n");

    let (code, _, err) = caption(&folder, &["in", "--on-existing", "error"]);
    assert_eq!(code, 1);
    assert!(err.contains("have a caption already"), "{err}");

    assert_eq!(caption(&folder, &["in", "--on-existing", "append", "--separator", " | "]).0, 0);
    let joined = read();
    assert!(joined.starts_with("mine | ") && joined.len() > 9, "{joined}");
    // Once per picture and settings.
    assert_eq!(caption(&folder, &["in", "--on-existing", "append", "--separator", " | "]).0, 0);
    assert_eq!(read(), joined);
    // Other settings are another caption.
    let (code, ..) = caption(&folder, &["in", "--on-existing", "prepend", "--seed", "7"]);
    assert_eq!(code, 0);
    assert!(read().ends_with(&joined) && read().len() > joined.len());

    assert_eq!(caption(&folder, &["in", "--on-existing", "overwrite"]).0, 0);
    let fresh = read();
    assert!(!fresh.contains("mine"));
    put(&text, b"edited\n");
    // Made with these settings: done, whatever was edited since.
    assert_eq!(caption(&folder, &["in", "--on-existing", "overwrite"]).0, 0);
    assert_eq!(read(), "edited\n");
}

#[test]
fn other_settings_are_told_and_redone_only_when_asked() {
    let folder = pictures(2);
    assert_eq!(caption(&folder, &["in", "-o", "c.jsonl"]).0, 0);
    let other = ["in", "-o", "c.jsonl", "--prompt", "What colours are there?"];
    let (code, _, err) = caption(&folder, &other);
    assert_eq!(code, 0);
    assert!(err.contains("2 captions made with other settings stay"), "{err}");
    let (code, ..) = caption(&folder, &[&other[..], &["--on-existing", "overwrite"]].concat());
    assert_eq!(code, 0);
    let text = fs::read_to_string(folder.path().join("c.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 2, "replaced lines are compacted away");
}

#[test]
fn one_bad_file_is_a_record_and_not_the_end() {
    let folder = pictures(3);
    put(&folder.path().join("in/001.png"), b"<html>not a picture</html>");
    let (code, out, err) = caption(&folder, &["in", "--format", "jsonl"]);
    assert_eq!(code, 3, "{err}");
    let records = records(&out);
    assert_eq!(records["000.png"]["status"], "ok");
    assert_eq!(records["002.png"]["status"], "ok");
    assert_eq!(records["001.png"]["error"]["kind"], "unsupported_format");
    assert!(err.contains("1 x unsupported_format"), "{err}");
}

#[test]
fn failures_are_left_out_until_retried_or_changed() {
    let folder = pictures(2);
    let bad = folder.path().join("in/001.png");
    put(&bad, b"nothing");
    assert_eq!(caption(&folder, &["in"]).0, 3);
    let (code, out, err) = caption(&folder, &["in"]);
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.contains("--retry-failed"), "{err}");
    support::picture(1).save(&bad).unwrap();
    let (code, out, _) = caption(&folder, &["in"]);
    assert_eq!((code, out.lines().count()), (0, 1));
}

#[test]
fn a_job_stops_at_the_failures_asked_for() {
    let folder = pictures(1);
    for i in 1..9 {
        put(&folder.path().join(format!("in/00{i}.png")), b"bad");
    }
    let (code, ..) = caption(&folder, &["in", "--format", "jsonl", "-b", "1", "--fail-fast"]);
    assert_eq!(code, 4);
    let most = ["in", "--format", "jsonl", "-b", "1", "--max-failures", "3"];
    let (code, out, _) = caption(&folder, &most);
    assert_eq!((code, records(&out).len()), (4, 5));
}

#[test]
fn nothing_selected_is_fine_unless_it_must_not_be() {
    let folder = pictures(0);
    let (code, out, err) = caption(&folder, &["in"]);
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("no picture"), "{err}");
    assert_eq!(caption(&folder, &["in", "--error-on-empty"]).0, 1);
    assert_eq!(caption(&folder, &["gone.png"]).0, 2);
}

#[test]
fn paths_come_from_stdin_too() {
    use std::io::Write;
    use std::process::Stdio;
    let folder = pictures(3);
    let mut child = secateur(folder.path())
        .args(["caption", "-", "-0", "--format", "jsonl"])
        .args(QUICK)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"in/002.png\0in/000.png\0").unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(records(&text).keys().collect::<Vec<_>>(), ["in/000.png", "in/002.png"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = pictures(2);
    let before = tree(folder.path());
    let (code, out, err) = caption(&folder, &["in", "--dry-run"]);
    assert_eq!((code, out.as_str()), (0, "000.png\n001.png\n"));
    assert!(err.contains("2 to caption"), "{err}");
    assert_eq!(tree(folder.path()), before);
    assert!(!folder.path().join("in/.secateur").exists());
}

#[test]
fn two_pictures_with_one_caption_file_are_refused() {
    let folder = pictures(1);
    support::picture(1).save(folder.path().join("in/000.jpg")).unwrap();
    let (code, _, err) = caption(&folder, &["in"]);
    assert_eq!(code, 2);
    assert!(err.contains("000.jpg") && err.contains("000.png"), "{err}");
    assert_eq!(caption(&folder, &["in", "--format", "jsonl"]).0, 0);
}

#[test]
fn batches_and_their_size_change_no_caption() {
    let folder = pictures(5);
    let mut seen = Vec::new();
    for size in ["1", "2", "5"] {
        let (code, out, _) = caption(&folder, &["in", "--format", "jsonl", "-b", size, "-j", "3"]);
        assert_eq!(code, 0);
        seen.push(records(&out));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

#[test]
fn the_openai_shape_is_written_and_resumed() {
    let folder = pictures(2);
    let args = ["in", "-o", "m.jsonl", "--messages"];
    assert_eq!(caption(&folder, &args).0, 0);
    let text = fs::read_to_string(folder.path().join("m.jsonl")).unwrap();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let message = &value["response"]["body"]["choices"][0]["message"];
        assert!(message["content"].as_str().is_some_and(|c| !c.is_empty()));
        assert!(value["custom_id"].as_str().is_some_and(|c| c.ends_with(".png")));
    }
    let (code, _, err) = caption(&folder, &args);
    assert_eq!(code, 0);
    assert!(err.contains("2 done before"), "{err}");
}

#[test]
fn a_torn_last_line_is_made_again() {
    let folder = pictures(3);
    assert_eq!(caption(&folder, &["in", "-o", "c.jsonl"]).0, 0);
    let path = folder.path().join("c.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    put(&path, &whole.as_bytes()[..whole.len() - 20]);
    assert_eq!(caption(&folder, &["in", "-o", "c.jsonl"]).0, 0);
    assert_eq!(records(&fs::read_to_string(&path).unwrap()), records(&whole));
}

#[test]
fn control_characters_are_cleaned_for_people_and_kept_in_files() {
    let folder = pictures(0);
    let name = "in/a\u{1b}[31mb.png";
    support::picture(1).save(folder.path().join(name)).unwrap();
    let (code, out, _) = caption(&folder, &["in"]);
    assert_eq!(code, 0);
    assert!(!out.contains('\u{1b}') && out.contains("\\u{1b}[31mb.png"), "{out:?}");
    let (_, out, _) = caption(&folder, &["in", "--format", "jsonl"]);
    assert!(records(&out).contains_key("a\u{1b}[31mb.png"));
}

#[cfg(unix)]
#[test]
fn a_path_that_is_no_text_is_percent_encoded() {
    use std::os::unix::ffi::OsStrExt;
    let folder = pictures(0);
    let name = std::ffi::OsStr::from_bytes(b"in/\xffx.png");
    fs::copy(
        {
            let plain = folder.path().join("plain.png");
            support::picture(1).save(&plain).unwrap();
            plain
        },
        folder.path().join(name),
    )
    .unwrap();
    let (code, out, _) = caption(&folder, &["in", "--format", "jsonl"]);
    assert_eq!(code, 0);
    let record = &records(&out)["%FFx.png"];
    assert_eq!(record["path_encoding"], "percent");
}
