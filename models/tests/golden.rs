//! Dense golden cases from the tower's rows on: projected tokens, ids, positions, layers, logits,
//! greedy ids.
//!
//! Tolerance: that of the case, 2e-4 of the largest value, which the reference's own f32 sums in
//! another order stay below.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use secateur_core::clip::Grid;
use secateur_core::model::Pixels;
use support::{Case, cases, check, crop, pixels, whole};

/// Runs all dense cases of a model; `clips` makes the processed geometry of a case.
fn run_all(model: &str, clips: impl Fn(&Case) -> Vec<Pixels>) {
    let cases = cases(model);
    assert!(!cases.is_empty(), "no case of {model}");
    for case in cases {
        check(&case, &case.load(), &clips(&case));
    }
}

/// One crop a picture or frame: frames of a video make one clip.
fn one_crop_each(case: &Case, side: u32) -> Vec<Pixels> {
    let (video, sizes) = case.sizes();
    if !video {
        return sizes.iter().map(|&s| pixels(vec![whole(side, 0, s)], s, false)).collect();
    }
    let crops = (0..).zip(&sizes).map(|(frame, &s)| whole(side, frame, s)).collect();
    let mut clip = pixels(crops, sizes[0], true);
    let fps = case.json.get("video_fps").and_then(serde_json::Value::as_f64);
    clip.fps = fps;
    vec![clip]
}

/// Tiles of a `[rows, cols]` lattice over a picture, `side x side` patches each.
fn tiles([rows, cols]: [u32; 2], side: u32, rect: [f64; 4], source: [u32; 2]) -> Vec<Grid> {
    let [w, h] = [rect[2] / f64::from(cols), rect[3] / f64::from(rows)];
    let place = |i: u32| {
        let (row, col) = (f64::from(i / cols), f64::from(i % cols));
        crop([0, i + 1], [side; 2], [rect[0] + col * w, rect[1] + row * h, w, h], source)
    };
    (0..rows * cols).map(place).collect()
}

/// The pinpoint `[height, width]` that LLaVA-NeXT and OneVision choose.
fn best(pinpoints: &[[u32; 2]], [w, h]: [u32; 2]) -> [u32; 2] {
    let (w, h) = (f64::from(w), f64::from(h));
    let mut found = (0u64, u64::MAX, [0, 0]);
    for &[ph, pw] in pinpoints {
        let scale = (f64::from(pw) / w).min(f64::from(ph) / h);
        let area = ((w * scale) as u64) * ((h * scale) as u64);
        let used = area.min((w * h) as u64);
        let waste = u64::from(pw) * u64::from(ph) - used;
        if used > found.0 || (used == found.0 && waste < found.1) {
            found = (used, waste, [ph, pw]);
        }
    }
    found.2
}

/// The whole picture, then the tiles of the best pinpoint; the picture lies in their middle.
fn anyres(pinpoints: &[[u32; 2]], tile: u32, side: u32, source: [u32; 2]) -> Pixels {
    let [ph, pw] = best(pinpoints, source);
    let [w, h] = source.map(f64::from);
    let scale = (f64::from(pw) / w).min(f64::from(ph) / h);
    let size = [f64::from(pw) / scale, f64::from(ph) / scale];
    let rect = [(w - size[0]) / 2.0, (h - size[1]) / 2.0, size[0], size[1]];
    let mut crops = vec![whole(side, 0, source)];
    crops.extend(tiles([ph / tile, pw / tile], side, rect, source));
    pixels(crops, source, false)
}

/// Patch-row clips of the `(time, height, width)` grids of a case.
fn patch_rows(case: &Case) -> Vec<Pixels> {
    let (video, sizes) = case.sizes();
    let name = if video { "video_grid_thw" } else { "image_grid_thw" };
    let Some((_, grids)) = case.ints(name) else { return Vec::new() };
    let clip = |(i, g): (usize, &[i64])| {
        let source = sizes[i];
        let [w, h] = source.map(f64::from);
        let frames = 0..g[0] as u32;
        let crops = frames
            .map(|t| crop([2 * t, 0], [g[1] as u32, g[2] as u32], [0.0, 0.0, w, h], source))
            .collect();
        let mut clip = pixels(crops, source, video);
        clip.fps = case.json.get("video_fps").and_then(serde_json::Value::as_f64);
        clip
    };
    grids.chunks(3).enumerate().map(clip).collect()
}

#[test]
fn llava() {
    run_all("llava-1.5-tiny", |case| one_crop_each(case, 8));
}

#[test]
fn llava_next() {
    let pinpoints = [[36, 72], [72, 36], [72, 72], [108, 36], [36, 108]];
    run_all("llava-next-tiny", |case| {
        case.sizes().1.iter().map(|&s| anyres(&pinpoints, 36, 6, s)).collect()
    });
}

#[test]
fn llava_onevision() {
    let pinpoints: Vec<[u32; 2]> =
        (1..=4).flat_map(|i| (1..=4).map(move |j| [32 * i, 32 * j])).collect();
    run_all("llava-onevision-tiny", |case| {
        let (video, sizes) = case.sizes();
        if video || sizes.len() > 1 {
            return one_crop_each(case, 5);
        }
        sizes.iter().map(|&s| anyres(&pinpoints, 32, 5, s)).collect()
    });
}

#[test]
fn internvl() {
    // The lattice whose aspect is nearest, the larger one of two if the picture is large enough.
    let lattice = |[w, h]: [u32; 2]| {
        let mut all: Vec<[u32; 2]> = (1..=6)
            .flat_map(|c| (1..=6).map(move |r| [c, r]))
            .filter(|[c, r]| c * r <= 6)
            .collect();
        all.sort_by_key(|[c, r]| c * r);
        let (mut least, mut found) = (f64::INFINITY, [1, 1]);
        for [c, r] in all {
            let off = (f64::from(w) / f64::from(h) - f64::from(c) / f64::from(r)).abs();
            let large = f64::from(w * h) > 0.5 * f64::from(36 * 36 * c * r);
            if off < least || (off == least && large) {
                (least, found) = (off, [r, c]);
            }
        }
        found
    };
    run_all("internvl-tiny", |case| {
        let (video, sizes) = case.sizes();
        if video {
            return one_crop_each(case, 6);
        }
        let clip = |&source: &[u32; 2]| {
            let [rows, cols] = lattice(source);
            let [w, h] = source.map(f64::from);
            let mut crops = tiles([rows, cols], 6, [0.0, 0.0, w, h], source);
            if rows * cols > 1 {
                crops.push(whole(6, 0, source));
            }
            pixels(crops, source, false)
        };
        sizes.iter().map(clip).collect()
    });
}

#[test]
fn paligemma() {
    run_all("paligemma-tiny", |case| one_crop_each(case, 6));
}

#[test]
fn paligemma_2() {
    run_all("paligemma2-tiny", |case| one_crop_each(case, 6));
}

#[test]
fn qwen2_vl() {
    run_all("qwen2-vl-tiny", patch_rows);
}

#[test]
fn qwen2_5_vl() {
    run_all("qwen2.5-vl-tiny", patch_rows);
}

#[test]
fn qwen3_vl() {
    run_all("qwen3-vl-tiny", patch_rows);
}

#[test]
fn smolvlm() {
    // Longest side to 192, both to multiples of 48, tiles of 48.
    let lattice = |[w, h]: [u32; 2]| {
        let even = |n: f64| (n as u32).next_multiple_of(2);
        let (w, h) = (f64::from(w), f64::from(h));
        let (w, h) = if w >= h { (192, even(192.0 / (w / h))) } else { (even(192.0 * w / h), 192) };
        let up = |n: u32| n.div_ceil(48);
        if w >= h {
            let cols = up(w);
            let height = f64::from(cols * 48) / (f64::from(w) / f64::from(h));
            [up(height as u32), cols]
        } else {
            let rows = up(h);
            let width = f64::from(rows * 48) * (f64::from(w) / f64::from(h));
            [rows, up(width as u32)]
        }
    };
    run_all("smolvlm-tiny", |case| {
        let (video, sizes) = case.sizes();
        if video {
            return one_crop_each(case, 4);
        }
        let clip = |&source: &[u32; 2]| {
            let [w, h] = source.map(f64::from);
            let mut crops = tiles(lattice(source), 4, [0.0, 0.0, w, h], source);
            crops.push(whole(4, 0, source));
            pixels(crops, source, false)
        };
        sizes.iter().map(clip).collect()
    });
}
