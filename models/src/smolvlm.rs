//! SmolVLM, SmolVLM2 and Idefics3 (`smolvlm`, `idefics3`): SigLIP tiles, pixel shuffle, Llama.
//!
//! Particular to them: a picture is rows of tiles with a tag each and the whole picture last; a
//! video is a sentence and a line a frame with its time. All of it is text that is tokenised once
//! (the two newlines before the whole picture are one token).
//!
//! Source: `modeling_smolvlm`, `processing_smolvlm` and their Idefics3 twins in transformers 5.24.

use secateur_core::error::{ConfigError, RunError};
use secateur_core::files::Fields;
use secateur_core::model::{DURATION, Pixels, VisualLayout};
use secateur_core::ops::Activation;
use serde_json::Value;

use crate::blocks::anyres::lattice;
use crate::blocks::family::{Blueprint, Common, inside_vocabulary};
use crate::blocks::layout::{BlockOrder, Crop, LayoutBuilder, tokens_of_clips};
use crate::blocks::projector::ProjectorConfig;
use crate::blocks::prompt::Placeholders;
use crate::config::{ConfigSource, DecoderDefaults, FeatureLayers, decoder, token_id, vision};
use crate::text::TextModel;

/// The built-in template of SmolVLM.
pub(crate) const TEMPLATE: &str = "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:\
    {% if m.content and m.content[0].type == 'text' %} {% endif %}\
    {% for c in m.content %}{% if c.type == 'image' %}<image>{% elif c.type == 'video' %}<video>\
    {% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}\
    {% if add_generation_prompt %}Assistant:{% endif %}";

/// The same of Idefics3, whose BOS is another.
pub(crate) const TEMPLATE_IDEFICS3: &str = "<|begin_of_text|>{% for m in messages %}\
    {{ m.role | capitalize }}:{% if m.content and m.content[0].type == 'text' %} {% endif %}\
    {% for c in m.content %}{% if c.type == 'image' %}<image>\
    {% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}\
    {% if add_generation_prompt %}Assistant:{% endif %}";

const AROUND: &str = "<fake_token_around_image>";
const WHOLE: &str = "<global-img>";
const VIDEO: &str = "<video>";
/// Frames a second that a video without times is taken to have.
const UNKNOWN_FPS: f64 = 24.0;

#[derive(Debug)]
struct SmolVlm {
    common: Common,
    /// Patches along a side of a token.
    side: u32,
}

/// Reads the configuration of SmolVLM.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    blueprint(source, "smolvlm_vision")
}

/// Reads the configuration of Idefics3.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan_idefics3(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    blueprint(source, "idefics3_vision")
}

fn blueprint(source: &ConfigSource<'_>, tower: &str) -> Result<Box<dyn Blueprint>, ConfigError> {
    let root = &source.root;
    let text = source.text()?;
    // A configuration that is given in part takes the default of Llama.
    let eps = (!text.is_present()).then_some(1e-5);
    let defaults = DecoderDefaults { kind: "llama", eps, ..DecoderDefaults::default() };
    let decoder = decoder(&text, defaults)?;
    let tower = source.vision_of(tower)?;
    let sizes = vision(&tower.fields()?, &tower.kind)?;
    let features = FeatureLayers::last(sizes.layers);
    let side = root.size("scale_factor", 1..=16, Some(2))?;
    if sizes.side() < side {
        let expected = format!("at most the {} patches along a side", sizes.side());
        return Err(root.error("scale_factor", &expected, &side.to_string()));
    }
    let image_token = token_id(root, &["image_token_id"], 128_257)?;
    inside_vocabulary(root, "image_token_id", image_token, decoder.vocab)?;
    let projector = ProjectorConfig {
        prefix: "projector.".into(),
        width: sizes.width,
        group: side * side,
        each: None,
        joined: None,
        linears: vec![("proj", decoder.hidden, false, Activation::None)],
    };
    let tokens = (sizes.side() / side).pow(2) * own_tiles(source)?;
    let common = Common {
        info: source.info(sizes.info(&tower.kind, &features), decoder.info(), tokens)?,
        tower: tower.tower(features.layers, true),
        decoder,
        image_token,
        video_token: None,
        projector,
        levels: Vec::new(),
        newline: false,
    };
    Ok(Box::new(SmolVlm { common, side: side as u32 }))
}

/// Tiles of a square picture, the whole one included.
fn own_tiles(source: &ConfigSource<'_>) -> Result<usize, ConfigError> {
    let nested = source.files.json("processor_config.json")?;
    let nested = nested.as_ref().and_then(|v| v.get("image_processor")).filter(|v| v.is_object());
    let (file, value) = match nested {
        Some(value) => ("processor_config.json", Some(value.clone())),
        None => ("preprocessor_config.json", source.files.json("preprocessor_config.json")?),
    };
    let value = value.unwrap_or(Value::Object(serde_json::Map::new()));
    let fields = Fields::root(source.files.label(file), &value)?;
    if !fields.flag("do_image_splitting", true)? {
        return Ok(1);
    }
    let edge = |key: &str| fields.object(key)?.size("longest_edge", 1..=1 << 16, Some(364));
    let side = edge("size")?.div_ceil(edge("max_image_size")?);
    Ok(if side > 1 { side * side + 1 } else { 1 })
}

/// The tiles and the whole picture behind them.
fn picture(crops: &[Crop], image: &str, tokens: usize) -> Result<String, RunError> {
    let pads = image.repeat(tokens / crops.len().max(1));
    let whole = format!("{AROUND}{WHOLE}{pads}{AROUND}");
    if crops.len() <= 1 {
        return Ok(whole);
    }
    let (rows, cols) = lattice(&crops[..crops.len() - 1])?;
    let mut text = String::new();
    for row in 1..=rows {
        for col in 1..=cols {
            text.push_str(&format!("{AROUND}<row_{row}_col_{col}>{pads}"));
        }
        text.push('\n');
    }
    Ok(format!("{text}\n{whole}"))
}

/// A sentence about the video, then a line a frame.
fn video(pixels: &Pixels, image: &str, tokens: usize) -> String {
    let frames = pixels.crops.len();
    let fps = pixels.fps.filter(|f| f.is_finite() && *f > 0.0);
    let times: Vec<f64> = if pixels.times_s.len() == frames {
        pixels.times_s.clone()
    } else {
        (0..frames).map(|i| i as f64 / fps.unwrap_or(UNKNOWN_FPS)).collect()
    };
    let last = times.last().copied().unwrap_or(0.0);
    let said = pixels.outputs.iter().find(|(name, ..)| name == DURATION);
    let length = match said.and_then(|(_, seconds, _)| seconds.first()) {
        Some(seconds) => u64::try_from(*seconds).unwrap_or(0),
        None => fps.map_or(last, |fps| frames as f64 / fps).max(0.0) as u64,
    };
    let mut text = format!(
        "You are provided the following series of {} frames from a {}:{:02}:{:02} [H:MM:SS] video.\n",
        in_words(frames),
        length / 3600,
        length / 60 % 60,
        length % 60
    );
    let pads = image.repeat(tokens / frames.max(1));
    for time in times {
        let second = time.max(0.0) as u64;
        text.push_str(&format!("\nFrame from {:02}:{:02}:", second / 60, second % 60));
        text.push_str(&format!("{AROUND}{WHOLE}{pads}{AROUND}"));
    }
    text + "\n\n"
}

/// A number below one million in English words.
fn in_words(n: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] =
        ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let rest = |rest: usize, joint: &str| {
        if rest == 0 { String::new() } else { format!("{joint}{}", in_words(rest)) }
    };
    match n {
        0..20 => SMALL[n].to_owned(),
        20..100 => format!("{}{}", TENS[n / 10], rest(n % 10, "-")),
        100..1000 => format!("{} hundred{}", SMALL[n / 100], rest(n % 100, " and ")),
        1000..1_000_000 => {
            let joint = if n % 1000 < 100 { " and " } else { ", " };
            format!("{} thousand{}", in_words(n / 1000), rest(n % 1000, joint))
        }
        _ => n.to_string(),
    }
}

impl Blueprint for SmolVlm {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        let mut builder = LayoutBuilder::new(false);
        for (clip, pixels) in pixels.iter().enumerate() {
            for crop in builder.crops(pixels, clip) {
                builder.squares(&crop, self.side, BlockOrder::Raster);
            }
        }
        Ok(builder.finish())
    }

    fn placeholders(&self, text: &TextModel) -> Result<Placeholders, RunError> {
        let image = text.tokenizer.require(self.common.image_token, "image token")?;
        Ok(Placeholders { image, video: Some(VIDEO.to_owned()) })
    }

    fn expand(
        &self,
        prompt: &str,
        pixels: &[&Pixels],
        layout: &VisualLayout,
        text: &TextModel,
    ) -> Result<String, RunError> {
        let placeholders = self.placeholders(text)?;
        let counts = tokens_of_clips(layout, pixels.len());
        placeholders.replace(prompt, pixels, |clip, of_clip| {
            if of_clip.video {
                return Ok(video(of_clip, &placeholders.image, counts[clip]));
            }
            let crops = LayoutBuilder::new(false).crops(of_clip, clip);
            picture(&crops, &placeholders.image, counts[clip])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn numbers_are_spelt() {
        for (n, words) in [
            (0, "zero"),
            (7, "seven"),
            (20, "twenty"),
            (21, "twenty-one"),
            (64, "sixty-four"),
            (100, "one hundred"),
            (115, "one hundred and fifteen"),
            (768, "seven hundred and sixty-eight"),
            (1001, "one thousand and one"),
            (1234, "one thousand, two hundred and thirty-four"),
        ] {
            assert_eq!(in_words(n), words);
        }
    }
}
