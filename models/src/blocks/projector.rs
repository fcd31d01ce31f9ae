//! From tower rows to the decoder's space: one form with named parts for every family.
//!
//! Invariants
//! - A projected row depends on its own tower rows alone.
//! - `group` tower rows stand side by side in the input: 1 for plain projectors, 4 or 9 or 16 for
//!   mergers and pixel shuffles.
//!
//! | family | each row | joined | matrices |
//! | --- | --- | --- | --- |
//! | LLaVA, LLaVA-NeXT, OneVision | | | linear_1, act, linear_2 |
//! | InternVL | | layer norm | linear_1, gelu, linear_2 |
//! | PaliGemma, SmolVLM | | | one |
//! | Qwen2-VL, Qwen2.5-VL, Qwen3-VL | layer or RMS norm | | fc1, gelu, fc2 |
//! | deepstack levels | | layer norm | fc1, gelu, fc2 |

use std::sync::Arc;

use secateur_core::error::RunError;
use secateur_core::model::{Encoded, TokenSource, VisualLayout, VisualRows};
use secateur_core::ops::{Activation, Linear, Norm, NormKind, Ops, RowSum};
use secateur_core::tensor::Tensor;
use secateur_core::weights::Weights;

use crate::error::LoadError;

/// A norm of a projector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ProjectorNorm {
    /// Its name below the projector's.
    pub(crate) name: &'static str,
    /// Kind.
    pub(crate) kind: NormKind,
    /// Added to the variance.
    pub(crate) eps: f32,
}

/// What a projector is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProjectorConfig {
    /// Name in front of its tensors, with the dot.
    pub(crate) prefix: String,
    /// Width of one tower row.
    pub(crate) width: usize,
    /// Tower rows of one visual token.
    pub(crate) group: usize,
    /// Norm of each tower row on its own.
    pub(crate) each: Option<ProjectorNorm>,
    /// Norm of the rows side by side.
    pub(crate) joined: Option<ProjectorNorm>,
    /// Matrices in order: name, outputs, whether there is a bias, activation after it.
    pub(crate) linears: Vec<(&'static str, usize, bool, Activation)>,
}

impl ProjectorConfig {
    /// Two matrices with an activation between them, one row a token: the LLaVA form.
    pub(crate) fn mlp(width: usize, hidden: usize, act: Activation, bias: bool) -> Self {
        Self {
            prefix: "projector.".into(),
            width,
            group: 1,
            each: None,
            joined: None,
            linears: vec![
                ("linear_1", hidden, bias, act),
                ("linear_2", hidden, bias, Activation::None),
            ],
        }
    }
}

/// A projector with its weights.
#[derive(Debug)]
pub(crate) struct Projector {
    width: usize,
    group: usize,
    each: Option<Norm>,
    joined: Option<Norm>,
    linears: Vec<(Linear, Activation)>,
}

impl Projector {
    pub(crate) fn load(
        config: &ProjectorConfig,
        weights: &Weights,
        ops: &dyn Ops,
    ) -> Result<Self, LoadError> {
        let name = |leaf: &str, end: &str| format!("{}{leaf}.{end}", config.prefix);
        let norm = |norm: &Option<ProjectorNorm>, width: usize| -> Result<_, LoadError> {
            let Some(norm) = norm else { return Ok(None) };
            let gain = weights.tensor(&name(norm.name, "weight"), &[width])?.to_f32();
            let bias = match norm.kind {
                NormKind::Rms => None,
                NormKind::Layer => {
                    Some(weights.tensor(&name(norm.name, "bias"), &[width])?.to_f32())
                }
            };
            Ok(Some(ops.pack_norm(norm.kind, gain, bias, norm.eps)))
        };
        let mut inputs = config.width * config.group;
        let mut linears = Vec::new();
        for &(leaf, outputs, bias, act) in &config.linears {
            let name = format!("{}{leaf}", config.prefix);
            let matrix = weights.matrix(&name, [outputs, inputs], bias)?;
            linears.push((ops.pack_linear(&[matrix])?, act));
            inputs = outputs;
        }
        Ok(Self {
            width: config.width,
            group: config.group,
            each: norm(&config.each, config.width)?,
            joined: norm(&config.joined, config.width * config.group)?,
            linears,
        })
    }

    /// `[k * group, width] -> [k, hidden]`
    fn forward(&self, ops: &dyn Ops, rows: Tensor) -> Tensor {
        let mut x = rows;
        let mut y = Tensor::zeros(0, 0);
        if let Some(norm) = &self.each {
            ops.norm(norm, &x, &mut y);
            std::mem::swap(&mut x, &mut y);
        }
        let tokens = x.rows() / self.group;
        x = x.reshaped(tokens, self.group * self.width);
        if let Some(norm) = &self.joined {
            ops.norm(norm, &x, &mut y);
            std::mem::swap(&mut x, &mut y);
        }
        for (linear, act) in &self.linears {
            ops.linear(linear, &x, *act, &mut y);
            std::mem::swap(&mut x, &mut y);
        }
        x
    }
}

/// The projectors of a family: the tokens' own, one a deepstack level, the newline.
#[derive(Debug)]
pub(crate) struct Projectors {
    ops: Arc<dyn Ops>,
    main: Projector,
    levels: Vec<Projector>,
    /// `[1, hidden]`
    newline: Option<Tensor>,
}

impl Projectors {
    pub(crate) fn load(
        main: &ProjectorConfig,
        levels: &[ProjectorConfig],
        newline: Option<usize>,
        weights: &Weights,
        ops: Arc<dyn Ops>,
    ) -> Result<Self, LoadError> {
        let newline = match newline {
            None => None,
            Some(hidden) => {
                let values = weights.tensor("newline", &[hidden])?.to_f32();
                Some(ops.upload(1, hidden, &values)?)
            }
        };
        let load = |config: &ProjectorConfig| Projector::load(config, weights, ops.as_ref());
        Ok(Self {
            main: load(main)?,
            levels: levels.iter().map(load).collect::<Result<_, _>>()?,
            newline,
            ops,
        })
    }

    /// One visual token a row.
    pub(crate) fn rows(&self, rows: &Tensor) -> Tensor {
        self.main.forward(self.ops.as_ref(), rows.clone())
    }

    /// All visual tokens of a layout.
    ///
    /// # Errors
    /// If the layout speaks of rows that the tower did not make.
    pub(crate) fn all(
        &self,
        encoded: &Encoded,
        layout: &VisualLayout,
    ) -> Result<VisualRows, RunError> {
        let ops = self.ops.as_ref();
        let plan = Plan::new(layout, self.main.group, encoded.hidden.rows())?;
        if encoded.levels.len() != self.levels.len() {
            return Err(RunError::Shape(format!(
                "the tower gave {} deepstack levels, the model has {}",
                encoded.levels.len(),
                self.levels.len()
            )));
        }
        let mut gathered = Tensor::zeros(0, 0);
        ops.gather_rows(&encoded.hidden, &plan.rows, &mut gathered);
        let projected = self.main.forward(ops, gathered);
        let rows = match &plan.sums {
            None => projected,
            Some(sums) => self.summed(projected, sums)?,
        };
        let levels = self.levels.iter().zip(&encoded.levels).map(|(projector, level)| {
            let mut gathered = Tensor::zeros(0, 0);
            ops.gather_rows(level, &plan.rows, &mut gathered);
            projector.forward(ops, gathered)
        });
        Ok(VisualRows { rows, levels: levels.collect() })
    }

    /// Weighted sums of projected rows, the newline standing below them.
    fn summed(&self, projected: Tensor, sums: &[RowSum]) -> Result<Tensor, RunError> {
        let mut out = Tensor::zeros(0, 0);
        let Some(newline) = &self.newline else {
            self.ops.sum_rows(&projected, sums, &mut out);
            return Ok(out);
        };
        let (rows, cols) = (projected.rows(), projected.cols());
        let mut all = self.ops.upload(rows + 1, cols, &vec![0.0; (rows + 1) * cols])?;
        self.ops.write_rows(&mut all, 0, &projected);
        self.ops.write_rows(&mut all, rows, newline);
        self.ops.sum_rows(&all, sums, &mut out);
        Ok(out)
    }
}

/// Which tower rows are projected, and how the results are put together.
struct Plan {
    /// Tower rows, `group` a projected row.
    rows: Vec<u32>,
    /// `None` if projected rows are the tokens.
    sums: Option<Vec<RowSum>>,
}

impl Plan {
    fn new(layout: &VisualLayout, group: usize, available: usize) -> Result<Self, RunError> {
        let check = |row: u32| {
            if (row as usize) < available {
                return Ok(row);
            }
            Err(RunError::Shape(format!("the layout needs tower row {row}, there are {available}")))
        };
        let mut rows = Vec::new();
        let plain = layout.sources.iter().all(|s| matches!(s, TokenSource::Rows(_)));
        let mut sums = Vec::new();
        // Rows of sums are projected once, however many sums they stand in.
        let mut place = vec![u32::MAX; available];
        for source in &layout.sources {
            match source {
                TokenSource::Rows(parts) if parts.len() == group => {
                    sums.push(RowSum { terms: vec![((rows.len() / group) as u32, 1.0)] });
                    for &row in parts {
                        rows.push(check(row)?);
                    }
                }
                TokenSource::Sum(terms) if group == 1 => {
                    let mut sum = RowSum { terms: Vec::with_capacity(terms.len()) };
                    for &(row, weight) in terms {
                        let place = &mut place[check(row)? as usize];
                        if *place == u32::MAX {
                            *place = rows.len() as u32;
                            rows.push(row);
                        }
                        sum.terms.push((*place, weight));
                    }
                    sums.push(sum);
                }
                TokenSource::Structural => sums.push(RowSum { terms: vec![(u32::MAX, 1.0)] }),
                other => {
                    return Err(RunError::Shape(format!(
                        "a visual token is made of {other:?}, this projector takes {group} rows"
                    )));
                }
            }
        }
        let newline = (rows.len() / group) as u32;
        for sum in &mut sums {
            if sum.terms[0].0 == u32::MAX {
                sum.terms[0].0 = newline;
            }
        }
        Ok(Self { rows, sums: (!plain).then_some(sums) })
    }
}
