//! What the decoder is left with at the end of a prompt, for those who compare runs: searches for
//! parameters, tests of chains.

use crate::error::Error;
use crate::generate::step;
use crate::pipeline::guarded;
use crate::request::Request;
use crate::vlm::Vlm;

impl Vlm {
    /// Hidden state of the last prompt token after the last layer and the final norm, `[hidden]`:
    /// the row that the first token is chosen from. Nothing is generated.
    ///
    /// ```
    /// use secateur::{ModelSource, Request, Vlm, parse_chain};
    /// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    /// let request = Request::new("What is this?").rgb("grey", 8, 8, vec![128u8; 192])?;
    /// let dense = vlm.last_hidden(&request)?;
    /// let pruned = vlm.last_hidden(&request.chain(parse_chain("grid:keep=16")?))?;
    /// assert_eq!(dense.len(), pruned.len());
    /// # Ok::<(), secateur::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`crate::Session::ask`].
    pub fn last_hidden(&self, request: &Request) -> Result<Vec<f32>, Error> {
        let request = &request.clone().max_tokens(0);
        guarded(|| {
            let mut session = self.session();
            let chain = session.plan(request)?;
            let memories = session.memories(&chain);
            let (mut generation, _) = self.begin(request, chain, memories)?;
            let hidden = step(&self.model, &mut [&mut generation], None)?;
            match generation.failed.take() {
                Some(error) => Err(error.into()),
                None => Ok(self.model.ops.download(&hidden)?),
            }
        })
    }
}
