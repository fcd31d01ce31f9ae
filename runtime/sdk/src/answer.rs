//! What a request gives back: the text, and a report of where tokens and time went.

use std::time::Duration;

use secateur_core::decode::FinishReason;
use secateur_core::head::HeadOutput;
use secateur_core::stage::StageReport;

use crate::reuse::Reuse;

/// A finished answer.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Answer {
    /// The text, without special tokens.
    pub text: String,
    /// The generated token ids, an end token included if one ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What heads made of it, in the order in which the request names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<HeadOutput>,
    /// Where tokens and time went.
    pub report: Report,
}

/// Wall-clock shares, milliseconds. For a request that ran beside others they are its share of the
/// passes (layers by rows, cuts by whose they are), so that the sum over all is the time of all;
/// `total` is how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Times {
    /// Decoding and converting pictures.
    pub decode_image: f64,
    /// Resizing and normalising.
    pub process: f64,
    /// Vision tower and projector.
    pub encode: f64,
    /// Scoring, selecting and gathering, at all sites.
    pub prune: f64,
    /// Decoder layers over the prompt.
    pub prefill: f64,
    /// All generated tokens after the first.
    pub decode: f64,
    /// From the first byte to the last token.
    pub total: f64,
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Where tokens and time of a request went. Read back from JSON it lacks what JSON does not hold:
/// token maps, scores and logits.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// The chain, as it was written.
    pub chain: String,
    /// Visual tokens before any cut.
    pub visual_in: usize,
    /// Visual tokens in the last decoder layer.
    pub visual_kept: usize,
    /// What each cut did.
    pub stages: Vec<StageReport>,
    /// Prompt tokens before any cut, visual ones included.
    pub prompt_tokens: usize,
    /// Tokens in the first decoder layer.
    pub entered_tokens: usize,
    /// Generated tokens.
    pub output_tokens: usize,
    /// Wall-clock shares.
    pub ms: Times,
    /// Bytes of the KV cache.
    pub kv_bytes: usize,
    /// Largest resident size of the process so far, bytes; 0 where it cannot be read.
    pub peak_bytes: u64,
    /// What an earlier request had computed.
    #[serde(default)]
    pub reuse: Reuse,
    /// The most requests that ran in one pass with it, itself included.
    pub batch: usize,
    /// Notes of the pruners: fallbacks taken.
    pub notes: Vec<String>,
    /// Width and height of each picture, pixels.
    pub pictures: Vec<[u32; 2]>,
    /// The visual tokens before any cut.
    #[serde(skip)]
    pub dense: secateur_core::tokens::TokenMap,
    /// The logits that chose each token, if the request asked for detail.
    #[serde(skip)]
    pub logits: Vec<Vec<f32>>,
}

/// Largest resident size of the process so far, bytes.
pub(crate) fn peak_bytes() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok())
        .map_or(0, |kb| kb * 1024)
}
