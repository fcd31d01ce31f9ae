//! Many requests in one pass, a result for each.
//!
//! Invariants
//! - Results come in the order of the requests; one that fails does not touch the others.
//! - In f32 a request's answer is the one it would get alone, bit for bit.

use std::sync::Arc;

use secateur_core::chain::{ChainSpec, ResolvedChain};
use secateur_core::model::Control;
use secateur_core::prune::Memory;

use crate::answer::Answer;
use crate::error::Error;
use crate::generate::{Generation, step};
use crate::pipeline::{Account, finish, guarded};
use crate::request::Request;
use crate::vlm::Vlm;

/// How far a batch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Requests of the batch.
    pub requests: usize,
    /// Requests whose pictures went through the vision tower, or that failed before.
    pub encoded: usize,
    /// Requests that have ended, failed ones included.
    pub ended: usize,
    /// Tokens that were generated, over all requests.
    pub tokens: usize,
}

impl Vlm {
    /// Answers requests in one pass: different lengths, pictures, chains and sampling may meet.
    pub fn batch(&self, requests: Vec<Request>) -> Vec<Result<Answer, Error>> {
        self.batch_with(requests, |_| ())
    }

    /// As [`Vlm::batch`], and says how far it is: after each request's pictures, after the prompts
    /// were read, after each token of the batch.
    ///
    /// ```
    /// use secateur::{ModelSource, Request, Vlm};
    /// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    /// let request = |level: u8| {
    ///     Request::new("What?").max_tokens(3).rgb("grey", 8, 8, vec![level; 192])
    /// };
    /// let mut seen = Vec::new();
    /// let answers = vlm.batch_with(vec![request(10)?, request(200)?], |p| seen.push(p));
    /// let last = seen.last().unwrap();
    /// assert_eq!((last.requests, last.encoded, last.ended), (2, 2, 2));
    /// assert_eq!(answers.len(), 2);
    /// # Ok::<(), secateur::Error>(())
    /// ```
    pub fn batch_with(
        &self,
        requests: Vec<Request>,
        mut progress: impl FnMut(Progress),
    ) -> Vec<Result<Answer, Error>> {
        self.pass(requests, &mut progress)
    }

    fn pass(
        &self,
        requests: Vec<Request>,
        progress: &mut dyn FnMut(Progress),
    ) -> Vec<Result<Answer, Error>> {
        let mut so_far = Progress { requests: requests.len(), ..Progress::default() };
        let mut planned: Vec<(ChainSpec, Arc<ResolvedChain>)> = Vec::new();
        let mut results: Vec<Option<Result<Answer, Error>>> = Vec::new();
        let mut generations = Vec::new();
        let mut accounts = Vec::new();
        let mut places = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            let outcome = guarded(|| {
                let spec = request.chain.clone().unwrap_or_default().spec()?;
                let chain = match planned.iter().find(|(s, _)| *s == spec) {
                    Some((_, chain)) => chain.clone(),
                    None => {
                        let chain = self.resolve(&spec)?;
                        planned.push((spec, chain.clone()));
                        chain
                    }
                };
                let memories = (0..chain.entries).map(|_| Memory::default()).collect();
                let prepared = self.prepare(request, chain, memories)?;
                self.encode(prepared, &request.control, None)
            });
            match outcome {
                Ok((sequence, account)) => {
                    generations.push(Generation::new(&self.model, request, sequence));
                    accounts.push(account);
                    places.push(i);
                    results.push(None);
                }
                Err(error) => {
                    so_far.ended += 1;
                    results.push(Some(Err(error)));
                }
            }
            so_far.encoded += 1;
            progress(so_far);
        }
        let size = generations.len();
        for account in &mut accounts {
            account.batch = size;
        }
        let outcome = guarded(|| self.run(&mut generations, &mut accounts, so_far, progress));
        match outcome {
            Ok(()) => {
                for ((place, generation), account) in
                    places.iter().zip(&mut generations).zip(&accounts)
                {
                    results[*place] = Some(self.result(generation, account));
                }
            }
            // A panic or a device error hits the whole pass: each request gets its own chance.
            Err(_) if size > 1 => {
                for &place in &places {
                    let alone = self.pass(vec![requests[place].clone()], &mut |_| ()).pop();
                    results[place] = alone;
                }
            }
            Err(error) => {
                if let Some(&place) = places.first() {
                    results[place] = Some(Err(error));
                }
            }
        }
        results
            .into_iter()
            .map(|r| r.unwrap_or_else(|| Err(Error::Internal("a request got no result".into()))))
            .collect()
    }

    fn run(
        &self,
        generations: &mut [Generation],
        accounts: &mut [Account],
        before: Progress,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        if generations.is_empty() {
            return Ok(());
        }
        // One request's deadline does not stop the others' prefill; it is looked at per token.
        let control =
            if let [only] = &*generations { only.control.clone() } else { Control::default() };
        let mut say = |all: &[&mut Generation]| {
            let ended = before.ended + all.iter().filter(|g| !g.is_running()).count();
            let tokens = all.iter().map(|g| g.ids.len()).sum();
            progress(Progress { ended, tokens, ..before });
        };
        self.prefill(generations, accounts, &control, None)?;
        let mut all: Vec<&mut Generation> = generations.iter_mut().collect();
        say(&all);
        while all.iter().any(|g| g.is_running()) {
            step(&self.model, &mut all)?;
            say(&all);
        }
        Ok(())
    }

    fn result(&self, generation: &mut Generation, account: &Account) -> Result<Answer, Error> {
        let failed = generation.failed.take();
        if failed.is_none() {
            generation.sequence.observe();
        }
        let answer = finish(&self.model, generation, account);
        match failed.map(Error::from) {
            None => Ok(answer),
            Some(Error::Cancelled { reason, .. }) => {
                Err(Error::Cancelled { reason, partial: Some(Box::new(answer)) })
            }
            Some(error) => Err(error),
        }
    }
}
