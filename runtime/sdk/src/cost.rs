//! What a prompt costs in the decoder, computed from sizes alone: operations of the prefill and
//! bytes of the KV cache, dense and under a chain.
//!
//! Method, for each decoder layer that sees `n` tokens (visual ones that are left, and text), with
//! `d` the width, `q` and `k` the widths of all query heads and all key heads, `m` the width inside
//! the gated MLP; a multiplication with its addition is two operations:
//!
//! ```text
//! projections  2 n d (q + 2 k) + 2 n q d
//! attention    4 q p      p = n (n + 1) / 2 pairs under a causal mask, n^2 in a prefix-LM
//! MLP          6 n d m
//! cache        2 n k values
//! ```
//!
//! Papers on pruning count a multiplication with its addition once, and all `n^2` pairs: their
//! FLOPs are about half of these.
//!
//! Not here: the vision tower (the same with and without a chain, unless it is cut inside), norms,
//! rotation, the head (one row), what scoring costs (measured by `bench`), sliding windows (counted
//! as full attention).

use secateur_core::chain::ResolvedChain;
use secateur_core::ops::Precision;
use secateur_core::prune::Site;
use secateur_models::blocks::config::DecoderConfig;

/// Cost of a prompt in the decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Operations of the prefill, a multiplication with its addition as two.
    pub prefill_flops: u64,
    /// Keys and values of the prompt, bytes.
    pub kv_bytes: u64,
}

impl Cost {
    /// The cost of a prompt of which decoder layer `i` sees `tokens[i]`.
    pub(crate) fn of(decoder: &DecoderConfig, precision: Precision, tokens: &[usize]) -> Self {
        let size = |n: usize| n as u64;
        let (d, m) = (size(decoder.hidden), size(decoder.intermediate));
        let q = size(decoder.attn_heads) * size(decoder.head_dim);
        let k = size(decoder.kv_heads) * size(decoder.head_dim);
        let bytes = match precision {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        };
        let layer = |n: u64| {
            let pairs = if decoder.prefix_lm { n * n } else { n * (n + 1) / 2 };
            Self {
                prefill_flops: 2 * n * d * (q + 2 * k)
                    + 2 * n * q * d
                    + 4 * q * pairs
                    + 6 * n * d * m,
                kv_bytes: 2 * n * k * bytes,
            }
        };
        tokens.iter().map(|&n| layer(size(n))).fold(Self::default(), |sum, one| Self {
            prefill_flops: sum.prefill_flops + one.prefill_flops,
            kv_bytes: sum.kv_bytes + one.kv_bytes,
        })
    }
}

/// Tokens that each of `layers` decoder layers sees of a prompt of `visual` visual and `text` other
/// tokens; `None` if the picture decides what a stage keeps.
pub(crate) fn tokens_by_layer(
    chain: &ResolvedChain,
    visual: usize,
    text: usize,
    layers: usize,
) -> Option<Vec<usize>> {
    let mut tokens = vec![visual + text; layers];
    for (stage, (_, kept)) in chain.stages.iter().zip(chain.counts(visual)) {
        let first = match stage.plan.site {
            Site::Decoder(layer) => layer,
            Site::Encoder | Site::Input => 0,
        };
        tokens.get_mut(first..)?.fill(kept? + text);
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clip, ModelSource, Request, Vlm, parse_chain};

    fn decoder(shape: &str) -> DecoderConfig {
        let files = secateur_models::shapes::shape(shape).unwrap();
        secateur_models::describe(&files, Default::default()).unwrap().decoder().clone()
    }

    #[test]
    fn a_small_decoder_costs_what_a_pencil_says() {
        let mut small = decoder("llava-1.5-7b");
        (small.hidden, small.intermediate, small.attn_heads, small.kv_heads, small.head_dim) =
            (4, 8, 2, 1, 2);
        // n = 3, d = 4, q = 4, k = 2, m = 8. Projections 2*3*4*8 + 2*3*4*4 = 288, attention over
        // 3+2+1 pairs 4*4*6 = 96, MLP 6*3*4*8 = 576; 2*3*2 values of two bytes.
        let cost = Cost::of(&small, Precision::Bf16, &[3]);
        assert_eq!(cost, Cost { prefill_flops: 960, kv_bytes: 24 });
        // A second layer that sees one token: 96 + 16 + 192 more, 4 values of four bytes.
        let cost = Cost::of(&small, Precision::F32, &[3, 1]);
        assert_eq!(cost, Cost { prefill_flops: 960 + 304, kv_bytes: 48 + 16 });
        small.prefix_lm = true;
        assert_eq!(Cost::of(&small, Precision::Bf16, &[3]).prefill_flops, 960 + 4 * 4 * 3);
    }

    #[test]
    fn the_7b_decoder_costs_twice_the_published_multiplications() {
        // LLaVA-1.5-7B over 576 tokens. By hand, a layer: projections 2 * 4 * 576 * 4096^2 =
        // 77,309,411,328; MLP 6 * 576 * 4096 * 11008 = 155,826,782,208; attention 4 * 4096 * 576 *
        // 577 / 2 = 2,722,627,584. Published (arXiv 2507.20630): 3.82 TFLOPs, additions not counted.
        let cost = Cost::of(&decoder("llava-1.5-7b"), Precision::Bf16, &[576; 32]);
        assert_eq!(cost.prefill_flops, 32 * (77_309_411_328 + 155_826_782_208 + 2_722_627_584));
        let published = 2.0 * 3.82e12;
        assert!((cost.prefill_flops as f64 / published - 1.0).abs() < 0.015, "{cost:?}");
        // 2 * 4096 values of two bytes a token and layer: half a MiB a token.
        assert_eq!(cost.kv_bytes, 576 * 32 * 2 * 4096 * 2);
    }

    #[test]
    fn what_is_forecast_is_what_a_run_saves() {
        let vlm = Vlm::builder(ModelSource::Embedded).open().unwrap();
        let outline = Vlm::builder(ModelSource::Embedded).outline().unwrap();
        let chain = parse_chain("vtc_cls:keep=64,fastv:layer=2:keep=16").unwrap();
        let run = |chain: &crate::ChainSpec| {
            let picture = Clip::picture("p", 64, 64, vec![90u8; 64 * 64 * 3]).unwrap();
            let request = Request::new("What?").clip(picture).chain(chain.clone()).max_tokens(1);
            vlm.session().ask(request).unwrap().finish().unwrap().report
        };
        let (dense, pruned) = (run(&Default::default()), run(&chain));
        let text = dense.prompt_tokens - dense.visual_in;
        let cost = |chain: &crate::ChainSpec| {
            let resolved = outline.resolve(chain).unwrap();
            outline.cost(&resolved, text, Precision::Bf16).unwrap()
        };
        let (before, after) = (cost(&Default::default()), cost(&chain));
        // A cache has room for the answer too, in both: the difference is the prompt's.
        let saved = (dense.kv_bytes - pruned.kv_bytes) as u64;
        assert_eq!(before.kv_bytes - after.kv_bytes, saved);
        assert!(after.prefill_flops < before.prefill_flops / 2, "{before:?} {after:?}");
    }
}
