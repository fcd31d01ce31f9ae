//! Draws a scene as SVG.

use std::fmt::Write as _;

use super::scene::{Anchor, Colour, HEIGHT, Marker, Shape, WIDTH};

fn hex([r, g, b]: Colour) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
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
         font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
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
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\" \
                     stroke-linejoin=\"round\"{dash}/>",
                    path.join(" "),
                    hex(*colour)
                )
            }
            Shape::Rect { at: [x, y, w, h], colour } => writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{}\"/>",
                hex(*colour)
            ),
            Shape::Mark { at, radius, marker, colour } => match corners(*marker, *at, *radius) {
                None => writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{}\" \
                     stroke=\"#ffffff\"/>",
                    at.0,
                    at.1,
                    hex(*colour)
                ),
                Some(corners) => {
                    let path: Vec<String> =
                        corners.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                    writeln!(
                        out,
                        "<polygon points=\"{}\" fill=\"{}\" stroke=\"#ffffff\"/>",
                        path.join(" "),
                        hex(*colour)
                    )
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
                     fill=\"{}\">{}</text>",
                    size.px(),
                    hex(*colour),
                    escaped(text)
                )
            }
        };
    }
    out.push_str("</svg>\n");
    out
}
