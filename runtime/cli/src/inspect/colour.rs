//! Colours of drawings: the map for scores, and what fates look like.

/// An RGB colour.
pub(crate) type Rgb = [u8; 3];

/// Ground of the montage.
pub(crate) const GROUND: Rgb = [22, 24, 29];
/// Titles.
pub(crate) const INK: Rgb = [236, 238, 242];
/// Side notes.
pub(crate) const FAINT: Rgb = [150, 156, 168];
/// Edge between what is kept and what is not.
pub(crate) const EDGE: Rgb = [255, 255, 255];
/// Around cells that are summed.
pub(crate) const CARRIES: Rgb = [255, 176, 32];

/// Anchors of a map from dark violet over red to yellow: even in lightness, so that it reads in
/// grey and for colour-blind eyes (the shape of matplotlib's `inferno`).
pub(crate) const ANCHORS: [Rgb; 9] = [
    [0, 0, 4],
    [27, 12, 65],
    [74, 12, 107],
    [120, 28, 109],
    [165, 44, 96],
    [207, 68, 70],
    [237, 105, 37],
    [251, 155, 6],
    [252, 255, 164],
];

/// The colour of a share in [0, 1]; what is no number looks like 0.
pub(crate) fn heat(share: f32) -> Rgb {
    let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
    let at = share * (ANCHORS.len() - 1) as f32;
    let low = (at as usize).min(ANCHORS.len() - 2);
    mix(ANCHORS[low], ANCHORS[low + 1], at - low as f32)
}

/// `a` with a share of `b` in it.
pub(crate) fn mix(a: Rgb, b: Rgb, share: f32) -> Rgb {
    let one = |i: usize| {
        let (a, b) = (f32::from(a[i]), f32::from(b[i]));
        (a + (b - a) * share).round().clamp(0.0, 255.0) as u8
    };
    [one(0), one(1), one(2)]
}

/// The colour without its colour.
pub(crate) fn grey([r, g, b]: Rgb) -> Rgb {
    let luma = (u32::from(r) * 299 + u32::from(g) * 587 + u32::from(b) * 114) / 1000;
    [luma as u8; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_gets_lighter_all_the_way() {
        let lightness: Vec<u8> = (0..=40).map(|i| grey(heat(i as f32 / 40.0))[0]).collect();
        assert!(lightness.windows(2).all(|w| w[0] <= w[1]), "{lightness:?}");
        assert_eq!(heat(f32::NAN), heat(0.0));
    }
}
