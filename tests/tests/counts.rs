//! Visual tokens of pictures of many sizes under the published settings of each family, counted
//! without weights.
//!
//! The numbers were made by the reference's counting code with the settings of the hub: LLaVA-NeXT
//! at 336 pixels a tile, LLaVA-OneVision at 384 with `anyres_max_9`, InternVL at 448 with 1 to 12
//! tiles; Qwen's follow from its rounding rule.

use std::path::Path;

use secateur::{Clip, Outline, ProcessorOptions, Vlm};
use serde_json::{Value, json};

fn put(folder: &Path, name: &str, value: &Value) {
    #[allow(clippy::disallowed_methods, reason = "a fixture in a folder of its own")]
    std::fs::write(folder.join(name), value.to_string()).expect("the folder can be written");
}

fn outline(config: &Value, preprocessor: &Value, options: ProcessorOptions) -> Outline {
    let folder = tempfile::tempdir().expect("a temporary folder");
    put(folder.path(), "config.json", config);
    put(folder.path(), "preprocessor_config.json", preprocessor);
    Vlm::builder(folder.path()).image_options(options).outline().expect("the settings are right")
}

fn count(outline: &Outline, [width, height]: [u32; 2]) -> usize {
    let black = vec![0u8; width as usize * height as usize * 3];
    let clip = Clip::picture("black", width, height, black).expect("a picture");
    outline.tokens(&[clip]).expect("it can be counted").len()
}

/// `[[336 i, 336 j], ..]` and the like: all shapes of up to `most` tiles a side.
fn pinpoints(side: usize, shapes: &[[usize; 2]]) -> Value {
    json!(shapes.iter().map(|[h, w]| [side * h, side * w]).collect::<Vec<_>>())
}

#[test]
fn anyres_counts_are_the_references() {
    let next = outline(
        &json!({ "model_type": "llava_next", "image_token_index": 32000,
                 "text_config": { "vocab_size": 32064 } }),
        &json!({
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": pinpoints(336, &[[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]),
            "size": { "shortest_edge": 336 }, "crop_size": { "height": 336, "width": 336 }
        }),
        ProcessorOptions::default(),
    );
    let all: Vec<[usize; 2]> = (1..=6).flat_map(|h| (1..=6).map(move |w| [h, w])).collect();
    let onevision = outline(
        &json!({ "model_type": "llava_onevision" }),
        &json!({
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": pinpoints(384, &all),
            "size": { "height": 384, "width": 384 }
        }),
        ProcessorOptions::default(),
    );
    let internvl = outline(
        &json!({ "model_type": "internvl" }),
        &json!({
            "image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": true,
            "min_patches": 1, "max_patches": 12, "size": { "height": 448, "width": 448 }
        }),
        ProcessorOptions::default(),
    );
    let table = [
        ([336, 336], 1176, 1485, 256),
        ([640, 480], 2340, 2929, 3328),
        ([480, 640], 2352, 2943, 3328),
        ([1024, 768], 2340, 4725, 3328),
        ([1920, 1080], 1948, 7269, 2304),
        ([50, 200], 744, 945, 1280),
        ([1, 1], 1176, 1485, 256),
        ([4000, 3000], 2340, 7309, 3328),
    ];
    for (size, in_next, in_onevision, in_internvl) in table {
        assert_eq!(count(&next, size), in_next, "LLaVA-NeXT, {size:?}");
        assert_eq!(count(&onevision, size), in_onevision, "LLaVA-OneVision, {size:?}");
        assert_eq!(count(&internvl, size), in_internvl, "InternVL, {size:?}");
    }
}

#[test]
fn qwen_counts_follow_the_area_allowed() {
    let shape = |max_pixels| {
        let options = ProcessorOptions { max_pixels, ..ProcessorOptions::default() };
        let builder = Vlm::builder(secateur::ModelSource::Embedded).image_options(options);
        builder.outline_shape("qwen2.5-vl-3b").expect("a known shape")
    };
    // Sides are rounded to multiples of 28; a token is one 28 x 28 cell.
    assert_eq!(count(&shape(None), [1344, 1008]), 48 * 36);
    assert_eq!(count(&shape(None), [644, 476]), 23 * 17);
    // 1,003,520 pixels are 1,280 tokens: sides times sqrt(1003520 / (1344 * 1008)), rounded down.
    assert_eq!(count(&shape(Some(1_003_520)), [1344, 1008]), 41 * 30);
}
