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

/// What transformers 5.24 with torchcodec 0.17 makes of the committed clips.
#[cfg(feature = "video")]
mod golden {
    use super::*;

    fn at(name: &str) -> String {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        golden.join(name).to_str().expect("a path").to_owned()
    }

    fn answer(args: &[&str]) -> serde_json::Value {
        let folder = tempfile::tempdir().expect("a folder");
        let all = [&["ask", "--json", "--dtype", "f32", "--max-tokens", "16"], args].concat();
        let (code, out, err) = texts(&run(folder.path(), &all));
        assert_eq!(code, 0, "{args:?}: {err}");
        serde_json::from_str(&out).expect("JSON")
    }

    fn visual(args: &[&str]) -> u64 {
        answer(args)["report"]["visual_in"].as_u64().expect("a number")
    }

    #[test]
    fn a_bt709_frame_is_the_picture_that_pyav_decodes() {
        let model = at("models/llava-1.5-tiny");
        for name in ["bt709", "bt601"] {
            let (video, picture) =
                (at(&format!("videos/{name}.mp4")), at(&format!("videos/{name}.png")));
            let one = ["--sampling", "uniform", "--max-frames", "1"];
            let video = answer(&[&["-m", &model, "-i", &video, "hello"][..], &one].concat());
            let picture = answer(&["-m", &model, "-i", &picture, "hello"]);
            assert_eq!(video["ids"], picture["ids"], "{name}");
        }
    }

    #[test]
    fn policies_count_the_frames_that_are_shown() {
        let model = at("models/qwen3-vl-tiny");
        let of = |name: &str| visual(&["-m", &model, "-i", &at(name), "hi"]);
        assert_eq!(of("videos/edited.mp4"), 12, "frames 0 17 34 52 69 86");
        assert_eq!(of("videos/dropped.avi"), 12, "frames 0 4 7 11 14 18");
    }

    #[test]
    fn times_are_printed_as_python_prints_the_quotient() {
        let model = at("models/qwen3-vl-tiny");
        let got = answer(&["-m", &model, "-i", &at("videos/ten.mp4"), "hi"]);
        let right =
            [305, 115, 332, 134, 145, 145, 145, 145, 148, 100, 371, 413, 304, 304, 304, 304];
        assert_eq!(got["ids"], serde_json::json!(right));
    }

    #[test]
    fn the_folder_of_the_model_says_which_frames_are_taken() {
        let (smol, minute) = (at("models/smolvlm-tiny"), at("videos/minute.mp4"));
        assert_eq!(visual(&["-m", &smol, "-i", &minute, "hi"]), 32, "max_frames is 8");
        let folder = tempfile::tempdir().unwrap();
        let ten = at("videos/ten.mp4");
        let with = |family: &str, key: &str, value: serde_json::Value| {
            let copy = folder.path().join(format!("{family}-{key}-{value}"));
            fs::create_dir(&copy).unwrap();
            for entry in fs::read_dir(at(&format!("models/{family}"))).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
            let file = copy.join("video_preprocessor_config.json");
            let mut config: serde_json::Value =
                serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            config[key] = value;
            put(&file, &serde_json::to_vec(&config).unwrap());
            visual(&["-m", copy.to_str().unwrap(), "-i", &ten, "hi"])
        };
        let qwen = at("models/qwen3-vl-tiny");
        let by_flag = visual(&["-m", &qwen, "--fps", "4", "-i", &ten, "hi"]);
        assert_eq!(by_flag, 24, "12 frames, 6 pairs of 4");
        assert_eq!(with("qwen3-vl-tiny", "fps", 4.into()), by_flag);
        assert_eq!(with("qwen3-vl-tiny", "max_frames", 4.into()), 8);
        assert_eq!(with("qwen3-vl-tiny", "num_frames", 8.into()), 16);
        let every = visual(&["-m", &qwen, "--fps", "10", "-i", &ten, "hi"]);
        assert_eq!(with("qwen3-vl-tiny", "do_sample_frames", false.into()), every);
        let of_frame = with("internvl-tiny", "num_frames", 1.into());
        // One newline behind thirty frames.
        assert_eq!(with("llava-onevision-tiny", "do_sample_frames", false.into()) % 30, 1);
        assert!(of_frame > 0);
    }

    #[test]
    fn trace_tokens_and_inspect_take_video_files() {
        let folder = tempfile::tempdir().unwrap();
        let (model, ten) = (at("models/qwen3-vl-tiny"), at("videos/ten.mp4"));
        let run_ok = |args: &[&str]| {
            let (code, out, err) = texts(&run(folder.path(), args));
            assert_eq!(code, 0, "{args:?}: {err}");
            out
        };
        let counted = run_ok(&["tokens", "-m", &model, "-i", &ten, "--json"]);
        let counted: serde_json::Value = serde_json::from_str(&counted).unwrap();
        assert_eq!(counted["pictures"][0]["tokens"], 12);
        let fewer = run_ok(&["tokens", "-m", &model, "-i", &ten, "--fps", "1", "--json"]);
        let fewer: serde_json::Value = serde_json::from_str(&fewer).unwrap();
        assert_eq!(fewer["pictures"][0]["tokens"], 8, "the fewest are 4 frames");
        run_ok(&["trace", "-m", &model, "-i", &ten, "-p", "hi", "-o", "t.safetensors"]);
        let bytes = fs::read(folder.path().join("t.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let head: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        assert!(head.get("video_grid_thw").is_some(), "{head}");
        run_ok(&["inspect", "-m", &model, "-i", &ten, "--max-tokens", "2", "-o", "map.png"]);
        assert!(folder.path().join("map.png").is_file());
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
