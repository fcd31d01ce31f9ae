//! To which size the Qwen-VL families scale a picture or a video, and so how many tokens it costs.
//!
//! Invariants
//! - Sides are multiples of `factor` (patch times merge); f64 throughout, in the reference's order
//!   of operations.
//! - Rounding is half to even, as Python's `round`: 336 / 32 = 10.5 becomes 10. Ports that round
//!   half away give 121 tokens where the reference gives 100.
//!
//! Method: `smart_resize` of transformers (`models/qwen2_vl`, `models/qwen3_vl/video_processing`).

/// Longest side over shortest that is accepted.
pub(crate) const MAX_RATIO: f64 = 200.0;

/// Fewest and most pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

fn nearest(side: f64, factor: f64) -> f64 {
    (side / factor).round_ties_even() * factor
}

fn fit(
    (height, width): (f64, f64),
    volume: f64,
    frames: f64,
    factor: f64,
    budget: Budget,
) -> (usize, usize) {
    let mut out = (nearest(height, factor), nearest(width, factor));
    let (min, max) = (budget.min as f64, budget.max as f64);
    let total = volume * out.0 * out.1;
    if total > max {
        let shrink = (frames * height * width / max).sqrt();
        let side = |s: f64| factor.max((s / shrink / factor).floor() * factor);
        out = (side(height), side(width));
    } else if total < min {
        let grow = (min / (frames * height * width)).sqrt();
        let side = |s: f64| (s * grow / factor).ceil() * factor;
        out = (side(height), side(width));
    }
    (out.0 as usize, out.1 as usize)
}

/// Whether the shape is too thin for the family.
pub(crate) fn too_thin(width: usize, height: usize) -> bool {
    let (w, h) = (width as f64, height as f64);
    w.max(h) / w.min(h) > MAX_RATIO
}

/// Height and width of a picture (or of a frame of Qwen2-VL and 2.5) once scaled.
pub(crate) fn picture(
    height: usize,
    width: usize,
    factor: usize,
    budget: Budget,
) -> (usize, usize) {
    fit((height as f64, width as f64), 1.0, 1.0, factor as f64, budget)
}

/// Height and width of the frames of a Qwen3-VL video, whose budget is over the whole clip.
pub(crate) fn clip(
    frames: usize,
    (height, width): (usize, usize),
    temporal: usize,
    factor: usize,
    budget: Budget,
) -> (usize, usize) {
    let (mut h, mut w) = (height as f64, width as f64);
    let f = factor as f64;
    if h < f || w < f {
        let scale = (f / h).max(f / w);
        (h, w) = ((h * scale).trunc(), (w * scale).trunc());
    }
    let rounded = nearest(frames as f64, temporal as f64);
    fit((h, w), rounded, frames as f64, f, budget)
}

/// Per-frame budget of Qwen2-VL and 2.5 under the capped rule (`cap_pixels_per_frame`): the clip
/// as a whole stays below 0.9 of `tokens` tokens.
pub(crate) fn capped_frame(
    frames: usize,
    (tokens, factor, temporal): (usize, usize, usize),
    budget: Budget,
) -> Budget {
    let total = (tokens as f64 * (factor * factor) as f64 * 0.9) as usize;
    let share = total * temporal / frames.max(1);
    Budget { min: budget.min, max: budget.max.min(share).max((budget.min as f64 * 1.05) as usize) }
}

/// Clip budget of Qwen3-VL under the capped rule: at most `tokens` tokens a frame.
pub(crate) fn capped_clip(
    frames: usize,
    (tokens, factor): (usize, usize),
    budget: Budget,
) -> Budget {
    let share = (budget.max / frames.max(1)).min(tokens * factor * factor);
    Budget { min: budget.min, max: share.max((budget.min as f64 * 1.05) as usize) * frames }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUB_2: Budget = Budget { min: 3136, max: 12_845_056 };
    const CLASS: Budget = Budget { min: 3136, max: 1_003_520 };
    const SMALL: Budget = Budget { min: 200_704, max: 1_003_520 };
    const HUB_3: Budget = Budget { min: 65_536, max: 16_777_216 };

    /// The table of models-b, section 6: width, height, then tokens under each budget.
    #[test]
    fn tokens_of_every_size_in_the_reference_table() {
        let table = [
            (336, 336, 144, 144, 256, 100),
            (640, 480, 391, 391, 391, 300),
            (480, 640, 391, 391, 391, 300),
            (1024, 768, 999, 999, 999, 768),
            (1920, 1080, 2691, 1222, 1222, 2040),
            (50, 200, 14, 14, 256, 64),
            (28, 28, 4, 4, 256, 64),
            (4000, 3000, 15_301, 1230, 1230, 11_750),
        ];
        for (w, h, hub, class, small, third) in table {
            let tokens = |factor: usize, budget| {
                let (height, width) = picture(h, w, factor, budget);
                (height / factor) * (width / factor)
            };
            assert_eq!(tokens(28, HUB_2), hub, "{w}x{h}, budget of the hub");
            assert_eq!(tokens(28, CLASS), class, "{w}x{h}, budget of the class");
            assert_eq!(tokens(28, SMALL), small, "{w}x{h}, 256 to 1280 tokens");
            assert_eq!(tokens(32, HUB_3), third, "{w}x{h}, Qwen3-VL");
        }
        assert_eq!(picture(768, 1024, 28, HUB_2), (756, 1036));
        assert_eq!(picture(1080, 1920, 32, HUB_3), (1088, 1920));
    }

    #[test]
    fn half_rounds_to_even_and_tiny_sides_are_repaired() {
        assert_eq!(picture(70, 70, 28, Budget { min: 0, max: 1 << 30 }), (56, 56));
        assert_eq!(picture(5, 5, 28, HUB_2), (56, 56));
        assert!(too_thin(1, 201) && !too_thin(1, 200));
    }
}
