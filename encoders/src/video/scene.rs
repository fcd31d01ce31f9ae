//! Where the picture of a video changes.
//!
//! Invariants
//! - The first frame is always taken; others only if they differ from the frame before by at least
//!   the threshold, the largest changes first where there are too many.
//! - Never more than `max_frames` frames are held, whatever the length of the video.
//!
//! Method: mean absolute difference of grey levels over a 32 x 32 lattice of points.

use secateur_core::clip::Frame;

const LATTICE: usize = 32;

/// Collects the frames after the cuts of a stream of frames.
#[derive(Debug)]
pub struct SceneCuts {
    max_frames: usize,
    threshold: f32,
    last: Option<Vec<u8>>,
    /// Change, index and frame; the first entry stays.
    kept: Vec<(f32, usize, Frame)>,
    seen: usize,
}

impl SceneCuts {
    /// Takes at most `max_frames` frames (at least 1) that differ by `threshold` grey levels.
    pub fn new(max_frames: usize, threshold: f32) -> Self {
        Self { max_frames: max_frames.max(1), threshold, last: None, kept: Vec::new(), seen: 0 }
    }

    /// Number of frames held.
    pub fn held(&self) -> usize {
        self.kept.len()
    }

    /// Looks at the next frame, and keeps it if it is worth a place.
    pub fn push(&mut self, frame: &Frame) {
        let points = points(frame);
        let change = self.last.as_ref().map_or(f32::INFINITY, |last| {
            let sum: u32 = last.iter().zip(&points).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
            sum as f32 / points.len() as f32
        });
        self.last = Some(points);
        let index = self.seen;
        self.seen += 1;
        if index > 0 && (change < self.threshold || self.max_frames == 1) {
            return;
        }
        if self.kept.len() == self.max_frames {
            // The smallest change gives way; of equals the later one.
            let weakest = (1..self.kept.len())
                .min_by(|a, b| self.kept[*a].0.total_cmp(&self.kept[*b].0).then(b.cmp(a)));
            match weakest {
                Some(w) if self.kept[w].0 < change => {
                    self.kept.remove(w);
                }
                _ => return,
            }
        }
        self.kept.push((change, index, frame.clone()));
    }

    /// The frames kept, in order, with their index in the stream.
    pub fn finish(self) -> Vec<(usize, Frame)> {
        self.kept.into_iter().map(|(_, index, frame)| (index, frame)).collect()
    }
}

/// Grey levels of the lattice.
fn points(frame: &Frame) -> Vec<u8> {
    let (w, h) = (frame.width as usize, frame.height as usize);
    let mut out = Vec::with_capacity(LATTICE * LATTICE);
    for i in 0..LATTICE {
        for j in 0..LATTICE {
            let (y, x) = ((2 * i + 1) * h / (2 * LATTICE), (2 * j + 1) * w / (2 * LATTICE));
            let p = &frame.rgb[(y * w + x) * 3..][..3];
            let grey = 299 * u32::from(p[0]) + 587 * u32::from(p[1]) + 114 * u32::from(p[2]);
            out.push((grey / 1000) as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(level: u8) -> Frame {
        Frame { width: 3, height: 2, rgb: vec![level; 18].into(), time_s: None }
    }

    fn cuts(levels: &[u8], max_frames: usize) -> Vec<usize> {
        let mut cuts = SceneCuts::new(max_frames, 10.0);
        for level in levels {
            cuts.push(&flat(*level));
            assert!(cuts.held() <= max_frames);
        }
        cuts.finish().iter().map(|k| k.0).collect()
    }

    #[test]
    fn the_first_frame_and_the_largest_changes_are_taken() {
        assert_eq!(cuts(&[5, 5, 6, 200, 200, 100, 101], 8), [0, 3, 5]);
        assert_eq!(cuts(&[5, 5, 6, 200, 200, 100, 20], 2), [0, 3]);
        assert_eq!(cuts(&[5, 50, 5, 250], 3), [0, 1, 3]);
        assert_eq!(cuts(&[5, 200], 1), [0]);
        assert_eq!(cuts(&[], 4), [] as [usize; 0]);
    }
}
