//! Cases as data: `cases/*.toml`, one check. `CASE=words` runs those whose name holds the words.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};
use secateur_core::chain::{ChainSpec, Params};
use secateur_core::prune::{Cut, Memory, Pruner, Selection};
use secateur_core::signal::{CropSignals, LayerTransitions, PatchSource, Signal, Signals};
use secateur_core::testkit;
use secateur_core::tokens::{TokenKind, TokenMap};
use secateur_pruners::registry;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Case>,
}

/// One stage on one picture. Every attention vector that the pruner reads is `scores`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// Inline form of the pruner.
    chain: String,
    /// The table instead, where the inline form cannot say it.
    toml: Option<String>,
    /// Rows and columns; default: one row.
    grid: Option<[u32; 2]>,
    #[serde(default)]
    newlines: bool,
    scores: Vec<f32>,
    coverage: Option<Vec<f32>>,
    embeddings: Option<Vec<Vec<f32>>>,
    history: Option<Vec<Vec<f32>>>,
    kept: Option<Vec<u32>>,
    /// Part of a note of the selection.
    note: Option<String>,
    /// Part of the error.
    error: Option<String>,
}

impl Case {
    fn tokens(&self) -> TokenMap {
        let [rows, cols] = self.grid.unwrap_or([1, self.scores.len() as u32]);
        let mut tokens = match self.newlines {
            true => testkit::raster_with_newlines(rows, cols),
            false => testkit::raster(rows, cols),
        };
        for (token, &coverage) in tokens.tokens.iter_mut().zip(self.coverage.iter().flatten()) {
            token.coverage = coverage;
        }
        tokens
    }

    fn pruner(&self) -> Result<Box<dyn Pruner>, String> {
        let spec = match &self.toml {
            Some(text) => ChainSpec::from_toml("case", &format!("[[stage]]\n{text}")),
            None => ChainSpec::parse(&self.chain),
        };
        let stage = spec.map_err(|e| e.to_string())?.stages.remove(0);
        let entry = registry::find(&stage.pruner).ok_or("no such pruner")?;
        let params = Params::new(&stage.pruner, &stage.params);
        let pruner = (entry.build)(&params).map_err(|e| e.to_string())?;
        params.finish().map_err(|e| e.to_string())?;
        Ok(pruner)
    }

    fn signals(&self, tokens: &TokenMap, reads: &[Signal]) -> Signals {
        let mut crop = CropSignals::default();
        let mut patches = 0;
        let source = |t: &secateur_core::tokens::VisualToken| {
            let made =
                if t.kind == TokenKind::Patch { vec![(0, patches, 1.0)] } else { Vec::new() };
            patches += made.len() as u32;
            PatchSource { patches: made }
        };
        let mut signals = Signals {
            sources: tokens.tokens.iter().map(source).collect(),
            visual_rows: (0..tokens.len() as u32).collect(),
            ..Signals::default()
        };
        for signal in reads {
            match signal {
                Signal::ClsAttention { .. }
                | Signal::ColumnMean { .. }
                | Signal::PoolingAttention => {
                    crop.vectors.insert(*signal, Array1::from(self.scores.clone()));
                }
                Signal::EncoderKeys { .. } => {
                    crop.matrices.insert(*signal, Array2::ones((tokens.len() + 1, 2)));
                }
                Signal::EncoderMap { .. } => {
                    crop.matrices.insert(*signal, Array2::ones((tokens.len(), tokens.len())));
                }
                Signal::Embeddings => {
                    let rows = self.embeddings.clone().unwrap_or_default();
                    let width = rows.first().map_or(0, Vec::len);
                    signals.embeddings =
                        Array2::from_shape_vec((rows.len(), width), rows.concat()).ok();
                }
                Signal::InstructionEmbedding => {
                    let rows = self.embeddings.as_ref().and_then(|r| r.first());
                    signals.instruction = Some(Array1::ones(rows.map_or(0, Vec::len)));
                }
                Signal::Transitions { layer } => {
                    let entry = LayerTransitions {
                        attention: vec![[1.0, 1.0, 0.5]; tokens.len()],
                        mlp: vec![[1.0, 1.0, 0.5]; tokens.len()],
                        tokens: (0..tokens.len() as u32).collect(),
                    };
                    signals.transitions.insert(*layer, entry);
                }
                _ => {
                    signals.vectors.insert(*signal, self.scores.clone());
                }
            }
        }
        signals.crops = vec![crop];
        signals
    }

    fn run(&self) -> Result<Selection, String> {
        let pruner = self.pruner()?;
        let model = testkit::small_model();
        let plan = pruner.plan(&model).map_err(|e| e.to_string())?;
        let tokens = self.tokens();
        let signals = self.signals(&tokens, &plan.stages[0].reads);
        let mut memory = Memory::default();
        if let Some(rows) = &self.history {
            let history = Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat());
            pruner.load_history(history.map_err(|e| e.to_string())?, &mut memory);
        }
        let (plan, entered) = (&plan.stages[0], tokens.len());
        let name = self.chain.as_str();
        let cut = Cut { pruner: name, stage: 0, plan, tokens: &tokens, entered, signals: &signals };
        let selection = pruner.select(&cut, &mut memory).map_err(|e| e.to_string())?;
        selection.check(&tokens, plan.site)?;
        Ok(selection)
    }

    /// What is wrong, if something is.
    fn check(&self) -> Option<String> {
        match (self.run(), &self.error) {
            (Ok(got), None) => {
                if self.kept.as_ref() != Some(&got.kept) {
                    return Some(format!("kept {:?}, not {:?}", got.kept, self.kept));
                }
                let note = self.note.as_deref().unwrap_or_default();
                let said = note.is_empty() || got.notes.iter().any(|n| n.contains(note));
                (!said).then(|| format!("notes {:?} say nothing of `{note}`", got.notes))
            }
            (Err(got), Some(want)) if got.contains(want) => None,
            (Err(got), _) => Some(format!("the error `{got}`")),
            (Ok(got), Some(want)) => Some(format!("kept {:?}, not the error `{want}`", got.kept)),
        }
    }
}

#[test]
fn every_case_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    paths.sort();
    let filter = std::env::var("CASE").unwrap_or_default();
    let (mut ran, mut failures) = (0, Vec::new());
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let file: File = toml::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        for case in file.case.iter().filter(|c| c.name.contains(&filter)) {
            ran += 1;
            if let Some(reason) = case.check() {
                let file = path.file_name().unwrap_or_default().display();
                failures.push(format!("{file}: {}: {reason}", case.name));
            }
        }
    }
    assert!(ran > 0, "nothing ran");
    assert!(failures.is_empty(), "{} of {ran} failed:\n{}", failures.len(), failures.join("\n"));
}
