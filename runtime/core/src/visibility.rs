//! How far rows see: which rows of a prompt, or of a chunk behind it, see one another.
//!
//! Rows stand in blocks: a row sees its own block and everything before it. Causal text is blocks of
//! one row, a prefix is one block, a picture that sees itself is a block within text, and the state
//! and the actions of a robot are two blocks behind a third.
//!
//! Invariants
//! - A block is a run of rows. A row that is cut leaves its block; the others stay in it.
//! - Masks are derived from the blocks as they stand, so that they are right after every cut.
//! - A sliding window is a lower bound beside a mask and the layer's affair, except where all rows
//!   are one block.

use crate::ops::Mask;

/// Blocks of rows that see one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Every row is a block: it sees itself and what is before it.
    #[default]
    Causal,
    /// All rows are one block, whatever window a layer has.
    Whole,
    /// The block of each row, never falling; rows of one number are a block.
    Listed(Vec<u32>),
}

impl Blocks {
    /// Blocks of so many rows, one behind the other.
    pub fn runs(lengths: &[usize]) -> Self {
        let run = |(block, &rows): (usize, &usize)| std::iter::repeat_n(block as u32, rows);
        Blocks::Listed(lengths.iter().enumerate().flat_map(run).collect())
    }

    /// Whether they are those of so many rows.
    pub fn is_of(&self, rows: usize) -> bool {
        match self {
            Blocks::Causal | Blocks::Whole => true,
            Blocks::Listed(blocks) => blocks.len() == rows && blocks.is_sorted(),
        }
    }

    /// The blocks of `rows` alone, ascending.
    #[must_use]
    pub fn of_rows(&self, rows: &[u32]) -> Self {
        match self {
            Blocks::Causal => Blocks::Causal,
            Blocks::Whole => Blocks::Whole,
            Blocks::Listed(blocks) => {
                Blocks::Listed(rows.iter().map(|&r| blocks[r as usize]).collect())
            }
        }
    }

    /// Whether the rows before `row` see none from there on: they may be read before the others.
    pub fn splits_at(&self, row: usize) -> bool {
        match self {
            Blocks::Causal => true,
            Blocks::Whole => false,
            Blocks::Listed(blocks) => blocks[..row].last() != blocks.get(row),
        }
    }

    /// The mask of these rows behind `before` others that all of them see. A list needs `room`.
    pub fn mask<'a>(&self, before: usize, room: &'a mut Vec<u32>) -> Mask<'a> {
        match self {
            Blocks::Causal => Mask::Causal,
            Blocks::Whole => Mask::Full,
            Blocks::Listed(blocks) => {
                room.clear();
                for block in blocks.chunk_by(|a, b| a == b) {
                    let end = before + room.len() + block.len();
                    room.extend(std::iter::repeat_n(end as u32, block.len()));
                }
                Mask::Until(room)
            }
        }
    }
}

/// Kinds of attention layers, as far as masks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// A query reaches back to the first key.
    Full,
    /// A query reaches back so many positions.
    Sliding,
}

/// Blocks of rows in each kind of layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visibility {
    /// In [`LayerKind::Full`] layers.
    pub full: Blocks,
    /// In [`LayerKind::Sliding`] layers.
    pub sliding: Blocks,
}

impl Visibility {
    /// The same in all layers.
    pub fn everywhere(blocks: Blocks) -> Self {
        Self { full: blocks.clone(), sliding: blocks }
    }

    /// The blocks in a kind of layer.
    pub fn of(&self, kind: LayerKind) -> &Blocks {
        match kind {
            LayerKind::Full => &self.full,
            LayerKind::Sliding => &self.sliding,
        }
    }

    /// As [`Blocks::is_of`].
    pub fn is_of(&self, rows: usize) -> bool {
        self.full.is_of(rows) && self.sliding.is_of(rows)
    }

    /// As [`Blocks::of_rows`].
    #[must_use]
    pub fn of_rows(&self, rows: &[u32]) -> Self {
        Self { full: self.full.of_rows(rows), sliding: self.sliding.of_rows(rows) }
    }

    /// As [`Blocks::splits_at`].
    pub fn splits_at(&self, row: usize) -> bool {
        self.full.splits_at(row) && self.sliding.splits_at(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sees_its_block_and_what_is_before() {
        let mut room = Vec::new();
        let blocks = Blocks::runs(&[2, 1, 3]);
        assert_eq!(blocks.mask(0, &mut room), Mask::Until(&[2, 2, 3, 6, 6, 6]));
        assert_eq!(blocks.mask(10, &mut room), Mask::Until(&[12, 12, 13, 16, 16, 16]));
        assert_eq!(Blocks::Causal.mask(10, &mut room), Mask::Causal);
        assert_eq!(Blocks::Whole.mask(10, &mut room), Mask::Full);
    }

    #[test]
    fn rows_that_are_cut_leave_their_block() {
        let mut room = Vec::new();
        let blocks = Blocks::runs(&[2, 1, 3]).of_rows(&[0, 3, 5]);
        assert_eq!(blocks, Blocks::Listed(vec![0, 2, 2]));
        assert_eq!(blocks.mask(0, &mut room), Mask::Until(&[1, 3, 3]));
        assert_eq!(Blocks::Whole.of_rows(&[1]), Blocks::Whole);
    }

    #[test]
    fn rows_may_be_read_apart_between_blocks_only() {
        let blocks = Blocks::runs(&[2, 1, 3]);
        let splits: Vec<bool> = (0..=6).map(|row| blocks.splits_at(row)).collect();
        assert_eq!(splits, [true, false, true, true, false, false, true]);
        assert!(Blocks::Causal.splits_at(4) && !Blocks::Whole.splits_at(4));
        let pictures = Visibility { full: Blocks::Causal, sliding: blocks.clone() };
        assert!(pictures.splits_at(3) && !pictures.splits_at(4));
        assert!(blocks.is_of(6) && !blocks.is_of(5) && !Blocks::Listed(vec![1, 0]).is_of(2));
    }
}
