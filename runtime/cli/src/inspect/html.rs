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

use super::png::scaled;
use super::{Scene, View, score_range};

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
    let pictures = scene
        .clips
        .iter()
        .map(|clip| {
            // Small pictures stay as they are: the browser enlarges them.
            let longest = clip.width().max(clip.height()).min(LONGEST);
            let picture = scaled(clip, longest);
            Ok(json!({
                "width": clip.width(), "height": clip.height(), "src": data_uri(&picture)?,
            }))
        })
        .collect::<Result<Vec<Value>>>()?;
    let stages: Vec<Value> = scene
        .stages
        .iter()
        .map(|s| {
            json!({
                "name": s.name, "site": s.site, "before": s.before, "kept": s.kept, "ms": s.ms,
                "without_cell": s.without_cell,
            })
        })
        .collect();
    let views: Vec<Value> = scene.views.iter().map(|v| view(v, scene.stages.len())).collect();
    Ok(json!({
        "model": scene.model, "chain": scene.chain, "question": scene.question,
        "answer": scene.answer, "visual_in": scene.visual_in, "pictures": pictures,
        "stages": stages, "views": views,
    }))
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
fn view(view: &View, stages: usize) -> Value {
    let round = |x: f64| (x * 100.0).round() / 100.0;
    let rects: Vec<[f64; 4]> = view
        .cells
        .iter()
        .map(|c| [round(c.rect.x), round(c.rect.y), round(c.rect.width), round(c.rect.height)])
        .collect();
    let fates: Vec<String> =
        (0..stages).map(|s| view.cells.iter().map(|c| c.fates[s].letter()).collect()).collect();
    let scores: Vec<Option<Vec<Option<f32>>>> = (0..stages)
        .map(|s| score_range(view, s).map(|_| view.cells.iter().map(|c| c.scores[s]).collect()))
        .collect();
    let ranges: Vec<Option<(f32, f32)>> = (0..stages).map(|s| score_range(view, s)).collect();
    json!({
        "picture": view.picture, "label": view.label,
        "index": view.cells.iter().map(|c| c.index).collect::<Vec<_>>(),
        "row": view.cells.iter().map(|c| c.row).collect::<Vec<_>>(),
        "col": view.cells.iter().map(|c| c.col).collect::<Vec<_>>(),
        "into": view.cells.iter().map(|c| c.carried_by).collect::<Vec<_>>(),
        "rect": rects, "fate": fates, "score": scores, "range": ranges,
    })
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
        assert_eq!(data["stages"][0]["kept"], 1);
    }
}
