//! The page: one file, no network, with the picture, the cells and everything that happened to
//! them, to be walked through by stage.
//!
//! Invariants
//! - Text from outside enters the page as JSON inside a data block (with `<` escaped) and is shown
//!   through `textContent`: nothing in a caption or a path can become markup.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ImageEncoder, RgbImage};
use serde_json::{Value, json};

use super::colour::{ANCHORS, CARRIES, EDGE, GROUND};
use super::png::{scaled, short};
use super::{FATES, Fate, Scene, Told, View};

const PAGE: &str = include_str!("page.html");
/// Longest side of a picture inside the page, pixels.
const LONGEST: u32 = 1024;
/// Up to that side pictures are stored without loss.
const EXACT: u32 = 512;

/// The page as one HTML file.
///
/// # Errors
/// A picture that cannot be encoded.
pub(crate) fn page(scene: &Scene) -> Result<String> {
    let data = data(scene)?.to_string().replace('<', "\\u003c");
    Ok(PAGE.replace("{{data}}", &data))
}

fn data(scene: &Scene) -> Result<Value> {
    let rows: Vec<Value> = (0..=scene.stages.len()).map(|at| row(scene, at)).collect();
    let views: Vec<Value> =
        scene.views.iter().map(|v| view(scene, v)).collect::<Result<Vec<Value>>>()?;
    let names: Vec<(String, &str)> =
        FATES.iter().map(|f| (f.letter().to_string(), f.name())).collect();
    let told = |t: &Told| json!({ "text": t.text, "times": t.times() });
    Ok(json!({
        "model": scene.model, "chain": scene.chain, "question": scene.question,
        "pruned": told(&scene.pruned), "dense": scene.dense.as_ref().map(told),
        "rows": rows, "views": views, "fates": names,
        "colours": { "sums": CARRIES, "kept": EDGE, "ground": GROUND, "heat": ANCHORS },
    }))
}

/// One state of the page: before any cut, or after a stage, with the words of the table.
fn row(scene: &Scene, at: usize) -> Value {
    let Some(s) = at.checked_sub(1) else {
        return json!({
            "name": "all tokens", "site": "", "before": scene.visual_in, "kept": scene.visual_in,
            "share": scene.share(scene.visual_in), "ms": "", "beside": 0, "line": "before any cut",
            "fates": "", "range": null,
        });
    };
    let stage = &scene.stages[s];
    let fates: String = scene.fates(Some(s)).into_iter().map(Fate::letter).collect();
    let range = scene
        .score_range(s)
        .map(|(low, high)| json!({ "low": low, "high": high, "words": [short(low), short(high)] }));
    json!({
        "name": stage.name, "site": stage.site, "before": stage.before, "kept": stage.kept,
        "share": scene.share(stage.kept), "ms": format!("{:.2}", stage.ms),
        "beside": stage.without_cell, "line": format!("{at}. {}", stage.line()),
        "fates": fates, "range": range,
    })
}

/// A picture as part of the page: exact while it is small, else as JPEG.
fn data_uri(picture: &RgbImage) -> Result<String> {
    let (width, height) = picture.dimensions();
    let colour = image::ExtendedColorType::Rgb8;
    let mut bytes = Vec::new();
    let (kind, encoded) = if width.max(height) <= EXACT {
        let encoder = PngEncoder::new(&mut bytes);
        ("png", encoder.write_image(picture.as_raw(), width, height, colour))
    } else {
        let encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
        ("jpeg", encoder.write_image(picture.as_raw(), width, height, colour))
    };
    encoded.context("a picture cannot be encoded")?;
    Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

/// Columns rather than objects: a page with 2,880 cells stays small.
fn view(scene: &Scene, view: &View) -> Result<Value> {
    let stages = scene.stages.len();
    let clip = scene.clips.get(view.picture).context("a view of a picture that is not there")?;
    // Small pictures stay as they are: the browser enlarges them.
    let longest = clip.width().max(clip.height()).min(LONGEST);
    let picture = scaled(clip, view.frame, longest);
    let round = |x: f64| (x * 100.0).round() / 100.0;
    let rects: Vec<[f64; 4]> = view
        .cells
        .iter()
        .map(|c| [round(c.rect.x), round(c.rect.y), round(c.rect.width), round(c.rect.height)])
        .collect();
    let fates: Vec<String> =
        (0..stages).map(|s| view.cells.iter().map(|c| c.fates[s].letter()).collect()).collect();
    let scores: Vec<Option<Vec<Option<f32>>>> = (0..stages)
        .map(|s| scene.score_range(s).map(|_| view.cells.iter().map(|c| c.scores[s]).collect()))
        .collect();
    let groups: Vec<Option<Vec<Option<u32>>>> = (0..stages)
        .map(|s| {
            let has = view.cells.iter().any(|c| c.groups[s].is_some());
            has.then(|| view.cells.iter().map(|c| c.groups[s]).collect())
        })
        .collect();
    let lines: Vec<String> = (0..=stages).map(|s| view.line(s)).collect();
    Ok(json!({
        "label": view.label, "lines": lines,
        "width": clip.width(), "height": clip.height(), "src": data_uri(&picture)?,
        "index": view.cells.iter().map(|c| c.index).collect::<Vec<_>>(),
        "row": view.cells.iter().map(|c| c.row).collect::<Vec<_>>(),
        "col": view.cells.iter().map(|c| c.col).collect::<Vec<_>>(),
        "rect": rects, "fate": fates, "score": scores, "group": groups,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::png::tests::scene;

    #[test]
    fn text_from_outside_cannot_become_markup() {
        let page = page(&scene()).unwrap();
        assert!(!page.contains("<b>red</b>"));
        assert!(page.contains("\\u003c/script>\\u003cb>red"));
        assert!(!page.contains("{{data}}"));
    }

    #[test]
    fn the_page_needs_no_network() {
        let page = page(&scene()).unwrap();
        for word in ["http://", "https://", "@import", "url(", "src=\"/"] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn the_data_says_what_happened() {
        let data = data(&scene()).unwrap();
        assert_eq!(data["views"][0]["fate"][0], "kddd");
        assert_eq!(data["views"][0]["score"][0][3], 3.0);
        assert_eq!(data["rows"][1]["kept"], 1);
        assert_eq!(data["rows"][1]["fates"], "kd");
        assert_eq!(data["dense"]["text"], "A blue ring");
        assert_eq!(data["pruned"]["times"], "32 ms, first token after 20");
    }

    #[test]
    fn the_page_says_what_the_montage_says() {
        let scene = scene();
        let data = data(&scene).unwrap();
        assert_eq!(data["views"][0]["lines"][1], scene.views[0].line(1));
        assert_eq!(data["rows"][1]["line"], format!("1. {}", scene.stages[0].line()));
        let (low, high) = scene.score_range(0).unwrap();
        assert_eq!(data["rows"][1]["range"]["words"], json!([short(low), short(high)]));
    }
}
