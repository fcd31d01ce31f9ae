//! From pixels to the rows that enter the first layer.
//!
//! Invariants
//! - A patch is one row `[channel, (frame,) y, x]`, the order of the convolution's own weight, so
//!   the convolution is one product. Pixels beyond the last whole patch are dropped.
//! - With a class token, row 0 of each crop is it; positions are added to every row.
//!
//! Method: table resampling as transformers has it: bicubic with a = -0.75 and no antialias
//! (InternViT), bilinear with aligned corners (Qwen3-VL), bucket search (Idefics3, models-b V4).

use rayon::prelude::*;
use secateur_core::cache::Position;
use secateur_core::error::RunError;
use secateur_core::ops::{Frequencies, Linear, Norm, Ops, Rotation};
use secateur_core::tensor::Tensor;
use secateur_core::weights::{Matrix, Weights};

use super::EncoderLoadError;
use super::block::load_norm;
use super::config::{Config, Layout, Positions};
use crate::processors::qwen::patch_order;

/// The packed embedding of a tower.
#[derive(Debug)]
pub(crate) struct Embed {
    patch: Linear,
    /// Class token with its position, `[width]`.
    class: Option<Vec<f32>>,
    /// Learnt positions of the lattice, `[table * table, width]`.
    table: Option<Vec<f32>>,
    pre_norm: Option<Norm>,
}

impl Embed {
    pub(crate) fn load(
        config: &Config,
        weights: &Weights,
        ops: &dyn Ops,
    ) -> Result<Self, EncoderLoadError> {
        let (d, p) = (config.width, config.patch);
        let cells = config.table * config.table;
        let (conv, shape) = match config.layout {
            Layout::Clip => ("tower.embeddings.patch_embedding", vec![d, 3, p, p]),
            Layout::Intern => ("tower.embeddings.patch_embeddings.projection", vec![d, 3, p, p]),
            Layout::Qwen => ("tower.patch_embed.proj", vec![d, 3, config.temporal, p, p]),
        };
        let weight =
            weights.tensor(&format!("{conv}.weight"), &shape)?.reshaped(&[d, config.patch_width()]);
        let bias = if config.patch_bias {
            Some(weights.tensor(&format!("{conv}.bias"), &[d])?)
        } else {
            None
        };
        let patch = ops.pack_linear(&[Matrix { weight, bias }])?;
        let first = config.class_rows();
        let positions = match (config.layout, config.positions) {
            (_, Positions::Rope) => None,
            (Layout::Clip, _) => {
                let shape = [cells + first, d];
                Some(weights.tensor("tower.embeddings.position_embedding.weight", &shape)?)
            }
            (Layout::Intern, _) => {
                let shape = [1, cells + first, d];
                Some(weights.tensor("tower.embeddings.position_embeddings", &shape)?)
            }
            (Layout::Qwen, _) => Some(weights.tensor("tower.pos_embed.weight", &[cells, d])?),
        };
        let mut table = positions.map(|p| p.to_f32());
        let class = if config.class_token {
            let token = match config.layout {
                Layout::Intern => weights.tensor("tower.embeddings.cls_token", &[1, 1, d])?,
                Layout::Clip | Layout::Qwen => {
                    weights.tensor("tower.embeddings.class_embedding", &[d])?
                }
            };
            let mut row = token.to_f32();
            if let Some(table) = &mut table {
                let position: Vec<f32> = table.drain(..d).collect();
                row.iter_mut().zip(position).for_each(|(r, p)| *r += p);
            }
            Some(row)
        } else {
            None
        };
        let pre_norm = if config.pre_norm {
            // The checkpoints spell it like that.
            Some(load_norm(ops, weights, "tower.pre_layrnorm", d, config.norm, config.eps)?)
        } else {
            None
        };
        Ok(Self { patch, class, table, pre_norm })
    }

    /// What stands in the rows of a crop before its patches are added: class token and positions,
    /// `[class + rows * cols, width]`. `None` if that is nothing.
    pub(crate) fn base(
        &self,
        config: &Config,
        rows: usize,
        cols: usize,
        ops: &dyn Ops,
    ) -> Result<Option<Tensor>, RunError> {
        let Some(table) = &self.table else { return Ok(None) };
        let (d, n) = (config.width, config.table);
        let mut out = self.class.clone().unwrap_or_default();
        out.reserve(rows * cols * d);
        let cell = |y: usize, x: usize| &table[(y * n + x) * d..][..d];
        match config.positions {
            _ if (rows, cols) == (n, n) && config.merge == 1 => out.extend_from_slice(table),
            Positions::Bucket => {
                // Boundaries j / n that are not beyond i / rows.
                for y in 0..rows {
                    for x in 0..cols {
                        out.extend_from_slice(cell(y * n / rows, x * n / cols));
                    }
                }
            }
            Positions::Bicubic => {
                let (down, across) = (cubic_taps(n, rows), cubic_taps(n, cols));
                for dy in &down {
                    for dx in &across {
                        blend(
                            &mut out,
                            d,
                            dy.iter().flat_map(|&(y, wy)| {
                                dx.iter().map(move |&(x, wx)| (cell(y, x), wy * wx))
                            }),
                        );
                    }
                }
            }
            Positions::RopeAndTable => {
                let (down, across) = (linear_taps(n, rows), linear_taps(n, cols));
                for (y, x) in patch_order(rows, cols, config.merge) {
                    blend(
                        &mut out,
                        d,
                        down[y].iter().flat_map(|&(ty, wy)| {
                            across[x].iter().map(move |&(tx, wx)| (cell(ty, tx), wy * wx))
                        }),
                    );
                }
            }
            Positions::Table | Positions::Rope => {
                return Err(RunError::Shape(format!(
                    "the tower's positions are for {n}x{n} patches, the crop has {rows}x{cols}"
                )));
            }
        }
        ops.upload(out.len() / d, d, &out).map(Some)
    }

    /// Rows that enter the first layer, from patch rows `[crops * patches, patch width]` and the
    /// base of one crop.
    pub(crate) fn run(
        &self,
        config: &Config,
        crops: usize,
        patches: &Tensor,
        base: Option<&Tensor>,
        ops: &dyn Ops,
    ) -> Tensor {
        let mut rows = Tensor::zeros(0, 0);
        ops.linear(&self.patch, patches, secateur_core::ops::Activation::None, &mut rows);
        let Some(base) = base else { return rows };
        let per_crop = base.rows() as u32;
        let class = config.class_rows() as u32;
        let repeat: Vec<u32> = (0..crops).flat_map(|_| 0..per_crop).collect();
        let mut x = Tensor::zeros(0, 0);
        ops.gather_rows(base, &repeat, &mut x);
        let places: Vec<u32> =
            (0..crops as u32).flat_map(|c| c * per_crop + class..(c + 1) * per_crop).collect();
        ops.add_rows(&mut x, &places, &rows);
        match &self.pre_norm {
            None => x,
            Some(norm) => {
                ops.norm(norm, &x, &mut rows);
                rows
            }
        }
    }
}

/// Appends a weighted sum of table rows.
fn blend<'a>(out: &mut Vec<f32>, width: usize, terms: impl Iterator<Item = (&'a [f32], f32)>) {
    let start = out.len();
    out.resize(start + width, 0.0);
    for (row, weight) in terms {
        for (o, v) in out[start..].iter_mut().zip(row) {
            *o += weight * v;
        }
    }
}

/// Cells and weights of a bicubic resampling from `from` to `to` cells: a = -0.75, half-pixel
/// centres, edges repeated.
fn cubic_taps(from: usize, to: usize) -> Vec<[(usize, f32); 4]> {
    const A: f32 = -0.75;
    let near = |t: f32| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = |t: f32| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let source = scale * (i as f32 + 0.5) - 0.5;
            let floor = source.floor();
            let t = source - floor;
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            std::array::from_fn(|k| {
                let cell = (floor as isize + k as isize - 1).clamp(0, from as isize - 1);
                (cell as usize, weights[k])
            })
        })
        .collect()
}

/// Cells and weights of a bilinear resampling with aligned corners, in f32 as the reference.
fn linear_taps(from: usize, to: usize) -> Vec<[(usize, f32); 2]> {
    let last = from - 1;
    (0..to)
        .map(|i| {
            let source = i as f32 * last as f32 / (to.max(2) - 1) as f32;
            let floor = source.floor();
            let t = source - floor;
            let cell = floor as usize;
            [(cell.min(last), 1.0 - t), ((cell + 1).min(last), t)]
        })
        .collect()
}

/// Patch rows `[rows * cols, 3 p p]` of a crop `[3, height, width]`, raster order, appended.
pub(crate) fn patch_rows(
    values: &[f32],
    (height, width): (usize, usize),
    patch: usize,
    out: &mut Vec<f32>,
) {
    let (rows, cols) = (height / patch, width / patch);
    let row_width = 3 * patch * patch;
    let start = out.len();
    out.resize(start + rows * cols * row_width, 0.0);
    out[start..].par_chunks_exact_mut(row_width).enumerate().for_each(|(i, row)| {
        let (y, x) = (i / cols * patch, i % cols * patch);
        for (n, line) in row.chunks_exact_mut(patch).enumerate() {
            let (channel, dy) = (n / patch, n % patch);
            let from = (channel * height + y + dy) * width + x;
            line.copy_from_slice(&values[from..from + patch]);
        }
    });
}

/// Rotation of the patches of a frame in block order, for each of `crops`: angles of the row, then
/// of the column, `head_dim / 4` frequencies each.
pub(crate) fn rope(
    ops: &dyn Ops,
    config: &Config,
    [rows, cols]: [usize; 2],
    crops: usize,
) -> Rotation {
    let quarter = config.head_dim() / 4;
    let frequency = |i: usize| {
        let exponent = 2.0 * i as f64 / (2 * quarter) as f64;
        (1.0 / config.rope_theta.powf(exponent)) as f32
    };
    let pairs = (0..2).flat_map(|axis| (0..quarter).map(move |i| (frequency(i), axis)));
    let places = patch_order(rows, cols, config.merge).into_iter();
    let positions: Vec<Position> = places.map(|(y, x)| [y as i32, x as i32, 0]).collect();
    let one = ops.rotation(&Frequencies::new(pairs), &positions);
    let index: Vec<u32> = (0..positions.len() as u32).collect();
    ops.rotation_rows(&one, &index.repeat(crops))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_sum_to_one_and_the_identity_is_exact() {
        for (from, to) in [(4, 4), (4, 7), (9, 4), (6, 1)] {
            for taps in cubic_taps(from, to) {
                assert!((taps.iter().map(|t| t.1).sum::<f32>() - 1.0).abs() < 1e-5);
            }
            for taps in linear_taps(from, to) {
                assert!((taps.iter().map(|t| t.1).sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
        assert_eq!(linear_taps(3, 3)[2][0], (2, 1.0));
        assert_eq!(cubic_taps(3, 3)[1], [(0, 0.0), (1, 1.0), (2, 0.0), (2, 0.0)]);
    }

    #[test]
    fn patches_are_cut_row_by_row_and_remainders_dropped() {
        let values: Vec<f32> = (0..3 * 3 * 5).map(|v| v as f32).collect();
        let mut rows = Vec::new();
        patch_rows(&values, (3, 5), 2, &mut rows);
        assert_eq!(rows.len(), 2 * 12);
        assert_eq!(rows[12..16], [2.0, 3.0, 7.0, 8.0]);
    }
}
