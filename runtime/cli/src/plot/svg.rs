//! Draws a scene as SVG: in the light theme where nothing is known of the reader, in the dark one
//! where the reader prefers it.
//!
//! Colours stand as attributes, which every program understands, and again as a style sheet for
//! readers who prefer dark, which overrides them.

use std::fmt::Write as _;

use super::scene::{Anchor, Colour, HEIGHT, Marker, Rgb, Shape, Theme, WIDTH};

fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Attributes that fill a shape.
fn fill(colour: Colour) -> String {
    format!("class=\"f-{}\" fill=\"{}\"", colour.class(), hex(Theme::Light.rgb(colour)))
}

/// Attributes that draw a line.
fn stroke(colour: Colour) -> String {
    format!("class=\"s-{}\" stroke=\"{}\"", colour.class(), hex(Theme::Light.rgb(colour)))
}

/// Attributes of a filled mark with a rim of the sheet.
fn mark(colour: Colour) -> String {
    let (inside, rim) = (Theme::Light.rgb(colour), Theme::Light.rgb(Colour::Sheet));
    let class = colour.class();
    format!("class=\"f-{class} s-sheet\" fill=\"{}\" stroke=\"{}\"", hex(inside), hex(rim))
}

/// The style sheet for readers who prefer dark.
fn dark() -> String {
    let mut out = String::from("<style>@media (prefers-color-scheme: dark) {\n");
    for colour in Colour::all() {
        let (class, value) = (colour.class(), hex(Theme::Dark.rgb(colour)));
        out.push_str(&format!(".f-{class} {{ fill: {value} }} .s-{class} {{ stroke: {value} }}\n"));
    }
    out.push_str("}</style>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Corners of a mark; `None` for the circle.
pub(super) fn corners(marker: Marker, (x, y): (f64, f64), r: f64) -> Option<Vec<(f64, f64)>> {
    let s = r * 0.9;
    match marker {
        Marker::Circle => None,
        Marker::Square => {
            Some(vec![(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)])
        }
        Marker::Triangle => {
            Some(vec![(x, y - r * 1.2), (x + r * 1.1, y + r * 0.8), (x - r * 1.1, y + r * 0.8)])
        }
        Marker::Down => {
            Some(vec![(x - r * 1.1, y - r * 0.8), (x + r * 1.1, y - r * 0.8), (x, y + r * 1.2)])
        }
        Marker::Left => {
            Some(vec![(x - r * 1.2, y), (x + r * 0.8, y - r * 1.1), (x + r * 0.8, y + r * 1.1)])
        }
        Marker::Right => {
            Some(vec![(x - r * 0.8, y - r * 1.1), (x + r * 1.2, y), (x - r * 0.8, y + r * 1.1)])
        }
        Marker::Diamond => {
            let t = r * 1.25;
            Some(vec![(x, y - t), (x + t, y), (x, y + t), (x - t, y)])
        }
    }
}

/// The whole file.
pub(super) fn draw(scene: &[Shape]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\">\n{}\
         <rect width=\"100%\" height=\"100%\" {}/>\n",
        dark(),
        fill(Colour::Sheet)
    );
    for shape in scene {
        // Writing to a String cannot fail.
        let _ = match shape {
            Shape::Line { points, width, colour, dash } => {
                let path: Vec<String> =
                    points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let dash = match dash {
                    [] => String::new(),
                    lengths => {
                        let list: Vec<String> = lengths.iter().map(ToString::to_string).collect();
                        format!(" stroke-dasharray=\"{}\"", list.join(" "))
                    }
                };
                writeln!(
                    out,
                    "<polyline points=\"{}\" fill=\"none\" {} stroke-width=\"{width}\" \
                     stroke-linejoin=\"round\"{dash}/>",
                    path.join(" "),
                    stroke(*colour)
                )
            }
            Shape::Rect { at: [x, y, w, h], colour } => writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" {}/>",
                fill(*colour)
            ),
            Shape::Mark { at, radius, marker, colour } => match corners(*marker, *at, *radius) {
                None => writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" {}/>",
                    at.0,
                    at.1,
                    mark(*colour)
                ),
                Some(corners) => {
                    let path: Vec<String> =
                        corners.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                    writeln!(out, "<polygon points=\"{}\" {}/>", path.join(" "), mark(*colour))
                }
            },
            Shape::Text { at: (x, y), text, size, anchor, colour } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                writeln!(
                    out,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{}\" text-anchor=\"{anchor}\" \
                     {}>{}</text>",
                    size.px(),
                    fill(*colour),
                    escaped(text)
                )
            }
        };
    }
    out.push_str("</svg>\n");
    out
}
