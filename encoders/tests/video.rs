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

/// Raw RGB pictures of `size` through the command; `None` as [`clip`].
fn film(folder: &Path, name: &str, source: &[&str], arguments: &[&str]) -> Option<PathBuf> {
    let path = folder.join(name);
    let made = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-y"])
        .args(source)
        .args(arguments)
        .arg(&path)
        .status()
        .is_ok_and(|status| status.success());
    let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default().contains("video");
    assert!(made || !required, "video is required: ffmpeg cannot make {name}");
    if !made {
        eprintln!("skipped: ffmpeg cannot make {name}");
    }
    made.then_some(path)
}

/// Committed clips; their pixels and numbers are those of PyAV 18.1 and torchcodec 0.17.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/videos").join(name)
}

#[test]
fn a_frame_has_the_pixels_that_pyav_and_torchcodec_give() {
    for name in ["bt709", "bt601"] {
        let clip = load(&golden(&format!("{name}.mp4")), &uniform(1)).unwrap();
        let right = image::open(golden(&format!("{name}.png"))).unwrap().to_rgb8();
        let frame = &clip.frames()[0];
        assert_eq!((frame.width, frame.height), right.dimensions(), "{name}");
        let worst = frame.rgb.iter().zip(right.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(1), "{name}: {worst:?}");
    }
}

/// Flat bars of colour, written with each matrix and range, come back as they were: an error of
/// the matrix is up to 35 levels, one of the range up to 20; the way to YUV and back at most 5.
#[test]
fn matrix_and_range_are_those_that_the_stream_names() {
    const BARS: [[u8; 3]; 6] =
        [[200, 30, 40], [30, 190, 50], [40, 60, 200], [210, 200, 30], [128; 3], [20, 200, 210]];
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("bars.rgb");
    let row: Vec<u8> = BARS.iter().flat_map(|bar| [*bar; 16]).flatten().collect();
    std::fs::File::create(&raw).unwrap().write_all(&row.repeat(32)).unwrap();
    let size = format!("{}x32", 16 * BARS.len());
    let input = raw.to_str().unwrap();
    let source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", &size, "-r", "1", "-i", input];
    let matrices = [
        ("bt601", "smpte170m"),
        ("bt709", "bt709"),
        ("bt2020", "bt2020nc"),
        ("smpte240m", "smpte240m"),
        ("fcc", "fcc"),
    ];
    let formats = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"];
    let mut cases: Vec<(String, Vec<String>)> = Vec::new();
    for (matrix, tag) in matrices {
        for range in ["tv", "pc"] {
            for format in formats {
                let scale = format!("scale=out_color_matrix={matrix}:out_range={range}");
                let filter = format!("{scale},format={format}");
                let tags = ["-colorspace", tag, "-color_range", range];
                let arguments = ["-vf", &filter, "-c:v", "ffv1"].into_iter().chain(tags);
                let name = format!("{matrix}-{range}-{format}.mkv");
                cases.push((name, arguments.map(str::to_owned).collect()));
            }
        }
    }
    for (name, format) in [("full-by-format.avi", "yuvj420p"), ("untagged.mkv", "yuv420p")] {
        let codec: &[&str] =
            if format == "yuvj420p" { &["-c:v", "mjpeg", "-q:v", "1"] } else { &["-c:v", "ffv1"] };
        let filter = format!("scale=out_color_matrix=bt601,format={format}");
        let arguments = ["-vf", &filter].into_iter().chain(codec.iter().copied());
        cases.push((name.to_owned(), arguments.map(str::to_owned).collect()));
    }
    for (name, arguments) in cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let Some(path) = film(folder.path(), &name, &source, &arguments) else { return };
        let clip = load(&path, &uniform(1)).unwrap();
        for (i, bar) in BARS.iter().enumerate() {
            let at = (16 * 16 * BARS.len() + 16 * i + 8) * 3;
            let got = &clip.frames()[0].rgb[at..at + 3];
            let worst = got.iter().zip(bar).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 6, "{name}: {got:?} for {bar:?}");
        }
    }
}

/// Frames that are shown, frames a second and seconds as torchcodec tells them.
#[test]
fn frames_that_are_not_shown_are_not_counted() {
    let options = VideoOptions::default();
    for (name, count, fps, seconds) in [
        ("edited.mp4", 87, 25.0, 3.48),
        ("dropped.avi", 19, 19.0 / 3.0, 3.0),
        ("ten.mp4", 30, 10.0, 3.0),
        ("minute.mp4", 61, 1.0, 61.0),
    ] {
        let source = frames(&golden(name), &options.limits).unwrap();
        assert_eq!((source.count_hint(), source.fps()), (count, fps), "{name}");
        let all: Vec<_> = source.map(Result::unwrap).collect();
        assert_eq!((all.len(), all[0].time_s), (count, Some(0.0)), "{name}");
        let clip = load(&golden(name), &options).unwrap();
        assert_eq!(clip.video().unwrap().duration_s, Some(seconds), "{name}");
    }
    let all: Vec<_> = frames(&golden("ten.mp4"), &options.limits).unwrap().collect();
    assert_eq!(all[17].as_ref().unwrap().time_s, Some(1.7), "17408 units of 1/10240 s");
}

#[test]
fn the_kinds_of_files_that_people_have_are_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let x264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "2", "-g", "10"];
    let source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10"];
    let Some(base) = film(folder.path(), "base.mp4", &source, &[&x264[..], &["-t", "3"]].concat())
    else {
        return;
    };
    let base = base.to_str().unwrap();
    let copy = ["-c", "copy"];
    let whole = ["-i", base];
    let three = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=3"];
    let late = ["-itsoffset", "1.5", "-i", base];
    let cut = ["-ss", "0.73", "-i", base];
    let held = "setpts='if(eq(N,9),N+30,N)/10/TB'";
    let dropped = "select='not(between(n,3,5))*not(gte(n,27))'";
    let mpeg4 = ["-t", "3", "-c:v", "mpeg4", "-q:v", "3"];
    // Name, where from, how, frames, seconds; as PyAV and torchcodec find them.
    type Case<'a> = (&'a str, &'a [&'a str], Vec<&'a str>, usize, f64);
    let cases: Vec<Case<'_>> = vec![
        ("start-cut.mp4", &cut, copy.to_vec(), 22, 2.2),
        ("late.mp4", &late, copy.to_vec(), 30, 3.0),
        (
            "fragments.mp4",
            &whole,
            [&copy[..], &["-movflags", "frag_keyframe+empty_moov"]].concat(),
            30,
            3.0,
        ),
        ("b-frames.avi", &source, [&mpeg4[..], &["-bf", "2"]].concat(), 30, 3.0),
        ("b-frames-h264.avi", &source, [&x264[..], &["-t", "3"]].concat(), 30, 3.0),
        (
            "dropped.avi",
            &three,
            [&mpeg4[..], &["-vf", dropped, "-fps_mode", "passthrough"]].concat(),
            24,
            2.7,
        ),
        (
            "held.mp4",
            &source,
            [&x264[..], &["-frames:v", "10", "-vf", held, "-fps_mode", "vfr"]].concat(),
            10,
            4.0,
        ),
        (
            "held.mkv",
            &source,
            [&x264[..], &["-frames:v", "10", "-vf", held, "-fps_mode", "vfr"]].concat(),
            10,
            4.0,
        ),
        ("one.mp4", &source, [&x264[..], &["-frames:v", "1"]].concat(), 1, 0.1),
        ("one.avi", &source, [&mpeg4[2..], &["-frames:v", "1"]].concat(), 1, 0.1),
        ("a.ts", &source, [&x264[..], &["-t", "3"]].concat(), 30, 3.0),
        ("a.flv", &source, [&x264[..], &["-t", "3"]].concat(), 30, 3.0),
        ("a.wmv", &source, vec!["-t", "3", "-c:v", "wmv2", "-q:v", "3"], 30, 2.9),
        ("a.3gp", &source, [&x264[..], &["-t", "3"]].concat(), 30, 3.0),
        (
            "offset.mkv",
            &source,
            [&x264[..], &["-t", "3", "-output_ts_offset", "100"]].concat(),
            30,
            3.0,
        ),
    ];
    for (name, from, how, count, seconds) in cases {
        let Some(path) = film(folder.path(), name, from, &how) else { continue };
        let source = frames(&path, &Limits::default()).unwrap();
        assert_eq!(source.count_hint(), count, "{name}");
        let all: Vec<_> = source.map(Result::unwrap).collect();
        let times: Vec<f64> = all.iter().map(|f| f.time_s.unwrap()).collect();
        assert_eq!((times.len(), times[0]), (count, 0.0), "{name}: {times:?}");
        assert!(times.is_sorted_by(|a, b| a < b), "{name}: {times:?}");
        let clip = load(&path, &uniform(1000)).unwrap();
        assert_eq!(clip.frames().len(), count, "{name}");
        let length = clip.video().unwrap().duration_s.unwrap();
        assert!((length - seconds).abs() < 1e-6, "{name}: {length} s");
    }
}

#[test]
fn a_recording_that_starts_between_two_key_frames_is_read_from_the_first_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=3"];
    let x264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "0", "-g", "10"];
    let Some(whole) = film(folder.path(), "a.ts", &source, &x264) else { return };
    let bytes = std::fs::read(whole).unwrap();
    let cut = folder.path().join("cut.ts");
    let packets = bytes.len() / 188;
    std::fs::File::create(&cut).unwrap().write_all(&bytes[packets / 5 * 188..]).unwrap();
    let all: Vec<_> = frames(&cut, &Limits::default()).unwrap().map(Result::unwrap).collect();
    assert!((10..30).contains(&all.len()), "{}", all.len());
    assert_eq!(load(&cut, &uniform(1000)).unwrap().frames().len(), all.len());
}

#[test]
fn sound_and_a_cover_are_no_video_and_a_cover_beside_a_video_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let red = ["-f", "lavfi", "-i", "color=red:size=32x32:rate=1"];
    let moving = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=1"];
    let Some(_) = film(folder.path(), "cover.png", &red, &["-frames:v", "1"]) else { return };
    let Some(_) = film(folder.path(), "film.mp4", &moving, &["-c:v", "mpeg4"]) else { return };
    let (cover, film_path) = (at("cover.png"), at("film.mp4"));
    let sound = ["-f", "lavfi", "-i", "sine=duration=1"];
    let with_cover = [&sound[..], &["-i", &cover]].concat();
    let as_cover = ["-map", "0", "-map", "1", "-c:v", "png", "-disposition:v", "attached_pic"];
    for (name, from, how) in
        [("sound.mp4", &sound[..], &[][..]), ("cover.mp4", &with_cover, &as_cover)]
    {
        let Some(path) = film(folder.path(), name, from, how) else { return };
        let error = load(&path, &VideoOptions::default()).unwrap_err().to_string();
        assert!(error.contains("expected a video stream"), "{name}: {error}");
    }
    let both = ["-i", &cover, "-i", &film_path];
    let how = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"];
    let Some(path) = film(folder.path(), "both.mp4", &both, &how) else { return };
    let clip = load(&path, &VideoOptions::default()).unwrap();
    assert_eq!((clip.width(), clip.height()), (64, 48));
}

#[test]
fn a_playlist_that_is_named_as_a_video_opens_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("ten.mp4"), folder.path().join("ten.mp4")).unwrap();
    let text = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nten.mp4\n#EXT-X-ENDLIST\n";
    let path = folder.path().join("list.ts");
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    let error = load(&path, &VideoOptions::default()).unwrap_err();
    assert!(matches!(error, InputError::Corrupt { .. }), "{error}");
    // A name that looks like an address is a file's.
    let odd = folder.path().join("data:x.mp4");
    std::fs::copy(golden("ten.mp4"), &odd).unwrap();
    assert_eq!(load(&odd, &uniform(3)).unwrap().frames().len(), 3);
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
