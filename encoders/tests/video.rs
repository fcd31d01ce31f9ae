//! Video files through FFmpeg. The clips are made here by the `ffmpeg` command; a machine without
//! it skips, and says so.
#![cfg(feature = "video")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skip says why")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use secateur_core::error::InputError;
use secateur_encoders::image::Limits;
use secateur_encoders::processors::sampling::Policy;
use secateur_encoders::video::{Sampling, VideoOptions, frames, load};

const FPS: usize = 10;

/// Frame `i`: grey level 10 i, its left half brighter by 60; at a cut the level jumps.
fn picture(i: usize, width: usize, height: usize) -> Vec<u8> {
    let level = if i < 12 { 5 * i } else { 120 + 5 * (i - 12) };
    (0..height)
        .flat_map(|_| (0..width).map(move |x| level + if x < width / 2 { 60 } else { 0 }))
        .flat_map(|v| [v as u8; 3])
        .collect()
}

/// Encodes `count` frames with the arguments given; `None` if there is no such command or codec.
fn clip(
    folder: &Path,
    name: &str,
    count: usize,
    size: (usize, usize),
    arguments: &[&str],
) -> Option<PathBuf> {
    let path = folder.join(name);
    let child = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"])
        .args(["-s", &format!("{}x{}", size.0, size.1), "-r", &FPS.to_string(), "-i", "-"])
        .args(arguments)
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default().contains("video");
    assert!(child.is_ok() || !required, "video is required: there is no ffmpeg command");
    let mut child = child.ok()?;
    let mut pipe = child.stdin.take().unwrap();
    for i in 0..count {
        pipe.write_all(&picture(i, size.0, size.1)).ok()?;
    }
    drop(pipe);
    let made = child.wait().unwrap().success() && path.is_file();
    assert!(made || !required, "video is required: ffmpeg cannot make {name}");
    if !made {
        eprintln!("skipped: ffmpeg cannot make {name}");
    }
    made.then_some(path)
}

fn uniform(count: usize) -> VideoOptions {
    VideoOptions {
        sampling: Sampling::Policy(Policy::Uniform { frames: count }),
        ..VideoOptions::default()
    }
}

#[test]
fn lossless_frames_come_back_bit_for_bit_with_their_times() {
    let folder = tempfile::tempdir().unwrap();
    // An odd width pads the decoder's rows.
    let size = (83, 46);
    let Some(path) = clip(folder.path(), "a.mov", 20, size, &["-c:v", "png"]) else { return };
    let all: Vec<_> = frames(&path, &Limits::default()).unwrap().map(Result::unwrap).collect();
    assert_eq!(all.len(), 20);
    for (i, frame) in all.iter().enumerate() {
        assert_eq!(&frame.rgb[..], picture(i, size.0, size.1), "frame {i}");
        assert!((frame.time_s.unwrap() - i as f64 / FPS as f64).abs() < 1e-3, "frame {i}");
    }
    let clip = load(&path, &uniform(4)).unwrap();
    let times: Vec<f64> = clip.frames().iter().map(|f| f.time_s.unwrap()).collect();
    for (got, want) in times.iter().zip([0.0, 0.5, 1.0, 1.5]) {
        assert!((got - want).abs() < 1e-3, "{times:?}");
    }
    let info = clip.video().unwrap();
    assert!(
        (info.fps.unwrap() - 2.0).abs() < 1e-6 && (info.duration_s.unwrap() - 2.0).abs() < 1e-6
    );
}

#[test]
fn every_container_gives_every_frame_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let kinds: [(&str, &[&str]); 4] = [
        ("a.mp4", &["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "2"]),
        ("a.webm", &["-c:v", "libvpx-vp9", "-b:v", "200k"]),
        ("a.mkv", &["-c:v", "libx264", "-pix_fmt", "yuv420p"]),
        ("a.avi", &["-c:v", "mpeg4", "-q:v", "2"]),
    ];
    for (name, arguments) in kinds {
        let Some(path) = clip(folder.path(), name, 20, (64, 48), arguments) else { continue };
        let source = frames(&path, &Limits::default()).unwrap();
        assert_eq!(source.count_hint(), 20, "{name}");
        let all: Vec<_> = source.map(Result::unwrap).collect();
        let times: Vec<f64> = all.iter().map(|f| f.time_s.unwrap()).collect();
        assert_eq!(all.len(), 20, "{name}: {times:?}");
        for (i, frame) in all.iter().enumerate() {
            let want = picture(i, 64, 48)[(24 * 64 + 48) * 3];
            let got = frame.rgb[(24 * 64 + 48) * 3];
            assert!(got.abs_diff(want) < 24, "{name}, frame {i}: {got} for {want}");
            let time = frame.time_s.unwrap();
            assert!((time - i as f64 / FPS as f64).abs() < 0.02, "{name}, frame {i}: {times:?}");
        }
        let clip = load(&path, &VideoOptions::default()).unwrap();
        assert_eq!(clip.frames().len(), 4, "{name}: two frames a second of two seconds");
    }
}

#[test]
fn rotation_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let Some(plain) = clip(folder.path(), "plain.mp4", 4, (64, 32), &["-c:v", "png", "-f", "mov"])
    else {
        return;
    };
    let turned = folder.path().join("turned.mp4");
    let made = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-y", "-i"])
        .arg(&plain)
        .args(["-c", "copy", "-metadata:s:v", "rotate=90", "-f", "mov"])
        .arg(&turned)
        .status()
        .unwrap();
    assert!(made.success());
    let clip = load(&turned, &uniform(1)).unwrap();
    assert_eq!((clip.width(), clip.height()), (32, 64));
    // The bright left half comes to lie above, or below, as the turn goes; a player shows it so.
    let level = |y: usize| clip.frames()[0].rgb[(y * 32 + 16) * 3];
    let shown = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-i"])
        .arg(&turned)
        .args(["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
        .output()
        .unwrap()
        .stdout;
    assert_eq!(shown.len(), 32 * 64 * 3);
    assert_eq!((level(8), level(56)), (shown[(8 * 32 + 16) * 3], shown[(56 * 32 + 16) * 3]));
}

#[test]
fn scenes_are_the_frames_after_cuts() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = clip(folder.path(), "a.mov", 20, (64, 48), &["-c:v", "png"]) else { return };
    let sampling = Sampling::Scenes { max_frames: 8, threshold: 20.0 };
    let clip = load(&path, &VideoOptions { sampling, ..VideoOptions::default() }).unwrap();
    let times: Vec<f64> = clip.frames().iter().map(|f| f.time_s.unwrap()).collect();
    assert_eq!(times.len(), 2, "{times:?}");
    assert!((times[1] - 1.2).abs() < 1e-3, "the level jumps at frame 12: {times:?}");
}

#[test]
fn times_of_a_variable_rate_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let rate =
        ["-c:v", "png", "-vf", "setpts='N*N/10/TB'", "-vsync", "vfr", "-enc_time_base", "1/1000"];
    let Some(path) = clip(folder.path(), "a.mov", 5, (32, 32), &rate) else { return };
    let all: Vec<_> = frames(&path, &Limits::default()).unwrap().map(Result::unwrap).collect();
    let times: Vec<f64> = all.iter().map(|f| f.time_s.unwrap()).collect();
    for (i, time) in times.iter().enumerate() {
        assert!((time - (i * i) as f64 / 10.0).abs() < 0.02, "{times:?}");
    }
}

#[test]
fn broken_files_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let options = VideoOptions::default();
    let missing = load(&folder.path().join("no.mp4"), &options).unwrap_err();
    assert!(matches!(missing, InputError::NotFound { .. }), "{missing}");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    };
    let empty = load(&write("empty.mp4", b""), &options).unwrap_err();
    assert!(matches!(empty, InputError::Empty { .. }), "{empty}");
    let text = load(&write("text.mp4", b"this is no video at all"), &options).unwrap_err();
    assert!(matches!(text, InputError::Corrupt { .. }), "{text}");
    let arguments = ["-c:v", "libx264", "-pix_fmt", "yuv420p"];
    let Some(whole) = clip(folder.path(), "whole.mp4", 20, (64, 48), &arguments) else { return };
    let bytes = std::fs::read(&whole).unwrap();
    // The index of an mp4 stands at its end.
    let cut = load(&write("cut.mp4", &bytes[..bytes.len() / 2]), &options).unwrap_err();
    assert!(matches!(cut, InputError::Corrupt { .. }), "{cut}");
    for at in (0..bytes.len()).step_by(97) {
        let mut broken = bytes.clone();
        broken[at] ^= 0xFF;
        let _ = load(&write("broken.mp4", &broken), &options);
    }
    let small = VideoOptions { max_bytes: 1000, ..options };
    let error = load(&whole, &small).unwrap_err();
    assert!(matches!(error, InputError::TooLarge { .. }), "{error}");
    let limits = Limits { max_pixels: 100, ..Limits::default() };
    let error = load(&whole, &VideoOptions { limits, ..options }).unwrap_err();
    assert!(error.to_string().contains("max_pixels"), "{error}");
}
