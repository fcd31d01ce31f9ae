//! Charts: lines over one axis, labelled where they end, as SVG and as PNG.
//!
//! A [`Chart`] says what is shown, [`layout`] turns it into a few kinds of shapes, and one writer a
//! format draws those: both files show the same picture.
//!
//! Invariants
//! - Lines are named where they end, not in a legend; names never overlap.
//! - Fourteen lines differ in colour, and in marker or dashes; the first seven colours are safe for
//!   colour-blind readers. What comes after them differs in its dashes.
//! - The SVG follows the reader's colour scheme, the PNG has the theme that was asked for.
//! - Nothing here reads a file, a clock or a font of the system.

mod layout;
mod png;
mod scene;
mod svg;

use anyhow::{Context, Result};
use std::path::Path;

pub(crate) use scene::Theme;

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Equal steps are equal differences.
    Linear,
    /// Equal steps are factors of two.
    Log2,
}

/// One axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// What it counts, with its unit.
    pub(crate) label: String,
    /// Smallest and largest value shown.
    pub(crate) range: [f64; 2],
    /// Spacing.
    pub(crate) scale: Scale,
    /// Whether large values stand on the left.
    pub(crate) is_reversed: bool,
    /// Marked values and what is written there.
    pub(crate) ticks: Vec<(f64, String)>,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The next colour and marker.
    Coloured,
    /// Grey, dashed, for what others are compared with.
    Reference,
    /// Small dots without a line, for measurements under a fit.
    Dots,
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Written where it ends.
    pub(crate) name: String,
    /// In drawing order.
    pub(crate) points: Vec<(f64, f64)>,
    /// Lower and upper end of an interval at each point; empty if there are none.
    pub(crate) bars: Vec<[f64; 2]>,
    /// How it looks.
    pub(crate) look: Look,
}

/// A level across the whole chart, with a band around it.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    /// Written at its right end.
    pub(crate) name: String,
    /// Where.
    pub(crate) value: f64,
    /// Lower and upper end of the band.
    pub(crate) band: Option<[f64; 2]>,
}

/// What is shown.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    /// One line on top.
    pub(crate) title: String,
    /// A smaller line below it.
    pub(crate) subtitle: String,
    /// Horizontal.
    pub(crate) x: Axis,
    /// Vertical; its label stands on top of it.
    pub(crate) y: Axis,
    /// The lines.
    pub(crate) series: Vec<Series>,
    /// The levels.
    pub(crate) levels: Vec<Level>,
}

impl Chart {
    /// Writes `stem.svg` and `stem.png`, the latter in `theme`.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, stem: &Path, theme: Theme) -> Result<()> {
        let scene = layout::scene(self);
        let files = [("svg", svg::draw(&scene).into_bytes()), ("png", png::draw(&scene, theme)?)];
        for (extension, content) in files {
            let path = stem.with_extension(extension);
            crate::write::replace_one(&path, &content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Axis {
    /// A linear axis around values, with about five round ticks.
    pub(crate) fn linear(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|v| v.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let span = if high > low { high - low } else { high.abs().max(1.0) * 0.1 };
        let (low, high) = (low - 0.04 * span, high + 0.04 * span);
        let step = round_step((high - low) / 5.0);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let first = (low / step).ceil() as i64;
        let last = (high / step).floor() as i64;
        let tick = |i: i64| (i as f64 * step, format!("{:.digits$}", i as f64 * step));
        Self {
            label: label.to_owned(),
            range: [low, high],
            scale: Scale::Linear,
            is_reversed: false,
            ticks: (first..=last).map(tick).collect(),
        }
    }

    /// A logarithmic axis with a tick at every power of two between `low` and `high`.
    pub(crate) fn powers_of_two(label: &str, low: f64, high: f64) -> Self {
        let (first, last) = (low.max(1.0).log2(), high.max(2.0).log2());
        let tick = |i: i32| (f64::from(i).exp2(), format!("{}", 1u64 << i.max(0)));
        Self {
            label: label.to_owned(),
            range: [(first - 0.06).exp2(), (last + 0.06).exp2()],
            scale: Scale::Log2,
            is_reversed: false,
            ticks: (first.ceil() as i32..=last.floor() as i32).map(tick).collect(),
        }
    }

    /// The same axis, large values on the left.
    #[must_use]
    pub(crate) fn reversed(mut self) -> Self {
        self.is_reversed = true;
        self
    }

    /// Place of a value: 0 at the start of the axis, 1 at its end.
    fn place(&self, value: f64) -> f64 {
        let [low, high] = self.range;
        let share = match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Log2 => (value.max(1e-9) / low).log2() / (high / low).log2(),
        };
        if self.is_reversed { 1.0 - share } else { share }
    }
}

/// The next 1, 2 or 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|&s| s >= step * 0.999)
        .unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn chart() -> Chart {
        let line = |name: &str, look, shift: f64| Series {
            name: name.to_owned(),
            points: [256.0, 128.0, 64.0, 32.0, 16.0]
                .iter()
                .map(|&x: &f64| (x, 80.0 - shift * 40.0 / x))
                .collect(),
            bars: Vec::new(),
            look,
        };
        Chart {
            title: "Accuracy against kept tokens".into(),
            subtitle: "a < b & c".into(),
            x: Axis::powers_of_two("mean visual tokens a decoder layer", 16.0, 256.0).reversed(),
            y: Axis::linear("accuracy, %", [20.0, 80.0].into_iter()),
            series: vec![
                line("vtc_cls", Look::Coloured, 3.0),
                line("fastv", Look::Coloured, 3.1),
                line("random", Look::Reference, 20.0),
            ],
            levels: vec![Level { name: "dense".into(), value: 80.0, band: Some([78.0, 82.0]) }],
        }
    }

    #[test]
    fn both_files_appear() {
        let folder = tempfile::tempdir().unwrap();
        chart().write(&folder.path().join("c"), Theme::Dark).unwrap();
        let svg = std::fs::read_to_string(folder.path().join("c.svg")).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("a &lt; b &amp; c"));
        for name in ["vtc_cls", "fastv", "random", "dense"] {
            assert!(svg.contains(&format!(">{name}<")), "{name}");
        }
        assert!(svg.contains("@media (prefers-color-scheme: dark)"), "{svg}");
        let png = image::open(folder.path().join("c.png")).unwrap().to_rgb8();
        assert_eq!(png.dimensions(), (1920, 1200));
        assert_eq!(png.get_pixel(0, 0).0, Theme::Dark.rgb(scene::Colour::Sheet));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::linear("y", [0.31, 0.47].into_iter());
        assert!(axis.ticks.len() >= 3 && axis.ticks.len() <= 7, "{:?}", axis.ticks);
        assert!(axis.ticks.iter().all(|(v, _)| (0.0..=1.0).contains(&axis.place(*v))));
        assert_eq!(axis.ticks[0].1, "0.35");
        let powers = Axis::powers_of_two("x", 16.0, 256.0);
        let names: Vec<&str> = powers.ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(names, ["16", "32", "64", "128", "256"]);
    }

    #[test]
    fn an_axis_without_values_still_has_a_range() {
        let axis = Axis::linear("y", [f64::NAN].into_iter());
        assert!(axis.range[0] < axis.range[1]);
        let flat = Axis::linear("y", [3.0, 3.0].into_iter());
        assert!((0.0..=1.0).contains(&flat.place(3.0)));
    }
}
