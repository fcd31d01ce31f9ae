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

impl Vlm {
    /// Answers requests in one pass: different lengths, pictures, chains and sampling may meet.
    pub fn batch(&self, requests: Vec<Request>) -> Vec<Result<Answer, Error>> {
        let mut planned: Vec<(ChainSpec, Arc<ResolvedChain>)> = Vec::new();
        let mut results: Vec<Option<Result<Answer, Error>>> = Vec::new();
        let mut generations = Vec::new();
        let mut accounts = Vec::new();
        let mut places = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            let outcome = guarded(|| {
                let spec = request.chain.clone().unwrap_or_default();
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
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let size = generations.len();
        for account in &mut accounts {
            account.batch = size;
        }
        let outcome = guarded(|| self.run(&mut generations, &mut accounts));
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
                    let alone = self.batch(vec![requests[place].clone()]).pop();
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

    fn run(&self, generations: &mut [Generation], accounts: &mut [Account]) -> Result<(), Error> {
        if generations.is_empty() {
            return Ok(());
        }
        // One request's deadline does not stop the others' prefill; it is looked at per token.
        let control =
            if let [only] = &*generations { only.control.clone() } else { Control::default() };
        self.prefill(generations, accounts, &control, None)?;
        let mut all: Vec<&mut Generation> = generations.iter_mut().collect();
        while all.iter().any(|g| g.is_running()) {
            step(&self.model, &mut all)?;
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
