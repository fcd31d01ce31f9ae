//! A session: one stream of requests, answered one after another.
//!
//! For pruners that carry state from step to step (robots, video streams) a session is an
//! episode; [`Session::reset`] starts a new one. A step counts when its answer has ended: one that
//! failed, missed its deadline, was refused or was dropped half-way leaves the episode as it was, and
//! so does a step with another chain for the pruners that are not in it.
//!
//! A request that goes on from the one before (a turn of a chat) reads what is new alone (`resume`).

use std::sync::Arc;

use secateur_core::chain::ResolvedChain;
use secateur_core::error::RunError;
use secateur_core::prune::{Episode, Memory};
use secateur_core::sequence::Sequence;

use crate::answer::Answer;
use crate::chains::ChainSource;
use crate::error::Error;
use crate::generate::{Generation, step};
use crate::pipeline::{Account, Prepared, finish, guarded};
use crate::request::Request;
use crate::resume::Held;
use crate::reuse::Reading;
use crate::vlm::Vlm;

/// One stream of requests. `Send`, not `Sync`: give each thread its own.
#[derive(Debug)]
pub struct Session {
    vlm: Vlm,
    chain: ChainSource,
    resolved: Option<Arc<ResolvedChain>>,
    episode: Episode,
    /// What the last turn left in its caches, or why there is nothing.
    held: Result<Box<Held>, Reading>,
}

impl Session {
    pub(crate) fn new(vlm: Vlm) -> Self {
        Self {
            vlm,
            chain: ChainSource::default(),
            resolved: None,
            episode: Episode::default(),
            held: Err(Reading::First),
        }
    }

    /// Sets the chain of requests that bring none: as [`Request::chain`].
    #[must_use]
    pub fn chain(mut self, chain: impl Into<ChainSource>) -> Self {
        self.chain = chain.into();
        self
    }

    /// Begins a new episode: what pruners carried is dropped, and what is held of the last turn.
    pub fn reset(&mut self) {
        self.episode.reset();
        self.held = Err(Reading::First);
    }

    /// What the pruners of a chain carry, one an entry: for one step to work on.
    pub(crate) fn memories(&self, chain: &ResolvedChain) -> Vec<Memory> {
        self.episode.begin(chain)
    }

    /// Plans the chain of a request.
    ///
    /// # Errors
    /// As [`Vlm::resolve`].
    pub(crate) fn plan(&mut self, request: &Request) -> Result<Arc<ResolvedChain>, Error> {
        let spec = request.chain.as_ref().unwrap_or(&self.chain).spec()?;
        if let Some(resolved) = self.resolved.as_ref().filter(|r| r.spec == spec) {
            return Ok(resolved.clone());
        }
        let resolved = self.vlm.resolve(&spec)?;
        self.resolved = Some(resolved.clone());
        Ok(resolved)
    }

    /// Reads the prompt and returns the answer as a stream of text pieces.
    ///
    /// # Errors
    /// Everything that can be wrong with the request.
    pub fn ask(&mut self, request: Request) -> Result<Stream<'_>, Error> {
        let chain = self.plan(&request)?;
        let memories = self.memories(&chain);
        let vlm = self.vlm.clone();
        let held = std::mem::replace(&mut self.held, Err(Reading::Failed));
        let result = guarded(|| {
            let prepared = vlm.prepare(&request, chain, memories)?;
            let covered = held.and_then(|held| Ok((held.covers(&prepared, &vlm.model)?, held)));
            let (sequence, account) = match covered {
                Ok((rows, held)) => held.resume(prepared, rows),
                Err(why) => read_all(&vlm, prepared, &request, why)?,
            };
            let mut generation = Generation::new(&vlm.model, &request, sequence);
            step(&vlm.model, &mut [&mut generation], None)?;
            Ok((generation, account))
        });
        let (mut generation, account) = result?;
        match generation.failed.take() {
            None => Ok(Stream {
                session: self,
                generation,
                account,
                done: false,
                committed: false,
                is_broken: false,
            }),
            Some(error) => Err(error.into()),
        }
    }
}

/// An answer in the making: an iterator of text pieces. Dropping it before its end cancels. `Send`: a
/// thread may make it and another read it.
pub struct Stream<'a> {
    session: &'a mut Session,
    generation: Generation,
    account: Account,
    done: bool,
    committed: bool,
    /// Whether a pass failed, so that the caches may be in the middle of something.
    is_broken: bool,
}

impl std::fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("text", &self.generation.text)
            .field("tokens", &self.generation.ids.len())
            .field("finish", &self.generation.finish)
            .finish_non_exhaustive()
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.generation.take_piece() {
                return Some(Ok(piece));
            }
            if self.done || !self.generation.is_running() {
                return self.end();
            }
            let model = self.session.vlm.model.clone();
            let stepped =
                guarded(|| Ok(step(&model, &mut [&mut self.generation], None).map(drop)?));
            if let Err(error) = stepped {
                (self.done, self.is_broken) = (true, true);
                return Some(Err(error));
            }
        }
    }
}

impl Stream<'_> {
    /// The step has ended well: what its pruners carry becomes the episode's.
    fn commit(&mut self) {
        if self.generation.finish.is_none() || self.generation.failed.is_some() || self.committed {
            return;
        }
        self.committed = true;
        let sequence = &mut self.generation.sequence;
        sequence.observe();
        let memories = std::mem::take(&mut sequence.memories);
        self.session.episode.commit(&sequence.chain, memories);
    }

    /// Commits the step, or says once why it failed.
    fn end(&mut self) -> Option<Result<String, Error>> {
        self.done = true;
        self.commit();
        let error = self.generation.failed.take()?;
        self.is_broken |= !matches!(error, RunError::Cancelled(_));
        // What failed stays uncommitted, though its error is handed out.
        self.committed = true;
        Some(Err(match Error::from(error) {
            Error::Cancelled { reason, .. } => {
                let answer = finish(&self.session.vlm.model, &mut self.generation, &self.account);
                Error::Cancelled { reason, partial: Some(Box::new(answer)) }
            }
            other => other,
        }))
    }

    /// Runs to the end and returns the whole answer, pieces already taken included.
    ///
    /// # Errors
    /// What stopped the generation; a cancelled one carries what was done.
    pub fn finish(mut self) -> Result<Answer, Error> {
        for piece in self.by_ref() {
            piece?;
        }
        Ok(finish(&self.session.vlm.model, &mut self.generation, &self.account))
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.commit();
        let model = self.session.vlm.model.clone();
        if model.store.is_on() && !self.is_broken {
            let layers = model.info.decoder.layers;
            let generation = std::mem::take(&mut self.generation.sequence);
            let left = Held::of(generation, &self.generation.ids, &self.account, layers);
            self.session.held = left.map(Box::new).ok_or(Reading::Failed);
        }
    }
}

/// A sequence that reads its whole prompt.
fn read_all(
    vlm: &Vlm,
    prepared: Prepared,
    request: &Request,
    why: Reading,
) -> Result<(Sequence, Account), Error> {
    let (sequence, mut account) = vlm.encode(prepared, &request.control, None)?;
    account.reuse.read = if vlm.model.store.is_on() { why } else { Reading::Off };
    Ok((sequence, account))
}
