//! A request: pictures, a question, a chain, and how to answer.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ndarray::ArrayView3;
use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::decode::{AllowedTokens, Sampling};
use secateur_core::error::InputError;
use secateur_core::head::Head;
use secateur_core::model::{CancelToken, Control, Pixels};
use secateur_core::signal::Signal;
use secateur_encoders::image;

use crate::chains::ChainSource;

/// One question about some pictures. Built up, then given to a session or a batch.
///
/// ```
/// use secateur::Request;
/// let red = [255u8, 0, 0].repeat(64 * 48);
/// let request = Request::new("What colour is this?").rgb("red", 64, 48, red)?.max_tokens(8);
/// # Ok::<(), secateur::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) prompt: String,
    pub(crate) system: Option<String>,
    pub(crate) turns: Vec<(String, String)>,
    pub(crate) heads: Vec<Arc<dyn Head>>,
    pub(crate) clips: Vec<Clip>,
    /// What became of the clips, once [`crate::Vlm::prepared`] has let them go.
    pub(crate) prepared: Option<PreparedClips>,
    pub(crate) chain: Option<ChainSource>,
    /// Signals of the tower that later requests about these pictures will read.
    pub(crate) ahead: BTreeSet<Signal>,
    pub(crate) sampling: Sampling,
    pub(crate) allowed: Option<Arc<dyn AllowedTokens>>,
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    pub(crate) raw_prompt: bool,
    pub(crate) detail: bool,
    pub(crate) control: Control,
    pub(crate) decode_image_ms: f64,
}

/// Clips as the model takes them.
#[derive(Clone, Debug)]
pub(crate) struct PreparedClips {
    /// One entry a clip; shared by copies of the request.
    pub(crate) pixels: Arc<[Pixels]>,
    /// What that took, milliseconds.
    pub(crate) process_ms: f64,
}

impl Request {
    /// A request with that question, greedy, at most 128 tokens, no picture yet.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            system: None,
            turns: Vec::new(),
            heads: Vec::new(),
            clips: Vec::new(),
            prepared: None,
            chain: None,
            ahead: BTreeSet::new(),
            sampling: Sampling::default(),
            allowed: None,
            max_tokens: 128,
            stop: Vec::new(),
            ignore_eos: false,
            raw_prompt: false,
            detail: false,
            control: Control::default(),
            decode_image_ms: 0.0,
        }
    }

    /// Adds a picture (or video) that was loaded before. The order is the prompt's; in a raw
    /// prompt each placeholder takes the next clip of its kind. A request that was
    /// [prepared](crate::Vlm::prepared) takes no more: how many there are decides how some models
    /// cut them.
    #[must_use]
    pub fn clip(mut self, clip: Clip) -> Self {
        self.clips.push(clip);
        self
    }

    /// Adds a picture of the `image` crate; transparency lies on white.
    ///
    /// # Errors
    /// A side of zero.
    pub fn image(self, picture: &::image::DynamicImage) -> Result<Self, crate::Error> {
        Ok(self.clip(image::from_dynamic("picture", picture)?))
    }

    /// Adds a picture from raw RGB bytes, `[height, width, 3]`.
    ///
    /// # Errors
    /// A side of zero, or another number of bytes.
    pub fn rgb(
        self,
        label: &str,
        width: u32,
        height: u32,
        bytes: impl Into<std::sync::Arc<[u8]>>,
    ) -> Result<Self, crate::Error> {
        Ok(self.clip(Clip::picture(label, width, height, bytes)?))
    }

    /// Adds a picture from an array, `[height, width, 3]`, RGB.
    ///
    /// # Errors
    /// A side of zero, or another number of channels.
    pub fn array(self, label: &str, pixels: ArrayView3<'_, u8>) -> Result<Self, crate::Error> {
        let (height, width, channels) = pixels.dim();
        if channels != 3 {
            let reason =
                format!("an array [height, width, 3] is needed, found {channels} channels");
            return Err(InputError::Refused { path: label.to_owned(), reason }.into());
        }
        let bytes: Vec<u8> = pixels.iter().copied().collect();
        self.rgb(label, width as u32, height as u32, bytes)
    }

    /// Adds a video from frames in order.
    ///
    /// # Errors
    /// No frame, or frames that differ in size.
    pub fn frames(
        self,
        label: &str,
        frames: Vec<Frame>,
        fps: Option<f64>,
    ) -> Result<Self, crate::Error> {
        let info = VideoInfo { fps, duration_s: None };
        Ok(self.clip(Clip::from_frames(label, frames, info)?))
    }

    /// Loads frames of a video file (feature `video`); of a model without videos give
    /// [`crate::Vlm::fitted`] clips.
    ///
    /// # Errors
    /// Whatever is wrong with the file; without the feature `video`, that it is missing.
    pub fn video(
        self,
        path: impl AsRef<Path>,
        options: &crate::VideoOptions,
    ) -> Result<Self, crate::Error> {
        self.decoded(|| Ok(secateur_encoders::video::load(path.as_ref(), options)?))
    }

    /// Loads a picture from a file, upright as its EXIF data says.
    ///
    /// # Errors
    /// Whatever is wrong with the file.
    pub fn path(self, path: impl AsRef<Path>) -> Result<Self, crate::Error> {
        self.decoded(|| Ok(image::load(path.as_ref(), &image::Limits::default())?))
    }

    /// Adds a picture from the bytes of a file (JPEG, PNG and the other formats that are read),
    /// upright as its EXIF data says. `label` names it in errors.
    ///
    /// ```
    /// # let mut png = std::io::Cursor::new(Vec::new());
    /// # image::RgbImage::new(8, 8).write_to(&mut png, image::ImageFormat::Png).unwrap();
    /// # let upload = png.into_inner();
    /// use secateur::Request;
    /// let request = Request::new("What is this?").encoded("upload", &upload)?;
    /// # Ok::<(), secateur::Error>(())
    /// ```
    ///
    /// # Errors
    /// Bytes that are no picture, one that is damaged, or larger than the limits of
    /// [`crate::image::Limits::default`]; for other limits: [`crate::image::decode`] and
    /// [`Request::clip`].
    pub fn encoded(self, label: &str, bytes: &[u8]) -> Result<Self, crate::Error> {
        self.decoded(|| Ok(image::decode(label, bytes, &image::Limits::default())?))
    }

    /// Adds a clip, and the time that it took to get it.
    fn decoded(
        mut self,
        load: impl FnOnce() -> Result<Clip, crate::Error>,
    ) -> Result<Self, crate::Error> {
        let start = Instant::now();
        let clip = load()?;
        self.decode_image_ms += start.elapsed().as_secs_f64() * 1e3;
        Ok(self.clip(clip))
    }

    /// Bytes of the pictures that this request holds.
    pub fn picture_bytes(&self) -> usize {
        let clips = self.clips.iter().flat_map(Clip::frames).map(|f| f.rgb.len()).sum::<usize>();
        let pixels = |p: &Pixels| {
            p.values.len() * size_of::<f32>()
                + p.rgb.iter().map(|crop| crop.rgb.len()).sum::<usize>()
        };
        clips + self.prepared.iter().flat_map(|p| p.pixels.iter()).map(pixels).sum::<usize>()
    }

    /// Sets a system message.
    #[must_use]
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// Puts an earlier question and its answer in front. The pictures belong to the first turn.
    #[must_use]
    pub fn turn(mut self, question: impl Into<String>, answer: impl Into<String>) -> Self {
        self.turns.push((question.into(), answer.into()));
        self
    }

    /// Sets the chain of this request; without it the session's, or none. A text is read as
    /// [`crate::parse_chain`] reads it; what is wrong with it shows when the request runs.
    ///
    /// ```
    /// use secateur::{Request, Stage, chain};
    /// let request = Request::new("What is this?").chain("vtc_cls:keep=64");
    /// let same = Request::new("What is this?").chain(chain(Stage::new("vtc_cls").keep(64)));
    /// ```
    #[must_use]
    pub fn chain(mut self, chain: impl Into<ChainSource>) -> Self {
        self.chain = Some(chain.into());
        self
    }

    /// Has the vision tower give these signals beside those that the chain reads, so that later
    /// requests about the same pictures with other chains find them and encode nothing
    /// ([`crate::VlmBuilder::reuse`]). Signals that are not the tower's are left out.
    ///
    /// ```
    /// use secateur::{Encoding, ModelSource, Request, Vlm};
    /// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    /// let ask = || Request::new("What?").max_tokens(1).rgb("grey", 8, 8, vec![128u8; 192]);
    /// let later = vlm.resolve("vtc_cls:keep=16")?.signals();
    /// vlm.session().ask(ask()?.also_read(later))?.finish()?;
    /// let answer = vlm.session().ask(ask()?.chain("vtc_cls:keep=16"))?.finish()?;
    /// assert_eq!(answer.report.reuse.encoded, Encoding::Reused);
    /// # Ok::<(), secateur::Error>(())
    /// ```
    #[must_use]
    pub fn also_read(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.ahead.extend(signals);
        self
    }

    /// Sets how tokens are chosen.
    #[must_use]
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets the most tokens to generate.
    #[must_use]
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// Lets a rule say before every token which may come: location tokens, a grammar, a schema.
    #[must_use]
    pub fn allowed_tokens(mut self, rule: Arc<dyn AllowedTokens>) -> Self {
        self.allowed = Some(rule);
        self
    }

    /// Has a head read the run: its result stands in [`crate::Answer::heads`], in the order in which
    /// heads were added. `docs/write-a-head.md` writes one.
    #[must_use]
    pub fn head(mut self, head: Arc<dyn Head>) -> Self {
        self.heads.push(head);
        self
    }

    /// Adds a text that ends the answer (and is not part of it).
    #[must_use]
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// Generates on past end tokens.
    #[must_use]
    pub fn ignore_eos(mut self) -> Self {
        self.ignore_eos = true;
        self
    }

    /// Takes the prompt as it stands, placeholders included: no chat template.
    #[must_use]
    pub fn raw_prompt(mut self) -> Self {
        self.raw_prompt = true;
        self
    }

    /// Keeps the logits that chose each token in the report.
    #[must_use]
    pub fn detail(mut self) -> Self {
        self.detail = true;
        self
    }

    /// Stops when that moment has passed.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.control.deadline = Some(deadline);
        self
    }

    /// Stops when the token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancelToken) -> Self {
        self.control.cancel = Some(token);
        self
    }

    /// Says how long the caller took to decode the pictures, for the report.
    #[must_use]
    pub fn decode_image_ms(mut self, ms: f64) -> Self {
        self.decode_image_ms = ms;
        self
    }
}
