//! Contract tests for anybody's pruner, and the made-up models, tokens and signals they need.
//!
//! ```
//! use secateur_core::error::{ChainError, RunError};
//! use secateur_core::model::ModelInfo;
//! use secateur_core::prune::{Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
//! use secateur_core::testkit;
//!
//! /// Keeps every second token.
//! #[derive(Debug)]
//! struct EverySecond;
//!
//! impl Pruner for EverySecond {
//!     fn plan(&self, _model: &ModelInfo) -> Result<Plan, ChainError> {
//!         Ok(StagePlan::at(Site::Input).budget("half").into())
//!     }
//!
//!     fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
//!         let stays = |i: &u32| i % 2 == 0 || !cut.tokens.tokens[*i as usize].is_candidate();
//!         Ok(Selection::keep((0..cut.tokens.len() as u32).filter(stays).collect()))
//!     }
//! }
//!
//! testkit::check(&EverySecond, &testkit::small_model()).unwrap();
//! ```
//!
//! Not here: whether a pruner chooses *well* (`secateur eval`).

mod scene;

use crate::clip::Grid;
use crate::error::{ChainError, RunError};
use crate::model::{DecoderInfo, EncoderInfo, ModelInfo};
use crate::prune::{Cut, Memory, Observation, Pruner, Selection, Site, StagePlan};
use crate::signal::Signal;
use crate::tokens::{TokenKind, TokenMap, VisualToken};
use scene::{Scene, poison};

/// Requests of an episode before the one that is looked at: fills the history of pruners with
/// state over time.
const WARM_UP: usize = 4;

/// A small model that offers every signal: 4 tower layers with a class token, 36 visual tokens, 8
/// decoder layers.
pub fn small_model() -> ModelInfo {
    ModelInfo {
        name: "small".into(),
        family: "llava".into(),
        encoder: EncoderInfo {
            tower: "clip_vision_model".into(),
            layers: 4,
            file_layers: 5,
            heads: 2,
            width: 16,
            cls: true,
            full_attention_layers: (0..4).collect(),
            withheld: Vec::new(),
        },
        decoder: DecoderInfo {
            kind: "llama".into(),
            layers: 8,
            hidden: 24,
            attn_heads: 4,
            kv_heads: 2,
            head_dim: 6,
            vocab: 100,
            context: 4096,
            mrope: false,
            prefix_lm: false,
        },
        one_to_one: true,
        visual_tokens: 36,
    }
}

/// LLaVA-1.5-7B, as its files describe it.
pub fn llava_15_7b() -> ModelInfo {
    let small = small_model();
    ModelInfo {
        name: "llava-1.5-7b".into(),
        encoder: EncoderInfo {
            layers: 23,
            file_layers: 24,
            heads: 16,
            width: 1024,
            full_attention_layers: (0..23).collect(),
            ..small.encoder
        },
        decoder: DecoderInfo {
            layers: 32,
            hidden: 4096,
            attn_heads: 32,
            kv_heads: 32,
            head_dim: 128,
            vocab: 32064,
            ..small.decoder
        },
        visual_tokens: 576,
        ..small
    }
}

/// A grid of `rows x cols` cells over a picture that fills it; one pixel of source a cell.
pub fn grid(picture: u32, rows: u32, cols: u32) -> Grid {
    Grid {
        picture,
        frame: 0,
        tile: 0,
        rows,
        cols,
        origin: [0.0; 2],
        cell: [1.0; 2],
        source: [cols, rows],
    }
}

/// One picture of `rows x cols` tokens.
pub fn raster(rows: u32, cols: u32) -> TokenMap {
    TokenMap::raster(vec![grid(0, rows, cols)])
}

/// One picture of `rows x cols` tokens with a newline behind each row.
pub fn raster_with_newlines(rows: u32, cols: u32) -> TokenMap {
    let lattice = grid(0, rows, cols);
    let mut tokens = Vec::new();
    for row in 0..rows {
        for col in 0..=cols {
            let mut token = VisualToken::patch(tokens.len() as u32, 0, &lattice, row, col);
            if col == cols {
                token.kind = TokenKind::Structural;
                token.coverage = 1.0;
            }
            tokens.push(token);
        }
    }
    TokenMap::new(vec![lattice], tokens)
}

/// What made-up signals look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Pseudo-random values from a seed.
    Noise(u64),
    /// The same value everywhere.
    Constant,
}

/// One cut of a made-up request.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its site.
    pub site: Site,
    /// The tokens before it.
    pub tokens: TokenMap,
    /// What was chosen.
    pub selection: Selection,
}

/// Runs one made-up request through all cuts of a pruner, and lets it observe the end.
///
/// # Errors
/// What the pruner reports, and any selection that breaks a rule of [`Selection::check`].
pub fn run(
    pruner: &dyn Pruner,
    model: &ModelInfo,
    tokens: &TokenMap,
    fill: Fill,
    memory: &mut Memory,
) -> Result<Vec<Step>, RunError> {
    run_poisoned(pruner, model, tokens, fill, memory, None)
}

fn run_poisoned(
    pruner: &dyn Pruner,
    model: &ModelInfo,
    tokens: &TokenMap,
    fill: Fill,
    memory: &mut Memory,
    poisoned: Option<(usize, Signal)>,
) -> Result<Vec<Step>, RunError> {
    memory.begin_request();
    let plan = pruner.plan(model)?;
    let mut scene = Scene::new(tokens);
    let mut steps = Vec::new();
    for (stage, plan) in plan.stages.iter().enumerate() {
        let StagePlan { site, reads, .. } = plan;
        scene.enter(*site);
        let mut signals = scene.signals(reads, fill, model);
        if let Some((_, signal)) = poisoned.filter(|(at, _)| *at == stage) {
            poison(&signal, &mut signals);
        }
        let name = format!("{pruner:?}");
        let cut = Cut {
            pruner: &name,
            stage,
            plan,
            tokens: &scene.tokens,
            entered: scene.entered,
            signals: &signals,
        };
        let selection = pruner.select(&cut, memory)?;
        let broken = |reason: String| cut.refuse(reason);
        selection.check(&scene.tokens, *site).map_err(broken)?;
        if let Some(scores) = &selection.scores
            && scores.len() != scene.tokens.len()
        {
            let reason = format!("{} scores for {} tokens", scores.len(), scene.tokens.len());
            return Err(broken(reason));
        }
        let before = scene.tokens.clone();
        scene.apply(&selection);
        steps.push(Step { site: *site, tokens: before, selection });
    }
    let signals = scene.signals(&plan.observes, fill, model);
    let seen = Observation { reads: &plan.observes, signals: &signals, entered: scene.entered };
    pruner.observe(&seen, memory);
    Ok(steps)
}

/// Runs an episode and returns the cuts of each request.
fn episode(
    pruner: &dyn Pruner,
    model: &ModelInfo,
    tokens: &TokenMap,
    fill: Fill,
) -> Result<Vec<Vec<Step>>, RunError> {
    let mut memory = Memory::default();
    (0..=WARM_UP as u64)
        .map(|step| {
            let fill = if let Fill::Noise(seed) = fill { Fill::Noise(seed + step) } else { fill };
            run(pruner, model, tokens, fill, &mut memory)
        })
        .collect()
}

/// Tokens that are no structure.
fn candidates(tokens: &TokenMap) -> usize {
    tokens.tokens.iter().filter(|t| t.is_candidate()).count()
}

/// Checks that a pruner keeps the contract, on made-up pictures of several shapes.
///
/// - Twice the same input gives twice the same selection; another episode in between changes
///   nothing.
/// - Selections are ascending, unique and in range, structural tokens stay, merges name what is
///   there.
/// - Equal scores everywhere, one token, newlines, two pictures: all fine.
/// - NaN in a signal that the plan declares is an error that names it.
///
/// # Errors
/// The first broken rule, in words.
pub fn check(pruner: &dyn Pruner, model: &ModelInfo) -> Result<(), String> {
    let shapes = [
        ("one token", raster(1, 1)),
        ("6x6", raster(6, 6)),
        ("5x3", raster(5, 3)),
        ("newlines", raster_with_newlines(4, 5)),
        ("two pictures", TokenMap::raster(vec![grid(0, 6, 6), grid(1, 4, 4)])),
    ];
    for (shape, tokens) in &shapes {
        for fill in [Fill::Noise(1), Fill::Noise(99), Fill::Constant] {
            check_shape(pruner, model, tokens, fill)
                .map_err(|reason| format!("{shape}, {fill:?}: {reason}"))?;
        }
    }
    check_non_finite(pruner, model)
}

fn check_shape(
    pruner: &dyn Pruner,
    model: &ModelInfo,
    tokens: &TokenMap,
    fill: Fill,
) -> Result<(), String> {
    let whole = |fill| episode(pruner, model, tokens, fill).map_err(|e| e.to_string());
    let first = whole(fill)?;
    if first != whole(fill)? {
        return Err("the same episode gave two different selections".into());
    }
    let mut own = Memory::default();
    let mut other = Memory::default();
    for (step, expected) in first.iter().enumerate() {
        let (a, b) = match fill {
            Fill::Noise(seed) => (Fill::Noise(seed + step as u64), Fill::Noise(seed + 1000)),
            Fill::Constant => (fill, Fill::Noise(5)),
        };
        let got = run(pruner, model, tokens, a, &mut own).map_err(|e| e.to_string())?;
        run(pruner, model, tokens, b, &mut other).map_err(|e| e.to_string())?;
        if got != *expected {
            return Err(format!("another episode in between changed step {step}"));
        }
    }
    Ok(())
}

fn check_non_finite(pruner: &dyn Pruner, model: &ModelInfo) -> Result<(), String> {
    let tokens = raster(6, 6);
    let plan = pruner.plan(model).map_err(|e| e.to_string())?;
    for (stage, plan) in plan.stages.iter().enumerate() {
        for signal in plan.reads.iter().filter(|s| **s != Signal::Pixels) {
            let mut memory = Memory::default();
            for step in 0..WARM_UP as u64 {
                run(pruner, model, &tokens, Fill::Noise(step), &mut memory)
                    .map_err(|e| e.to_string())?;
            }
            let poisoned = Some((stage, *signal));
            let result =
                run_poisoned(pruner, model, &tokens, Fill::Noise(9), &mut memory, poisoned);
            match result {
                Err(RunError::NonFinite { signal: named, .. }) if named == signal.to_string() => {}
                Err(other) => {
                    return Err(format!("NaN in `{signal}` gave the error `{other}`"));
                }
                Ok(_) => return Err(format!("NaN in `{signal}` at stage {stage} went unnoticed")),
            }
        }
    }
    Ok(())
}

/// Checks a pruner at the budgets 1, half, all and above all of 36 tokens; `build` makes it from
/// the text of `keep`.
///
/// At every budget [`check`] holds and some token stays; all and above all keep every token.
///
/// # Errors
/// The first broken rule, in words, with its budget.
pub fn check_budgets(
    build: impl Fn(&str) -> Result<Box<dyn Pruner>, ChainError>,
    model: &ModelInfo,
) -> Result<(), String> {
    let tokens = raster(6, 6);
    for (keep, everything) in [("1", false), ("0.5", false), ("36", true), ("1000", true)] {
        let fail = |reason: String| format!("keep = {keep}: {reason}");
        let pruner = build(keep).map_err(|e| fail(e.to_string()))?;
        check(pruner.as_ref(), model).map_err(fail)?;
        for steps in episode(pruner.as_ref(), model, &tokens, Fill::Noise(3))
            .map_err(|e| fail(e.to_string()))?
        {
            let Some(last) = steps.last() else { continue };
            let after = last.tokens.compose(&last.selection);
            if candidates(&after) == 0 {
                return Err(fail("no token is left".into()));
            }
            if everything && candidates(&after) < tokens.len() {
                return Err(fail(format!("only {} of 36 tokens are left", candidates(&after))));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{Plan, check_finite};
    use crate::signal::Rows;

    /// Keeps the first half; each fault breaks one rule.
    #[derive(Debug, Default)]
    struct Half {
        loses_newlines: bool,
        ignores_nan: bool,
        counts_calls: Option<std::sync::atomic::AtomicUsize>,
    }

    const READS: Signal = Signal::Attention { layer: 1, rows: Rows::Last };

    impl Pruner for Half {
        fn plan(&self, _model: &ModelInfo) -> Result<Plan, ChainError> {
            Ok(StagePlan::at(Site::Decoder(2)).reads([READS]).budget("half").into())
        }

        fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
            if !self.ignores_nan {
                check_finite(&READS, cut.vector(READS)?)?;
            }
            let calls = self.counts_calls.as_ref();
            let shift = calls.map_or(0, |c| c.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            let half = (cut.tokens.len() / 2 + shift % 2) as u32;
            let stays = |i: &u32| {
                let structural = !cut.tokens.tokens[*i as usize].is_candidate();
                *i <= half || (structural && !self.loses_newlines)
            };
            Ok(Selection::keep((0..cut.tokens.len() as u32).filter(stays).collect()))
        }
    }

    #[test]
    fn a_right_pruner_passes() {
        check(&Half::default(), &small_model()).unwrap();
    }

    #[test]
    fn each_fault_is_found() {
        let find = |half: Half| check(&half, &small_model()).unwrap_err();
        let lost = find(Half { loses_newlines: true, ..Half::default() });
        assert!(lost.contains("structural token"), "{lost}");
        let unnoticed = find(Half { ignores_nan: true, ..Half::default() });
        assert!(unnoticed.contains("went unnoticed"), "{unnoticed}");
        let impure = find(Half { counts_calls: Some(Default::default()), ..Half::default() });
        assert!(impure.contains("two different selections"), "{impure}");
    }
}
