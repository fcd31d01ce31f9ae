//! A family in two halves: what its configuration alone says, and what needs weights.
//!
//! A family file writes a [`Blueprint`]: sizes, layout, prompt text, positions, and the forms of
//! its projectors. [`LoadedFamily`] joins it with text and weights, once for all families.

use std::fmt;
use std::sync::Arc;

use secateur_core::error::{ConfigError, RunError};
use secateur_core::model::{
    Decoder, Encoded, Family, ModelInfo, Pixels, Placeholder, Positions, Prompt, TowerSpec,
    VisualLayout, VisualRows,
};
use secateur_core::ops::Ops;
use secateur_core::tensor::Tensor;
use secateur_core::visibility::{Blocks, Visibility};
use secateur_core::weights::Weights;

use super::config::DecoderConfig;
use super::decoder::DecoderStack;
use super::layout::tokens_of_clips;
use super::projector::{ProjectorConfig, Projectors};
use super::prompt::{Placeholders, mark};
use crate::error::LoadError;
use crate::text::TextModel;

/// What every blueprint has.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    /// What the model is and offers.
    pub(crate) info: ModelInfo,
    /// The tower it wants.
    pub(crate) tower: TowerSpec,
    /// Its decoder.
    pub(crate) decoder: DecoderConfig,
    /// Id that stands for a visual token of a picture.
    pub(crate) image_token: u32,
    /// The same of a video, where that is another.
    pub(crate) video_token: Option<u32>,
    /// Projector of visual tokens.
    pub(crate) projector: ProjectorConfig,
    /// Projectors of deepstack levels.
    pub(crate) levels: Vec<ProjectorConfig>,
    /// Whether there is a learnt newline.
    pub(crate) newline: bool,
}

/// What a family's configuration says, before any weight is read.
pub(crate) trait Blueprint: Send + Sync + fmt::Debug {
    /// The parts that every family has.
    fn common(&self) -> &Common;

    /// The visual tokens of the clips of one request, in prompt order.
    ///
    /// # Errors
    /// If the clips cannot stand in one request.
    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError>;

    /// The prompt with every placeholder expanded, as text. Unless a family says otherwise, a
    /// placeholder becomes as many copies of itself as its clip has visual tokens.
    ///
    /// # Errors
    /// If placeholders and clips do not match.
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
            let video = placeholders.video.as_ref().filter(|_| of_clip.video);
            Ok(video.unwrap_or(&placeholders.image).repeat(counts[clip]))
        })
    }

    /// The placeholder texts: the tokens of the placeholder ids.
    ///
    /// # Errors
    /// If the tokenizer lacks one.
    fn placeholders(&self, text: &TextModel) -> Result<Placeholders, RunError> {
        let common = self.common();
        Ok(Placeholders {
            image: text.tokenizer.require(common.image_token, "image token")?,
            video: common
                .video_token
                .map(|id| text.tokenizer.require(id, "video token"))
                .transpose()?,
        })
    }

    /// Whether the tokenizer may add its own tokens (BOS) to the expanded prompt.
    fn adds_specials(&self) -> bool {
        true
    }

    /// Position ids of an expanded prompt: 0, 1, 2 unless a family says otherwise.
    ///
    /// # Errors
    /// If prompt and clips do not match.
    fn positions(&self, prompt: &Prompt, _pixels: &[&Pixels]) -> Result<Positions, RunError> {
        Ok(positions_from(0, prompt.slots.len()))
    }

    /// Which rows of an expanded prompt see one another: causal, or the whole prompt itself where
    /// the decoder's configuration says so, unless a family says otherwise.
    fn visibility(&self, _prompt: &Prompt) -> Visibility {
        match self.common().decoder.prefix_lm {
            true => Visibility::everywhere(Blocks::Whole),
            false => Visibility::default(),
        }
    }
}

/// Positions `first`, `first + 1` and so on, on all axes.
pub(crate) fn positions_from(first: i32, tokens: usize) -> Positions {
    let next = first + tokens as i32;
    Positions { prompt: (first..next).map(|p| [p; 3]).collect(), next }
}

/// The clips of a family without video.
///
/// # Errors
/// If one is a video.
pub(crate) fn pictures_only(pixels: &[&Pixels], family: &str) -> Result<(), RunError> {
    if pixels.iter().any(|p| p.video) {
        return Err(RunError::Prompt(format!(
            "{family} takes pictures only; give the frames of a video as several pictures"
        )));
    }
    Ok(())
}

/// A family with its weights.
#[derive(Debug)]
pub(crate) struct LoadedFamily {
    blueprint: Box<dyn Blueprint>,
    text: Arc<TextModel>,
    decoder: DecoderStack,
    projectors: Projectors,
}

impl LoadedFamily {
    /// Reads the decoder and the projectors.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape than the configuration says.
    pub(crate) fn load(
        blueprint: Box<dyn Blueprint>,
        text: Arc<TextModel>,
        weights: &Weights,
        ops: &Arc<dyn Ops>,
    ) -> Result<Self, LoadError> {
        let common = blueprint.common();
        let newline = common.newline.then_some(common.decoder.hidden);
        let projectors =
            Projectors::load(&common.projector, &common.levels, newline, weights, Arc::clone(ops))?;
        let decoder = DecoderStack::load(common.decoder.clone(), weights, Arc::clone(ops))?;
        Ok(Self { blueprint, text, decoder, projectors })
    }
}

impl Family for LoadedFamily {
    fn info(&self) -> &ModelInfo {
        &self.blueprint.common().info
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        self.blueprint.layout(pixels)
    }

    fn placeholders(&self, prompt: &str) -> Result<Vec<Placeholder>, RunError> {
        let placeholders = self.blueprint.placeholders(&self.text)?;
        let stands = |video: bool| Placeholder { text: placeholders.text(video).into(), video };
        Ok(placeholders.kinds(prompt).into_iter().map(stands).collect())
    }

    fn expand(
        &self,
        prompt: &str,
        pixels: &[&Pixels],
        layout: &VisualLayout,
    ) -> Result<Prompt, RunError> {
        let common = self.blueprint.common();
        let text = self.blueprint.expand(prompt, pixels, layout, &self.text)?;
        let ids = self.text.tokenizer.encode(&text, self.blueprint.adds_specials())?;
        let placeholders: Vec<u32> =
            [common.image_token].into_iter().chain(common.video_token).collect();
        mark(ids, &placeholders, layout.map.len())
    }

    fn positions(&self, prompt: &Prompt, pixels: &[&Pixels]) -> Result<Positions, RunError> {
        self.blueprint.positions(prompt, pixels)
    }

    fn visibility(&self, prompt: &Prompt) -> Visibility {
        self.blueprint.visibility(prompt)
    }

    fn project_rows(&self, rows: &Tensor) -> Result<Tensor, RunError> {
        if !self.info().one_to_one {
            return Err(RunError::Shape(format!(
                "in {} a visual token is not one row of the tower",
                self.info().family
            )));
        }
        Ok(self.projectors.rows(rows))
    }

    fn project(&self, encoded: &Encoded, layout: &VisualLayout) -> Result<VisualRows, RunError> {
        self.projectors.all(encoded, layout)
    }

    fn decoder(&self) -> &dyn Decoder {
        &self.decoder
    }
}

/// An id of a configuration that must lie inside the vocabulary.
///
/// # Errors
/// [`ConfigError::Field`] if it does not.
pub(crate) fn inside_vocabulary(
    fields: &secateur_core::files::Fields<'_>,
    key: &str,
    id: u32,
    vocab: usize,
) -> Result<u32, ConfigError> {
    if (id as usize) < vocab {
        return Ok(id);
    }
    let expected = format!("an id below the vocabulary of {vocab}");
    Err(fields.error(key, &expected, &id.to_string()))
}
