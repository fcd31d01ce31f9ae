//! Continuous batching: requests of which each enters when there is room, and leaves when it has
//! ended, between two tokens of the others.
//!
//! Invariants
//! - At most `width` requests run at a time; they enter in the order in which they were submitted.
//!   Pictures are encoded when their request enters.
//! - Chain, sampling, deadline, stop and error are a request's own. In f32 its answer is the one it
//!   would get alone, bit for bit, whoever runs beside it.
//! - What fails a whole pass (a panic, the device) fails no request: each then runs alone, from its
//!   beginning.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use secateur_core::chain::{ChainSpec, ResolvedChain};
use secateur_core::prune::Memory;

use crate::answer::Answer;
use crate::error::Error;
use crate::generate::{Generation, step};
use crate::pipeline::{Account, finish, guarded};
use crate::request::Request;
use crate::vlm::{Model, Vlm};

/// How far a batch or an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Requests that were given.
    pub requests: usize,
    /// Requests whose pictures went through the vision tower, or that failed before.
    pub encoded: usize,
    /// Requests that have ended, failed ones included.
    pub ended: usize,
    /// Tokens that were generated, over all requests.
    pub tokens: usize,
    /// Passes over the decoder's layers.
    pub passes: usize,
}

/// Names a request of an [`Engine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// A request that has not entered.
struct Waiting {
    ticket: Ticket,
    request: Request,
    /// Whether a pass failed that it was in: nothing runs beside it.
    is_suspect: bool,
}

/// A request that runs.
struct Running {
    waiting: Waiting,
    generation: Generation,
    account: Account,
}

/// Answers requests as they come, several at a time. `Send`, not `Sync`: one thread steps it.
///
/// ```
/// use secateur::{ModelSource, Request, Vlm};
/// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
/// let request = |level: u8, tokens: usize| {
///     Request::new("What?").max_tokens(tokens).rgb("grey", 8, 8, vec![level; 192])
/// };
/// let mut engine = vlm.engine(2);
/// let tickets = [engine.submit(request(10, 9)?), engine.submit(request(90, 2)?)];
/// // It enters as soon as one of the first two has ended; more may come at any time.
/// let late = engine.submit(request(200, 3)?);
/// let mut order = Vec::new();
/// while !engine.is_idle() {
///     for (ticket, answer) in engine.step() {
///         println!("{}", answer?.text);
///         order.push(ticket);
///     }
/// }
/// assert_eq!(order.len(), 3);
/// assert!(tickets.iter().chain([&late]).all(|ticket| order.contains(ticket)));
/// # Ok::<(), secateur::Error>(())
/// ```
pub struct Engine {
    vlm: Vlm,
    width: usize,
    queue: VecDeque<Waiting>,
    running: Vec<Running>,
    planned: Vec<(ChainSpec, Arc<ResolvedChain>)>,
    next: u64,
    /// Without the tokens of those that run.
    so_far: Progress,
}

/// Planned chains that are kept.
const PLANNED: usize = 32;

impl Vlm {
    /// An engine that runs at most `width` requests at a time (at least one).
    pub fn engine(&self, width: usize) -> Engine {
        Engine {
            vlm: self.clone(),
            width: width.max(1),
            queue: VecDeque::new(),
            running: Vec::new(),
            planned: Vec::new(),
            next: 0,
            so_far: Progress::default(),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("width", &self.width)
            .field("waiting", &self.queue.len())
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Puts a request behind those that wait. What is wrong with it shows when it enters.
    pub fn submit(&mut self, request: Request) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.so_far.requests += 1;
        self.queue.push_back(Waiting { ticket, request, is_suspect: false });
        ticket
    }

    /// Lets requests enter where there is room, runs one pass, and gives the answers of those that
    /// ended: each runs one token further, those that entered up to their first. A cancelled one
    /// carries what was done ([`Error::Cancelled`]).
    pub fn step(&mut self) -> Vec<(Ticket, Result<Answer, Error>)> {
        self.step_with(&mut |_| ())
    }

    /// As [`Engine::step`], and says how far it is after each request that enters.
    pub(crate) fn step_with(
        &mut self,
        say: &mut dyn FnMut(Progress),
    ) -> Vec<(Ticket, Result<Answer, Error>)> {
        let mut ended = Vec::new();
        self.refuse_late(&mut ended);
        self.admit(&mut ended, say);
        if self.running.is_empty() {
            return ended;
        }
        let size = self.running.len();
        self.so_far.passes += 1;
        let model = self.vlm.model.clone();
        let outcome = guarded(|| {
            let mut all: Vec<&mut Generation> =
                self.running.iter_mut().map(|r| &mut r.generation).collect();
            Ok(step(&model, &mut all, None).map(drop)?)
        });
        match outcome {
            Ok(()) => {
                for running in &mut self.running {
                    running.account.batch = running.account.batch.max(size);
                }
                self.dismiss(&model, &mut ended);
            }
            Err(error) if size == 1 => {
                self.so_far.ended += 1;
                let failed = self.running.drain(..).map(|running| running.waiting.ticket);
                ended.extend(failed.zip([Err(error)]));
            }
            Err(_) => {
                for running in self.running.drain(..).rev() {
                    self.queue.push_front(Waiting { is_suspect: true, ..running.waiting });
                }
            }
        }
        ended
    }

    /// Ends those that wait and are to stop: cancelled, or past their deadline.
    fn refuse_late(&mut self, ended: &mut Vec<(Ticket, Result<Answer, Error>)>) {
        let so_far = &mut self.so_far;
        self.queue.retain(|waiting| match waiting.request.control.check() {
            Ok(()) => true,
            Err(error) => {
                so_far.encoded += usize::from(!waiting.is_suspect);
                so_far.ended += 1;
                ended.push((waiting.ticket, Err(error.into())));
                false
            }
        });
    }

    fn admit(
        &mut self,
        ended: &mut Vec<(Ticket, Result<Answer, Error>)>,
        say: &mut dyn FnMut(Progress),
    ) {
        while let Some(next) = self.queue.front() {
            let is_lone = next.is_suspect || self.running.iter().any(|r| r.waiting.is_suspect);
            if self.running.len() >= if is_lone { 1 } else { self.width } {
                return;
            }
            let Some(waiting) = self.queue.pop_front() else { return };
            self.so_far.encoded += usize::from(!waiting.is_suspect);
            match guarded(|| self.begin(&waiting.request)) {
                Ok((generation, account)) => {
                    self.running.push(Running { waiting, generation, account });
                }
                Err(error) => {
                    self.so_far.ended += 1;
                    ended.push((waiting.ticket, Err(error)));
                }
            }
            say(self.progress());
        }
    }

    fn begin(&mut self, request: &Request) -> Result<(Generation, Account), Error> {
        let spec = request.chain.clone().unwrap_or_default().spec()?;
        let chain = match self.planned.iter().find(|(planned, _)| *planned == spec) {
            Some((_, chain)) => chain.clone(),
            None => {
                let chain = self.vlm.resolve(&spec)?;
                if self.planned.len() == PLANNED {
                    self.planned.remove(0);
                }
                self.planned.push((spec, chain.clone()));
                chain
            }
        };
        let memories = (0..chain.entries).map(|_| Memory::default()).collect();
        self.vlm.begin(request, chain, memories)
    }

    /// Takes out those that have ended.
    fn dismiss(&mut self, model: &Model, ended: &mut Vec<(Ticket, Result<Answer, Error>)>) {
        let so_far = &mut self.so_far;
        let gone = self.running.extract_if(.., |running| !running.generation.is_running());
        ended.extend(gone.map(|mut running| {
            so_far.ended += 1;
            so_far.tokens += running.generation.ids.len();
            (running.waiting.ticket, result(model, &mut running.generation, &running.account))
        }));
    }

    /// Requests that have not entered.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    /// Whether a request that is submitted now enters at the next step.
    pub fn has_room(&self) -> bool {
        self.running.len() + self.queue.len() < self.width
            && !self.running.iter().any(|running| running.waiting.is_suspect)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let tokens = self.running.iter().map(|r| r.generation.ids.len()).sum::<usize>();
        Progress { tokens: self.so_far.tokens + tokens, ..self.so_far }
    }

    /// Moves the deadlines of those that were submitted: for time that the caller spent elsewhere,
    /// and in which nothing ran.
    pub fn extend_deadlines(&mut self, by: Duration) {
        for waiting in &mut self.queue {
            extend(&mut waiting.request.control.deadline, by);
        }
        for Running { waiting, generation, .. } in &mut self.running {
            extend(&mut waiting.request.control.deadline, by);
            extend(&mut generation.control.deadline, by);
        }
    }
}

fn extend(deadline: &mut Option<std::time::Instant>, by: Duration) {
    *deadline = deadline.and_then(|deadline| deadline.checked_add(by));
}

/// What a generation that has ended comes to.
fn result(model: &Model, generation: &mut Generation, account: &Account) -> Result<Answer, Error> {
    let failed = generation.failed.take();
    if failed.is_none() {
        generation.sequence.observe();
    }
    let is_read = !generation.ids.is_empty();
    let answer = finish(model, generation, account);
    match failed.map(Error::from) {
        None => Ok(answer),
        Some(Error::Cancelled { reason, .. }) => {
            Err(Error::Cancelled { reason, partial: is_read.then(|| Box::new(answer)) })
        }
        Some(error) => Err(error),
    }
}
