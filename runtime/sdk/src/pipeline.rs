//! From requests to prefilled sequences: the part that sessions, batches and traces share.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use secateur_core::assemble::{Parts, assemble};
use secateur_core::chain::ResolvedChain;
use secateur_core::clip::Clip;
use secateur_core::error::{InputError, RunError};
use secateur_core::head::{AttentionRead, AttentionRows, Finished, Head, HeadOutput, reads_of};
use secateur_core::memory::OutOfMemory;
use secateur_core::model::{Control, Pixels, Placeholder, Positions, Prompt, VisualLayout};
use secateur_core::prune::Memory;
use secateur_core::sequence::{Outputs, Sequence};
use secateur_core::signal::Signal;
use secateur_core::trace::Trace;

use secateur_models::text::{Message, Part};

use crate::answer::{Answer, Report, Times, ms, peak_bytes};
use crate::error::Error;
use crate::generate::Generation;
use crate::outline::pixels;
use crate::request::{PreparedClips, Request};
use crate::reuse::{Key, Reuse, Store};
use crate::vlm::{Model, Vlm};

/// A request whose pictures are pixels and whose prompt is ids.
pub(crate) struct Prepared {
    pub pixels: Arc<[Pixels]>,
    /// What the pictures are known by; nothing if nothing is held.
    pub keys: Vec<Key>,
    pub prompt: Prompt,
    pub positions: Positions,
    pub layout: VisualLayout,
    pub chain: Arc<ResolvedChain>,
    /// Signals of the tower that the chain reads, or that later requests will.
    pub signals: BTreeSet<Signal>,
    pub memories: Vec<Memory>,
    /// What each head reads.
    pub reads: Vec<Vec<AttentionRead>>,
    /// Name of the first head that reads anything.
    pub reader: String,
    pub room: usize,
    pub times: Times,
    pub started: Instant,
}

/// Times and counts of a request that do not live in its sequence.
pub(crate) struct Account {
    pub times: Times,
    pub started: Instant,
    pub prompt_tokens: usize,
    pub visual_in: usize,
    pub pictures: Vec<[u32; 2]>,
    pub dense: secateur_core::tokens::TokenMap,
    pub reuse: Reuse,
    /// What the pictures are known by.
    pub keys: Vec<Key>,
    /// How many reads each head has.
    pub reads: Vec<usize>,
    /// Name of the first head that has any.
    pub reader: String,
    pub batch: usize,
}

impl Account {
    /// What is known of a request before it runs.
    pub(crate) fn of(prepared: &Prepared, reuse: Reuse) -> Self {
        let Prepared { pixels, keys, prompt, layout, times, started, reads, .. } = prepared;
        Self {
            times: *times,
            started: *started,
            prompt_tokens: prompt.slots.len(),
            visual_in: layout.map.len(),
            pictures: pixels.iter().map(|p| p.source).collect(),
            dense: layout.map.clone(),
            reuse,
            keys: keys.clone(),
            reads: reads.iter().map(Vec::len).collect(),
            reader: prepared.reader.clone(),
            batch: 1,
        }
    }
}

/// Runs `f`; a panic is our bug and becomes an error of this request alone.
pub(crate) fn guarded<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        if let Some(refused) = OutOfMemory::of(&*panic) {
            return Err(Error::Memory(refused));
        }
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "a panic without a message".to_owned());
        Err(Error::Internal(text))
    })
}

impl Vlm {
    /// The request with its pictures as the model takes them: resized, cut, normalised; the
    /// originals are let go.
    ///
    /// A batch does this itself, one request after the other and with all originals in memory. Any
    /// thread may do it before, so that many large pictures are never in memory at once.
    ///
    /// # Errors
    /// A picture that the model cannot take.
    ///
    /// ```
    /// use secateur::{ModelSource, Request, Vlm};
    /// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    /// let red = [255u8, 0, 0].repeat(1000 * 800);
    /// let request = Request::new("What is shown?").rgb("red", 1000, 800, red)?.max_tokens(2);
    /// let ready = vlm.prepared(request.clone())?;
    /// assert!(ready.picture_bytes() < request.picture_bytes());
    /// let [a, b] = [request, ready.clone()].map(|r| vlm.batch(vec![r]).remove(0));
    /// assert_eq!(a?.ids, b?.ids);
    /// let late = ready.rgb("late", 1, 1, vec![0u8; 3])?;
    /// assert!(vlm.prepared(late).is_err());
    /// # Ok::<(), secateur::Error>(())
    /// ```
    pub fn prepared(&self, mut request: Request) -> Result<Request, Error> {
        let (_, prepared) = guarded(|| self.clips(&request))?;
        request.clips = Vec::new();
        request.prepared = Some(prepared);
        Ok(request)
    }

    /// The prompt's text, and the clips as the model takes them, in the order of the placeholders.
    fn clips(&self, request: &Request) -> Result<(String, PreparedClips), Error> {
        let model = &*self.model;
        let text =
            if request.raw_prompt { request.prompt.clone() } else { chat_text(model, request)? };
        if let Some(prepared) = &request.prepared {
            let Some(late) = request.clips.first() else { return Ok((text, prepared.clone())) };
            let path = late.label().to_owned();
            let reason = "was added to a request whose pictures were prepared before; add it first";
            return Err(InputError::Refused { path, reason: reason.into() }.into());
        }
        let clips = match in_prompt_order(&request.clips, &model.family.placeholders(&text)?) {
            Some(clips) => clips,
            None if request.raw_prompt => request.clips.iter().collect(),
            None => {
                check_words(model, request)?;
                request.clips.iter().collect()
            }
        };
        let started = Instant::now();
        let pixels = pixels(&*model.processor, &clips, &model.options)?;
        Ok((text, PreparedClips { pixels: pixels.into(), process_ms: ms(started.elapsed()) }))
    }

    /// Pictures to pixels, text to ids, both checked against the model.
    pub(crate) fn prepare(
        &self,
        request: &Request,
        chain: Arc<ResolvedChain>,
        memories: Vec<Memory>,
    ) -> Result<Prepared, Error> {
        let started = Instant::now();
        let model = &*self.model;
        request.control.check()?;
        let reads = reads_of(request.heads.iter().map(|head| &**head), &model.info)?;
        let reader = reads.iter().position(|reads| !reads.is_empty());
        let reader = reader.map_or("", |at| request.heads[at].name()).to_owned();
        let (text, PreparedClips { pixels, process_ms }) = self.clips(request)?;
        let views: Vec<&Pixels> = pixels.iter().collect();
        let layout = model.family.layout(&views)?;
        let prompt = model.family.expand(&text, &views, &layout)?;
        let have = model.info.decoder.context;
        if prompt.slots.is_empty() {
            return Err(RunError::Prompt("the prompt has no token".into()).into());
        }
        if prompt.slots.len() > have {
            return Err(Error::Context { need: prompt.slots.len(), have });
        }
        let positions = model.family.positions(&prompt, &views)?;
        let room = request.max_tokens.min(have - prompt.slots.len());
        let times = Times {
            decode_image: request.decode_image_ms,
            process: process_ms,
            ..Times::default()
        };
        let read = chain.signals();
        let read = read.iter().chain(&request.ahead);
        let signals = read.copied().filter(Signal::is_of_tower).collect();
        let keys = model.store.keys(&views);
        Ok(Prepared {
            pixels,
            keys,
            prompt,
            positions,
            layout,
            chain,
            signals,
            memories,
            reads,
            reader,
            room,
            times,
            started,
        })
    }

    /// Vision tower, early stages, assembly.
    pub(crate) fn encode(
        &self,
        prepared: Prepared,
        control: &Control,
        trace: Option<&mut dyn Trace>,
    ) -> Result<(Sequence, Account), Error> {
        let model = &*self.model;
        let mut account = Account::of(&prepared, Reuse::default());
        let Prepared { pixels, prompt, positions, layout, chain, signals, memories, room, .. } =
            prepared;
        let reads = prepared.reads;
        let start = Instant::now();
        let views: Vec<&Pixels> = pixels.iter().collect();
        // A trace holds what only a run of the tower gives.
        let (off, is_traced) = (Store::new(0), trace.is_some());
        let store = if is_traced { &off } else { &model.store };
        let mut encoded = None;
        if !views.is_empty() {
            let (ops, encoder) = (&*model.ops, &*model.encoder);
            let rows = store.encode(ops, encoder, &views, &account.keys, &signals, control)?;
            (encoded, account.reuse) = (Some(rows.0), rows.1);
        }
        let parts = Parts {
            pixels: &views,
            prompt,
            positions,
            layout,
            encoded: encoded.as_deref(),
            given: Default::default(),
            outputs: Outputs::Last,
            chain,
            memories,
            room,
        };
        let mut sequence = assemble(&*model.family, &*model.ops, parts, trace)?;
        let visual = &sequence.visual;
        let rows = |read| AttentionRows::new(read, visual.indices);
        let reads: Vec<AttentionRows> = reads.into_iter().flatten().map(rows).collect();
        if !reads.is_empty() && visual.tokens.rebased {
            let reason = "a stage of the chain numbers visual tokens anew; a head reads them by \
                          the place that they had"
                .to_owned();
            return Err(RunError::Head { head: account.reader.clone(), reason }.into());
        }
        sequence.reads = reads;
        account.times.encode = ms(start.elapsed().saturating_sub(sequence.record.prune_time));
        Ok((sequence, account))
    }

    /// A request about to read its prompt.
    pub(crate) fn begin(
        &self,
        request: &Request,
        chain: Arc<ResolvedChain>,
        memories: Vec<Memory>,
    ) -> Result<(Generation, Account), Error> {
        let prepared = self.prepare(request, chain, memories)?;
        let (sequence, account) = self.encode(prepared, &request.control, None)?;
        Ok((Generation::new(&self.model, request, sequence), account))
    }
}

/// The clips in the order of the placeholders that they stand for: each placeholder takes the next
/// clip of its kind. `None` where the two do not match; what is missing,
/// [`secateur_core::model::Family::expand`] says.
fn in_prompt_order<'a>(clips: &'a [Clip], placeholders: &[Placeholder]) -> Option<Vec<&'a Clip>> {
    let of_kind = |video: bool| clips.iter().filter(move |clip| clip.video().is_some() == video);
    let (mut pictures, mut videos) = (of_kind(false), of_kind(true));
    let next = |p: &Placeholder| if p.video { videos.next() } else { pictures.next() };
    let ordered: Option<Vec<&Clip>> = placeholders.iter().map(next).collect();
    ordered.filter(|ordered| ordered.len() == clips.len())
}

/// The request as the model's chat template writes it: pictures and videos stand before the words
/// of the first turn, in the order in which they were given.
fn chat_text(model: &Model, request: &Request) -> Result<String, Error> {
    let part = |video: bool| if video { Part::Video } else { Part::Image };
    let mut clips: Option<Vec<Part>> = Some(match &request.prepared {
        Some(prepared) => prepared.pixels.iter().map(|pixels| part(pixels.video)).collect(),
        None => request.clips.iter().map(|clip| part(clip.video().is_some())).collect(),
    });
    let mut user = |text: &str| {
        let mut content = clips.take().unwrap_or_default();
        content.push(Part::text(text));
        Message { role: "user".into(), content }
    };
    let mut messages: Vec<Message> =
        request.system.iter().map(|text| Message::words("system", text)).collect();
    for (question, answer) in &request.turns {
        messages.push(user(question));
        messages.push(Message::words("assistant", answer));
    }
    messages.push(user(&request.prompt));
    Ok(model.text.template.render(&messages, true)?)
}

/// What to say where the words of a request hold a placeholder themselves, so that a prompt has
/// more of them than pictures.
fn check_words(model: &Model, request: &Request) -> Result<(), Error> {
    let turns = request.turns.iter().flat_map(|(question, answer)| [question, answer]);
    for text in request.system.iter().chain(turns).chain([&request.prompt]) {
        if let Some(Placeholder { text, .. }) = model.family.placeholders(text)?.first() {
            return Err(RunError::Prompt(format!(
                "the question holds `{text}`, which stands for a picture or video; those come \
                 before the question by themselves, in the order in which they are given: leave \
                 it out, or write the whole prompt yourself (`trace --raw-prompt`, \
                 `Request::raw_prompt`)"
            ))
            .into());
        }
    }
    Ok(())
}

/// The notes of a chain and of its cuts, each once.
fn notes(sequence: &Sequence) -> Vec<String> {
    let cuts = sequence.record.stages.iter().map(|s| (s.entry, s.before, s.kept));
    let idle = sequence.chain.idle_budgets(cuts);
    sequence.chain.notes.iter().cloned().chain(idle).collect()
}

/// What heads make of a run; `counts`: how many of its reads belong to each.
fn outputs(heads: &[Arc<dyn Head>], counts: &[usize], run: Finished<'_>) -> Vec<HeadOutput> {
    let mut rest = run.reads;
    let one = |(head, &count): (&Arc<dyn Head>, &usize)| {
        let reads;
        (reads, rest) = rest.split_at_checked(count).unwrap_or_default();
        // A head may be the caller's: what it throws costs its own output.
        let read = guarded(|| Ok(head.read(&Finished { reads, ..run })));
        let (output, error) = match read.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(output) => (output, None),
            Err(reason) => (Default::default(), Some(reason)),
        };
        HeadOutput { head: head.name().to_owned(), output, error }
    };
    heads.iter().zip(counts).map(one).collect()
}

/// The answer of a generation that has ended (or was stopped).
pub(crate) fn finish(model: &Model, generation: &mut Generation, account: &Account) -> Answer {
    let logits = generation.logits.take().unwrap_or_default();
    let sequence = &generation.sequence;
    let mut times = account.times;
    times.prune = ms(sequence.record.prune_time);
    times.prefill = ms(generation.prefill_time);
    times.decode = ms(generation.decode_time);
    times.total = ms(account.started.elapsed()) + times.decode_image;
    let info = &model.info;
    let report = Report {
        chain: sequence.chain.spec.to_string(),
        visual_in: account.visual_in,
        visual_kept: sequence.visual.tokens.len(),
        stages: sequence.record.stages.clone(),
        prompt_tokens: account.prompt_tokens,
        entered_tokens: account.prompt_tokens - account.visual_in + sequence.visual.entered,
        output_tokens: generation.ids.len(),
        ms: times,
        kv_bytes: sequence.cache.bytes(),
        peak_bytes: peak_bytes(),
        reuse: account.reuse,
        batch: account.batch,
        notes: notes(sequence),
        pictures: account.pictures.clone(),
        dense: account.dense.clone(),
        logits,
    };
    let text = generation.text.trim().to_owned();
    let run = Finished {
        text: &text,
        ids: &generation.ids,
        probabilities: &generation.probabilities,
        tokens: &account.dense,
        sizes: &account.pictures,
        reads: &sequence.reads,
    };
    let heads = outputs(&generation.heads, &account.reads, run);
    debug_assert!(sequence.cache.layers.len() <= info.decoder.layers);
    Answer {
        text,
        heads,
        ids: generation.ids.clone(),
        finish: generation.finish.unwrap_or(secateur_core::decode::FinishReason::Length),
        report,
    }
}
