//! Draws a scene as PNG, two pixels a logical one, anti-aliased by distance.
//!
//! Letters are rasterised ahead of time (Noto Sans Mono, by `noto-sans-mono-bitmap`), so that no
//! font of the system is needed; characters beyond ASCII are shown as `?`.

use std::io::Cursor;

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::scene::{Anchor, Colour, HEIGHT, Rgb as Ink, Shape, Size, Theme, WIDTH};
use super::svg::corners;

const SCALE: f64 = 2.0;

/// The whole file.
///
/// # Errors
/// What the encoder reports.
pub(super) fn draw(scene: &[Shape], theme: Theme) -> Result<Vec<u8>> {
    let paper = theme.rgb(Colour::Sheet);
    let rgb = |colour: &Colour| theme.rgb(*colour);
    let size = ((WIDTH * SCALE) as u32, (HEIGHT * SCALE) as u32);
    let mut sheet = Sheet(RgbImage::from_pixel(size.0, size.1, Rgb(paper)));
    for shape in scene {
        match shape {
            Shape::Line { points, width, colour, dash } => {
                let points: Vec<(f64, f64)> = points.iter().map(|&p| scaled(p)).collect();
                for run in dashes(&points, dash) {
                    sheet.stroke(&run, width * SCALE, rgb(colour));
                }
            }
            Shape::Rect { at: [x, y, w, h], colour } => {
                let (x, y, w, h) = (x * SCALE, y * SCALE, w * SCALE, h * SCALE);
                sheet.polygon(&[(x, y), (x + w, y), (x + w, y + h), (x, y + h)], rgb(colour));
            }
            Shape::Mark { at, radius, marker, colour } => {
                let (center, r) = (scaled(*at), radius * SCALE);
                match corners(*marker, center, r) {
                    None => {
                        sheet.disc(center, r + 1.0, paper);
                        sheet.disc(center, r, rgb(colour));
                    }
                    Some(corners) => {
                        let rim: Vec<(f64, f64)> =
                            corners.iter().chain(corners.first()).copied().collect();
                        sheet.polygon(&corners, rgb(colour));
                        sheet.stroke(&rim, 2.0, paper);
                    }
                }
            }
            Shape::Text { at, text, size, anchor, colour } => {
                sheet.text(scaled(*at), text, *size, *anchor, rgb(colour));
            }
        }
    }
    let mut out = Cursor::new(Vec::new());
    sheet.0.write_to(&mut out, image::ImageFormat::Png).context("cannot encode a PNG")?;
    Ok(out.into_inner())
}

fn scaled((x, y): (f64, f64)) -> (f64, f64) {
    (x * SCALE, y * SCALE)
}

/// The drawn parts of a dashed line.
fn dashes(points: &[(f64, f64)], dash: &[f64]) -> Vec<Vec<(f64, f64)>> {
    let total: f64 = dash.iter().sum();
    if total <= 0.0 {
        return vec![points.to_vec()];
    }
    let mut runs = vec![points.first().copied().into_iter().collect::<Vec<_>>()];
    let (mut index, mut left) = (0, dash[0] * SCALE);
    for pair in points.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let length = (to.0 - from.0).hypot(to.1 - from.1);
        let mut at = 0.0;
        while length - at > left {
            at += left;
            let share = at / length;
            let point = (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1));
            if index % 2 == 0 {
                if let Some(run) = runs.last_mut() {
                    run.push(point);
                }
            } else {
                runs.push(vec![point]);
            }
            index = (index + 1) % dash.len();
            left = dash[index] * SCALE;
        }
        left -= length - at;
        if index % 2 == 0
            && let Some(run) = runs.last_mut()
        {
            run.push(to);
        }
    }
    runs.retain(|run| run.len() > 1);
    runs
}

struct Sheet(RgbImage);

impl Sheet {
    fn blend(&mut self, x: i64, y: i64, colour: Ink, alpha: f64) {
        let inside =
            x >= 0 && y >= 0 && x < i64::from(self.0.width()) && y < i64::from(self.0.height());
        if !inside || alpha <= 0.0 {
            return;
        }
        let pixel = self.0.get_pixel_mut(x as u32, y as u32);
        for (old, new) in pixel.0.iter_mut().zip(colour) {
            let mixed = f64::from(*old) * (1.0 - alpha) + f64::from(new) * alpha;
            *old = mixed.round() as u8;
        }
    }

    /// Covers what lies within a signed distance (negative inside) of half a pixel.
    fn cover(&mut self, bounds: [f64; 4], colour: Ink, distance: impl Fn(f64, f64) -> f64) {
        let [left, top, right, bottom] = bounds;
        for y in (top - 1.0).floor() as i64..=(bottom + 1.0).ceil() as i64 {
            for x in (left - 1.0).floor() as i64..=(right + 1.0).ceil() as i64 {
                let d = distance(x as f64 + 0.5, y as f64 + 0.5);
                self.blend(x, y, colour, (0.5 - d).clamp(0.0, 1.0));
            }
        }
    }

    fn stroke(&mut self, points: &[(f64, f64)], width: f64, colour: Ink) {
        let half = width / 2.0;
        // Joints are shared by two pieces: one distance field over the neighbours of a piece keeps
        // them from being painted twice.
        for (i, pair) in points.windows(2).enumerate() {
            let (a, b) = (pair[0], pair[1]);
            let before = i.checked_sub(1).map(|j| (points[j], a));
            let bounds = [
                a.0.min(b.0) - half,
                a.1.min(b.1) - half,
                a.0.max(b.0) + half,
                a.1.max(b.1) + half,
            ];
            self.cover(bounds, colour, |x, y| {
                let d = to_segment((x, y), a, b) - half;
                match before {
                    Some((p, q)) if to_segment((x, y), p, q) - half < d => 1.0,
                    _ => d,
                }
            });
        }
    }

    fn disc(&mut self, (cx, cy): (f64, f64), r: f64, colour: Ink) {
        let bounds = [cx - r, cy - r, cx + r, cy + r];
        self.cover(bounds, colour, |x, y| (x - cx).hypot(y - cy) - r);
    }

    /// A convex polygon, corners clockwise on the screen.
    fn polygon(&mut self, corners: &[(f64, f64)], colour: Ink) {
        let fold = |f: fn(f64, f64) -> f64, start: f64, of: fn(&(f64, f64)) -> f64| {
            corners.iter().map(of).fold(start, f)
        };
        let bounds = [
            fold(f64::min, f64::INFINITY, |c| c.0),
            fold(f64::min, f64::INFINITY, |c| c.1),
            fold(f64::max, f64::NEG_INFINITY, |c| c.0),
            fold(f64::max, f64::NEG_INFINITY, |c| c.1),
        ];
        let edges: Vec<_> =
            corners.iter().zip(corners.iter().cycle().skip(1)).map(|(a, b)| (*a, *b)).collect();
        self.cover(bounds, colour, |x, y| {
            let outside = |&(a, b): &((f64, f64), (f64, f64))| {
                let (dx, dy) = (b.0 - a.0, b.1 - a.1);
                ((x - a.0) * dy - (y - a.1) * dx) / dx.hypot(dy).max(1e-9)
            };
            edges.iter().map(outside).fold(f64::NEG_INFINITY, f64::max)
        });
    }

    fn text(&mut self, at: (f64, f64), text: &str, size: Size, anchor: Anchor, colour: Ink) {
        let height = match size {
            Size::Small => RasterHeight::Size24,
            Size::Large => RasterHeight::Size32,
        };
        let advance = get_raster_width(FontWeight::Regular, height) as f64;
        let length = advance * text.chars().count() as f64;
        let left = match anchor {
            Anchor::Start => at.0,
            Anchor::Middle => at.0 - length / 2.0,
            Anchor::End => at.0 - length,
        };
        // The rasters leave room for letters below the line: about a fifth of their height.
        let top = (at.1 - height.val() as f64 * 0.8).round() as i64;
        for (i, letter) in text.chars().enumerate() {
            let raster = get_raster(letter, FontWeight::Regular, height)
                .or_else(|| get_raster('?', FontWeight::Regular, height));
            let Some(raster) = raster else { continue };
            let x0 = (left + i as f64 * advance).round() as i64;
            for (y, row) in raster.rows().enumerate() {
                for (x, &ink) in row.iter().enumerate() {
                    self.blend(x0 + x as i64, top + y as i64, colour, f64::from(ink) / 255.0);
                }
            }
        }
    }
}

fn to_segment(p: (f64, f64), a: (f64, f64), b: (f64, f64)) -> f64 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let square = dx * dx + dy * dy;
    let t = if square > 0.0 { ((p.0 - a.0) * dx + (p.1 - a.1) * dy) / square } else { 0.0 };
    let t = t.clamp(0.0, 1.0);
    (p.0 - a.0 - t * dx).hypot(p.1 - a.1 - t * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dashed_line_is_cut_across_its_corners() {
        let runs = dashes(&[(0.0, 0.0), (10.0, 0.0), (10.0, 10.0)], &[4.0, 2.0]);
        let length = |run: &Vec<(f64, f64)>| -> f64 {
            run.windows(2).map(|w| (w[1].0 - w[0].0).hypot(w[1].1 - w[0].1)).sum()
        };
        let lengths: Vec<f64> = runs.iter().map(length).collect();
        assert_eq!(lengths, [8.0, 8.0]);
        assert_eq!(dashes(&[(0.0, 0.0), (5.0, 0.0)], &[]).len(), 1);
    }

    #[test]
    fn a_rectangle_fills_its_pixels_and_no_others() {
        for theme in [Theme::Light, Theme::Dark] {
            let rect = Shape::Rect { at: [10.0, 10.0, 5.0, 5.0], colour: Colour::Series(1) };
            let bytes = draw(&[rect], theme).unwrap();
            let png = image::load_from_memory(&bytes).unwrap().to_rgb8();
            assert_eq!(png.get_pixel(20, 20).0, theme.rgb(Colour::Series(1)));
            assert_eq!(png.get_pixel(29, 29).0, theme.rgb(Colour::Series(1)));
            assert_eq!(png.get_pixel(31, 25).0, theme.rgb(Colour::Sheet));
        }
    }
}
