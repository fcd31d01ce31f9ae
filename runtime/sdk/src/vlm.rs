//! A loaded model: weights, text, processor and pruners behind one handle.

use std::path::PathBuf;
use std::sync::Arc;

use secateur_core::chain::{Build, Chain, ChainSpec, Registry, ResolvedChain};
use secateur_core::clip::Clip;
use secateur_core::error::ChainError;
use secateur_core::files::ModelFiles;
use secateur_core::model::{
    Encoder, EncoderInfo, Family, ModelInfo, Pixels, Processor, ProcessorOptions, TowerSpec,
};
use secateur_core::ops::cpu::CpuOps;
use secateur_core::ops::{Ops, Precision};
use secateur_core::tokens::TokenMap;
use secateur_core::weights::Weights;
use secateur_encoders::processors::sampling::Sampler;
use secateur_models::ModelOptions;
use secateur_models::adapter::{self, Adapter};
use secateur_models::registry::{Description, FamilyEntry, LoadedModel};
use secateur_models::text::TextModel;

use crate::chains::ChainSource;
use crate::error::Error;
use crate::forecast::{Load, MemoryForecast, Sizes};
use crate::outline::{Outline, pixels};
use crate::pipeline::guarded;
use crate::reuse::{DEFAULT_BYTES, Store};
use crate::session::Session;
use crate::source::ModelSource;

/// Everything of a model; shared by all sessions.
pub(crate) struct Model {
    pub entry: &'static FamilyEntry,
    /// What the family says of the model, with the encoder that is in place.
    pub info: ModelInfo,
    pub family: Box<dyn Family>,
    pub encoder: Box<dyn Encoder>,
    pub processor: Box<dyn Processor>,
    pub sampler: Option<Sampler>,
    pub text: Arc<TextModel>,
    pub ops: Arc<dyn Ops>,
    pub registry: Registry,
    pub options: ProcessorOptions,
    pub sizes: Sizes,
    pub store: Store,
}

/// A loaded model. Cheap to clone, usable from several threads; each [`Session`] is one stream.
///
/// ```
/// use secateur::{ModelSource, Request, Vlm};
/// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
/// let white = vec![255u8; 128 * 128 * 3];
/// let request = Request::new("Describe the image.").rgb("white", 128, 128, white)?;
/// let answer = vlm.session().ask(request.max_tokens(8))?.finish()?;
/// assert!(answer.report.visual_in >= 256);
/// # Ok::<(), secateur::Error>(())
/// ```
#[derive(Clone)]
pub struct Vlm {
    pub(crate) model: Arc<Model>,
}

/// What an encoder of the caller is made from.
#[derive(Clone, Copy)]
pub struct EncoderParts<'a> {
    /// The tower that the family asks for.
    pub spec: &'a TowerSpec,
    /// The checkpoint: the tower's tensors stand under `tower.` and their published names.
    pub weights: &'a Weights,
    /// Where the rows it gives must live.
    pub ops: &'a Arc<dyn Ops>,
}

impl std::fmt::Debug for EncoderParts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderParts").field("spec", self.spec).finish_non_exhaustive()
    }
}

type MakeEncoder = Box<dyn FnOnce(EncoderParts<'_>) -> Result<Box<dyn Encoder>, Error> + Send>;

/// Settings of a model that is about to be opened.
pub struct VlmBuilder {
    source: ModelSource,
    precision: Precision,
    threads: Option<usize>,
    ops: Option<Arc<dyn Ops>>,
    options: ProcessorOptions,
    load: ModelOptions,
    adapter: Option<PathBuf>,
    registry: Registry,
    encoder: Option<MakeEncoder>,
    reuse: usize,
}

impl Vlm {
    /// Starts from a source: [`ModelSource::Embedded`], a folder, or a hub id.
    pub fn builder(source: impl Into<ModelSource>) -> VlmBuilder {
        VlmBuilder {
            source: source.into(),
            precision: Precision::Bf16,
            threads: None,
            ops: None,
            options: ProcessorOptions::default(),
            load: ModelOptions::default(),
            adapter: None,
            registry: secateur_pruners::registry(),
            encoder: None,
            reuse: DEFAULT_BYTES,
        }
    }

    /// What the model is and offers.
    pub fn info(&self) -> &ModelInfo {
        &self.model.info
    }

    /// Device, kernel variant and threads, in one line.
    pub fn describe(&self) -> String {
        self.model.ops.describe()
    }

    /// The pruners that chains may name.
    pub fn registry(&self) -> &Registry {
        &self.model.registry
    }

    /// Plans a chain for this model.
    ///
    /// # Errors
    /// Unknown pruners and parameters, layers and signals that the model does not have.
    pub fn resolve(&self, chain: impl Into<ChainSource>) -> Result<Arc<ResolvedChain>, Error> {
        let chain: Chain = self.model.registry.build(chain.into().spec()?)?;
        Ok(Arc::new(chain.resolve(self.info())?))
    }

    /// The planned chain as a table for people.
    ///
    /// # Errors
    /// As [`Vlm::resolve`].
    ///
    /// ```
    /// use secateur::{ModelSource, Vlm};
    /// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    /// assert!(vlm.explain("vtc_cls:keep=64")?.contains("256 -> 64"));
    /// # Ok::<(), secateur::Error>(())
    /// ```
    pub fn explain(&self, chain: impl Into<ChainSource>) -> Result<String, Error> {
        Ok(self.resolve(chain)?.explain(self.info(), self.info().visual_tokens))
    }

    /// The visual tokens of the pictures and videos of one request, before any cut; nothing runs.
    ///
    /// ```
    /// use secateur::{Clip, ModelSource, Vlm};
    /// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    /// let picture = Clip::picture("grey", 640, 480, vec![128u8; 640 * 480 * 3])?;
    /// assert_eq!(vlm.tokens(&[picture])?.len(), 256);
    /// # Ok::<(), secateur::Error>(())
    /// ```
    ///
    /// # Errors
    /// A picture that the model cannot take, or too many of them.
    pub fn tokens(&self, clips: &[Clip]) -> Result<TokenMap, Error> {
        let model = &*self.model;
        let clips: Vec<&Clip> = clips.iter().collect();
        let pixels = pixels(&*model.processor, &clips, &model.options)?;
        let views: Vec<&Pixels> = pixels.iter().collect();
        Ok(model.family.layout(&views)?.map)
    }

    /// What a load under a chain needs of memory, weights included. An estimate.
    ///
    /// # Errors
    /// As [`Vlm::resolve`].
    pub fn forecast(
        &self,
        chain: impl Into<ChainSource>,
        load: &Load,
    ) -> Result<MemoryForecast, Error> {
        Ok(self.model.sizes.forecast(self.info(), &*self.resolve(chain)?, load))
    }

    /// The most requests of a load that `limit` bytes have room for; `None` if not even one.
    ///
    /// # Errors
    /// As [`Vlm::resolve`].
    pub fn most_requests(
        &self,
        chain: impl Into<ChainSource>,
        load: &Load,
        limit: u64,
    ) -> Result<Option<usize>, Error> {
        Ok(self.model.sizes.most_requests(self.info(), &*self.resolve(chain)?, load, limit))
    }

    /// A stream of requests: an episode for pruners that carry state.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }
}

impl std::fmt::Debug for Vlm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vlm {} on {}", self.info().name, self.describe())
    }
}

/// Reads a chain as people give it: `none`, an inline chain, `preset:NAME`, or the path of a TOML
/// file.
///
/// # Errors
/// A file that cannot be read, an unknown preset, a text that is no chain.
pub fn parse_chain(text: &str) -> Result<ChainSpec, Error> {
    if let Some(name) = text.strip_prefix("preset:") {
        return Ok(secateur_pruners::presets::get(name)?);
    }
    if !text.ends_with(".toml") {
        return Ok(ChainSpec::parse(text)?);
    }
    let content = std::fs::read_to_string(text)
        .map_err(|e| ChainError::Parse { text: text.to_owned(), reason: e.to_string() })?;
    Ok(ChainSpec::from_toml(text, &content)?)
}

impl std::fmt::Debug for VlmBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VlmBuilder")
            .field("source", &self.source)
            .field("precision", &self.precision)
            .field("threads", &self.threads)
            .field("options", &self.options)
            .field("load", &self.load)
            .field("registry", &self.registry)
            .field("own_encoder", &self.encoder.is_some())
            .field("reuse", &self.reuse)
            .finish()
    }
}

impl VlmBuilder {
    /// Arithmetic of matrix products; bf16 unless set.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Worker threads; all physical cores of the process unless set.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// The operation set that runs everything: a device, or a set of the caller. The CPU's, of
    /// [`VlmBuilder::precision`] and [`VlmBuilder::threads`], unless set; a given one has its own.
    #[must_use]
    pub fn ops(mut self, ops: Arc<dyn Ops>) -> Self {
        self.ops = Some(ops);
        self
    }

    fn operation_set(&self) -> Arc<dyn Ops> {
        let on_cpu = || Arc::new(CpuOps::new(self.precision, self.threads)) as Arc<dyn Ops>;
        self.ops.clone().unwrap_or_else(on_cpu)
    }

    /// How pictures are resized.
    #[must_use]
    pub fn image_options(mut self, options: ProcessorOptions) -> Self {
        self.options = options;
        self
    }

    /// Switches of single families.
    #[must_use]
    pub fn model_options(mut self, options: ModelOptions) -> Self {
        self.load = options;
        self
    }

    /// Merges an adapter (LoRA, a folder as PEFT saves it) into the weights as they are read. What
    /// is wrong with it shows in [`VlmBuilder::open`].
    #[must_use]
    pub fn adapter(mut self, folder: impl Into<PathBuf>) -> Self {
        self.adapter = Some(folder.into());
        self
    }

    /// Makes a pruner of the caller usable by name in any chain.
    #[must_use]
    pub fn pruner(mut self, name: &str, build: Build) -> Self {
        self.registry.insert(name, move |params| build(params));
        self
    }

    /// The pruners that chains may name, in place of [`crate::pruners::registry`].
    #[must_use]
    pub fn registry(mut self, pruners: Registry) -> Self {
        self.registry = pruners;
        self
    }

    /// Puts an encoder of the caller in place of the model's own vision tower. `make` is called
    /// once, when the model is opened; the rows must be those that [`EncoderParts::spec`]
    /// describes. Chains are planned by what it offers ([`Encoder::info`]).
    #[must_use]
    pub fn encoder(
        mut self,
        make: impl FnOnce(EncoderParts<'_>) -> Result<Box<dyn Encoder>, Error> + Send + 'static,
    ) -> Self {
        self.encoder = Some(Box::new(make));
        self
    }

    /// Bytes of tower rows that are held, so that a later request about the same picture (a turn of a
    /// chat, another chain, a second try) does not encode it again; 64 MiB unless set, 0 is off. What
    /// was used the longest time ago goes first. Answers are the same either way;
    /// [`crate::Report::reuse`] says what was found.
    ///
    /// ```
    /// use secateur::{Encoding, ModelSource, Request, Vlm};
    /// let vlm = Vlm::builder(ModelSource::Embedded).reuse(16 << 20).open()?;
    /// let ask = || Request::new("What?").max_tokens(1).rgb("grey", 8, 8, vec![128u8; 192]);
    /// let first = vlm.session().ask(ask()?)?.finish()?;
    /// let second = vlm.session().ask(ask()?)?.finish()?;
    /// assert_eq!(first.report.reuse.encoded, Encoding::New);
    /// assert_eq!(second.report.reuse.encoded, Encoding::Reused);
    /// # Ok::<(), secateur::Error>(())
    /// ```
    #[must_use]
    pub fn reuse(mut self, bytes: usize) -> Self {
        self.reuse = bytes;
        self
    }

    /// Runs the vision tower from an ONNX file in place of the native one. The file is one that
    /// `encoders/export_onnx.py` wrote; what is wrong with it, or with the library, shows in
    /// [`VlmBuilder::open`].
    #[cfg(feature = "onnx")]
    #[must_use]
    pub fn onnx_encoder(
        self,
        path: impl Into<std::path::PathBuf>,
        options: secateur_encoders::onnx::OnnxOptions,
    ) -> Self {
        let path = path.into();
        self.encoder(move |parts| {
            let ops = Arc::clone(parts.ops);
            Ok(secateur_encoders::onnx::load(&path, parts.spec, parts.weights, &options, ops)?)
        })
    }

    /// Loads and checks everything.
    ///
    /// # Errors
    /// Files that are missing, malformed or contradict one another, named with their field.
    pub fn open(self) -> Result<Vlm, Error> {
        guarded(|| self.read())
    }

    fn read(self) -> Result<Vlm, Error> {
        let (files, weights) = self.source.open()?;
        let ops = self.operation_set();
        // The configuration is checked before any weight is read.
        secateur_models::registry::describe(&files, self.load)?;
        let adapter = match &self.adapter {
            Some(folder) if files.is_described() => {
                return Err(Error::Model {
                    model: files.name().to_owned(),
                    reason: format!(
                        "the adapter {} is merged into weights of full precision, and these are a \
                         GGUF file's; give the folder of the base model",
                        folder.display()
                    ),
                });
            }
            Some(folder) => Some(Adapter::open(folder)?),
            None => adapter::refuse_unmerged(&files).map(|()| None)?,
        };
        let weights = match (weights, files.path()) {
            (Some(weights), _) => weights,
            (None, Some(folder)) => Weights::open(folder)?,
            (None, None) => unreachable!("files without a folder come with their weights"),
        };
        let weights = match adapter {
            Some(adapter) => adapter.merged(weights)?,
            None => weights,
        };
        self.assemble(&files, weights, ops)
    }

    /// Reads what the model is, and none of its weights.
    ///
    /// # Errors
    /// As [`VlmBuilder::open`], as far as the configuration goes.
    pub fn outline(self) -> Result<Outline, Error> {
        let (files, weights) = self.source.open()?;
        let elements = match (weights, files.path()) {
            (Some(weights), _) => weights.elements(),
            // A folder whose weights are still being copied is described all the same.
            (None, Some(folder)) => Weights::open(folder).ok().and_then(|w| w.elements()),
            (None, None) => None,
        };
        self.describe(&files, elements)
    }

    /// [`VlmBuilder::outline`] of a named shape.
    ///
    /// # Errors
    /// An unknown shape.
    pub fn outline_shape(self, shape: &str) -> Result<Outline, Error> {
        self.describe(&shape_files(shape)?, None)
    }

    fn describe(self, files: &ModelFiles, elements: Option<u64>) -> Result<Outline, Error> {
        let described = secateur_models::registry::describe(files, self.load)?;
        let sizes = sizes(&described, elements, self.precision, self.reuse);
        Outline::new(files, described, self.options, self.registry, sizes)
    }

    /// A model of a named shape with random weights, for benchmarks.
    ///
    /// # Errors
    /// An unknown shape.
    pub fn open_random(self, shape: &str, seed: u64) -> Result<Vlm, Error> {
        let files = shape_files(shape)?;
        let ops = self.operation_set();
        let weights = Weights::random(seed, ops.precision().dtype());
        guarded(|| self.assemble(&files, weights, ops))
    }

    fn assemble(
        self,
        files: &ModelFiles,
        weights: Weights,
        ops: Arc<dyn Ops>,
    ) -> Result<Vlm, Error> {
        let described = secateur_models::registry::describe(files, self.load)?;
        let sizes = sizes(&described, weights.elements(), self.precision, self.reuse);
        let LoadedModel { entry, family, tower, weights, text } =
            secateur_models::registry::load(files, weights, &ops, self.load)?;
        let mut info = family.info().clone();
        let encoder = match self.encoder {
            None => {
                let encoder = secateur_encoders::vit::build(&tower, &weights, ops.clone())?;
                // The configuration may promise a pooling head that the file does not hold.
                info.encoder.withheld.clone_from(&encoder.info().withheld);
                encoder
            }
            Some(make) => {
                let encoder = make(EncoderParts { spec: &tower, weights: &weights, ops: &ops })?;
                let (found, needed) = (encoder.info(), &info.encoder);
                if (found.width, found.cls) != (needed.width, needed.cls) {
                    let rows = |e: &EncoderInfo| {
                        let class = if e.cls { "a" } else { "no" };
                        format!("rows of width {} with {class} class row", e.width)
                    };
                    return Err(Error::Encoder(format!(
                        "the encoder `{}` gives {}, the model needs {}",
                        found.tower,
                        rows(found),
                        rows(needed)
                    )));
                }
                info.encoder = found.clone();
                encoder
            }
        };
        let processor = secateur_encoders::processors::from_files(files, entry.model_type)?;
        let sampler = secateur_encoders::processors::sampler(files, entry.model_type)?;
        let model = Model {
            entry,
            info,
            family,
            encoder,
            processor,
            sampler,
            text,
            ops,
            registry: self.registry,
            options: self.options,
            sizes,
            store: Store::new(self.reuse),
        };
        Ok(Vlm { model: Arc::new(model) })
    }
}

fn sizes(
    described: &Description,
    elements: Option<u64>,
    precision: Precision,
    reuse: usize,
) -> Sizes {
    let width = if precision == Precision::F32 { 4 } else { 2 };
    let reuse = reuse as u64;
    Sizes { elements, intermediate: described.decoder().intermediate, width, reuse }
}

fn shape_files(shape: &str) -> Result<ModelFiles, Error> {
    secateur_models::shapes::shape(shape).ok_or_else(|| Error::Model {
        model: shape.to_owned(),
        reason: format!("no such shape; known are {}", secateur_models::shapes::SHAPES.join(", ")),
    })
}
