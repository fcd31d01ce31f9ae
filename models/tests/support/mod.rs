//! Golden cases without the encoder: processed geometry from sizes, tower rows from the case.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secateur_core::cache::{LayerCache, Position};
use secateur_core::clip::Grid;
use secateur_core::files::ModelFiles;
use secateur_core::model::{Encoded, Family, LayerPass, LayerSequence, Pixels, VisualRows};
use secateur_core::ops::reference::ReferenceOps;
use secateur_core::ops::{Mask, Ops, Precision, Rotation, ScoreRequest};
use secateur_core::tensor::{DType, Tensor};
use secateur_core::weights::Weights;
use secateur_models::{LoadedModel, ModelOptions, VideoAdvance, load};
use serde_json::Value;

/// The workspace's goldens: `models/`, `open/`.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// A tensor of a case.
#[derive(Clone, Debug)]
pub(crate) enum Array {
    Float(Vec<usize>, Vec<f32>),
    Int(Vec<usize>, Vec<i64>),
}

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) json: Value,
    pub(crate) tensors: BTreeMap<String, Array>,
    dir: PathBuf,
}

pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Array> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let shape = view.shape().to_vec();
        let array = match view.dtype() {
            safetensors::Dtype::F32 => Array::Float(
                shape,
                view.data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
            ),
            safetensors::Dtype::I64 => Array::Int(
                shape,
                view.data()
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
            ),
            other => panic!("{other:?}"),
        };
        (name, array)
    };
    file.tensors().into_iter().map(read).collect()
}

/// Dense cases of a model folder.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let mut found = Vec::new();
    let open = root().join("open");
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(&open).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs {
        let json: Value =
            serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        let of_model = json["model"].as_str().unwrap().rsplit('/').next() == Some(model);
        if of_model && json["chain"].as_array().is_none_or(Vec::is_empty) {
            let name = dir.file_name().unwrap().to_string_lossy().into_owned();
            let tensors = tensors(&dir.join("expected.safetensors"));
            found.push(Case { name, json, tensors, dir });
        }
    }
    found
}

impl Case {
    pub(crate) fn floats(&self, name: &str) -> Option<(&[usize], &[f32])> {
        match self.tensors.get(name)? {
            Array::Float(shape, values) => Some((shape, values)),
            Array::Int(..) => None,
        }
    }

    pub(crate) fn ints(&self, name: &str) -> Option<(&[usize], &[i64])> {
        match self.tensors.get(name)? {
            Array::Int(shape, values) => Some((shape, values)),
            Array::Float(..) => None,
        }
    }

    /// Whether the files are those of a video, and `[width, height]` of each picture or frame.
    pub(crate) fn sizes(&self) -> (bool, Vec<[u32; 2]>) {
        let video = self.json.get("video_frames").is_some();
        let key = if video { "video_frames" } else { "images" };
        let files = self.json[key].as_array().unwrap();
        let size = |file: &Value| {
            let header = std::fs::read(self.dir.join(file.as_str().unwrap())).unwrap();
            let side = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            [side(16), side(20)]
        };
        (video, files.iter().map(size).collect())
    }

    /// Rules of the release that made the case.
    pub(crate) fn options(&self) -> ModelOptions {
        let video_advance = match self.json.get("mrope_video_advance").and_then(Value::as_str) {
            Some("max_hw") => VideoAdvance::MaxHw,
            _ => VideoAdvance::MaxPlusOne,
        };
        ModelOptions { video_advance }
    }

    pub(crate) fn load(&self) -> LoadedModel {
        let model = self.json["model"].as_str().unwrap().rsplit('/').next().unwrap();
        load_model(&root().join("models").join(model), self.options())
    }
}

pub(crate) fn reference() -> Arc<dyn Ops> {
    Arc::new(ReferenceOps::new(Precision::F32))
}

pub(crate) fn load_model(dir: &Path, options: ModelOptions) -> LoadedModel {
    let files = ModelFiles::folder(dir).unwrap();
    load(&files, Weights::open(dir).unwrap(), &reference(), options).unwrap()
}

/// A crop of `rows x cols` patches that covers the rectangle `[x, y, width, height]`.
pub(crate) fn crop(
    [frame, tile]: [u32; 2],
    [rows, cols]: [u32; 2],
    rect: [f64; 4],
    source: [u32; 2],
) -> Grid {
    Grid {
        picture: 0,
        frame,
        tile,
        rows,
        cols,
        origin: [rect[0], rect[1]],
        cell: [rect[2] / f64::from(cols), rect[3] / f64::from(rows)],
        source,
    }
}

pub(crate) fn pixels(crops: Vec<Grid>, source: [u32; 2], video: bool) -> Pixels {
    Pixels {
        values: Vec::new(),
        shape: Vec::new(),
        crops,
        rgb: Vec::new(),
        grid_thw: None,
        source,
        video,
        times_s: Vec::new(),
        fps: None,
        outputs: Vec::new(),
    }
}

/// The whole picture as one crop.
pub(crate) fn whole(side: u32, frame: u32, source: [u32; 2]) -> Grid {
    let [w, h] = source.map(f64::from);
    crop([frame, 0], [side; 2], [0.0, 0.0, w, h], source)
}

/// Tower rows of a case: a row of zeros stands for each crop's class token.
pub(crate) fn encoded(case: &Case, pixels: &[&Pixels], cls: bool) -> Encoded {
    let (shape, values) = case.floats("encoder.hidden").unwrap();
    let width = shape[1];
    let mut rows = Vec::new();
    let mut crops = Vec::new();
    let mut from = 0;
    for grid in pixels.iter().flat_map(|p| &p.crops) {
        let first = rows.len() / width;
        if cls {
            rows.resize(rows.len() + width, 0.0);
        }
        let patches = (grid.rows * grid.cols) as usize;
        rows.extend_from_slice(&values[from * width..(from + patches) * width]);
        from += patches;
        crops.push((first, rows.len() / width - first));
    }
    assert_eq!(from, shape[0], "{}: crops and rows of the tower", case.name);
    let hidden = Tensor::from_slice(rows.len() / width, width, &rows);
    Encoded { hidden, crops, levels: Vec::new(), signals: Vec::new(), outputs: Vec::new() }
}

pub(crate) fn close(case: &str, name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{case}: size of {name}");
    let scale = want.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    let (at, error) = got
        .iter()
        .zip(want)
        .map(|(g, w)| (g - w).abs() / scale)
        .enumerate()
        .fold((0, 0.0f32), |best, (i, e)| if e > best.1 || e.is_nan() { (i, e) } else { best });
    assert!(
        error <= tolerance,
        "{case}: {name}[{at}] is {}, expected {} (relative error {error:e})",
        got[at],
        want[at]
    );
}

/// What a plain run over all layers gives.
pub(crate) struct Run {
    /// State of the last prompt row after each layer.
    pub(crate) last_hidden: Vec<Vec<f32>>,
    pub(crate) logits: Vec<f32>,
    pub(crate) greedy: Vec<u32>,
    pub(crate) caches: Vec<LayerCache>,
    /// Positions that the fed tokens had.
    pub(crate) fed: Vec<Position>,
}

pub(crate) fn caches(family: &dyn Family, capacity: usize) -> Vec<LayerCache> {
    let d = family.decoder().info();
    (0..d.layers).map(|_| LayerCache::new(d.kv_heads, d.head_dim, capacity, DType::F32)).collect()
}

/// What the runtime's loop makes of positions.
pub(crate) fn rotations(family: &dyn Family, positions: &[Position]) -> Vec<Rotation> {
    let ops = reference();
    family.decoder().frequencies().iter().map(|f| ops.rotation(f, positions)).collect()
}

/// One pass of one sequence through all layers; `after` sees the state after each.
pub(crate) fn pass(
    family: &dyn Family,
    x: &mut Tensor,
    positions: &[Position],
    caches: &mut [LayerCache],
    mask: Mask<'_>,
    mut after: impl FnMut(usize, &mut Tensor),
) {
    let rotations = rotations(family, positions);
    let scores: &[ScoreRequest] = &[];
    for (layer, cache) in caches.iter_mut().enumerate() {
        let sequence = LayerSequence {
            rows: 0..x.rows(),
            cache,
            mask,
            scores,
            score_out: Vec::new(),
            keys: None,
        };
        let mut pass = LayerPass {
            positions,
            rotations: &rotations,
            sequences: vec![sequence],
            wants_transitions: false,
            transitions: None,
        };
        family.decoder().layer(layer, x, &mut pass).unwrap();
        after(layer, x);
    }
}

/// Prefill and greedy decoding as a runtime would, dense and alone.
pub(crate) fn run(
    family: &dyn Family,
    prompt: &secateur_core::model::Prompt,
    positions: &secateur_core::model::Positions,
    visual: Option<&VisualRows>,
    steps: usize,
) -> Run {
    let ops = reference();
    let decoder = family.decoder();
    let mut x = decoder.embed(&prompt.ids).unwrap();
    let places = prompt.visual_rows();
    for (i, &place) in places.iter().enumerate() {
        let rows = &visual.unwrap().rows;
        x.row_mut(place as usize).copy_from_slice(rows.row(i));
    }
    let mut caches = caches(family, prompt.ids.len() + steps);
    let (blocks, mut room) = (family.visibility(prompt).full, Vec::new());
    let mask = blocks.mask(0, &mut room);
    let mut last_hidden = Vec::new();
    pass(family, &mut x, &positions.prompt, &mut caches, mask, |layer, x| {
        if let Some(level) = visual.and_then(|v| v.levels.get(layer)) {
            ops.add_rows(x, &places, level);
        }
        last_hidden.push(x.row(x.rows() - 1).to_vec());
    });
    let prompt_caches = caches.clone();
    let next_of = |x: &Tensor| {
        let mut last = Tensor::zeros(0, 0);
        ops.gather_rows(x, &[x.rows() as u32 - 1], &mut last);
        let logits = decoder.logits(&decoder.final_hidden(&last).unwrap()).unwrap();
        let values = logits.host().to_vec();
        let best = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap();
        (values, best as u32)
    };
    let (logits, first) = next_of(&x);
    let mut greedy = vec![first];
    let mut fed = Vec::new();
    while greedy.len() < steps {
        let position = [positions.next + fed.len() as i32; 3];
        fed.push(position);
        let mut x = decoder.embed(&greedy[greedy.len() - 1..]).unwrap();
        pass(family, &mut x, &[position], &mut caches, Mask::Causal, |_, _| ());
        greedy.push(next_of(&x).1);
    }
    Run { last_hidden, logits, greedy, caches: prompt_caches, fed }
}

/// Compares everything that a case expects of the decoder's half.
pub(crate) fn check(case: &Case, model: &LoadedModel, clips: &[Pixels]) {
    let family = model.family.as_ref();
    let name = case.name.as_str();
    let tolerance = case.json["tolerance"].as_f64().unwrap() as f32;
    let clips: Vec<&Pixels> = clips.iter().collect();
    let layout = family.layout(&clips).unwrap();
    let prompt = family.expand(case.json["prompt"].as_str().unwrap(), &clips, &layout).unwrap();
    let ids: Vec<i64> = prompt.ids.iter().map(|&i| i64::from(i)).collect();
    let text = |ids: &[i64]| {
        let ids: Vec<u32> = ids.iter().map(|&i| i as u32).collect();
        model.text.tokenizer.decode(&ids, false).unwrap()
    };
    let want = case.ints("input_ids").unwrap().1;
    assert_eq!(ids, want, "{name}: `{}` and `{}`", text(&ids), text(want));
    let visual = (!clips.is_empty()).then(|| {
        let mut encoded = encoded(case, &clips, family.info().encoder.cls);
        // The goldens hold projected levels, not the tower's: checked from end to end elsewhere.
        let levels = (0..).map_while(|j| case.floats(&format!("encoder.deepstack.{j}")));
        let levels: Vec<Tensor> = levels.map(|(s, v)| Tensor::from_slice(s[0], s[1], v)).collect();
        encoded.levels.resize_with(levels.len(), || encoded.hidden.clone());
        let mut rows = family.project(&encoded, &layout).unwrap();
        let tokens = case.floats("encoder.tokens").unwrap().1;
        close(name, "encoder.tokens", rows.rows.host(), tokens, tolerance);
        rows.levels = levels;
        rows
    });
    let positions = family.positions(&prompt, &clips).unwrap();
    let steps = case.json["max_new_tokens"].as_u64().unwrap() as usize;
    let got = run(family, &prompt, &positions, visual.as_ref(), steps);
    for (layer, hidden) in got.last_hidden.iter().enumerate() {
        if let Some((_, want)) = case.floats(&format!("layer.{layer}.last_hidden")) {
            close(name, &format!("layer.{layer}.last_hidden"), hidden, want, tolerance);
        }
        let cache = &got.caches[layer];
        if let Some((_, want)) = case.ints(&format!("layer.{layer}.kv_len")) {
            assert_eq!(cache.len as i64, want[0], "{name}: cache of layer {layer}");
        }
        if let Some((shape, want)) = case.ints(&format!("layer.{layer}.positions")) {
            let axes = if shape.len() == 2 { shape[0] } else { 1 };
            let got: Vec<i64> = (0..axes)
                .flat_map(|a| cache.positions.iter().map(move |p| i64::from(p[a])))
                .collect();
            assert_eq!(got, want, "{name}: positions in layer {layer}");
        }
    }
    close(name, "logits", &got.logits, case.floats("logits").unwrap().1, tolerance);
    let greedy: Vec<i64> = got.greedy.iter().map(|&i| i64::from(i)).collect();
    assert_eq!(greedy, case.ints("greedy_ids").unwrap().1, "{name}: greedy ids");
    if let Some((shape, want)) = case.ints("decode.positions") {
        let fed: Vec<i64> =
            (0..shape[0]).flat_map(|a| got.fed.iter().map(move |p| i64::from(p[a]))).collect();
        assert_eq!(fed, want, "{name}: positions while decoding");
    }
    if let Some((_, want)) = case.ints("rope_delta") {
        let most = positions.prompt.iter().flatten().max().copied().unwrap_or(-1);
        let delta = i64::from(most) + 1 - prompt.ids.len() as i64;
        assert_eq!(delta, want[0], "{name}: rope_delta");
    }
}
