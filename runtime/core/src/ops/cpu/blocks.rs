//! Quantised blocks in the hands of `candle-core`: decoding, and products with rounded inputs.
//!
//! Bytes of a file are seen as the structures that candle reads, without a copy where they are
//! aligned (GGUF aligns tensors to 32 bytes). Its kernels choose AVX2 or NEON at run time.
#![allow(unsafe_code, reason = "blocks of a file are seen as structures of bytes")]

use std::borrow::Cow;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
    BlockQ8_0, GgmlType,
};

use crate::weights::BlockFormat;

/// Runs `$body` with `$T` as candle's type of a format.
macro_rules! with_type {
    ($format:expr, $T:ident => $body:expr) => {
        match $format {
            BlockFormat::Q4_0 => with_type!(@ BlockQ4_0, $T, $body),
            BlockFormat::Q4_1 => with_type!(@ BlockQ4_1, $T, $body),
            BlockFormat::Q5_0 => with_type!(@ BlockQ5_0, $T, $body),
            BlockFormat::Q5_1 => with_type!(@ BlockQ5_1, $T, $body),
            BlockFormat::Q8_0 => with_type!(@ BlockQ8_0, $T, $body),
            BlockFormat::Q2_K => with_type!(@ BlockQ2K, $T, $body),
            BlockFormat::Q3_K => with_type!(@ BlockQ3K, $T, $body),
            BlockFormat::Q4_K => with_type!(@ BlockQ4K, $T, $body),
            BlockFormat::Q5_K => with_type!(@ BlockQ5K, $T, $body),
            BlockFormat::Q6_K => with_type!(@ BlockQ6K, $T, $body),
        }
    };
    (@ $block:ty, $T:ident, $body:expr) => {{
        type $T = $block;
        $body
    }};
}

/// Whole blocks to numbers; `out` has room for them.
pub(crate) fn decode(format: BlockFormat, blocks: &[u8], out: &mut [f32]) {
    with_type!(format, T => T::to_float(&typed::<T>(blocks), out));
}

/// Rows of inputs, rounded to the blocks that a format of weights is multiplied with.
#[derive(Debug)]
pub(crate) struct RoundedRows {
    format: BlockFormat,
    inputs: usize,
    /// Bytes of a row.
    size: usize,
    /// All rows, in words so that every block is aligned.
    words: Vec<u64>,
}

/// Rounds rows of `inputs` values, a multiple of the format's block.
pub(crate) fn round_rows(format: BlockFormat, x: &[f32], inputs: usize) -> RoundedRows {
    with_type!(format, T => round_as::<T>(format, x, inputs))
}

fn round_as<T: GgmlType>(format: BlockFormat, x: &[f32], inputs: usize) -> RoundedRows {
    type Other<T> = <T as GgmlType>::VecDotType;
    let blocks = inputs / T::BLCK_SIZE;
    let size = blocks * size_of::<Other<T>>();
    let rows = x.len() / inputs.max(1);
    let mut words = vec![0u64; (rows * size).div_ceil(8)];
    // SAFETY: the words have room for `rows * blocks` blocks, whose alignment is at most theirs
    // (structures of f32 and smaller), and any bits are a value, as in `typed`.
    let all = unsafe {
        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<Other<T>>(), rows * blocks)
    };
    for (row, x) in all.chunks_mut(blocks.max(1)).zip(x.chunks(inputs.max(1))) {
        Other::<T>::from_float(x, row);
    }
    RoundedRows { format, inputs, size, words }
}

impl RoundedRows {
    /// Products of every row with one row of weights, each into the next of `sums`.
    pub(crate) fn dot<'s>(&self, weights: &[u8], sums: impl Iterator<Item = &'s mut f32>) {
        with_type!(self.format, T => self.dot_as::<T>(weights, sums));
    }

    fn dot_as<'s, T: GgmlType>(&self, weights: &[u8], sums: impl Iterator<Item = &'s mut f32>) {
        let weights = typed::<T>(weights);
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        for (sum, row) in sums.zip(bytes.chunks_exact(self.size.max(1))) {
            *sum = T::vec_dot(self.inputs, &weights, &typed::<T::VecDotType>(row));
        }
    }
}

/// Bytes as blocks; copied if they are not aligned.
fn typed<T: GgmlType>(bytes: &[u8]) -> Cow<'_, [T]> {
    let count = bytes.len() / size_of::<T>();
    let start = bytes.as_ptr().cast::<T>();
    if start.is_aligned() {
        // SAFETY: candle's blocks are `repr(C)` structures of integers and `f16`, for which every
        // pattern of bits is a value; `start` is aligned and `count` of them lie in `bytes`.
        return Cow::Borrowed(unsafe { std::slice::from_raw_parts(start, count) });
    }
    let mut copy = vec![T::zeros(); count];
    // SAFETY: `copy` has `count * size_of::<T>()` bytes, and any bits are a value, as above.
    unsafe {
        let to = copy.as_mut_ptr().cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count * size_of::<T>());
    }
    Cow::Owned(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Formats whose tables agree with candle's own, by size.
    #[test]
    fn every_format_has_the_size_that_candle_gives_it() {
        for number in 0..32 {
            let Some(format) = BlockFormat::from_gguf(number) else { continue };
            let (bytes, values) = with_type!(format, T => (size_of::<T>(), T::BLCK_SIZE));
            assert_eq!((format.bytes(), format.values()), (bytes, values), "{}", format.name());
        }
    }

    #[test]
    fn decoding_gives_back_what_was_rounded_to_8_bits() {
        let data: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut blocks = vec![BlockQ8_0::zeros(); 2];
        BlockQ8_0::from_float(&data, &mut blocks);
        let size = size_of::<BlockQ8_0>() * blocks.len();
        // SAFETY: the blocks are plain bytes.
        let bytes = unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), size) };
        // At an odd address, so that the copy is taken.
        let shifted: Vec<u8> = [&[0][..], bytes].concat();
        for bytes in [bytes, &shifted[1..]] {
            let mut out = vec![0.0; 64];
            decode(BlockFormat::Q8_0, bytes, &mut out);
            let worst = out.iter().zip(&data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1.0 / 127.0, "{worst}");
        }
    }
}
