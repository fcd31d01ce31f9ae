//! Many requests at once, a result for each.
//!
//! Invariants
//! - Results come in the order of the requests; one that fails does not touch the others.
//! - In f32 a request's answer is the one it would get alone, bit for bit.

use std::collections::HashMap;

use crate::answer::Answer;
use crate::engine::{Progress, Ticket};
use crate::error::Error;
use crate::request::Request;
use crate::vlm::Vlm;

impl Vlm {
    /// Answers requests side by side, all at once: different lengths, pictures, chains and sampling
    /// may meet. For more requests than memory has room for at once, or some that come later:
    /// [`Vlm::engine`].
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
        let mut engine = self.engine(requests.len());
        let tickets: Vec<Ticket> = requests.into_iter().map(|r| engine.submit(r)).collect();
        let mut answers = HashMap::new();
        while !engine.is_idle() {
            answers.extend(engine.step_with(&mut progress));
            progress(engine.progress());
        }
        let lost = || Err(Error::Internal("a request got no result".into()));
        tickets.iter().map(|ticket| answers.remove(ticket).unwrap_or_else(lost)).collect()
    }
}
