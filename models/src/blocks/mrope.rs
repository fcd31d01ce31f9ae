//! Three-axis positions (M-RoPE) of prompts with pictures and videos.
//!
//! Invariants
//! - Text advances all axes alike; a lattice of visual tokens starts where the text before it
//!   ended, one axis each for time, row and column.
//! - The first generated token stands one behind the last prompt token on all axes (V7).
//!
//! Source: `get_rope_index` of transformers 5.24, with deviation V1 as [`VideoAdvance`].

use secateur_core::cache::Position;
use secateur_core::error::RunError;
use secateur_core::model::{Positions, Prompt};

use crate::config::VideoAdvance;

/// The visual tokens between two texts: frames of `rows x cols` tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lattice {
    pub(crate) frames: u32,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    /// Temporal positions from frame to frame; floored after it is multiplied.
    pub(crate) interval: f64,
    /// Whether it is a video, whose advance is [`VideoAdvance`]'s.
    pub(crate) video: bool,
}

impl Lattice {
    /// Positions of its tokens from `start`, and how far the text moves on.
    fn positions(&self, start: i32, advance: VideoAdvance) -> (Vec<Position>, i32) {
        let mut all = Vec::new();
        for frame in 0..self.frames {
            let t = start + (f64::from(frame) * self.interval).floor() as i32;
            for row in 0..self.rows {
                for col in 0..self.cols {
                    all.push([t, start + row as i32, start + col as i32]);
                }
            }
        }
        let sides = self.rows.max(self.cols) as i32;
        let reached = all.last().map_or(0, |p| p[0] - start + 1);
        let step = match advance {
            VideoAdvance::MaxPlusOne if self.video => sides.max(reached),
            _ => sides,
        };
        (all, step)
    }
}

/// Positions of a prompt whose visual tokens lie on `lattices`, in order.
///
/// # Errors
/// If the prompt has more or fewer visual tokens than the lattices.
pub(crate) fn positions(
    prompt: &Prompt,
    lattices: &[Lattice],
    advance: VideoAdvance,
) -> Result<Positions, RunError> {
    let mut out = Vec::with_capacity(prompt.slots.len());
    let mut start = 0i32;
    let mut lattices = lattices.iter();
    let mut open: std::vec::IntoIter<Position> = Vec::new().into_iter();
    let mismatch =
        || RunError::Prompt("the prompt's visual tokens do not fit the grids of its clips".into());
    let mut step = 0;
    for slot in &prompt.slots {
        if slot.visual().is_none() {
            if open.len() > 0 {
                return Err(mismatch());
            }
            start += step;
            step = 0;
            out.push([start; 3]);
            start += 1;
            continue;
        }
        if open.len() == 0 {
            start += step;
            let (all, next) = lattices.next().ok_or_else(mismatch)?.positions(start, advance);
            (open, step) = (all.into_iter(), next);
        }
        out.push(open.next().ok_or_else(mismatch)?);
    }
    if open.len() > 0 || lattices.next().is_some() {
        return Err(mismatch());
    }
    let last = out.last().map_or(-1, |p| p.iter().copied().max().unwrap_or(-1));
    Ok(Positions { prompt: out, next: last + 1 })
}

#[cfg(test)]
mod tests {
    use secateur_core::model::Slot;

    use super::*;

    fn prompt(visual: &[usize]) -> Prompt {
        // Text of two tokens around each lattice.
        let mut slots = vec![Slot::Text(0); 2];
        let mut next = 0;
        for &n in visual {
            slots.extend((next..next + n as u32).map(Slot::Visual));
            next += n as u32;
            slots.extend([Slot::Text(0); 2]);
        }
        Prompt { ids: vec![0; slots.len()], slots }
    }

    #[test]
    fn the_two_rules_after_a_video_differ_where_time_goes_further() {
        let clip = Lattice { frames: 4, rows: 1, cols: 2, interval: 2.0, video: true };
        let at = |rule| positions(&prompt(&[8]), &[clip], rule).unwrap();
        let max = at(VideoAdvance::MaxPlusOne);
        assert_eq!(max.prompt[9], [8, 2, 3]);
        assert_eq!((max.prompt[10], max.next), ([9; 3], 11));
        assert_eq!(at(VideoAdvance::MaxHw).prompt[10], [4; 3]);
    }

    #[test]
    fn lattices_and_visual_tokens_must_agree() {
        let one = Lattice { frames: 1, rows: 2, cols: 3, interval: 1.0, video: false };
        assert!(positions(&prompt(&[6]), &[one], VideoAdvance::MaxPlusOne).is_ok());
        assert!(positions(&prompt(&[5]), &[one], VideoAdvance::MaxPlusOne).is_err());
        assert!(positions(&prompt(&[6]), &[one, one], VideoAdvance::MaxPlusOne).is_err());
        assert!(positions(&prompt(&[]), &[], VideoAdvance::MaxPlusOne).is_ok());
    }
}
