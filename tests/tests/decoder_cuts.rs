//! Cuts between decoder layers equal the reference in every family: deepstack rows, windows, prefix
//! masks, three position axes and newlines, with positions that are kept and that count anew.
//!
//! `golden/decoder_cuts.safetensors` holds what transformers' own layers give when the rows of fixed
//! lists of tokens stay between them, without a cache (`tests/check_decoder_cuts.py`). Here a pruner
//! keeps the same lists. Integers, greedy tokens among them, must be equal; floats are within the
//! tolerance of the case.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use secateur::prune::{Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan};
use secateur::{ChainError, ChainSpec, ModelInfo, Params, RunError};
use secateur_tests::open::{read_case, run_with};
use secateur_tests::{Golden, difference, golden, tensors};

/// Tokens of an answer.
const TOKENS: usize = 5;

/// Keeps the tokens of a list, by their original place.
#[derive(Debug)]
struct Listed {
    layer: usize,
    kept: BTreeSet<u32>,
    positions: PositionPolicy,
}

impl Listed {
    fn build(params: &Params<'_>) -> Result<Box<dyn Pruner>, ChainError> {
        let kept = params.counts("kept")?.unwrap_or_default();
        Ok(Box::new(Self {
            layer: params.count("layer")?.unwrap_or(1),
            kept: kept.into_iter().map(|i| i as u32).collect(),
            positions: params.positions(PositionPolicy::Keep)?,
        }))
    }
}

impl Pruner for Listed {
    fn plan(&self, _model: &ModelInfo) -> Result<Plan, ChainError> {
        Ok(StagePlan::at(Site::Decoder(self.layer)).positions(self.positions).into())
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let there = cut.tokens.tokens.iter().enumerate();
        let kept = there.filter(|(_, token)| self.kept.contains(&token.index));
        Ok(Selection::keep(kept.map(|(i, _)| i as u32).collect()))
    }
}

type Runs<'a> = BTreeMap<[&'a str; 3], BTreeMap<&'a str, &'a Golden>>;

/// The runs by case, sites and positions.
fn runs(all: &BTreeMap<String, Golden>) -> Runs<'_> {
    let mut runs = Runs::new();
    for (key, tensor) in all {
        let parts: Vec<&str> = key.split('|').collect();
        let [case, sites, positions, name] = parts[..] else {
            panic!("{key}: expected CASE|SITES|POSITIONS|NAME")
        };
        runs.entry([case, sites, positions]).or_default().insert(name, tensor);
    }
    runs
}

/// The chain of a run: its lists in the words of a chain.
fn chain(want: &BTreeMap<&str, &Golden>, positions: &str) -> ChainSpec {
    let mut text = String::new();
    for (name, kept) in want {
        let (Some(layer), Golden::Ints(_, kept)) = (name.strip_prefix("kept."), kept) else {
            continue;
        };
        let comma = if text.is_empty() { "" } else { "," };
        let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
        let kept = kept.join(";");
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}listed:layer={layer}:positions={positions}:kept=[{kept}]");
    }
    ChainSpec::parse(&text).expect("a chain")
}

#[test]
fn cuts_between_decoder_layers_equal_the_reference() {
    let all = tensors(&golden().join("decoder_cuts.safetensors"));
    let runs = runs(&all);
    let (mut failures, mut tried) = (Vec::new(), BTreeMap::<&str, [usize; 2]>::new());
    for ([name, sites, positions], want) in &runs {
        let run = format!("{name} before {sites}, positions {positions}");
        let family = name.split('.').next().unwrap_or_default();
        tried.entry(family).or_default()[usize::from(*positions == "renumber")] += 1;
        let mut case = read_case(name);
        case.spec = Some(chain(want, positions));
        case.preprocessing_backend = None;
        case.ignore_eos = true;
        case.max_new_tokens = TOKENS;
        let folder = golden().join("open").join(name);
        let got = run_with(&folder, &case, |b| b.pruner("listed", Arc::new(Listed::build)));
        match got {
            Err(error) => failures.push(format!("{run}: {error}")),
            Ok(got) => failures.extend(want.iter().filter_map(|(tensor, want)| {
                if tensor.starts_with("kept.") {
                    return None;
                }
                Some(format!("{run}: {}", difference(tensor, want, &got, case.tolerance)?))
            })),
        }
    }
    assert!(failures.is_empty(), "{} tensors:\n{}", failures.len(), failures.join("\n"));
    // Three sites each of two to three prompts; counted anew where positions have one axis.
    assert_eq!(tried.len(), 9, "{tried:?}");
    for (family, [keep, renumber]) in tried {
        assert!(keep >= 6 && renumber == if family.starts_with("qwen") { 0 } else { keep });
    }
}

/// Counting anew is not defined on three position axes: such a chain is refused, not run.
#[test]
fn three_position_axes_are_not_counted_anew() {
    for family in ["qwen2-vl-tiny", "qwen2.5-vl-tiny", "qwen3-vl-tiny"] {
        let name = format!("{family}.image");
        let mut case = read_case(&name);
        case.spec = Some(
            ChainSpec::parse("listed:layer=1:positions=renumber:kept=[1;2;3]").expect("a chain"),
        );
        let folder = golden().join("open").join(&name);
        let got = run_with(&folder, &case, |b| b.pruner("listed", Arc::new(Listed::build)));
        let error = got.map(|_| ()).expect_err("three axes").to_string();
        assert!(error.contains("positions"), "{family}: {error}");
    }
}
