//! Tensors that change what the weight beside them means: scales of quantised weights, factors of
//! an adapter that was not merged. A weight is never handed out without what belongs to it.
//!
//! Sources: the names that AWQ, GPTQ, bitsandbytes, compressed-tensors, ModelOpt, FP8 of
//! transformers, quanto, HQQ, AQLM, EETQ, MLX and PEFT write.

use std::collections::BTreeMap;

const QUANTISED: &str =
    "quantised; use the checkpoint before it was quantised (F32, BF16 or F16), or a GGUF file";
const ADAPTED: &str = "changed by an adapter that was not merged; merge it, or give the base \
                       model and the adapter's own folder";

/// What may stand at the end of a name in place of `weight`, or begins it where a dot is last, and
/// what that says of the weight.
const BESIDE: &[(&str, &str)] = &[
    ("qweight", QUANTISED),
    ("qzeros", QUANTISED),
    ("scales", QUANTISED),
    ("g_idx", QUANTISED),
    ("zeros", QUANTISED),
    ("biases", QUANTISED),
    ("scale", QUANTISED),
    ("weight_scale", QUANTISED),
    ("weight_scale_inv", QUANTISED),
    ("weight_scale_2", QUANTISED),
    ("weight_scales", QUANTISED),
    ("weight_global_scale", QUANTISED),
    ("weight_zero_point", QUANTISED),
    ("weight_packed", QUANTISED),
    ("weight_g_idx", QUANTISED),
    ("weight_format", QUANTISED),
    ("input_scale", QUANTISED),
    ("input_global_scale", QUANTISED),
    ("input_zero_point", QUANTISED),
    ("output_scale", QUANTISED),
    ("SCB", QUANTISED),
    ("W_q", QUANTISED),
    ("codes", QUANTISED),
    ("codebooks", QUANTISED),
    ("weight.", QUANTISED),
    ("base_layer.", ADAPTED),
    ("lora_A.", ADAPTED),
    ("lora_B.", ADAPTED),
    ("lora_embedding_A", ADAPTED),
    ("lora_magnitude_vector", ADAPTED),
];

/// A tensor beside the weight `name`, there or not, that it cannot be read without, and what that
/// makes of the weight.
pub(super) fn beside<'a, T>(
    tensors: &'a BTreeMap<String, T>,
    name: &str,
) -> Option<(&'a str, &'static str)> {
    let module = name.strip_suffix("weight").filter(|m| m.ends_with('.'))?;
    tensors
        .range(module.to_owned()..)
        .map(|(other, _)| other.as_str())
        .take_while(|other| other.starts_with(module))
        .find_map(|other| {
            let leaf = &other[module.len()..];
            let fits =
                |known: &str| leaf == known || (known.ends_with('.') && leaf.starts_with(known));
            BESIDE.iter().find(|(known, _)| fits(known)).map(|(_, what)| (other, *what))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_judged_by_what_its_own_module_holds() {
        let found = |names: &[&str]| {
            let tensors: BTreeMap<String, ()> = names.iter().map(|n| ((*n).into(), ())).collect();
            beside(&tensors, "a.up.weight").map(|(other, _)| other.to_owned())
        };
        for other in [
            "a.up.weight_scale",
            "a.up.qweight",
            "a.up.SCB",
            "a.up.weight.absmax",
            "a.up.weight.quant_state.bitsandbytes__nf4",
            "a.up.lora_A.default.weight",
            "a.up.base_layer.weight",
        ] {
            assert_eq!(found(&["a.up.weight", other]).as_deref(), Some(other));
            assert_eq!(found(&[other]).as_deref(), Some(other), "without the weight itself");
        }
        assert_eq!(found(&["a.up.weight", "a.up.bias", "a.up2.scales", "a.scales"]), None);
    }
}
