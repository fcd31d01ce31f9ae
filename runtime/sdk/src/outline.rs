//! A model without its weights: what it is, what a chain would do on it, how many tokens a picture
//! becomes.
//!
//! Invariants
//! - Only the small files of a model are read, so a folder whose weights are still being copied
//!   (or a named shape, which has none) can be asked.
//! - Tokens are counted by the processor and the layout that a run uses: the counts are a run's.

use secateur_core::chain::{Registry, ResolvedChain};
use secateur_core::clip::Clip;
use secateur_core::error::InputError;
use secateur_core::files::ModelFiles;
use secateur_core::model::{ModelInfo, Pixels, Processor, ProcessorOptions};
use secateur_core::ops::Precision;
use secateur_core::tokens::TokenMap;
use secateur_encoders::processors::sampling::Sampler;
use secateur_models::FamilyEntry;
use secateur_models::registry::Description;

use crate::chains::ChainSource;
use crate::cost::{Cost, tokens_by_layer};
use crate::error::Error;
use crate::forecast::{Load, MemoryForecast, Sizes};

/// A model that is described and not loaded. From [`crate::VlmBuilder::outline`].
///
/// ```
/// use secateur::{Clip, ModelSource, Vlm};
/// let outline = Vlm::builder(ModelSource::Embedded).outline()?;
/// let picture = Clip::picture("grey", 640, 480, vec![128u8; 640 * 480 * 3])?;
/// assert_eq!(outline.tokens(&[picture])?.len(), 256);
/// assert!(outline.explain("vtc_cls:keep=64")?.contains("256 -> 64"));
/// # Ok::<(), secateur::Error>(())
/// ```
#[derive(Debug)]
pub struct Outline {
    description: Description,
    processor: Box<dyn Processor>,
    sampler: Option<Sampler>,
    options: ProcessorOptions,
    registry: Registry,
    sizes: Sizes,
}

impl Outline {
    pub(crate) fn new(
        files: &ModelFiles,
        description: Description,
        options: ProcessorOptions,
        registry: Registry,
        sizes: Sizes,
    ) -> Result<Self, Error> {
        let family = description.entry.model_type;
        let processor = secateur_encoders::processors::from_files(files, family)?;
        let sampler = secateur_encoders::processors::sampler(files, family)?;
        Ok(Self { description, processor, sampler, options, registry, sizes })
    }

    /// Its row of the table of families.
    pub(crate) fn entry(&self) -> &'static FamilyEntry {
        self.description.entry
    }

    /// What its folder says of the frames of a video.
    pub(crate) fn sampler(&self) -> Option<&Sampler> {
        self.sampler.as_ref()
    }

    /// What the model is and offers.
    pub fn info(&self) -> &ModelInfo {
        self.description.info()
    }

    /// Plans a chain for this model.
    ///
    /// # Errors
    /// Unknown pruners and parameters, layers and signals that the model does not have.
    pub fn resolve(&self, chain: impl Into<ChainSource>) -> Result<ResolvedChain, Error> {
        Ok(self.registry.build(chain.into().spec()?)?.resolve(self.info())?)
    }

    /// The planned chain as a table for people.
    ///
    /// # Errors
    /// As [`Outline::resolve`].
    pub fn explain(&self, chain: impl Into<ChainSource>) -> Result<String, Error> {
        Ok(self.resolve(chain)?.explain(self.info(), self.info().visual_tokens))
    }

    /// What a load under a chain needs of memory, weights included. An estimate.
    ///
    /// ```
    /// use secateur::{Load, ModelSource, Vlm};
    /// let outline = Vlm::builder(ModelSource::Embedded).outline()?;
    /// let (one, eight) = (Load::default(), Load { requests: 8, ..Load::default() });
    /// let need = |load| outline.forecast("vtc_cls:keep=64", load).map(|need| need.total());
    /// assert!(need(&one)? < need(&eight)?);
    /// # Ok::<(), secateur::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Outline::resolve`].
    pub fn forecast(
        &self,
        chain: impl Into<ChainSource>,
        load: &Load,
    ) -> Result<MemoryForecast, Error> {
        Ok(self.sizes.forecast(self.info(), &self.resolve(chain)?, load))
    }

    /// The most requests of a load that `limit` bytes have room for; `None` if not even one.
    ///
    /// # Errors
    /// As [`Outline::resolve`].
    pub fn most_requests(
        &self,
        chain: impl Into<ChainSource>,
        load: &Load,
        limit: u64,
    ) -> Result<Option<usize>, Error> {
        Ok(self.sizes.most_requests(self.info(), &self.resolve(chain)?, load, limit))
    }

    /// What the decoder costs for a prompt of one picture of the model's own size and `text` other
    /// tokens, under a planned chain; `None` if the picture decides what a stage keeps.
    pub fn cost(&self, chain: &ResolvedChain, text: usize, precision: Precision) -> Option<Cost> {
        let decoder = self.description.decoder();
        let visual = self.info().visual_tokens;
        let tokens = tokens_by_layer(chain, visual, text, decoder.layers)?;
        Some(Cost::of(decoder, precision, &tokens))
    }

    /// The visual tokens of the pictures and videos of one request.
    ///
    /// # Errors
    /// A picture that the model cannot take, or too many of them.
    pub fn tokens(&self, clips: &[Clip]) -> Result<TokenMap, Error> {
        let pixels = pixels(&*self.processor, &clips.iter().collect::<Vec<_>>(), &self.options)?;
        let views: Vec<&Pixels> = pixels.iter().collect();
        Ok(self.description.layout(&views)?.map)
    }
}

/// The pixels of a request's clips; how many pictures there are decides how some families cut them.
pub(crate) fn pixels(
    processor: &dyn Processor,
    clips: &[&Clip],
    options: &ProcessorOptions,
) -> Result<Vec<Pixels>, InputError> {
    let pictures = clips.iter().filter(|clip| clip.video().is_none()).count();
    let options = ProcessorOptions { pictures, ..*options };
    clips.iter().map(|clip| processor.process(clip, &options)).collect()
}
