//! Processors at the settings of real checkpoints against the reference, both backends, and the
//! token counts and frame indices that the specifications tabulate.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::files::Fields;
use secateur_core::model::{ImageBackend, Pixels, Processor, ProcessorOptions};
use secateur_encoders::image::{Limits, load};
use secateur_encoders::processors::{
    Generation, InternVl, LlavaNext, LlavaOnevision, QwenVl, SingleCrop, SmolVlm, sampling,
};
use serde_json::Value;
use support::{entries, golden, json};

/// The samples are stored with six or seven decimals; the arithmetic differs by 2.4e-7 at most.
const TOLERANCE: f64 = 2e-6;

fn processor(family: &str, config: &Value, video: bool) -> Box<dyn Processor> {
    let mut config = config.clone();
    if !video && family.starts_with("qwen") {
        // The class defaults of videos play no part here.
        config["cap_pixels_per_frame"] = Value::Bool(false);
    }
    let fields = Fields::root("config", &config).unwrap();
    let qwen = |generation| -> Box<dyn Processor> {
        Box::new(QwenVl::new(&fields, video.then_some(&fields), generation).unwrap())
    };
    match family {
        "llava" | "llava_pad" => Box::new(SingleCrop::clip(&fields, 14).unwrap()),
        "paligemma" => Box::new(SingleCrop::siglip(&fields, 14).unwrap()),
        "llava_next" => Box::new(LlavaNext::new(&fields, 14).unwrap()),
        "llava_onevision" | "llava_onevision_multi" => {
            Box::new(LlavaOnevision::new(&fields, None, 14).unwrap())
        }
        "internvl" => Box::new(InternVl::new(&fields, None, 14).unwrap()),
        "smolvlm" | "idefics3" => Box::new(SmolVlm::new(&fields, None, 14).unwrap()),
        "qwen2_vl" | "qwen2_5_vl" => qwen(Generation::Two),
        "qwen3_vl" => qwen(Generation::Three),
        other => panic!("no processor for {other}"),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The formula that the files state: frame `i` adds 11 i to red before the mask.
fn formula_frame(spec: &Value, frame: u64) -> Frame {
    let get = |key: &str| spec[key].as_u64().unwrap();
    let (w, h) = (get("width"), get("height"));
    let (a, b, s, c) = (get("a"), get("b"), get("s"), get("c"));
    let mut rgb = Vec::with_capacity((w * h * 3) as usize);
    for y in 0..h {
        for x in 0..w {
            rgb.push(((a * x + b * y + 11 * frame) & 255) as u8);
            rgb.push((((x * y) >> s) & 255) as u8);
            rgb.push((((x ^ y) * c) & 255) as u8);
        }
    }
    Frame { width: w as u32, height: h as u32, rgb: rgb.into(), time_s: None }
}

fn check_samples(name: &str, pixels: &Pixels, index: &[usize], want: &[f64]) {
    for (i, w) in index.iter().zip(want) {
        let got = f64::from(pixels.values[*i]);
        assert!((got - w).abs() <= TOLERANCE, "{name}: value {i} is {got}, the reference has {w}");
    }
}

/// Elements without the batch axis that some references put in front.
fn elements(shape: &Value) -> usize {
    numbers(shape).iter().map(|v| *v as usize).product()
}

#[test]
fn pictures_from_files_equal_both_reference_backends() {
    let mut checked = 0;
    for family in [
        "llava",
        "llava_pad",
        "paligemma",
        "llava_next",
        "llava_onevision",
        "llava_onevision_multi",
        "internvl",
    ] {
        for path in entries(&golden().join("processors").join(family)) {
            let case = json(&path);
            let name = format!("{family}/{}", path.file_name().unwrap().to_string_lossy());
            let processor = processor(family, &case["processor"], false);
            let picture = path.parent().unwrap().join(case["image"].as_str().unwrap());
            let clip = load(&picture, &Limits::default()).unwrap();
            let index: Vec<usize> = numbers(&case["index"]).iter().map(|v| *v as usize).collect();
            for (backend, key) in
                [(ImageBackend::Torchvision, "torchvision"), (ImageBackend::Pillow, "pillow")]
            {
                let pictures = if family == "llava_onevision_multi" { 2 } else { 1 };
                let options = ProcessorOptions { backend, pictures, ..Default::default() };
                let pixels = processor.process(&clip, &options).unwrap();
                let name = format!("{name}, {key}");
                assert_eq!(pixels.values.len(), elements(&case["shape"]), "{name}: shape");
                check_samples(&name, &pixels, &index, &numbers(&case[key]));
                checked += index.len();
            }
        }
    }
    assert!(checked >= 10_000, "only {checked} values were there to compare");
}

#[test]
fn formula_pictures_equal_both_reference_backends() {
    for family in ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3"] {
        for path in entries(&golden().join("processors").join(family)) {
            let case = json(&path);
            let Some(spec) = case.get("picture") else { continue };
            let frame = formula_frame(spec, 0);
            let clip = Clip::picture("formula", frame.width, frame.height, frame.rgb).unwrap();
            let processor = processor(family, &case["config"], false);
            for (backend, key) in
                [(ImageBackend::Torchvision, "torchvision"), (ImageBackend::Pillow, "pil")]
            {
                let name = format!("{family}/{}, {key}", path.display());
                let options = ProcessorOptions { backend, ..Default::default() };
                let pixels = processor.process(&clip, &options).unwrap();
                check_digest(&name, &pixels, &case[key]);
                let counted = processor.crops(clip.width(), clip.height(), &options).unwrap();
                assert_eq!(counted, pixels.crops, "{name}: grids from the size alone");
                if let (Some(rows), Some(cols)) =
                    (case[key]["rows"].as_u64(), case[key]["cols"].as_u64())
                {
                    let tiles = if rows * cols == 0 { 1 } else { rows * cols + 1 };
                    assert_eq!(pixels.crops.len() as u64, tiles, "{name}: tiles");
                }
            }
        }
    }
}

#[test]
fn videos_equal_the_reference_with_and_without_the_cap() {
    for family in ["qwen2_5_vl", "qwen3_vl"] {
        for path in entries(&golden().join("processors").join(family)) {
            let case = json(&path);
            let Some(spec) = case.get("video") else { continue };
            let frames = (0..spec["frames"].as_u64().unwrap()).map(|i| formula_frame(spec, i));
            let info = VideoInfo { fps: Some(4.0), duration_s: None };
            let clip = Clip::from_frames("formula", frames.collect(), info).unwrap();
            for (cap, key) in [(true, "capped"), (false, "uncapped")] {
                let mut config = case["config"].clone();
                config["cap_pixels_per_frame"] = Value::Bool(cap);
                let pixels = processor(family, &config, true)
                    .process(&clip, &ProcessorOptions::default())
                    .unwrap();
                check_digest(&format!("{family}/{}, {key}", path.display()), &pixels, &case[key]);
            }
        }
    }
}

fn check_digest(name: &str, pixels: &Pixels, digest: &Value) {
    assert_eq!(pixels.values.len(), elements(&digest["shape"]), "{name}: shape");
    if let Some(grid) = digest.get("grid_thw") {
        let got = pixels.grid_thw.unwrap().map(|v| v as f64);
        assert_eq!(got.to_vec(), numbers(grid), "{name}: grid");
        let tokens = pixels.grid_thw.unwrap().iter().product::<usize>() / 4;
        assert_eq!(tokens as u64, digest["visual_tokens"].as_u64().unwrap(), "{name}: tokens");
    }
    for pair in digest["samples"].as_array().unwrap() {
        let pair = numbers(pair);
        check_samples(name, pixels, &[pair[0] as usize], &pair[1..]);
    }
    let sum: f64 = pixels.values.iter().map(|v| f64::from(*v)).sum();
    let magnitude: f64 = pixels.values.iter().map(|v| f64::from(v.abs())).sum();
    let want = digest["abs_sum"].as_f64().unwrap();
    assert!((magnitude - want).abs() <= want * 1e-5, "{name}: sum of magnitudes");
    assert!((sum - digest["sum"].as_f64().unwrap()).abs() <= want * 1e-5, "{name}: sum");
}

/// The bytes of a crop and its values are one picture: patch `i` of `rgb` is row `i`.
#[test]
fn bytes_of_a_qwen_crop_stand_in_the_order_of_its_rows() {
    let path = golden().join("processors/qwen2_vl/50x200.json");
    let case = json(&path);
    let frame = formula_frame(&case["picture"], 0);
    let clip = Clip::picture("formula", frame.width, frame.height, frame.rgb).unwrap();
    let processor = processor("qwen2_vl", &case["config"], false);
    let pixels = processor.process(&clip, &ProcessorOptions::default()).unwrap();
    let crop = &pixels.rgb[0];
    let (p, width) = (crop.patch, pixels.shape[1]);
    let (mean, std) = (0.481_454_66 * 255.0, 0.268_629_54 * 255.0);
    assert_eq!(crop.height, p * pixels.shape[0]);
    for row in 0..pixels.shape[0] {
        for at in [0, p * p - 1] {
            let red = f64::from(crop.rgb[(row * p * p + at) * 3]);
            let got = f64::from(pixels.values[row * width + at]);
            assert!((got - (red - mean) / std).abs() < 1e-5, "row {row}, pixel {at}");
        }
    }
}

/// The tables of models-a 2.2: base and tile cells of LLaVA-NeXT, OneVision and InternVL.
#[test]
fn tile_counts_of_every_size_in_the_reference_tables() {
    let options = ProcessorOptions::default();
    let empty = serde_json::json!({});
    let with = |value: Value| value;
    let next = with(serde_json::json!({"size": {"shortest_edge": 336}, "crop_size": 336}));
    let intern = with(serde_json::json!({"size": {"height": 448, "width": 448}}));
    let next = LlavaNext::new(&Fields::root("f", &next).unwrap(), 14).unwrap();
    let vision = LlavaOnevision::new(&Fields::root("f", &empty).unwrap(), None, 14).unwrap();
    let intern = InternVl::new(&Fields::root("f", &intern).unwrap(), None, 14).unwrap();
    // Picture, best (height, width) of both, tiles with thumbnail of InternVL.
    let table = [
        ((336, 336), (336, 672), (384, 384), 1),
        ((640, 480), (672, 672), (768, 768), 13),
        ((480, 640), (672, 672), (768, 768), 13),
        ((1024, 768), (672, 672), (768, 1152), 13),
        ((1920, 1080), (672, 672), (1152, 1920), 9),
        ((50, 200), (336, 672), (384, 384), 5),
        ((1, 1), (336, 672), (384, 384), 1),
        ((4000, 3000), (672, 672), (1920, 2304), 13),
    ];
    for ((w, h), best_next, best_vision, tiles) in table {
        let next = next.crops(w, h, &options).unwrap();
        assert_eq!(next.len(), 1 + best_next.0 * best_next.1 / (336 * 336), "{w}x{h}: LLaVA-NeXT");
        let vision = vision.crops(w, h, &options).unwrap();
        let want = 1 + best_vision.0 * best_vision.1 / (384 * 384);
        assert_eq!(vision.len(), want, "{w}x{h}: OneVision");
        assert_eq!((vision[0].rows, vision[0].cols), (27, 27));
        assert_eq!(intern.crops(w, h, &options).unwrap().len(), tiles, "{w}x{h}: InternVL");
    }
}

#[test]
fn frame_indices_of_every_sampling_policy() {
    let cases = json(&golden().join("processors/sampling/indices.json"));
    for case in cases.as_array().unwrap() {
        let total = case["total_num_frames"].as_u64().unwrap() as usize;
        let fps = case["fps"].as_f64().unwrap();
        let bounds = sampling::Bounds::default();
        let policies = [
            ("qwen2_vl_fps2", sampling::Policy::QwenTwo { fps: 2.0, bounds, group: 2 }),
            ("qwen2_vl_frames8", sampling::Policy::QwenTwoFrames { frames: 8, group: 2 }),
            ("qwen3_vl", sampling::Policy::QwenThree { fps: 2.0, bounds }),
            ("smolvlm", sampling::Policy::SmolVlm { fps: 1.0, max_frames: 64 }),
        ];
        for (key, policy) in policies {
            let got = sampling::indices(policy, total, fps);
            let want = &case[key];
            let name = format!("{key} of {total} frames at {fps}");
            assert_eq!(got.len() as u64, want["count"].as_u64().unwrap(), "{name}: count");
            let first = numbers(&want["first"]);
            let got_first: Vec<f64> = got.iter().take(first.len()).map(|i| *i as f64).collect();
            assert_eq!(got_first, first, "{name}: first");
            let last = numbers(&want["last"]);
            let skip = got.len() - last.len();
            let got_last: Vec<f64> = got[skip..].iter().map(|i| *i as f64).collect();
            assert_eq!(got_last, last, "{name}: last");
            assert_eq!(got.iter().sum::<usize>() as u64, want["sum"].as_u64().unwrap(), "{name}");
        }
    }
}
