//! Videos through the real program. The clips are made here by the `ffmpeg` command from the
//! example pictures; without it, or without the feature `video`, tests skip and say so, unless
//! `SECATEUR_REQUIRE` names `video`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{put, records, run, skipped, texts};

const PICTURES: [&str; 2] = ["black-ring-orange-star.png", "blue-triangle-red-cross.png"];

/// The example pictures as frames of one size: `f9.png`, `f10.png`, ...
fn frames(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images");
    for (i, name) in PICTURES.iter().enumerate() {
        let picture = image::open(examples.join(name)).expect("an example picture");
        let small = picture.resize_exact(128, 128, image::imageops::FilterType::Triangle);
        small.save(folder.join(format!("f{}.png", i + 9))).expect("a picture");
    }
}

/// Makes a video of the frames, a second each at four frames a second.
fn film(folder: &Path, name: &str, codec: &[&str]) -> Option<PathBuf> {
    let path = folder.join(name);
    let made = cfg!(feature = "video")
        && Command::new("ffmpeg")
            .args(["-hide_banner", "-loglevel", "error", "-y", "-framerate", "1"])
            .args(["-start_number", "9", "-i"])
            .arg(folder.join("frames/f%d.png"))
            .args(["-vf", "fps=4", "-pix_fmt", "yuv420p"])
            .args(codec)
            .arg(&path)
            .status()
            .is_ok_and(|status| status.success());
    if !made {
        skipped("video", &format!("{name}: no ffmpeg command, or a build without `video`"));
    }
    made.then_some(path)
}

#[test]
fn an_mp4_and_a_webm_are_captioned_and_broken_ones_are_records() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    frames(&at("frames"));
    let front = ["-c:v", "libx264", "-movflags", "+faststart"];
    let Some(mp4) = film(folder.path(), "a.mp4", &front) else { return };
    let Some(webm) = film(folder.path(), "b.webm", &["-c:v", "libvpx-vp9", "-b:v", "400k"]) else {
        return;
    };
    for (path, name) in [(&mp4, "cut.mp4"), (&webm, "cut.webm")] {
        let bytes = fs::read(path).unwrap();
        put(&at(name), &bytes[..bytes.len() * 3 / 4]);
    }
    put(&at("text.mp4"), b"this is no video at all");
    put(&at("empty.mp4"), b"");
    let args = ["caption", ".", "--format", "jsonl", "--max-tokens", "24"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!(code, 3, "{err}");
    let records = records(&out);
    for name in ["a.mp4", "b.webm"] {
        let record = &records[name];
        assert_eq!(record["status"], "ok", "{record}");
        assert!(record["image"]["frames"].as_u64().unwrap() >= 2, "{record}");
        assert!(record["caption"].as_str().unwrap().len() > 8, "{record}");
    }
    for (name, word) in [
        ("cut.mp4", "expected 8 frames"),
        ("cut.webm", "expected"),
        ("text.mp4", "expected a whole video"),
        ("empty.mp4", "expected a picture or a video"),
    ] {
        let message = records[name]["error"]["message"].as_str().unwrap();
        assert!(message.contains(name) && message.contains(word), "{message}");
    }
    // Other frames are other settings.
    let print = |flags: &[&str]| {
        let all = [&["caption", "a.mp4", "--format", "jsonl"][..], flags].concat();
        let (code, out, err) = texts(&run(folder.path(), &all));
        assert_eq!(code, 0, "{err}");
        let record = support::records(&out).remove("a.mp4").unwrap();
        (record["fingerprint"].clone(), record["image"]["frames"].clone())
    };
    let (two, three) = (
        print(&["--sampling", "uniform", "--max-frames", "2"]),
        print(&["--sampling", "uniform", "--max-frames", "3"]),
    );
    assert_ne!(two.0, three.0);
    assert_eq!((two.1, three.1), (2.into(), 3.into()));
    assert_eq!(print(&["--sampling", "scenes"]).1, 2);
    // More than the context holds names the flag.
    let most = ["ask", "-i", "a.mp4", "--fps", "4", "--max-frames", "8", "What is it?"];
    let (code, _, err) = texts(&run(folder.path(), &most));
    assert_eq!(code, 1);
    assert!(err.contains("--max-frames") && err.contains("2048"), "{err}");
}

#[test]
fn a_folder_of_frames_is_one_video() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["films/one", "films/two"] {
        frames(&folder.path().join(name));
    }
    let args = ["caption", "films", "--frames", "--max-tokens", "8"];
    let (code, _, err) = texts(&run(folder.path(), &args));
    assert_eq!(code, 0, "{err}");
    for name in ["films/one.txt", "films/two.txt"] {
        assert!(fs::read_to_string(folder.path().join(name)).unwrap().len() > 2);
    }
    let ask = |extra: &[&str]| {
        let all = [&["ask", "Describe the image.", "--json", "--dtype", "f32"][..], extra].concat();
        let (code, out, err) = texts(&run(folder.path(), &all));
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["ids"].clone()
    };
    // `f9` before `f10`: as pictures in that order.
    let frames = ask(&["--frames", "films/one"]);
    assert_eq!(frames, ask(&["-i", "films/one/f9.png", "-i", "films/one/f10.png"]));
    assert_eq!(
        ask(&["--frames", "films/one", "--max-frames", "1"]),
        ask(&["-i", "films/one/f9.png"])
    );
}

#[test]
fn a_folder_that_is_no_video_says_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    for (path, word) in [("empty", "expected pictures"), ("gone", "expected a folder")] {
        let (code, _, err) = texts(&run(folder.path(), &["ask", "What?", "--frames", path]));
        assert_ne!(code, 0);
        assert!(err.contains(path) && err.contains(word), "{err}");
    }
}

#[cfg(not(feature = "video"))]
#[test]
fn without_the_feature_a_named_video_is_refused_and_a_found_one_left_out() {
    let folder = support::pictures(1);
    put(&folder.path().join("in/film.mp4"), b"whatever");
    let (code, out, _) = texts(&run(folder.path(), &["caption", "in", "--dry-run"]));
    assert_eq!(code, 0);
    assert!(!out.contains("film"), "{out}");
    let args = ["caption", "in/film.mp4", "--format", "jsonl"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!(code, 3, "{err}");
    assert!(out.contains("without the feature `video`"), "{out}");
}
