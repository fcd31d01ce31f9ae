//! What a model and its requests will need of memory, before any of it is asked for.
//!
//! Method: weights are the elements of the files at the width of the arithmetic; the KV cache is
//! exact, layer by layer, for the tokens that the chain keeps; activations are the rows of a pass
//! times the widest set of buffers that a layer holds at once; pictures are their crops as the
//! tower reads them, and those that are being decoded.
//!
//! Invariants
//! - More requests, tokens or pictures never need less.
//! - Where the picture decides how many tokens stay, all of them are counted.

use std::fmt;

use secateur_core::chain::ResolvedChain;
use secateur_core::model::ModelInfo;
use secateur_core::prune::Site;

/// Program, tables, thread stacks, scratch: what a process has before a model is opened.
const PROCESS: u64 = 32 << 20;
/// Bytes of a patch on its way to the tower: 14 x 14 x 3 values in f32, and as bytes.
const PATCH: u64 = 14 * 14 * 3 * 5;
/// Bytes of a pixel while a file is decoded and turned upright.
const DECODED: u64 = 6;
/// Requests that a forecast looks for at most.
const MOST_REQUESTS: usize = 4096;

/// What a model is asked to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests in a pass.
    pub requests: usize,
    /// Visual tokens of each, before any cut; `None`: of one picture of the model's own size.
    pub visual_tokens: Option<usize>,
    /// Tokens of text in each.
    pub text_tokens: usize,
    /// Tokens that each may generate.
    pub max_tokens: usize,
    /// Pixels of the pictures that are being decoded at the same time.
    pub decoding_pixels: u64,
}

impl Default for Load {
    /// One request: a picture of 12 megapixels, 64 tokens of text, an answer of 128.
    fn default() -> Self {
        Self {
            requests: 1,
            visual_tokens: None,
            text_tokens: 64,
            max_tokens: 128,
            decoding_pixels: 12_000_000,
        }
    }
}

/// Memory that a load will take, bytes. An estimate: within a factor of two for what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct MemoryForecast {
    /// Weights in the form in which they are multiplied.
    pub weights: u64,
    /// Keys and values of all requests.
    pub cache: u64,
    /// Hidden states and buffers of a pass.
    pub activations: u64,
    /// Pictures: decoded, and as the vision tower reads them.
    pub pictures: u64,
    /// Tower rows that are held for later requests: those of this load, within the bound of
    /// [`crate::VlmBuilder::reuse`] that many different pictures come to.
    pub reuse: u64,
    /// The process itself.
    pub process: u64,
}

impl MemoryForecast {
    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.cache, self.activations, self.pictures, self.reuse, self.process]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl fmt::Display for MemoryForecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (weights {}, keys and values {}, activations {}, pictures {}, rows for reuse {}, process {})",
            in_units(self.total()),
            in_units(self.weights),
            in_units(self.cache),
            in_units(self.activations),
            in_units(self.pictures),
            in_units(self.reuse),
            in_units(self.process)
        )
    }
}

/// Bytes for people.
fn in_units(bytes: u64) -> String {
    let mib = bytes as f64 / 1048576.0;
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// Sizes of a model that memory depends on, beside [`ModelInfo`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Numbers in its weights; `None` where no file says it.
    pub elements: Option<u64>,
    /// Width inside the decoder's MLP.
    pub intermediate: usize,
    /// Bytes of a weight, and of a number in the cache.
    pub width: u64,
    /// Bytes of tower rows that may be held.
    pub reuse: u64,
}

impl Sizes {
    /// Numbers in the weights, by the shape of the model where no file says it.
    fn elements(&self, info: &ModelInfo) -> u64 {
        self.elements.unwrap_or_else(|| {
            let (d, e) = (&info.decoder, &info.encoder);
            let heads = (d.attn_heads + d.kv_heads) as u64 * d.head_dim as u64;
            let layer = d.hidden as u64 * (2 * heads + 3 * self.intermediate as u64);
            let table = d.vocab as u64 * d.hidden as u64;
            let tower = e.layers as u64 * 12 * (e.width as u64).pow(2);
            d.layers as u64 * layer + 2 * table + tower
        })
    }

    /// What a load needs.
    pub(crate) fn forecast(
        &self,
        info: &ModelInfo,
        chain: &ResolvedChain,
        load: &Load,
    ) -> MemoryForecast {
        let (d, e) = (&info.decoder, &info.encoder);
        let requests = load.requests as u64;
        let visual = load.visual_tokens.unwrap_or(info.visual_tokens);
        let counts = chain.counts(visual);
        let after = |at: &dyn Fn(Site) -> bool| {
            let cuts = chain.stages.iter().zip(&counts).filter(|(s, _)| at(s.plan.site));
            cuts.last().map_or(visual, |(_, (_, kept))| kept.unwrap_or(visual))
        };
        let entered = after(&|site| !matches!(site, Site::Decoder(_)));
        let text = load.text_tokens as u64;
        let kv_row = 2 * d.kv_heads as u64 * d.head_dim as u64 * self.width;
        let rows_of = |layer: usize| {
            let before = |site: Site| match site {
                Site::Decoder(r) => r <= layer,
                _ => true,
            };
            after(&before) as u64 + text + load.max_tokens as u64
        };
        let cache = (0..d.layers).map(rows_of).sum::<u64>() * kv_row * requests;
        let rows = requests * (entered as u64 + text);
        let heads = (d.attn_heads + 2 * d.kv_heads) as u64 * d.head_dim as u64;
        let hidden = d.hidden as u64;
        let decoder = rows * 4 * (6 * hidden + 2 * heads + 3 * self.intermediate as u64)
            + requests * d.vocab as u64 * 8;
        // Families that merge put four patches or more into a token.
        let patches = visual as u64 * if info.one_to_one { 1 } else { 4 };
        let tower = patches * e.width as u64 * 4 * 14;
        MemoryForecast {
            weights: self.elements(info) * self.width,
            cache,
            activations: decoder.max(tower),
            reuse: self.reuse.min(requests * patches * e.width as u64 * 4),
            pictures: requests * patches * PATCH + load.decoding_pixels * DECODED,
            process: PROCESS,
        }
    }

    /// The most requests of a load that a limit has room for; `None` if not even one.
    pub(crate) fn most_requests(
        &self,
        info: &ModelInfo,
        chain: &ResolvedChain,
        load: &Load,
        limit: u64,
    ) -> Option<usize> {
        let fits = |requests: usize| {
            self.forecast(info, chain, &Load { requests, ..*load }).total() <= limit
        };
        let (mut low, mut high) = (0, MOST_REQUESTS + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        (low > 0).then_some(low)
    }
}
