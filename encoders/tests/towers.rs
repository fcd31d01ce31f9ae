//! Towers against the reference: every picture and video case of the golden set, from file to
//! features and signals, in f32.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use secateur_core::model::{Control, Encoded, Encoder, Pixels, ProcessorOptions};
use secateur_core::ops::Precision;
use secateur_core::ops::cpu::CpuOps;
use secateur_core::signal::Signal;
use secateur_core::weights::Weights;
use secateur_encoders::{processors, vit};
use support::{Case, entries, golden, relative, tensors, tower_spec, tower_weights};

/// Largest relative error allowed: f32 sums in another order over at most five layers. The cases
/// themselves allow 2e-4 after the whole decoder.
const TOLERANCE: f64 = 2e-5;

fn cases() -> Vec<Case> {
    let cases: Vec<Case> = entries(&golden().join("open"))
        .iter()
        .map(|folder| Case::read(folder))
        .filter(|case| !case.clips.is_empty())
        .collect();
    assert!(cases.len() >= 30, "the golden cases are there");
    cases
}

fn processed(case: &Case) -> Vec<Pixels> {
    let files = secateur_core::files::ModelFiles::folder(&case.model).unwrap();
    let processor = processors::from_files(&files, &case.family).unwrap();
    let options = ProcessorOptions {
        backend: case.backend,
        pictures: case.clips.len(),
        ..ProcessorOptions::default()
    };
    case.clips
        .iter()
        .map(|clip| {
            let pixels = processor.process(clip, &options).unwrap();
            if !pixels.video {
                let counted = processor.crops(clip.width(), clip.height(), &options).unwrap();
                assert_eq!(counted, pixels.crops, "{}: grids from the size alone", case.name);
            }
            pixels
        })
        .collect()
}

fn build(case: &Case) -> Box<dyn Encoder> {
    let ops = Arc::new(CpuOps::new(Precision::F32, Some(2)));
    vit::build(&tower_spec(&case.model), &tower_weights(&case.model), ops).unwrap()
}

/// Patch rows of all crops, class rows left out.
fn patch_rows(encoded: &Encoded, class: usize) -> Vec<f32> {
    let width = encoded.hidden.cols();
    let rows = encoded.crops.iter().flat_map(|&(first, len)| first + class..first + len);
    rows.flat_map(|r| encoded.hidden.host()[r * width..(r + 1) * width].to_vec()).collect()
}

/// The tensors of a processor that a case records.
fn check_pixels(case: &Case, pixels: &[Pixels]) {
    for name in ["pixel_values", "pixel_values_videos"] {
        let Some(want) = case.expected.get(name) else { continue };
        let got: Vec<f32> = pixels.iter().flat_map(|p| p.values.clone()).collect();
        let worst =
            got.iter().zip(&want.values).fold(0.0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
        assert_eq!(got.len(), want.values.len(), "{}: {name}", case.name);
        assert!(worst < 1e-5, "{}: {name} is off by {worst}", case.name);
    }
    for name in ["image_sizes", "image_grid_thw", "video_grid_thw"] {
        let Some(want) = case.expected.get(name) else { continue };
        let got: Vec<f64> = pixels
            .iter()
            .flat_map(|p| p.outputs.iter().filter(|o| o.0 == name))
            .flat_map(|o| o.1.iter().map(|v| *v as f64))
            .collect();
        assert_eq!(got, want.values, "{}: {name}", case.name);
    }
}

#[test]
fn pixels_and_features_equal_the_reference_in_every_case() {
    for case in cases() {
        let pixels = processed(&case);
        check_pixels(&case, &pixels);
        let tower = build(&case);
        let refs: Vec<&Pixels> = pixels.iter().collect();
        let encoded = tower.encode(&refs, &[], &Control::default()).unwrap();
        let got = patch_rows(&encoded, usize::from(tower.info().cls));
        let error = relative(&got, &case.expected["encoder.hidden"].values);
        assert!(error < TOLERANCE, "{}: encoder.hidden is off by {error:e}", case.name);
        for name in ["encoder.window_index", "encoder.cu_window_seqlens"] {
            let Some(want) = case.expected.get(name) else { continue };
            let got = encoded.outputs.iter().find(|o| o.0 == name).unwrap();
            let got: Vec<f64> = got.1.iter().map(|v| *v as f64).collect();
            assert_eq!(got, want.values, "{}: {name}", case.name);
        }
    }
}

/// Attention received by each patch, and by each group of `group` neighbours.
fn received(encoded: &Encoded, signal: Signal, group: usize) -> Vec<f32> {
    let all: Vec<f32> =
        encoded.signals.iter().flat_map(|c| c.vectors[&signal].iter().copied()).collect();
    all.chunks_exact(group).map(|g| g.iter().sum::<f32>() / group as f32).collect()
}

/// Attention received by each `side` x `side` block of a crop's lattice.
fn received_in_blocks(
    encoded: &Encoded,
    pixels: &[Pixels],
    signal: Signal,
    side: usize,
) -> Vec<f32> {
    let grids = pixels.iter().flat_map(|p| &p.crops);
    let mut out = Vec::new();
    for (crop, grid) in encoded.signals.iter().zip(grids) {
        let scores = &crop.vectors[&signal];
        let (rows, cols) = (grid.rows as usize, grid.cols as usize);
        for top in (0..rows).step_by(side) {
            for left in (0..cols).step_by(side) {
                let cells =
                    (0..side * side).map(|i| scores[(top + i / side) * cols + left + i % side]);
                out.push(cells.sum::<f32>() / (side * side) as f32);
            }
        }
    }
    out
}

#[test]
fn signals_equal_the_reference_where_it_records_them() {
    let mut checked = 0;
    for case in cases() {
        let own = format!("{}/tests/golden/{}.safetensors", env!("CARGO_MANIFEST_DIR"), case.name);
        let mut expected = case.expected.clone();
        if std::path::Path::new(&own).is_file() {
            expected.extend(tensors(std::path::Path::new(&own)));
        }
        let tower = build(&case);
        let last = *tower.info().full_attention_layers.last().unwrap();
        let (name, signal) = if tower.info().cls {
            ("encoder.cls_attention", Signal::ClsAttention { layer: last })
        } else {
            ("encoder.received", Signal::ColumnMean { layer: last })
        };
        let Some(want) = expected.get(name) else { continue };
        let pixels = processed(&case);
        let refs: Vec<&Pixels> = pixels.iter().collect();
        let encoded = tower.encode(&refs, &[signal], &Control::default()).unwrap();
        let got = match case.family.as_str() {
            "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" => received(&encoded, signal, 4),
            "smolvlm" => received_in_blocks(&encoded, &pixels, signal, 2),
            _ => received(&encoded, signal, 1),
        };
        let error = relative(&got, &want.values);
        assert!(error < TOLERANCE, "{}: {name} is off by {error:e}", case.name);
        checked += 1;
    }
    assert!(checked >= 25, "only {checked} cases had signals");
}

/// The first case of a model.
fn case(name: &str) -> Case {
    Case::read(&golden().join("open").join(name))
}

#[test]
fn a_crop_does_not_depend_on_its_neighbours() {
    for name in ["llava-two-images-dense", "qwen2.5-vl-tiny.two", "smolvlm-tiny.two"] {
        let case = case(name);
        let (pixels, tower) = (processed(&case), build(&case));
        let refs: Vec<&Pixels> = pixels.iter().collect();
        let together = tower.encode(&refs, &[], &Control::default()).unwrap();
        let alone: Vec<f32> = refs
            .iter()
            .flat_map(|p| {
                let one = tower.encode(&[p], &[], &Control::default()).unwrap();
                one.hidden.host().to_vec()
            })
            .collect();
        assert_eq!(together.hidden.host(), alone, "{name}: bits of the rows");
    }
}

#[test]
fn every_signal_has_its_shape_and_they_agree() {
    for (name, cls) in [("llava-dense", true), ("qwen2.5-vl-tiny.video", false)] {
        let case = case(name);
        let (pixels, tower) = (processed(&case), build(&case));
        let layer = tower.info().full_attention_layers[0];
        let mut asked = vec![
            Signal::ColumnMean { layer },
            Signal::EncoderMap { layer },
            Signal::EncoderKeys { layer },
            Signal::EncoderFeatures,
            Signal::Pixels,
        ];
        if cls {
            asked.push(Signal::ClsAttention { layer });
        }
        let refs: Vec<&Pixels> = pixels.iter().collect();
        let encoded = tower.encode(&refs, &asked, &Control::default()).unwrap();
        let (width, head_dim) = (encoded.hidden.cols(), encoded.hidden.cols() / tower.info().heads);
        for (crop, &(first, rows)) in encoded.signals.iter().zip(&encoded.crops) {
            let patches = rows - usize::from(cls);
            let map = &crop.matrices[&Signal::EncoderMap { layer }];
            let mean = &crop.vectors[&Signal::ColumnMean { layer }];
            assert_eq!((map.dim(), mean.len()), ((patches, patches), patches), "{name}");
            let class = crop.vectors.get(&Signal::ClsAttention { layer });
            for k in 0..patches {
                // The mean over all queries: the map's rows, and the class token's where it is.
                let column = map.column(k).sum() + class.map_or(0.0, |c| c[k]);
                assert!((column / rows as f32 - mean[k]).abs() < 1e-6, "{name}: column {k}");
            }
            assert!(mean.sum() <= 1.0 + 1e-5, "{name}: a share of all attention");
            let keys = &crop.matrices[&Signal::EncoderKeys { layer }];
            assert_eq!(keys.dim(), (rows, head_dim), "{name}: keys");
            let features = &crop.matrices[&Signal::EncoderFeatures];
            let got = &encoded.hidden.host()[first * width..(first + rows) * width];
            assert_eq!(features.as_slice().unwrap(), got, "{name}: features");
            let side = crop.pixels.patch;
            let area = crop.pixels.width * crop.pixels.height;
            assert_eq!(area / (side * side), patches, "{name}: pixels");
        }
    }
}

#[test]
fn several_feature_layers_stand_side_by_side() {
    let case = case("llava-dense");
    let pixels = processed(&case);
    let run = |layers: Vec<i64>| {
        let spec =
            secateur_core::model::TowerSpec { feature_layers: layers, ..tower_spec(&case.model) };
        let ops = Arc::new(CpuOps::new(Precision::F32, Some(1)));
        let tower = vit::build(&spec, &tower_weights(&case.model), ops).unwrap();
        let encoded = tower.encode(&[&pixels[0]], &[], &Control::default()).unwrap();
        (tower.info().clone(), encoded.hidden)
    };
    let (_, second) = run(vec![2]);
    let (info, last) = run(vec![-1]);
    assert_eq!((info.layers, info.file_layers), (4, 4));
    let (info, both) = run(vec![2, -1]);
    assert_eq!((info.layers, info.width, both.cols()), (4, 64, 64));
    for r in 0..both.rows() {
        assert_eq!(&both.row(r)[..32], second.row(r));
        assert_eq!(&both.row(r)[32..], last.row(r));
    }
}

#[test]
fn pixels_of_another_size_are_refused_and_cancelling_stops() {
    let case = case("llava-dense");
    let (mut pixels, tower) = (processed(&case), build(&case));
    let control = Control::default();
    let cancelled = Control { cancel: Some(Default::default()), deadline: None };
    cancelled.cancel.as_ref().unwrap().cancel();
    assert!(tower.encode(&[&pixels[0]], &[], &cancelled).is_err());
    let missing = Signal::ClsAttention { layer: 3 };
    let error = tower.encode(&[&pixels[0]], &[missing], &control).unwrap_err();
    assert!(error.to_string().contains("encoder.cls_attention[3]"), "{error}");
    pixels[0].shape = vec![1, 3, 56, 224];
    let error = tower.encode(&[&pixels[0]], &[], &control).unwrap_err();
    assert!(error.to_string().contains("[crops, 3, 112, 112]"), "{error}");
    assert_eq!(tower.encode(&[], &[], &control).unwrap().hidden.rows(), 0);
}

/// The tower's weights of a golden model with a random pooling head added; its tensors too.
fn with_pooling_head(model: &std::path::Path, width: usize) -> (Weights, [Vec<f32>; 3]) {
    let mut state = 1u32;
    let mut random = |n: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    };
    let head = [random(width), random(3 * width * width), random(3 * width)];
    let bytes = |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let tower = tower_weights(model);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for name in tower.names() {
        let shape = tower.shape_of(name).unwrap().to_vec();
        let values = tower.tensor(name, &shape).unwrap().to_f32();
        tensors.push((name.to_owned(), shape, bytes(&values)));
    }
    let shapes = [vec![1, 1, width], vec![3 * width, width], vec![3 * width]];
    let names = ["probe", "attention.in_proj_weight", "attention.in_proj_bias"];
    for ((name, shape), values) in names.iter().zip(shapes).zip(&head) {
        tensors.push((format!("tower.head.{name}"), shape, bytes(values)));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.as_str(), view.unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    (Weights::from_static("with a head", file.leak()).unwrap(), head)
}

/// `softmax(q k^T / sqrt(d))` of the probe, mean over heads, written out.
fn probe_attention(head: &[Vec<f32>; 3], x: &[f32], width: usize, heads: usize) -> Vec<f64> {
    let project = |input: &[f32], row: usize| -> f64 {
        let weights = &head[1][row * width..][..width];
        let dot: f64 = weights.iter().zip(input).map(|(w, v)| f64::from(w * v)).sum();
        dot + f64::from(head[2][row])
    };
    let e = width / heads;
    let patches: Vec<&[f32]> = x.chunks_exact(width).collect();
    let mut mean = vec![0.0; patches.len()];
    for h in 0..heads {
        let logit = |x: &[f32]| -> f64 {
            let products =
                (h * e..(h + 1) * e).map(|r| project(&head[0], r) * project(x, width + r));
            products.sum::<f64>() / (e as f64).sqrt()
        };
        let exp: Vec<f64> = patches.iter().map(|x| logit(x).exp()).collect();
        let sum: f64 = exp.iter().sum();
        mean.iter_mut().zip(exp).for_each(|(m, v)| *m += v / sum / heads as f64);
    }
    mean
}

#[test]
fn the_pooling_head_attends_as_its_definition_says_crop_by_crop() {
    let mut pooled = 0;
    for case in entries(&golden().join("open")).iter().map(|f| Case::read(f)) {
        if case.family != "paligemma" && case.family != "llava_onevision" {
            continue;
        }
        let pixels = processed(&case);
        let refs: Vec<&Pixels> = pixels.iter().collect();
        let mut spec = tower_spec(&case.model);
        let width = spec.config["hidden_size"].as_u64().unwrap() as usize;
        let (weights, head) = with_pooling_head(&case.model, width);
        let ops = || Arc::new(CpuOps::new(Precision::F32, Some(1)));
        let tower = vit::build(&spec, &weights, ops()).unwrap();
        let asked = [Signal::PoolingAttention];
        let encoded = tower.encode(&refs, &asked, &Control::default()).unwrap();
        // The head reads normed rows, whether or not the features are.
        spec.final_norm = true;
        let normed = vit::build(&spec, &weights, ops()).unwrap();
        let normed = normed.encode(&refs, &[], &Control::default()).unwrap();
        for (crop, &(first, rows)) in encoded.signals.iter().zip(&encoded.crops) {
            let x = &normed.hidden.host()[first * width..][..rows * width];
            let want = probe_attention(&head, x, width, tower.info().heads);
            let got = crop.vectors[&Signal::PoolingAttention].as_slice().unwrap();
            assert!(relative(got, &want) < 1e-5, "{}: {}", case.name, relative(got, &want));
            pooled += 1;
        }

        let plain = vit::build(&spec, &tower_weights(&case.model), ops()).unwrap();
        let error = plain.encode(&refs, &asked, &Control::default()).unwrap_err().to_string();
        assert!(error.contains("head.probe"), "{error}");
        spec.final_norm = false;
        spec.feature_layers = vec![-2];
        let early = vit::build(&spec, &weights, ops()).unwrap();
        let error = early.encode(&refs, &asked, &Control::default()).unwrap_err().to_string();
        assert!(error.contains("reads the last of"), "{error}");
    }
    assert!(pooled > 2, "several crops were looked at");
}
