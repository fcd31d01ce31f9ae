//! What a drawn chart is made of: four kinds of shapes on a white sheet, in logical pixels.

/// Size of the sheet, logical pixels.
pub(super) const WIDTH: f64 = 960.0;
/// Size of the sheet, logical pixels.
pub(super) const HEIGHT: f64 = 600.0;

/// A colour, RGB.
pub(super) type Colour = [u8; 3];

/// The Okabe-Ito palette, which colour-blind readers can tell apart; its yellow is darkened, since
/// the sheet is white.
pub(super) const PALETTE: [Colour; 7] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [150, 134, 0],
];
/// Text and axes.
pub(super) const INK: Colour = [34, 34, 34];
/// Text that stands back.
pub(super) const GREY: Colour = [120, 120, 120];
/// Lines behind everything.
pub(super) const FAINT: Colour = [226, 226, 226];

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
}

/// One shape; later ones lie on top.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// A line through points. `dash`: lengths drawn and left out; empty is solid.
    Line { points: Vec<(f64, f64)>, width: f64, colour: Colour, dash: &'static [f64] },
    /// A filled rectangle: left, top, width, height.
    Rect { at: [f64; 4], colour: Colour },
    /// A filled mark with a white rim.
    Mark { at: (f64, f64), radius: f64, marker: Marker, colour: Colour },
    /// One line of text on its baseline.
    Text { at: (f64, f64), text: String, size: Size, anchor: Anchor, colour: Colour },
}
