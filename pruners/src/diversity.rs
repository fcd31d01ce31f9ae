//! Cosine similarities among tokens, and the choice of tokens that are far from one another.
//!
//! Shared by the pruners that choose by diversity ([`crate::div_prune`], [`crate::vla_pruner`],
//! [`crate::cd_pruner`]).
//!
//! Invariants
//! - Equal rows have equal similarities to everything, bit for bit: an entry does not depend on
//!   where its operands lie or on the number of threads. So exact ties stay ties.
//! - A zero row has similarity 0 to everything, itself included.
//! - Memory is bounded: the full matrix is held up to [`STORED_TOKENS`] tokens, rows are computed
//!   when asked for above.

use std::borrow::Cow;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;

use crate::score::first_max;

/// Largest number of tokens whose similarities are held at once: 256 MiB. Above, every choice reads
/// all rows again, which at 8,192 tokens of a 7B model is more than ten times as slow.
pub const STORED_TOKENS: usize = 8192;
/// Rows of a block of the matrix product.
const BLOCK: usize = 64;
/// Distances below this count as 0: equal directions differ by a few units in the last place.
const SAME: f32 = 1e-6;

/// Cosine similarities of the rows of a matrix.
#[derive(Debug)]
pub struct Cosines {
    /// Rows of length 1 (or 0).
    unit: Array2<f32>,
    /// `[n, n]`, symmetric.
    products: Option<Array2<f32>>,
}

impl Cosines {
    /// Similarities of `rows`, `[n, d]`. Cost: `n^2 d` operations on all threads.
    pub fn new(rows: ArrayView2<'_, f32>) -> Self {
        let mut unit = rows.to_owned();
        for mut row in unit.rows_mut() {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.mapv_inplace(|x| if norm > 1e-12 { x / norm } else { 0.0 });
        }
        let products = (unit.nrows() <= STORED_TOKENS).then(|| symmetric_products(&unit));
        Self { unit, products }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.unit.nrows()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Similarities of row `i` to every row.
    pub fn row(&self, i: usize) -> Cow<'_, [f32]> {
        match self.products.as_ref().and_then(|p| p.row(i).to_slice()) {
            Some(row) => Cow::Borrowed(row),
            None => Cow::Owned(self.block(i..i + 1).into_raw_vec_and_offset().0),
        }
    }

    /// Similarity of row `i` to itself: 1, or 0 for a zero row.
    fn with_itself(&self, i: usize) -> f32 {
        let row = self.unit.row(i);
        if row.iter().any(|&x| x != 0.0) { 1.0 } else { 0.0 }
    }

    /// Similarities of some rows to every row, computed.
    fn block(&self, rows: std::ops::Range<usize>) -> Array2<f32> {
        let n = self.len();
        let some = rows_of(&self.unit, rows);
        let mut out = vec![0.0; some.nrows() * n];
        if some.nrows() == 1 {
            // One row is bound by memory: each thread reads its own part of the tokens.
            out.par_chunks_mut(BLOCK).enumerate().for_each(|(at, part)| {
                let others = rows_of(&self.unit, at * BLOCK..at * BLOCK + part.len());
                if let Ok(mut part) = ArrayViewMut2::from_shape((1, part.len()), part) {
                    general_mat_mul(1.0, &some, &others.t(), 0.0, &mut part);
                }
            });
        } else if let Ok(mut out) = ArrayViewMut2::from_shape((some.nrows(), n), &mut out) {
            general_mat_mul(1.0, &some, &self.unit.t(), 0.0, &mut out);
        }
        Array2::from_shape_vec((some.nrows(), n), out).unwrap_or_default()
    }

    /// Distance of every row to its nearest other row, `[n]`.
    fn nearest(&self) -> Vec<f32> {
        let nearest = |i: usize, row: &[f32]| {
            let others = row.iter().enumerate().filter(|(j, _)| *j != i);
            others.map(|(_, &cos)| distance(cos)).fold(f32::INFINITY, f32::min)
        };
        if self.products.is_some() {
            return (0..self.len()).map(|i| nearest(i, &self.row(i))).collect();
        }
        let starts: Vec<usize> = (0..self.len()).step_by(BLOCK).collect();
        let blocks: Vec<Vec<f32>> = starts
            .par_iter()
            .map(|&start| {
                let block = self.block(start..(start + BLOCK).min(self.len()));
                let rows = block.rows().into_iter().enumerate();
                rows.map(|(at, row)| nearest(start + at, row.as_slice().unwrap_or(&[]))).collect()
            })
            .collect();
        blocks.concat()
    }
}

/// Some rows of a matrix.
fn rows_of(matrix: &Array2<f32>, rows: std::ops::Range<usize>) -> ArrayView2<'_, f32> {
    matrix.slice_axis(Axis(0), Slice::from(rows))
}

/// `unit unit^T`: the upper half by blocks of rows, mirrored.
fn symmetric_products(unit: &Array2<f32>) -> Array2<f32> {
    let n = unit.nrows();
    let mut flat = vec![0.0f32; n * n];
    if n > 0 {
        flat.par_chunks_mut(BLOCK * n).enumerate().for_each(|(at, chunk)| {
            let first = at * BLOCK;
            let rows = chunk.len() / n;
            if let Ok(mut chunk) = ArrayViewMut2::from_shape((rows, n), chunk) {
                let some = rows_of(unit, first..first + rows);
                let others = rows_of(unit, first..n);
                let mut right = chunk.slice_axis_mut(Axis(1), Slice::from(first..));
                general_mat_mul(1.0, &some, &others.t(), 0.0, &mut right);
            }
        });
    }
    for i in 0..n {
        for j in 0..i {
            flat[i * n + j] = flat[j * n + i];
        }
    }
    Array2::from_shape_vec((n, n), flat).unwrap_or_default()
}

/// `1 - cos`, exactly 0 for equal directions.
fn distance(cos: f32) -> f32 {
    let d = 1.0 - cos;
    if d.abs() < SAME { 0.0 } else { d }
}

/// Greedy max-min diversity: `k` rows in the order of choice.
///
/// The first is the row whose nearest other row is farthest away; each next one is the row
/// farthest from all chosen ones. Ties: lower index. A row is taken once. Keeping `k >= n` rows
/// gives all, ascending. Cost after the similarities: O(k n).
pub fn farthest_points(cosines: &Cosines, k: usize) -> Vec<usize> {
    let n = cosines.len();
    if k >= n {
        return (0..n).collect();
    }
    let mut chosen = Vec::with_capacity(k);
    // Distance to the nearest chosen row; minus infinity for chosen ones.
    let mut near = if k == 0 { Vec::new() } else { cosines.nearest() };
    while chosen.len() < k {
        let Some(next) = first_max(near.iter().copied()) else { break };
        if chosen.is_empty() {
            near.fill(f32::INFINITY);
        }
        chosen.push(next);
        near[next] = f32::NEG_INFINITY;
        for (near, &cos) in near.iter_mut().zip(cosines.row(next).iter()) {
            *near = near.min(distance(cos));
        }
    }
    chosen
}

/// Greedy MAP of a determinantal point process with kernel `r_i cos(i, j) r_j`: `k` rows in the
/// order of choice.
///
/// Each step takes the row that adds most to the determinant; ties: lower index. When nothing adds
/// to it any more (all directions are taken), the rest goes by `quality`. Cost: O(k^2 n).
pub fn greedy_dpp(cosines: &Cosines, quality: &[f32], k: usize) -> Vec<usize> {
    let n = cosines.len();
    let k = k.min(n);
    // Below this what is left of a row is rounding.
    const EXHAUSTED: f32 = 1e-9;
    let mut gains: Vec<f32> =
        (0..n).map(|i| quality[i] * quality[i] * cosines.with_itself(i)).collect();
    let mut factors: Vec<Vec<f32>> = Vec::with_capacity(k);
    let mut chosen: Vec<usize> = Vec::with_capacity(k);
    while chosen.len() < k {
        let Some(next) = first_max(gains.iter().copied()).filter(|&i| gains[i] > EXHAUSTED) else {
            break;
        };
        let root = gains[next].sqrt();
        let row = cosines.row(next);
        let mut factor: Vec<f32> = (0..n).map(|i| quality[next] * row[i] * quality[i]).collect();
        for earlier in &factors {
            let weight = earlier[next];
            factor.iter_mut().zip(earlier).for_each(|(f, e)| *f -= weight * e);
        }
        for (gain, f) in gains.iter_mut().zip(&mut factor) {
            *f /= root;
            *gain -= *f * *f;
        }
        gains[next] = f32::NEG_INFINITY;
        factors.push(factor);
        chosen.push(next);
    }
    let mut rest: Vec<usize> = (0..n).filter(|i| !chosen.contains(i)).collect();
    rest.sort_by(|&a, &b| quality[b].total_cmp(&quality[a]));
    rest.truncate(k - chosen.len());
    chosen.extend(rest);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, d: usize, seed: u32) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_fn((n, d), |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
    }

    #[test]
    fn equal_rows_have_equal_similarities_wherever_they_lie() {
        // Sizes that are no multiples of any tile, more columns than one block of the product.
        let (n, d) = (133, 700);
        let mut rows = noise(n, d, 7);
        for (from, to) in [(0, 131), (1, 64), (5, 132), (70, 6)] {
            let copy = rows.row(from).to_owned();
            rows.row_mut(to).assign(&copy);
        }
        let cosines = Cosines::new(rows.view());
        for (a, b) in [(0, 131), (1, 64), (5, 132), (70, 6)] {
            for j in (0..n).filter(|&j| j != a && j != b) {
                assert_eq!(cosines.row(a)[j].to_bits(), cosines.row(b)[j].to_bits(), "{a} {b} {j}");
            }
        }
        let streamed = Cosines { unit: cosines.unit.clone(), products: None };
        for i in 0..n {
            assert_eq!(streamed.row(i), cosines.row(i), "row {i}");
        }
        assert_eq!(farthest_points(&streamed, 40), farthest_points(&cosines, 40));
    }

    #[test]
    fn a_row_is_taken_once_even_if_all_are_equal() {
        let rows = Array2::from_elem((5, 3), 1.0);
        let cosines = Cosines::new(rows.view());
        assert_eq!(farthest_points(&cosines, 3), [0, 1, 2]);
        assert_eq!(greedy_dpp(&cosines, &[1.0, 1.0, 3.0, 1.0, 2.0], 3), [2, 4, 0]);
    }

    #[test]
    fn zero_rows_are_at_distance_one() {
        let rows = ndarray::array![[0.0f32, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]];
        let cosines = Cosines::new(rows.view());
        assert_eq!(cosines.row(0).as_ref(), [0.0; 4]);
        assert_eq!(farthest_points(&cosines, 2), [0, 1]);
        assert_eq!(farthest_points(&cosines, 9), [0, 1, 2, 3]);
        assert!(farthest_points(&cosines, 0).is_empty());
    }

    #[test]
    fn a_dpp_prefers_quality_and_shuns_copies() {
        let rows = ndarray::array![[1.0f32, 0.0], [1.0, 0.01], [0.0, 1.0]];
        let cosines = Cosines::new(rows.view());
        assert_eq!(greedy_dpp(&cosines, &[1.0, 0.9, 0.5], 2), [0, 2]);
    }
}
