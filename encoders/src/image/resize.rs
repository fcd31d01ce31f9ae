//! The resamplers of torchvision and Pillow, bit for bit.
//!
//! Invariants
//! - Two passes on u8 with fixed-point weights; each pass rounds and clips to u8. A pass whose
//!   size does not change is skipped.
//! - [`resize_window`] gives exactly the pixels that cropping the whole result would, and computes
//!   no others: a 1 x 65,535 picture costs no more than its crop.
//! - Results do not depend on the number of threads.
//!
//! Order of the passes: torchvision horizontal first; Pillow 13 vertical first iff `H' < H` and
//! `H - H' > 2 (W - W')`. The weights are `axis`.
//!
//! Neither the Catmull-Rom of the `image` crate nor `fast_image_resize` gives these bits.

use rayon::prelude::*;
use secateur_core::model::ImageBackend;

use super::axis::{Axis, Filter};
use super::bitmap::{Bitmap, Canvas, shared_bytes};

/// A rectangle of a resized picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Left edge, pixels of the resized picture.
    pub left: usize,
    /// Upper edge.
    pub top: usize,
    /// Width, at least 1.
    pub width: usize,
    /// Height, at least 1.
    pub height: usize,
}

/// Rows of bytes, `[height, width, 3]`, that begin at row `top` and column `left` of a picture.
struct Part {
    width: usize,
    left: usize,
    top: usize,
    bytes: Vec<u8>,
}

impl Part {
    fn row(&self, y: usize) -> &[u8] {
        let at = (y - self.top) * self.width * 3;
        &self.bytes[at..at + self.width * 3]
    }
}

/// The horizontal pass over a row that begins at column `left`.
fn horizontal_row(axis: &Axis, row: &[u8], left: usize, out: &mut [u8]) {
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (first, weights) = axis.of(i);
        let taps = &row[(first - left) * 3..][..weights.len() * 3];
        let mut sum = [axis.half(); 3];
        for (k, p) in weights.iter().zip(taps.chunks_exact(3)) {
            sum[0] += k * i32::from(p[0]);
            sum[1] += k * i32::from(p[1]);
            sum[2] += k * i32::from(p[2]);
        }
        pixel.copy_from_slice(&sum.map(|s| axis.round(s)));
    }
}

/// As [`horizontal_row`] for a row that lies at `left` on ground of one colour; `blank` is the
/// result of ground alone. Only outputs that see the row are computed.
fn horizontal_padded(
    axis: &Axis,
    row: &[u8],
    left: usize,
    fill: [u8; 3],
    blank: &[u8],
    out: &mut [u8],
) {
    let right = left + row.len() / 3;
    out.copy_from_slice(blank);
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (first, weights) = axis.of(i);
        let (from, to) = (first.max(left), (first + weights.len()).min(right));
        if from >= to {
            continue;
        }
        let mut sum = [axis.half(); 3];
        let inside = &weights[from - first..to - first];
        let outside = weights.iter().sum::<i32>() - inside.iter().sum::<i32>();
        for (s, f) in sum.iter_mut().zip(fill) {
            *s += outside * i32::from(f);
        }
        for (k, p) in inside.iter().zip(row[(from - left) * 3..].chunks_exact(3)) {
            sum[0] += k * i32::from(p[0]);
            sum[1] += k * i32::from(p[1]);
            sum[2] += k * i32::from(p[2]);
        }
        pixel.copy_from_slice(&sum.map(|s| axis.round(s)));
    }
}

/// Output row `i` of the vertical pass; `add(y, k, sums)` adds `k` times input row `y`.
fn vertical_row(
    axis: &Axis,
    i: usize,
    mut add: impl FnMut(usize, i32, &mut [i32]),
    sums: &mut Vec<i32>,
    out: &mut [u8],
) {
    let (first, weights) = axis.of(i);
    sums.clear();
    sums.resize(out.len(), axis.half());
    for (j, k) in weights.iter().enumerate() {
        add(first + j, *k, sums);
    }
    for (o, s) in out.iter_mut().zip(sums.iter()) {
        *o = axis.round(*s);
    }
}

fn accumulate(sums: &mut [i32], row: &[u8], k: i32) {
    for (s, p) in sums.iter_mut().zip(row) {
        *s += k * i32::from(*p);
    }
}

/// Columns `columns` of rows `rows` of the canvas, unchanged.
fn cut(source: &Canvas, columns: std::ops::Range<usize>, rows: std::ops::Range<usize>) -> Part {
    let width = columns.len();
    let mut bytes = Vec::with_capacity(width * 3 * rows.len());
    let mut scratch = Vec::new();
    for y in rows.clone() {
        bytes.extend_from_slice(&source.row(y, &mut scratch)[columns.start * 3..columns.end * 3]);
    }
    Part { width, left: columns.start, top: rows.start, bytes }
}

fn horizontal(source: &Canvas, axis: &Axis, rows: std::ops::Range<usize>, left: usize) -> Part {
    let width = axis.len();
    let picture = &source.picture;
    let mut bytes = vec![0u8; width * 3 * rows.len()];
    let mut blank = Vec::new();
    if (picture.width, picture.height) != (source.width, source.height) {
        blank.resize(width * 3, 0);
        for (i, pixel) in blank.chunks_exact_mut(3).enumerate() {
            let sum: i32 = axis.of(i).1.iter().sum();
            pixel.copy_from_slice(
                &source.fill.map(|f| axis.round(axis.half() + sum * i32::from(f))),
            );
        }
    }
    bytes.par_chunks_exact_mut(width * 3).enumerate().for_each(|(y, out)| {
        let y = rows.start + y;
        if blank.is_empty() {
            horizontal_row(axis, picture.row(y), 0, out);
        } else if (source.top..source.top + picture.height).contains(&y) {
            let row = picture.row(y - source.top);
            horizontal_padded(axis, row, source.left, source.fill, &blank, out);
        } else {
            out.copy_from_slice(&blank);
        }
    });
    Part { width, left, top: rows.start, bytes }
}

/// Resizes to `width` x `height`.
pub fn resize(
    source: impl Into<Canvas>,
    (width, height): (usize, usize),
    filter: Filter,
    backend: ImageBackend,
) -> Bitmap {
    let whole = Window { left: 0, top: 0, width, height };
    resize_window(source, (width, height), whole, filter, backend)
}

/// The rectangle `window` of the picture resized to `width` x `height`; all sides at least 1.
///
/// # Panics
/// If the window is empty or reaches beyond the resized picture: the caller's arithmetic is wrong.
pub fn resize_window(
    source: impl Into<Canvas>,
    (width, height): (usize, usize),
    window: Window,
    filter: Filter,
    backend: ImageBackend,
) -> Bitmap {
    let source: Canvas = source.into();
    assert!(
        window.width > 0
            && window.height > 0
            && window.left + window.width <= width
            && window.top + window.height <= height,
        "a window inside the resized picture"
    );
    let columns = window.left..window.left + window.width;
    let rows = window.top..window.top + window.height;
    if (width, height) == (source.width, source.height) {
        return source.window(window);
    }
    let horizontal_axis = (width != source.width)
        .then(|| Axis::new((source.width, width), columns.clone(), filter, backend));
    let vertical_axis = (height != source.height)
        .then(|| Axis::new((source.height, height), rows.clone(), filter, backend));
    let vertical_first = backend == ImageBackend::Pillow
        && height < source.height
        && (source.height - height) as isize > 2 * (source.width as isize - width as isize);

    let built = |fill: &dyn Fn(&mut [u8])| {
        let filled = shared_bytes(window.width * window.height * 3, |out| {
            fill(out);
            Ok::<(), std::convert::Infallible>(())
        });
        match filled {
            Ok(rgb) => Bitmap { width: window.width, height: window.height, rgb },
            Err(never) => match never {},
        }
    };
    match (horizontal_axis, vertical_axis) {
        (Some(across), Some(down)) if vertical_first => {
            // Only the columns that the horizontal pass reads.
            let needed = across.inputs.clone();
            let mut bytes = vec![0u8; needed.len() * 3 * rows.len()];
            bytes.par_chunks_exact_mut(needed.len() * 3).enumerate().for_each_init(
                || (Vec::new(), Vec::new()),
                |(sums, scratch): &mut (Vec<i32>, Vec<u8>), (i, out)| {
                    let add = |y: usize, k: i32, sums: &mut [i32]| {
                        let row = source.row(y, scratch);
                        accumulate(sums, &row[needed.start * 3..needed.end * 3], k);
                    };
                    vertical_row(&down, i, add, sums, out);
                },
            );
            let part = Part { width: needed.len(), left: needed.start, top: rows.start, bytes };
            built(&|out| {
                out.par_chunks_exact_mut(window.width * 3).enumerate().for_each(|(y, out)| {
                    horizontal_row(&across, part.row(rows.start + y), part.left, out);
                });
            })
        }
        (across, Some(down)) => {
            let needed = down.inputs.clone();
            let part = match &across {
                Some(axis) => horizontal(&source, axis, needed, window.left),
                None => cut(&source, columns, needed),
            };
            built(&|out| {
                out.par_chunks_exact_mut(window.width * 3).enumerate().for_each_init(
                    Vec::new,
                    |sums, (i, out)| {
                        let add = |y: usize, k: i32, sums: &mut [i32]| {
                            accumulate(sums, part.row(y), k);
                        };
                        vertical_row(&down, i, add, sums, out);
                    },
                );
            })
        }
        (Some(across), None) => {
            let part = horizontal(&source, &across, rows, window.left);
            built(&|out| out.copy_from_slice(&part.bytes))
        }
        (None, None) => source.window(window),
    }
}
