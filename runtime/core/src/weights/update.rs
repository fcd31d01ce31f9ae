//! A change of low rank that is added to a tensor when it is read, as adapters bring.
//!
//! Invariants
//! - The sum is made when the tensor is asked for: one merged tensor is in memory at a time, not a
//!   second model.
//! - `W + scale * (B A)`, all in f32, the sum over the rank in rising order: the result does not
//!   depend on the number of threads.

use super::view::{Format, WeightView};
use crate::error::WeightsError;

/// Below this many products a tensor is merged by one thread.
const WORTH_THREADS: usize = 1 << 22;

/// What is added to a tensor `[out, in..]`.
#[derive(Clone, Debug)]
pub struct LowRank {
    left: WeightView,
    right: WeightView,
    scale: f32,
    transposed: bool,
    rank: usize,
}

impl LowRank {
    /// `left right`, with `left: [out, rank]` (further sides of 1) and `right: [rank, in..]`.
    ///
    /// # Errors
    /// Factors of no rank, or of two; empty ones.
    pub fn new(left: WeightView, right: WeightView) -> Result<Self, WeightsError> {
        let rank = right.shape().first().copied().unwrap_or(0);
        let fits = !right.is_empty()
            && !left.is_empty()
            && left.shape().get(1) == Some(&rank)
            && left.shape()[2..].iter().all(|side| *side == 1);
        if !fits {
            return Err(WeightsError::Shape {
                file: left.file().to_owned(),
                name: left.name().to_owned(),
                expected: format!("[out, {rank}] (from `{}` {:?})", right.name(), right.shape()),
                found: format!("{:?}", left.shape()),
            });
        }
        Ok(Self { left, right, scale: 1.0, transposed: false, rank })
    }

    /// The same times `scale`.
    #[must_use]
    pub fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// The same for a table `[in, out]`: its transpose is what the product is added to.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// Columns of the rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// # Errors
    /// A tensor that this cannot be added to.
    pub(super) fn check(&self, base: &WeightView) -> Result<(), WeightsError> {
        let (out, width) = (self.left.shape()[0], self.right.shape()[1..].iter().product());
        let (rows, cols) = if self.transposed { (width, out) } else { (out, width) };
        let shape = base.shape();
        let plain = matches!(base.format(), Format::Plain(_));
        if plain && shape.first() == Some(&rows) && shape[1..].iter().product::<usize>() == cols {
            return Ok(());
        }
        Err(WeightsError::Shape {
            file: base.file().to_owned(),
            name: base.name().to_owned(),
            expected: format!(
                "[{rows}, {cols}] without blocks (`{}` {:?} and `{}` {:?} are added to it)",
                self.left.name(),
                self.left.shape(),
                self.right.name(),
                self.right.shape()
            ),
            found: format!("{shape:?} {}", base.format()),
        })
    }

    /// The sum, in f32. `base` passed [`LowRank::check`].
    pub(super) fn added_to(&self, base: &WeightView) -> WeightView {
        let (mut left, mut right) = (self.left.to_f32(), self.right.to_f32());
        if self.transposed {
            let was_left = left;
            left = turned(&right, self.rank);
            right = turned(&was_left, was_left.len() / self.rank);
        }
        let rows = base.shape()[0];
        let cols = right.len() / self.rank;
        let mut bytes = vec![0u8; rows * cols * 4];
        let threads = if rows * cols * self.rank < WORTH_THREADS {
            1
        } else {
            std::thread::available_parallelism().map_or(1, usize::from)
        };
        let share = rows.div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for (part, out) in bytes.chunks_mut((share * cols * 4).max(1)).enumerate() {
                let (left, right) = (&left, &right);
                scope.spawn(move || self.add_rows(base, part * share, left, right, out));
            }
        });
        base.with_f32(bytes)
    }

    /// Rows of the sum from `first` on, as many as `out` has room for.
    fn add_rows(
        &self,
        base: &WeightView,
        first: usize,
        left: &[f32],
        right: &[f32],
        out: &mut [u8],
    ) {
        let cols = right.len() / self.rank;
        let (mut row, mut product) = (vec![0.0; cols], vec![0.0; cols]);
        for (i, out) in out.chunks_mut(cols * 4).enumerate() {
            base.read_f32((first + i) * cols, &mut row);
            product.fill(0.0);
            let factors = &left[(first + i) * self.rank..][..self.rank];
            for (factor, along) in factors.iter().zip(right.chunks_exact(cols)) {
                for (sum, x) in product.iter_mut().zip(along) {
                    *sum += factor * x;
                }
            }
            for ((bytes, w), p) in out.as_chunks_mut::<4>().0.iter_mut().zip(&row).zip(&product) {
                *bytes = (w + p * self.scale).to_le_bytes();
            }
        }
    }
}

/// The transpose of a matrix of `rows`.
fn turned(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows;
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize], values: &[f32]) -> WeightView {
        WeightView::from_f32("w", shape, values)
    }

    #[test]
    fn a_product_is_added_and_scaled() {
        let base = view(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let left = view(&[2, 2], &[1.0, 0.0, 0.0, 2.0]);
        let right = view(&[2, 3], &[1.0, 1.0, 1.0, 0.0, 1.0, 2.0]);
        let update = LowRank::new(left, right).unwrap().scaled(0.5);
        update.check(&base).unwrap();
        assert_eq!(update.added_to(&base).to_f32(), [1.5, 2.5, 3.5, 4.0, 6.0, 8.0]);
    }

    #[test]
    fn a_table_takes_the_transpose() {
        let base = view(&[3, 2], &[0.0; 6]);
        let left = view(&[2, 1], &[1.0, 10.0]);
        let right = view(&[1, 3], &[1.0, 2.0, 3.0]);
        let update = LowRank::new(left, right).unwrap().transposed();
        update.check(&base).unwrap();
        assert_eq!(update.added_to(&base).to_f32(), [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
    }

    #[test]
    fn a_kernel_of_a_convolution_is_a_matrix_by_its_first_side() {
        let base = view(&[2, 1, 2, 2], &[0.0; 8]);
        let left = view(&[2, 1, 1, 1], &[1.0, 2.0]);
        let right = view(&[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let update = LowRank::new(left, right).unwrap();
        update.check(&base).unwrap();
        let sum = update.added_to(&base);
        assert_eq!(sum.shape(), [2, 1, 2, 2]);
        assert_eq!(sum.to_f32(), [1.0, 2.0, 3.0, 4.0, 2.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    fn many_rows_are_the_same_with_threads() {
        let (rows, cols, rank) = (1031, 1024, 5);
        let ramp = |n: usize| (0..n).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<_>>();
        let base = view(&[rows, cols], &ramp(rows * cols));
        let (left, right) = (ramp(rows * rank), ramp(rank * cols));
        let update = LowRank::new(view(&[rows, rank], &left), view(&[rank, cols], &right)).unwrap();
        let update = update.scaled(0.25);
        let sum = update.added_to(&base).to_f32();
        for at in [0, cols + 3, 515 * cols, rows * cols - 1] {
            let (row, col) = (at / cols, at % cols);
            let product: f32 =
                (0..rank).map(|k| left[row * rank + k] * right[k * cols + col]).sum();
            assert_eq!(sum[at], base.to_f32()[at] + product * 0.25);
        }
    }

    #[test]
    fn factors_that_do_not_fit_are_named() {
        let left = view(&[2, 3], &[0.0; 6]);
        let right = view(&[2, 4], &[0.0; 8]);
        assert!(LowRank::new(left.clone(), right).is_err());
        let update = LowRank::new(left, view(&[3, 4], &[0.0; 12])).unwrap();
        let error = update.check(&view(&[4, 2], &[0.0; 8])).unwrap_err().to_string();
        assert!(error.contains("[2, 4]") && error.contains("[4, 2]"), "{error}");
    }
}
