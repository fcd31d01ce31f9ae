//! The montage: one row of panels for what is kept, one for what it was ranked by.
//!
//! ```text
//! | picture | after stage 1 | after stage 2 | ...
//! | key     | scores 1      | scores 2      | ...
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use image::{ImageEncoder, RgbImage, imageops};
use secateur::{Clip, Rect};

use super::colour::{self, Rgb, grey, heat, mix};
use super::{Cell, Fate, Scene, View, font};

/// Width and height that a panel's picture is scaled to fit in, pixels.
const PANEL: u32 = 400;
/// Between panels, pixels.
const GAP: u32 = 16;
/// From one line of text to the next, pixels.
const LINE: u32 = 22;
/// Two lines of text above a panel, pixels.
const HEAD: u32 = 44;

/// The montage as a PNG file.
///
/// # Errors
/// A montage too large for the format.
pub(crate) fn montage(scene: &Scene) -> Result<Vec<u8>> {
    let canvas = draw(scene);
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(
            canvas.as_raw(),
            canvas.width(),
            canvas.height(),
            image::ExtendedColorType::Rgb8,
        )
        .context("the montage cannot be written as PNG")?;
    Ok(bytes)
}

/// A frame of a clip, scaled to fit in a square.
pub(crate) fn scaled(clip: &Clip, frame: usize, within: u32) -> RgbImage {
    let (width, height) = (clip.width(), clip.height());
    let frames = clip.frames();
    let Some(frame) = frames
        .get(frame)
        .or(frames.last())
        .and_then(|frame| RgbImage::from_raw(width, height, frame.rgb.to_vec()))
    else {
        return RgbImage::new(1, 1);
    };
    let scale = f64::from(within) / f64::from(width.max(height));
    let side = |pixels: u32| ((f64::from(pixels) * scale).round() as u32).clamp(1, within);
    // Small pictures grow in blocks, so that their pixels can be told apart.
    let filter =
        if scale > 1.0 { imageops::FilterType::Nearest } else { imageops::FilterType::Triangle };
    imageops::resize(&frame, side(width), side(height), filter)
}

struct Canvas {
    image: RgbImage,
}

impl Canvas {
    fn text(&mut self, x: u32, y: u32, text: &str, colour: Rgb, width: u32) {
        let room = (width / font::ADVANCE) as usize;
        let mut shown: String = text.chars().take(room).collect();
        if text.chars().count() > room && room > 2 {
            shown = text.chars().take(room - 2).collect::<String>() + "..";
        }
        let image = &mut self.image;
        font::draw(&shown, |dx, dy, coverage| {
            let (px, py) = (x + dx, y + dy);
            if px < image.width() && py < image.height() {
                let pixel = image.get_pixel_mut(px, py);
                pixel.0 = mix(pixel.0, colour, f32::from(coverage) / 255.0);
            }
        });
    }

    fn paste(&mut self, picture: &RgbImage, x: u32, y: u32) {
        imageops::replace(&mut self.image, picture, i64::from(x), i64::from(y));
    }

    fn fill(&mut self, x: u32, y: u32, width: u32, height: u32, colour: Rgb) {
        for py in y..(y + height).min(self.image.height()) {
            for px in x..(x + width).min(self.image.width()) {
                self.image.put_pixel(px, py, image::Rgb(colour));
            }
        }
    }
}

fn draw(scene: &Scene) -> RgbImage {
    let panels: Vec<RgbImage> = scene
        .views
        .iter()
        .map(|v| scene.clips.get(v.picture).map(|c| scaled(c, v.frame, PANEL)).unwrap_or_default())
        .collect();
    let columns = scene.stages.len() as u32 + 1;
    let heights: Vec<u32> = panels.iter().map(|p| p.height().max(150)).collect();
    let width = (columns * (PANEL + GAP) + GAP).max(2 * (PANEL + GAP) + GAP);
    let room = ((width - 2 * GAP) / font::ADVANCE) as usize;
    let said: Vec<String> = said(scene).iter().flat_map(|line| wrap(line, room, 3)).collect();
    let top = 2 * GAP + (1 + said.len() as u32) * LINE;
    let has_scores = |v: &View| v.cells.iter().any(|c| c.scores.iter().any(Option::is_some));
    // The place below the first picture is free where scores are drawn.
    let key_beside = scene.views.first().is_some_and(&has_scores);
    let fates = scene.fates(None);
    let height: u32 = top
        + scene
            .views
            .iter()
            .zip(&heights)
            .map(|(v, h)| (h + HEAD + GAP) * if has_scores(v) { 2 } else { 1 })
            .sum::<u32>()
        + if key_beside { 0 } else { key_height(fates.len()) };
    let mut canvas =
        Canvas { image: RgbImage::from_pixel(width, height, image::Rgb(colour::GROUND)) };
    canvas.text(GAP, GAP, &format!("{}   {}", scene.model, scene.chain), colour::INK, width - GAP);
    for (i, line) in said.iter().enumerate() {
        canvas.text(GAP, GAP + (1 + i as u32) * LINE, line, colour::FAINT, width - GAP);
    }
    let mut y = top;
    let mut first = key_beside;
    for ((view, &panel_height), picture) in scene.views.iter().zip(&heights).zip(&panels) {
        let Some(clip) = scene.clips.get(view.picture) else { continue };
        let scale = f64::from(picture.width()) / f64::from(clip.width());
        head(&mut canvas, GAP, y, &view.label, &view.line(0));
        canvas.paste(picture, GAP, y + HEAD);
        for (s, stage) in scene.stages.iter().enumerate() {
            let x = GAP + (s as u32 + 1) * (PANEL + GAP);
            head(&mut canvas, x, y, &format!("{}. {}", s + 1, stage.line()), &view.line(s + 1));
            let mut panel = picture.clone();
            kept_panel(&mut panel, view, s, scale);
            canvas.paste(&panel, x, y + HEAD);
        }
        y += panel_height + HEAD + GAP;
        if !has_scores(view) {
            continue;
        }
        if first {
            key(&mut canvas, y + HEAD, &fates);
            first = false;
        }
        for s in 0..scene.stages.len() {
            let x = GAP + (s as u32 + 1) * (PANEL + GAP);
            let Some((low, high)) = scene.score_range(s) else {
                head(&mut canvas, x, y, "no scores", "this stage ranks nothing");
                continue;
            };
            head(&mut canvas, x, y, &format!("scores of {}", scene.stages[s].name), "");
            scale_bar(&mut canvas, x, y + 20, low, high);
            let mut panel = picture.clone();
            heat_panel(&mut panel, view, s, scale, (low, high));
            canvas.paste(&panel, x, y + HEAD);
        }
        y += panel_height + HEAD + GAP;
    }
    if !key_beside {
        key(&mut canvas, y, &fates);
    }
    canvas.image
}

/// What was asked and answered, with times.
fn said(scene: &Scene) -> Vec<String> {
    let mut lines = vec![format!("asked: {}", scene.question)];
    if let Some(dense) = &scene.dense {
        lines.push(format!("unpruned ({}): {}", dense.times(), dense.text));
    }
    let name = if scene.dense.is_some() { "pruned" } else { "answer" };
    lines.push(format!("{name} ({}): {}", scene.pruned.times(), scene.pruned.text));
    lines
}

/// Lines of at most `width` letters, at most `most` of them.
fn wrap(text: &str, width: usize, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        lines[most - 1].push_str(" ..");
    }
    lines
}

fn head(canvas: &mut Canvas, x: u32, y: u32, title: &str, note: &str) {
    canvas.text(x, y, title, colour::INK, PANEL);
    canvas.text(x, y + 20, note, colour::FAINT, PANEL);
}

/// Pixel bounds of a cell on a panel, cut to it.
fn bounds(rect: &Rect, scale: f64, panel: &RgbImage) -> Option<(u32, u32, u32, u32)> {
    let at = |v: f64, most: u32| (v * scale).round().clamp(0.0, f64::from(most)) as u32;
    let (x0, x1) = (at(rect.x, panel.width()), at(rect.x + rect.width, panel.width()));
    let (y0, y1) = (at(rect.y, panel.height()), at(rect.y + rect.height, panel.height()));
    (x0 < x1 && y0 < y1).then_some((x0, y0, x1, y1))
}

fn shade(panel: &mut RgbImage, (x0, y0, x1, y1): (u32, u32, u32, u32), f: impl Fn(Rgb) -> Rgb) {
    for y in y0..y1 {
        for x in x0..x1 {
            let pixel = panel.get_pixel_mut(x, y);
            pixel.0 = f(pixel.0);
        }
    }
}

fn kept_panel(panel: &mut RgbImage, view: &View, stage: usize, scale: f64) {
    // What no cell covers (cropped away by the processor) the model never saw.
    let whole = (0, 0, panel.width(), panel.height());
    let picture = panel.clone();
    let means = means(&picture, view, stage, scale);
    shade(panel, whole, |c| mix(grey(c), colour::GROUND, 0.92));
    for cell in &view.cells {
        let Some(place) = bounds(&cell.rect, scale, panel) else { continue };
        let mean = cell.groups[stage].and_then(|group| means.get(&group)).copied();
        for y in place.1..place.3 {
            for x in place.0..place.2 {
                let c = picture.get_pixel(x, y).0;
                panel.get_pixel_mut(x, y).0 = look(cell.fates[stage], c, mean);
            }
        }
    }
    edges(panel, view, stage, scale);
}

/// What a pixel of a cell looks like. Cells that are summed show the mean of what is in the sum:
/// that is what the model is left with.
fn look(fate: Fate, c: Rgb, mean: Option<Rgb>) -> Rgb {
    match fate {
        Fate::Kept => c,
        Fate::Carries | Fate::Absorbed => mix(c, mean.unwrap_or(c), 0.75),
        Fate::Dropped => mix(grey(c), colour::GROUND, 0.72),
        Fate::Gone => mix(grey(c), colour::GROUND, 0.86),
    }
}

/// Mean colour of each sum of cells.
fn means(picture: &RgbImage, view: &View, stage: usize, scale: f64) -> BTreeMap<u32, Rgb> {
    let mut sums: BTreeMap<u32, ([u64; 3], u64)> = BTreeMap::new();
    for cell in &view.cells {
        let (Some(group), Some((x0, y0, x1, y1))) =
            (cell.groups[stage], bounds(&cell.rect, scale, picture))
        else {
            continue;
        };
        let (sum, count) = sums.entry(group).or_default();
        for (x, y) in (y0..y1).flat_map(|y| (x0..x1).map(move |x| (x, y))) {
            let pixel = picture.get_pixel(x, y).0;
            sum.iter_mut().zip(pixel).for_each(|(s, p)| *s += u64::from(p));
            *count += 1;
        }
    }
    let mean = |(sum, count): ([u64; 3], u64)| sum.map(|s| (s / count.max(1)) as u8);
    sums.into_iter().map(|(group, sum)| (group, mean(sum))).collect()
}

/// Outlines what is left, and each sum of cells: a line wherever a neighbour belongs to something
/// else. A square marks the cell that holds a sum.
fn edges(panel: &mut RgbImage, view: &View, stage: usize, scale: f64) {
    let key = |rect: &Rect| (rect.x.round() as i64, rect.y.round() as i64);
    // What a cell belongs to: itself among the kept, or a sum; nothing if it is dropped.
    let belongs = |c: &Cell| match c.fates[stage] {
        Fate::Kept => Some(None),
        Fate::Carries | Fate::Absorbed => Some(c.groups[stage]),
        Fate::Dropped | Fate::Gone => None,
    };
    let seats: BTreeMap<(i64, i64), Option<Option<u32>>> =
        view.cells.iter().map(|c| (key(&c.rect), belongs(c))).collect();
    for cell in &view.cells {
        let (Some(own), Some((x0, y0, x1, y1))) = (belongs(cell), bounds(&cell.rect, scale, panel))
        else {
            continue;
        };
        let rect = cell.rect;
        let line = if own.is_some() { colour::CARRIES } else { colour::EDGE };
        let is_same = |dx: f64, dy: f64| {
            let next = Rect { x: rect.x + dx * rect.width, y: rect.y + dy * rect.height, ..rect };
            let (x, y) = key(&next);
            // Rounding may put the neighbour one pixel off.
            let near = (-1..=1).flat_map(|i| (-1..=1).map(move |j| (x + i, y + j)));
            near.filter_map(|seat| seats.get(&seat)).any(|other| *other == Some(own))
        };
        let sides = [
            (-1.0, 0.0, (x0, y0, x0 + 1, y1)),
            (1.0, 0.0, (x1 - 1, y0, x1, y1)),
            (0.0, -1.0, (x0, y0, x1, y0 + 1)),
            (0.0, 1.0, (x0, y1 - 1, x1, y1)),
        ];
        for (dx, dy, place) in sides {
            if !is_same(dx, dy) {
                shade(panel, place, |c| mix(c, line, 0.85));
            }
        }
        if cell.fates[stage] == Fate::Carries {
            let (w, h) = ((x1 - x0) / 6, (y1 - y0) / 6);
            let (x, y) = (x0.midpoint(x1), y0.midpoint(y1));
            let place =
                (x.saturating_sub(w), y.saturating_sub(h), (x + w).min(x1), (y + h).min(y1));
            shade(panel, place, |c| mix(c, line, 0.85));
        }
    }
}

fn heat_panel(panel: &mut RgbImage, view: &View, stage: usize, scale: f64, range: (f32, f32)) {
    let whole = (0, 0, panel.width(), panel.height());
    shade(panel, whole, |c| mix(grey(c), colour::GROUND, 0.6));
    for cell in &view.cells {
        let (Some(score), Some(place)) = (cell.scores[stage], bounds(&cell.rect, scale, panel))
        else {
            continue;
        };
        let tint = heat(share(score, range));
        shade(panel, place, |c| mix(grey(c), tint, 0.78));
    }
    edges(panel, view, stage, scale);
}

/// Where a score lies in the range that colours are spread over.
fn share(score: f32, (low, high): (f32, f32)) -> f32 {
    if high > low { ((score - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
}

fn scale_bar(canvas: &mut Canvas, x: u32, y: u32, low: f32, high: f32) {
    let (left, right) = (short(low), short(high));
    let room = |text: &str| text.len() as u32 * font::ADVANCE;
    canvas.text(x, y, &left, colour::FAINT, PANEL);
    let start = x + room(&left) + 6;
    let end = x + PANEL - room(&right) - 6;
    for i in 0..end.saturating_sub(start) {
        let tint = heat(i as f32 / (end - start) as f32);
        canvas.fill(start + i, y + 2, 1, font::HEIGHT - 4, tint);
    }
    canvas.text(end + 6, y, &right, colour::FAINT, PANEL);
}

/// A score in few characters.
pub(crate) fn short(score: f32) -> String {
    let size = score.abs();
    if score == 0.0 {
        "0".to_owned()
    } else if (0.01..1000.0).contains(&size) {
        format!("{score:.3}")
    } else {
        format!("{score:.1e}")
    }
}

fn key_height(fates: usize) -> u32 {
    (fates as u32 + 1) * 24 + GAP
}

/// The legend: the fates that are shown.
fn key(canvas: &mut Canvas, y: u32, fates: &[Fate]) {
    let (sample, others): (Rgb, Rgb) = ([96, 168, 220], [150, 150, 190]);
    let lines = fates.iter().map(|&fate| {
        let line = match fate {
            Fate::Kept => colour::EDGE,
            Fate::Carries | Fate::Absorbed => colour::CARRIES,
            Fate::Dropped | Fate::Gone => look(fate, sample, None),
        };
        (fate, fate.name(), look(fate, sample, Some(others)), line)
    });
    for (i, (fate, name, tint, line)) in lines.enumerate() {
        let y = y + i as u32 * 24;
        canvas.fill(GAP, y, 18, 18, line);
        canvas.fill(GAP + 2, y + 2, 14, 14, tint);
        if fate == Fate::Carries {
            canvas.fill(GAP + 7, y + 7, 5, 5, line);
        }
        canvas.text(GAP + 28, y + 2, name, colour::INK, PANEL);
    }
    if fates.contains(&Fate::Absorbed) {
        let y = y + fates.len() as u32 * 24;
        canvas.text(GAP, y + 2, "sums: outlined, in their mean colour", colour::FAINT, PANEL);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::inspect::{Stage, Told};

    /// A picture of 40 x 40 pixels under 2 x 2 cells, of which one stage keeps the first.
    pub(crate) fn scene() -> Scene {
        let rgb: Vec<u8> = (0..40 * 40).flat_map(|_| [200, 40, 40]).collect();
        let cells = (0..4u32)
            .map(|i| Cell {
                index: i,
                row: i / 2,
                col: i % 2,
                rect: Rect {
                    x: f64::from(i % 2) * 20.0,
                    y: f64::from(i / 2) * 20.0,
                    width: 20.0,
                    height: 20.0,
                },
                fates: vec![if i == 0 { Fate::Kept } else { Fate::Dropped }],
                scores: vec![Some(i as f32)],
                groups: vec![None],
            })
            .collect();
        Scene {
            clips: vec![Clip::picture("p", 40, 40, rgb).unwrap()],
            question: "What?".into(),
            pruned: Told {
                text: "A </script><b>red</b> square & more".into(),
                first_ms: 20.4,
                total_ms: 31.6,
            },
            dense: Some(Told { text: "A blue ring".into(), first_ms: 40.0, total_ms: 50.0 }),
            model: "m".into(),
            chain: "random:keep=1".into(),
            visual_in: 4,
            stages: vec![Stage {
                name: "random".into(),
                site: "input".into(),
                before: 4,
                kept: 1,
                ms: 0.1,
                without_cell: 0,
            }],
            views: vec![View { picture: 0, frame: 0, label: "picture 1".into(), cells }],
        }
    }

    #[test]
    fn what_is_kept_keeps_its_colours_and_the_rest_loses_them() {
        let canvas = draw(&scene());
        let x = GAP + PANEL + GAP;
        let y = 2 * GAP + 4 * LINE + HEAD;
        assert_eq!(canvas.get_pixel(x + 100, y + 100).0, [200, 40, 40]);
        let [r, g, b] = canvas.get_pixel(x + 300, y + 100).0;
        assert!(r.abs_diff(g) < 12 && g.abs_diff(b) < 12 && r < 80, "{r} {g} {b}");
    }

    #[test]
    fn a_sum_of_cells_shows_their_mean_inside_one_outline() {
        let mut scene = scene();
        // Left half red, right half blue; the upper two cells become one sum.
        let rgb = (0..40 * 40).flat_map(|i| if i % 40 < 20 { [200, 0, 0] } else { [0, 0, 200] });
        scene.clips = vec![Clip::picture("p", 40, 40, rgb.collect::<Vec<u8>>()).unwrap()];
        for (i, fate) in [Fate::Carries, Fate::Absorbed].into_iter().enumerate() {
            scene.views[0].cells[i].fates = vec![fate];
            scene.views[0].cells[i].groups = vec![Some(7)];
        }
        let mut panel = scaled(&scene.clips[0], 0, PANEL);
        kept_panel(&mut panel, &scene.views[0], 0, 10.0);
        assert_eq!(panel.get_pixel(60, 60).0, mix([200, 0, 0], [100, 0, 100], 0.75));
        assert_eq!(panel.get_pixel(300, 60).0, mix([0, 0, 200], [100, 0, 100], 0.75));
        // No line between the two, one below them.
        assert_eq!(panel.get_pixel(200, 60).0, panel.get_pixel(300, 60).0);
        assert_eq!(
            panel.get_pixel(60, 199).0,
            mix(panel.get_pixel(60, 60).0, colour::CARRIES, 0.85)
        );
    }

    #[test]
    fn the_legend_lists_what_is_shown_and_nothing_else() {
        assert_eq!(scene().fates(None), [Fate::Kept, Fate::Dropped]);
    }

    #[test]
    fn both_answers_and_both_times_are_said() {
        let lines = said(&scene());
        assert_eq!(lines[1], "unpruned (50 ms, first token after 40): A blue ring");
        assert!(lines[2].starts_with("pruned (32 ms, first token after 20): A "), "{lines:?}");
    }

    #[test]
    fn a_montage_is_a_png() {
        let bytes = montage(&scene()).unwrap();
        let image = image::load_from_memory(&bytes).unwrap();
        assert!(image.width() > 2 * PANEL && image.height() > PANEL);
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("aa bb cc", 5, 3), ["aa bb", "cc"]);
        assert_eq!(wrap("aa bb cc", 2, 2), ["aa", "bb .."]);
        assert_eq!(wrap("", 5, 3), [""]);
    }

    #[test]
    fn scores_are_short() {
        assert_eq!(short(0.0), "0");
        assert_eq!(short(0.12345), "0.123");
        assert_eq!(short(1.5e-5), "1.5e-5");
    }
}
