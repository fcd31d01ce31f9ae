//! Quantised blocks as GGUF files have them: some 32 or 256 numbers of a row with their scales.
//!
//! Invariants
//! - A row is made of whole blocks; blocks never cross rows.
//! - Names and sizes are known in every build. Numbers need the feature `gguf`, whose decoding is
//!   that of `candle-core`: [`BlockFormat::is_readable`] says so before a block is touched.

/// A format of blocks, under the name that GGUF gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names of the format")]
pub enum BlockFormat {
    /// 4 bits, a scale.
    Q4_0,
    /// 4 bits, a scale and an offset.
    Q4_1,
    /// 5 bits, a scale.
    Q5_0,
    /// 5 bits, a scale and an offset.
    Q5_1,
    /// 8 bits, a scale.
    Q8_0,
    /// 2 bits, scales and offsets of 16, in 256.
    Q2_K,
    /// 3 bits, scales of 16, in 256.
    Q3_K,
    /// 4 bits, scales and offsets of 32, in 256.
    Q4_K,
    /// 5 bits, scales and offsets of 32, in 256.
    Q5_K,
    /// 6 bits, scales of 16, in 256.
    Q6_K,
}

/// Format, its number in GGUF files, name, values of a block, bytes of a block; in the order of the
/// variants.
const TABLE: &[(BlockFormat, u32, &str, usize, usize)] = &[
    (BlockFormat::Q4_0, 2, "Q4_0", 32, 18),
    (BlockFormat::Q4_1, 3, "Q4_1", 32, 20),
    (BlockFormat::Q5_0, 6, "Q5_0", 32, 22),
    (BlockFormat::Q5_1, 7, "Q5_1", 32, 24),
    (BlockFormat::Q8_0, 8, "Q8_0", 32, 34),
    (BlockFormat::Q2_K, 10, "Q2_K", 256, 84),
    (BlockFormat::Q3_K, 11, "Q3_K", 256, 110),
    (BlockFormat::Q4_K, 12, "Q4_K", 256, 144),
    (BlockFormat::Q5_K, 13, "Q5_K", 256, 176),
    (BlockFormat::Q6_K, 14, "Q6_K", 256, 210),
];

impl BlockFormat {
    /// The format with a number of GGUF's tensor types.
    pub fn from_gguf(number: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// All names, for errors.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|row| row.2)
    }

    fn row(self) -> &'static (BlockFormat, u32, &'static str, usize, usize) {
        &TABLE[self as usize]
    }

    /// Name in GGUF.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Numbers of a block.
    pub fn values(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.row().4
    }

    /// Whether this build can decode blocks.
    pub fn is_readable(self) -> bool {
        cfg!(feature = "gguf")
    }

    /// Numbers `first .. first + out.len()` of a row.
    ///
    /// # Panics
    /// If the row is shorter, or the build has no decoder: see [`BlockFormat::is_readable`].
    pub(super) fn read(self, row: &[u8], first: usize, out: &mut [f32]) {
        let (values, bytes) = (self.values(), self.bytes());
        let (from, to) = (first / values, (first + out.len()).div_ceil(values));
        let blocks = &row[from * bytes..to * bytes];
        if first == from * values && out.len() == (to - from) * values {
            self.decode(blocks, out);
            return;
        }
        let mut whole = vec![0.0; (to - from) * values];
        self.decode(blocks, &mut whole);
        out.copy_from_slice(&whole[first - from * values..][..out.len()]);
    }

    /// Whole blocks to numbers.
    ///
    /// # Panics
    /// If `out` has another size than the blocks, or the build has no decoder.
    pub fn decode(self, blocks: &[u8], out: &mut [f32]) {
        let count = blocks.len() / self.bytes();
        assert_eq!(out.len(), count * self.values(), "room for whole blocks");
        #[cfg(feature = "gguf")]
        crate::ops::cpu::blocks::decode(self, blocks, out);
        #[cfg(not(feature = "gguf"))]
        unreachable!("files with blocks are refused where they cannot be decoded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_finds_its_own_row() {
        for row in TABLE {
            assert_eq!(row.0.row().0, row.0, "{}", row.2);
        }
    }
}
