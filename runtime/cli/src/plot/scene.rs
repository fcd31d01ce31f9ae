//! What a drawn chart is made of: a few kinds of shapes on a sheet, in logical pixels, in colours
//! that are named by what they are for. A [`Theme`] says what they look like.

/// Size of the sheet, logical pixels.
pub(super) const WIDTH: f64 = 960.0;
/// Size of the sheet, logical pixels.
pub(super) const HEIGHT: f64 = 600.0;

/// RGB.
pub(super) type Rgb = [u8; 3];

/// Lines that differ in colour before colours come again.
pub(super) const COLOURS: usize = 14;

/// What a colour is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    /// The ground.
    Sheet,
    /// Text and axes.
    Ink,
    /// Text and levels that stand back.
    Grey,
    /// Lines that others are compared with.
    Reference,
    /// Lines behind everything.
    Faint,
    /// What ties a name to its line.
    Tie,
    /// A band around a level.
    Band,
    /// A line of that number, below [`COLOURS`].
    Series(usize),
}

impl Colour {
    /// All of them, for the styles of an SVG.
    pub(super) fn all() -> impl Iterator<Item = Colour> {
        use Colour::{Band, Faint, Grey, Ink, Reference, Sheet, Tie};
        let named = [Sheet, Ink, Grey, Reference, Faint, Tie, Band];
        named.into_iter().chain((0..COLOURS).map(Colour::Series))
    }

    /// Its name in an SVG.
    pub(super) fn class(self) -> String {
        match self {
            Colour::Sheet => "sheet".into(),
            Colour::Ink => "ink".into(),
            Colour::Grey => "grey".into(),
            Colour::Reference => "reference".into(),
            Colour::Faint => "faint".into(),
            Colour::Tie => "tie".into(),
            Colour::Band => "band".into(),
            Colour::Series(i) => format!("line{i}"),
        }
    }
}

/// How colours look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// On white.
    Light,
    /// On near black.
    Dark,
}

/// The Okabe-Ito palette, which colour-blind readers can tell apart (its yellow darkened, since
/// the sheet is white), then seven that lie farthest from it and from one another in CIE Lab.
const LIGHT: [Rgb; COLOURS] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [150, 134, 0],
    [48, 48, 242],
    [242, 84, 242],
    [93, 25, 127],
    [127, 25, 25],
    [33, 165, 33],
    [242, 48, 113],
    [48, 113, 242],
];

/// The same hues for a dark sheet.
const DARK: [Rgb; COLOURS] = [
    [77, 166, 224],
    [240, 126, 50],
    [38, 190, 142],
    [224, 147, 192],
    [240, 180, 60],
    [140, 208, 245],
    [196, 180, 50],
    [209, 48, 242],
    [48, 242, 48],
    [84, 111, 242],
    [242, 48, 113],
    [77, 165, 33],
    [106, 127, 63],
    [204, 71, 181],
];

impl Theme {
    pub(super) fn rgb(self, colour: Colour) -> Rgb {
        let (light, dark) = match colour {
            Colour::Sheet => ([255, 255, 255], [20, 22, 26]),
            Colour::Ink => ([34, 34, 34], [232, 234, 238]),
            Colour::Grey => ([120, 120, 120], [150, 156, 168]),
            Colour::Reference => ([70, 70, 70], [196, 200, 208]),
            Colour::Faint => ([226, 226, 226], [48, 52, 60]),
            Colour::Tie => ([190, 190, 190], [84, 90, 100]),
            Colour::Band => ([243, 243, 243], [34, 37, 43]),
            Colour::Series(i) => (LIGHT[i % COLOURS], DARK[i % COLOURS]),
        };
        match self {
            Theme::Light => light,
            Theme::Dark => dark,
        }
    }
}

/// Which side of a text its place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Size of letters, logical pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
}

impl Size {
    pub(super) fn px(self) -> f64 {
        match self {
            Size::Small => 12.0,
            Size::Large => 16.0,
        }
    }

    /// Upper bound of the width of a text in this size.
    pub(super) fn width(self, text: &str) -> f64 {
        text.chars().count() as f64 * self.px() * 0.6
    }
}

/// A mark at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Down,
    Left,
    Right,
}

/// One shape; later ones lie on top.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// A line through points. `dash`: lengths drawn and left out; empty is solid.
    Line { points: Vec<(f64, f64)>, width: f64, colour: Colour, dash: &'static [f64] },
    /// A filled rectangle: left, top, width, height.
    Rect { at: [f64; 4], colour: Colour },
    /// A filled mark with a rim in the colour of the sheet.
    Mark { at: (f64, f64), radius: f64, marker: Marker, colour: Colour },
    /// One line of text on its baseline.
    Text { at: (f64, f64), text: String, size: Size, anchor: Anchor, colour: Colour },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CIE Lab of an sRGB colour, D65.
    fn lab(rgb: Rgb) -> [f64; 3] {
        let [r, g, b] = rgb.map(|c| {
            let c = f64::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        });
        let x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047;
        let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        let z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883;
        let f = |t: f64| if t > 0.008856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
        [116.0 * f(y) - 16.0, 500.0 * (f(x) - f(y)), 200.0 * (f(y) - f(z))]
    }

    #[test]
    fn fourteen_colours_can_be_told_apart_on_either_sheet() {
        for theme in [Theme::Light, Theme::Dark] {
            let of = |i| lab(theme.rgb(Colour::Series(i)));
            let sheet = lab(theme.rgb(Colour::Sheet));
            for i in 0..COLOURS {
                // Contrast with the sheet, in lightness.
                assert!((of(i)[0] - sheet[0]).abs() > 25.0, "{theme:?} {i}");
                for j in 0..i {
                    let square: f64 = of(i).iter().zip(of(j)).map(|(a, b)| (a - b) * (a - b)).sum();
                    // 2.3 is what eyes just notice side by side; lines are thin and far apart.
                    assert!(square.sqrt() > 19.0, "{theme:?} {i} {j}: {}", square.sqrt());
                }
            }
        }
    }
}
