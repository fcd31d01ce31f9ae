//! Score goldens: every tensor that the released programs (or this project's own definitions)
//! gave on random signals. One loop over `golden/scores/<pruner>/<case>`.
//!
//! Tolerance: 1e-5 of the largest magnitude of a tensor; sums here and there run in another order,
//! which moves f32 results by a few units in the last place. Index sets are equal.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/case.rs"]
mod case;

use std::path::{Path, PathBuf};

use case::Case;
use ndarray::{Array1, Array2, Axis, Ix3};
use secateur_core::chain::Params;
use secateur_core::clip::Grid;
use secateur_core::model::ModelInfo;
use secateur_core::ops::Transition;
use secateur_core::prune::{Budget, Cut, Memory, Merge, Observation, Pruner, Selection};
use secateur_core::signal::{
    CropPixels, CropSignals, LayerTransitions, PatchSource, Rows, Signal, Signals,
};
use secateur_core::testkit;
use secateur_core::tokens::{TokenKind, TokenMap};
use secateur_pruners::debias::Debias;
use secateur_pruners::diversity::{Cosines, farthest_points};
use secateur_pruners::registry;
use secateur_pruners::score::top_k;
use secateur_pruners::trans_prune::{Direction, layer_weights};
use secateur_pruners::vflowopt;
use secateur_pruners::vla_pruner::{DecayOrder, History};
use toml::Table;

fn build(name: &str, table: &Table) -> Box<dyn Pruner> {
    let params = Params::new(name, table);
    let pruner = (registry::find(name).unwrap().build)(&params).unwrap_or_else(|e| panic!("{e}"));
    params.finish().unwrap();
    pruner
}

/// A model of the size of a case.
fn model(tower_layers: usize, heads: usize, decoder_layers: usize) -> ModelInfo {
    let mut model = testkit::small_model();
    model.encoder.layers = tower_layers;
    model.encoder.full_attention_layers = (0..tower_layers).collect();
    model.encoder.heads = heads;
    model.decoder.layers = decoder_layers;
    model
}

/// Signals of one crop whose patches are the tokens.
fn one_crop(tokens: &TokenMap) -> Signals {
    let source = |i: u32| PatchSource { patches: vec![(0, i, 1.0)] };
    Signals {
        crops: vec![CropSignals::default()],
        sources: (0..tokens.len() as u32).map(source).collect(),
        ..Signals::default()
    }
}

/// One picture of `v` tokens: a square if `v` is one, else a row.
fn tokens_of(v: usize) -> TokenMap {
    let side = v.isqrt();
    if side * side == v {
        testkit::raster(side as u32, side as u32)
    } else {
        testkit::raster(1, v as u32)
    }
}

/// One stage of a pruner.
struct Stage<'a> {
    pruner: &'a dyn Pruner,
    model: &'a ModelInfo,
    tokens: &'a TokenMap,
    entered: usize,
}

impl Stage<'_> {
    fn select(&self, stage: usize, signals: &Signals, memory: &mut Memory) -> Selection {
        let plan = self.pruner.plan(self.model).unwrap();
        let plan = &plan.stages[stage];
        let cut = Cut {
            pruner: "golden",
            stage,
            plan,
            tokens: self.tokens,
            entered: self.entered,
            signals,
        };
        let selection = self.pruner.select(&cut, memory).unwrap_or_else(|e| panic!("{e}"));
        selection.check(self.tokens, plan.site).unwrap();
        selection
    }
}

fn once(pruner: &dyn Pruner, model: &ModelInfo, tokens: &TokenMap, signals: &Signals) -> Selection {
    let stage = Stage { pruner, model, tokens, entered: tokens.len() };
    stage.select(0, signals, &mut Memory::default())
}

/// Sequence indices that stay: text and kept visual tokens.
fn positions(start: usize, v: usize, n: usize, kept: &[u32]) -> Vec<usize> {
    let kept = kept.iter().map(|&k| start + k as usize);
    (0..start).chain(kept).chain(start + v..n).collect()
}

/// Rows after a selection of merges.
fn merged(features: &Array2<f32>, merge: &Merge) -> Vec<f32> {
    let mut sum = Array1::<f32>::zeros(features.ncols());
    for &(i, w) in &merge.terms {
        sum.scaled_add(w, &features.row(i as usize));
    }
    sum.to_vec()
}

fn vtc_cls(case: &Case) {
    let rows = case.input("attention").clone().into_dimensionality::<Ix3>().unwrap();
    let layers = rows.shape()[0];
    let tokens = tokens_of(rows.shape()[2] - 1);
    let mut signals = one_crop(&tokens);
    for (layer, heads) in rows.outer_iter().enumerate() {
        let mean: Vec<f32> = heads.mean_axis(Axis(0)).unwrap().iter().skip(1).copied().collect();
        signals.crops[0].vectors.insert(Signal::ClsAttention { layer }, Array1::from(mean));
    }
    let mut table = case.table(&["keep"]);
    table.insert("start_layer".into(), 0.into());
    let pruner = build("vtc_cls", &table);
    let got = once(pruner.as_ref(), &model(layers, 1, 8), &tokens, &signals);
    case.close("scores", &got.scores.unwrap());
    case.equal("kept", &got.kept);
}

fn fastv(case: &Case) {
    let rows = case.matrix("last_row");
    let (start, v) = (case.int("visual_start"), case.int("visual_tokens"));
    let mean = rows.mean_axis(Axis(0)).unwrap();
    let tokens = tokens_of(v);
    let mut signals = one_crop(&tokens);
    let signal = Signal::Attention { layer: 1, rows: Rows::Last };
    signals.vectors.insert(signal, mean.iter().skip(start).take(v).copied().collect());
    let pruner = build("fastv", &case.table(&["keep"]));
    let got = once(pruner.as_ref(), &model(4, 1, 8), &tokens, &signals);
    case.close("scores", got.scores.as_ref().unwrap());
    case.equal("kept", &got.kept);
    case.equal("positions", &positions(start, v, mean.len(), &got.kept));
}

/// Mean over heads and over query rows `from..` of causal attention.
fn attention(case: &Case, drop: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    let cube = |name: &str| {
        let name = format!("{name}.{drop}");
        case.input(&name).clone().into_dimensionality::<Ix3>().unwrap()
    };
    let (q, k) = (cube("q"), cube("k"));
    let (heads, n, width) = q.dim();
    let first = from(n);
    let mut mean = vec![0.0f64; n];
    for head in 0..heads {
        for row in first..n {
            let query = q.index_axis(Axis(0), head).row(row).to_owned();
            let keys = k.index_axis(Axis(0), head).to_owned();
            let logits: Vec<f64> = (0..=row)
                .map(|c| f64::from(query.dot(&keys.row(c))) / (width as f64).sqrt())
                .collect();
            let highest = logits.iter().copied().fold(f64::MIN, f64::max);
            let powers: Vec<f64> = logits.iter().map(|l| (l - highest).exp()).collect();
            let sum: f64 = powers.iter().sum();
            mean.iter_mut().zip(&powers).for_each(|(m, p)| *m += p / sum);
        }
    }
    let count = (heads * (n - first)) as f64;
    mean.into_iter().map(|m| (m / count) as f32).collect()
}

fn transitions(case: &Case, name: &str, executed: usize) -> Vec<Transition> {
    let a = case.matrix(&format!("{name}_in.{executed}"));
    let b = case.matrix(&format!("{name}_out.{executed}"));
    let pairs = a.rows().into_iter().zip(b.rows());
    pairs.map(|(a, b)| [a.dot(&a), b.dot(&b), a.dot(&b)]).collect()
}

/// PyramidDrop and TransPrune: several drops, each on what the one before left.
fn staged(case: &Case, name: &str) {
    let (start, v) = (case.int("visual_start"), case.int("visual_tokens"));
    let drops = case.params["ratios"].as_array().unwrap().len();
    let layers: Vec<usize> =
        if name == "trans_prune" { case.ints_of("layers") } else { (1..=drops).collect() };
    let mut table = case.table(&["ratios", "accumulate"]);
    let list = layers.iter().map(|&l| toml::Value::from(l as i64)).collect::<Vec<_>>();
    table.insert("layers".into(), list.into());
    let pruner = build(name, &table);
    let model = model(4, 1, 32);
    let accumulate = if name == "trans_prune" { case.ints_of("accumulate") } else { Vec::new() };
    let mut tokens = tokens_of(v);
    let mut signals = one_crop(&tokens);
    // Index in the sequence that entered of every row, and of every visual row.
    let n = case.floats["in.q.0"].shape()[1];
    let mut rows: Vec<u32> = (0..n as u32).collect();
    let mut visual: Vec<u32> = (start as u32..(start + v) as u32).collect();
    for (j, &layer) in layers.iter().enumerate() {
        let before = if j == 0 { 0 } else { layers[j - 1] };
        for &executed in accumulate.iter().filter(|&&a| a > before && a <= layer) {
            let entry = LayerTransitions {
                attention: transitions(case, "attn", executed),
                mlp: transitions(case, "mlp", executed),
                tokens: rows.clone(),
            };
            let weights = layer_weights(&entry, Direction::Signed);
            case.close(&format!("transition.{executed}"), &weights);
            signals.transitions.insert(executed - 1, entry);
        }
        let (which, from): (_, Box<dyn Fn(usize) -> usize>) = if name == "trans_prune" {
            let after = start + visual.len();
            (Rows::Instruction, Box::new(move |n| after.min(n - 1)))
        } else {
            (Rows::Last, Box::new(|n| n - 1))
        };
        let mean = attention(case, j, from);
        let column = |at: usize| mean[start + at];
        signals
            .vectors
            .insert(Signal::Probe { layer, rows: which }, (0..visual.len()).map(column).collect());
        signals.visual_rows = visual.clone();
        let stage = Stage { pruner: pruner.as_ref(), model: &model, tokens: &tokens, entered: v };
        let got = stage.select(j, &signals, &mut Memory::default());
        let after = tokens.compose(&got);
        case.close(&format!("scores.{j}"), got.scores.as_ref().unwrap());
        case.equal(&format!("kept.{j}"), &after.indices());
        visual = got.kept.iter().map(|&k| visual[k as usize]).collect();
        rows.retain(|r| {
            let inside = (start as u32..(start + v) as u32).contains(r);
            !inside || visual.contains(r)
        });
        case.equal(&format!("positions.{j}"), &(0..rows.len() as i64).collect::<Vec<_>>());
        tokens = after;
    }
}

fn debias(case: &Case) {
    let side = case.int("grid");
    let [width, height] = case.ints_of("image_size")[..] else { panic!("image_size") };
    let square = width.max(height) as f64;
    let cell = square / case.int("input_size") as f64 * (case.int("input_size") / side) as f64;
    let pad = |size: usize| -(square - size as f64) / 2.0;
    let grid = Grid {
        rows: side as u32,
        cols: side as u32,
        origin: [pad(width), pad(height)],
        cell: [cell; 2],
        source: [width as u32, height as u32],
        ..testkit::grid(0, 1, 1)
    };
    let tokens = TokenMap::raster(vec![grid]);
    let mut padding = case.table(&["threshold", "clamp_keep"]);
    let mut options = case.table(&["trend"]);
    options.insert("padding".into(), std::mem::take(&mut padding).into());
    let mut table = case.table(&["keep"]);
    table.insert("debias".into(), options.into());

    let debias = Debias::option(&Params::new("fastv", &table)).unwrap().unwrap();
    let mask: Vec<f32> =
        debias.picture(&tokens).unwrap().into_iter().map(|p| f32::from(u8::from(p))).collect();
    case.close("mask", &mask);
    case.close("weights", &debias.weights(&tokens));

    let mut signals = one_crop(&tokens);
    let signal = Signal::Attention { layer: 1, rows: Rows::Last };
    signals.vectors.insert(signal, case.input("scores").iter().copied().collect());
    let pruner = build("fastv", &table);
    let got = once(pruner.as_ref(), &model(4, 1, 8), &tokens, &signals);
    case.close("scores", got.scores.as_ref().unwrap());
    case.equal("kept", &got.kept);

    // The named pruner around FastV is the same.
    let mut inner = case.table(&["keep"]);
    inner.insert("type".into(), "fastv".into());
    let Some(toml::Value::Table(mut named)) = table.remove("debias") else { panic!("debias") };
    named.insert("inner".into(), inner.into());
    let named = build("debiased", &named);
    assert_eq!(got, once(named.as_ref(), &model(4, 1, 8), &tokens, &signals), "{}", case.name);
}

fn vision_zip(case: &Case) {
    let rows = case.matrix("cls_row");
    let hidden = case.matrix("hidden");
    let keys = case.input("key").clone().into_dimensionality::<Ix3>().unwrap();
    let tokens = tokens_of(rows.ncols());
    let mut signals = one_crop(&tokens);
    let layer = 2;
    let crop = &mut signals.crops[0];
    crop.vectors.insert(Signal::ClsAttention { layer }, rows.mean_axis(Axis(0)).unwrap());
    crop.matrices.insert(Signal::EncoderKeys { layer }, keys.mean_axis(Axis(1)).unwrap());
    let pruner = build("vision_zip", &case.table(&["dominant", "contextual"]));
    let got = once(pruner.as_ref(), &model(3, rows.nrows(), 8), &tokens, &signals);
    case.close("scores", got.scores.as_ref().unwrap());
    case.equal("kept", &got.kept);
    // Rows of `hidden` count the class token.
    case.equal("targets", &got.appended.iter().map(|m| m.target + 1).collect::<Vec<_>>());
    assert!(got.cls);
    let mut out = hidden.row(0).to_vec();
    for &k in &got.kept {
        out.extend(hidden.row(k as usize + 1));
    }
    let patches = hidden.select(Axis(0), &(1..hidden.nrows()).collect::<Vec<_>>());
    for merge in &got.appended {
        out.extend(merged(&patches, merge));
    }
    case.close("tokens", &out);
}

fn div_prune(case: &Case) {
    let features = case.matrix("features");
    let order = farthest_points(&Cosines::new(features.view()), case.int("keep"));
    if case.int("keep") < features.nrows() {
        case.equal("order", &order.iter().map(|&i| i as i64).collect::<Vec<_>>());
    } else {
        // All tokens stay: there is no choice, and no order to speak of.
        case.seen.borrow_mut().push("out.order".into());
    }
    let tokens = tokens_of(features.nrows());
    let mut signals = one_crop(&tokens);
    signals.embeddings = Some(features);
    let pruner = build("div_prune", &case.table(&["ratio"]));
    let got = once(pruner.as_ref(), &model(4, 1, 8), &tokens, &signals);
    case.equal("kept", &got.kept);
}

fn unscored(case: &Case, name: &str) {
    let tokens = match case.params.get("grid") {
        Some(_) => {
            let [rows, cols] = case.ints_of("grid")[..] else { panic!("grid") };
            testkit::raster(rows as u32, cols as u32)
        }
        None => tokens_of(case.int("visual_tokens")),
    };
    let pruner = build(name, &case.table(&["keep", "seed"]));
    case.equal("kept", &once(pruner.as_ref(), &model(4, 1, 8), &tokens, &one_crop(&tokens)).kept);
}

/// Mean over heads of the rows that a semantic score averages, visual columns.
fn semantic(case: &Case) -> (Rows, Vec<f32>) {
    let maps = case.input("attn").clone().into_dimensionality::<Ix3>().unwrap();
    let map = maps.mean_axis(Axis(0)).unwrap();
    let n = map.nrows();
    let (start, v) = (case.int("visual_start"), case.int("visual_tokens"));
    let (rows, range) = match case.params["semantic_rows"].as_str().unwrap() {
        "prefill_mean" => (Rows::All, 0..n),
        "last" => (Rows::Last, n - 1..n),
        _ => (Rows::InnerInstruction, start + v + 1..n - 1),
    };
    let index: Vec<usize> = range.collect();
    let mean = map.select(Axis(0), &index).mean_axis(Axis(0)).unwrap();
    (rows, mean.iter().skip(start).take(v).copied().collect())
}

fn vla_pruner(case: &Case) {
    let (start, v) = (case.int("visual_start"), case.int("visual_tokens"));
    if case.name.ends_with("action_score") {
        return vla_action_score(case, start, v);
    }
    let keys = ["layer", "keep", "window", "gamma", "semantic_rows", "decay_order", "views"];
    let pruner = build("vla_pruner", &case.table(&keys));
    let model = model(4, 1, 8);
    let tokens = testkit::raster(1, v as u32);
    let mut signals = one_crop(&tokens);
    let (rows, scores) = semantic(case);
    case.close("semantic", &scores);
    let layer = case.int("layer") - 1;
    signals.vectors.insert(Signal::Attention { layer, rows }, scores.clone());
    let features = case.matrix("features");
    signals.embeddings = Some(features.clone());
    let mut memory = Memory::default();
    let (window, gamma) = (case.int("window"), case.params["gamma"].as_f64().unwrap());
    let mut guide = None;
    if case.has("in.history") {
        let history = case.matrix("history");
        let own = History::new(history.rows().into_iter().map(|r| r.to_vec()));
        let order = match case.params["decay_order"].as_str().unwrap() {
            "newest_heaviest" => DecayOrder::NewestHeaviest,
            _ => DecayOrder::OldestHeaviest,
        };
        guide = own.smooth(window, gamma, order);
        pruner.load_history(history, &mut memory);
    }
    let stage = Stage { pruner: pruner.as_ref(), model: &model, tokens: &tokens, entered: v };
    let got = stage.select(0, &signals, &mut memory);
    // This file breaks the rule that it states (equal distances: lower index): its matrix product
    // fuses multiply and add in the first eight columns alone, so that copies of one embedding
    // differ in the last bit there. Which copy is kept is all that differs.
    let copies = case.name.ends_with("/duplicates");
    let check = |name: &str, got: &[i64], shift: i64| match copies {
        true => case.equal_up_to_copies(name, got, &features, shift),
        false => case.equal(name, got),
    };
    let wide = |list: &[u32]| list.iter().map(|&i| i64::from(i)).collect::<Vec<_>>();
    check("kept", &wide(&got.kept), 0);
    let n = case.input("attn").shape()[1];
    let stays: Vec<i64> = positions(start, v, n, &got.kept).into_iter().map(|p| p as i64).collect();
    check("kept_positions", &stays, start as i64);
    let Some(guide) = guide else {
        assert!(got.scores.is_none(), "{}: warming up scores nothing", case.name);
        return;
    };
    case.close("semantic", got.scores.as_ref().unwrap());
    case.close("action", &guide);
    let (views, budget) = (case.int("views"), case.int("budget_per_view"));
    let mut sets: [Vec<i64>; 4] = Default::default();
    for view in 0..views {
        let at = view * v / views..(view + 1) * v / views;
        let shift = |i: usize| (i + at.start) as i64;
        let sem = top_k(&scores[at.clone()], budget);
        let act = top_k(&guide[at.clone()], budget);
        let mut union: Vec<usize> = sem.iter().chain(&act).map(|&i| i as usize).collect();
        union.sort_unstable();
        union.dedup();
        let index: Vec<usize> = union.iter().map(|i| i + at.start).collect();
        let chosen =
            farthest_points(&Cosines::new(features.select(Axis(0), &index).view()), budget);
        sets[0].extend(sem.iter().map(|&i| shift(i as usize)));
        sets[1].extend(act.iter().map(|&i| shift(i as usize)));
        sets[2].extend(union.iter().map(|&i| shift(i)));
        sets[3].extend(chosen.iter().map(|&at| shift(union[at])));
    }
    for (name, set) in ["top_semantic", "top_action", "union"].iter().zip(&sets) {
        case.equal(name, set);
    }
    check("order", &sets[3], 0);
}

fn vla_action_score(case: &Case, start: usize, v: usize) {
    let rows = case.input("action_rows").clone().into_dimensionality::<Ix3>().unwrap();
    let mean = rows.mean_axis(Axis(0)).unwrap().mean_axis(Axis(0)).unwrap();
    // What the runtime does: scatter to original indices, 0 where a token was pruned.
    let mut scattered = vec![0.0f32; v];
    for (&column, &value) in case.ints["in.columns"].iter().zip(&mean) {
        if let Some(slot) = scattered.get_mut((column as usize).wrapping_sub(start)) {
            *slot = value;
        }
    }
    let pruner = build("vla_pruner", &Table::new());
    let model = model(4, 1, 8);
    let tokens = testkit::raster(1, v as u32);
    let mut memory = Memory::default();
    let mut signals = one_crop(&tokens);
    let stage = Stage { pruner: pruner.as_ref(), model: &model, tokens: &tokens, entered: v };
    stage.select(0, &signals, &mut memory);
    assert_eq!(pruner.last_action_score(&memory), None);
    signals.vectors.insert(Signal::GeneratedRows { layer: 3 }, scattered);
    let reads = &pruner.plan(&model).unwrap().observes;
    pruner.observe(&Observation { reads, signals: &signals, entered: v }, &mut memory);
    case.close("action_score", &pruner.last_action_score(&memory).unwrap());
}

fn vflow_tokens(case: &Case) -> TokenMap {
    let grids = case.params["segments"].as_array().unwrap().iter().enumerate().map(|(g, s)| {
        let side = |at: usize| s[at].as_u64().unwrap() as u32;
        Grid { tile: g as u32, ..testkit::grid(0, side(1), side(2)) }
    });
    TokenMap::raster(grids.collect())
}

fn vflowopt_case(case: &Case) {
    let features = case.matrix("features");
    let tokens = vflow_tokens(case);
    let number = |name: &str| case.params[name].as_f64().unwrap();
    let keep = Budget::Share(number("keep"));
    if case.has("in.importance") {
        let importance: Vec<f32> = case.input("importance").iter().copied().collect();
        let got = vflowopt::recycle(&tokens, &importance, &keep, number("cell"), false);
        case.equal("low", &got.low);
        let selection = Selection { kept: got.kept, merges: got.merges, ..Selection::default() };
        return vflow_outcome(case, &features, &tokens, &importance, &selection);
    }
    let maps = case.input("attn").clone().into_dimensionality::<Ix3>().unwrap();
    let map = maps.mean_axis(Axis(0)).unwrap();
    let received = vflowopt::received(map.view());
    case.close("received", &received.iter().map(|&r| r as f32).collect::<Vec<_>>());
    let anchors = vflowopt::anchors(&received, number("anchor_t"));
    case.equal("anchors", &anchors.iter().map(|&i| i as i64).collect::<Vec<_>>());
    let mut signals = one_crop(&tokens);
    signals.crops[0].matrices.insert(Signal::EncoderMap { layer: 2 }, map);
    if case.has("in.rgb") {
        let pixels = pixels(&case.ints["in.rgb"], &case.shapes["in.rgb"], case.int("patch"));
        case.close("entropy", &vflowopt::patch_entropy(&pixels));
        signals.crops[0].pixels = pixels;
    }
    let mut table = case.table(&["anchor_t", "entropy_weight", "keep", "cell"]);
    let stages: Vec<toml::Value> = case.params["stages_keep"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(j, keep)| {
            let mut stage = Table::new();
            stage.insert("layer".into(), (2 + 2 * j as i64).into());
            stage.insert("keep".into(), keep.as_f64().unwrap().into());
            stage.into()
        })
        .collect();
    table.insert("stages".into(), stages.into());
    let pruner = build("vflowopt", &table);
    let model = model(3, 1, 8);
    let mut memory = Memory::default();
    let stage = Stage { pruner: pruner.as_ref(), model: &model, tokens: &tokens, entered: 36 };
    let got = stage.select(0, &signals, &mut memory);
    let scores = got.scores.clone().unwrap();
    case.close("importance", &scores);
    let cell = number("cell");
    case.equal("low", &vflowopt::recycle(&tokens, &scores, &keep, cell, false).low);
    vflow_outcome(case, &features, &tokens, &scores, &got);
    // The decoder stages of the pruner itself, on what is left.
    let mut left = tokens.compose(&got);
    for j in 0..case.params["stages_keep"].as_array().unwrap().len() {
        let stage = Stage { tokens: &left, entered: got.kept.len(), ..stage };
        let cut = stage.select(1 + j, &signals, &mut memory);
        left = left.compose(&cut);
        let places: Vec<i64> =
            left.indices().iter().map(|i| got.kept.binary_search(i).unwrap() as i64).collect();
        case.equal(&format!("stage.{j}"), &places);
    }
}

/// What enters the decoder, and the drops inside it by the map alone.
fn vflow_outcome(
    case: &Case,
    features: &Array2<f32>,
    tokens: &TokenMap,
    importance: &[f32],
    got: &Selection,
) {
    case.equal("origin", &got.kept);
    case.equal("recycled", &got.merges.iter().map(|m| m.target).collect::<Vec<_>>());
    let mut out = Vec::new();
    for &k in &got.kept {
        match got.merges.iter().find(|m| m.target == k) {
            Some(merge) => out.extend(merged(features, merge)),
            None => out.extend(features.row(k as usize)),
        }
    }
    case.close("tokens", &out);
    assert!(tokens.tokens.iter().all(|t| t.kind == TokenKind::Patch));
    // Equal to the smallest going first: the largest stay, of equals the higher index.
    let mut at: Vec<usize> = (0..got.kept.len()).collect();
    for (j, keep) in case.params["stages_keep"].as_array().unwrap().iter().enumerate() {
        let drop = (at.len() as f64 * (1.0 - keep.as_f64().unwrap())).round_ties_even() as usize;
        let mut order = at.clone();
        let value = |i: &usize| importance[got.kept[*i] as usize];
        order.sort_by(|a, b| value(a).total_cmp(&value(b)));
        at.retain(|i| !order[..drop].contains(i));
        case.equal(&format!("stage.{j}"), &at.iter().map(|&i| i as i64).collect::<Vec<_>>());
    }
}

/// `[3, height, width]` to crop pixels.
fn pixels(rgb: &[i64], shape: &[usize], patch: usize) -> CropPixels {
    let [_, height, width] = *shape else { panic!("{shape:?}") };
    let value = |i: usize| rgb[(i % 3) * height * width + i / 3] as u8;
    let bytes: Vec<u8> = (0..rgb.len()).map(value).collect();
    CropPixels { width, height, patch, rgb: bytes.into() }
}

fn check(case: &Case) {
    match case.name.split('/').next().unwrap() {
        "vtc_cls" => vtc_cls(case),
        "fastv" => fastv(case),
        name @ ("pyramid_drop" | "trans_prune") => staged(case, name),
        "debias" => debias(case),
        "vision_zip" => vision_zip(case),
        "div_prune" => div_prune(case),
        name @ ("random" | "grid") => unscored(case, name),
        "vla_pruner" => vla_pruner(case),
        "vflowopt" => vflowopt_case(case),
        other => panic!("no check for {other}"),
    }
    let seen = case.seen.borrow();
    let outputs = case.floats.keys().chain(case.ints.keys()).filter(|n| n.starts_with("out."));
    for name in outputs {
        assert!(seen.contains(name), "{}: {name} was not compared", case.name);
    }
}

#[test]
fn every_score_golden_is_reproduced() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/scores");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 70, "only {} cases", paths.len());
    let filter = std::env::var("CASE").unwrap_or_default();
    let mut failures = Vec::new();
    let mut ran = 0;
    for path in paths {
        let case = Case::read(&path);
        if !case.name.contains(&filter) {
            continue;
        }
        ran += 1;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&case)));
        if let Err(cause) = outcome {
            let text = cause.downcast_ref::<String>().cloned().unwrap_or_default();
            failures.push(format!("{}: {text}", case.name));
        }
    }
    assert!(ran > 0, "nothing ran");
    assert!(failures.is_empty(), "{} of {ran} failed:\n{}", failures.len(), failures.join("\n"));
}
