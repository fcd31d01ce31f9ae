//! Quantised checkpoints: none of their methods is read, and each is refused by its name before a
//! weight is.
//!
//! Invariant: what a configuration announces is judged here; a weight that is quantised in spite of
//! a silent configuration is refused where it is read (`secateur_core::weights`).

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, ModelFiles, short};
use serde_json::Value;

use super::ConfigSource;

/// Keys of `config.json`, or of one of its parts, that announce a method, and whose it is if it has
/// no name (transformers, compressed-tensors, MLX).
const KEYS: &[(&str, &str)] = &[
    ("quantization_config", "one without a name"),
    ("compression_config", "compressed-tensors"),
    ("quantization", "mlx"),
];

/// Files that announce a method, where in them it stands, and whose they are if they do not name
/// it (AutoGPTQ, AutoAWQ, ModelOpt, quanto).
const FILES: &[(&str, &str, &str)] = &[
    ("quantize_config.json", "", "gptq"),
    ("quant_config.json", "", "awq"),
    ("hf_quant_config.json", "quantization", "modelopt"),
    ("quanto_qmap.json", "", "quanto"),
];

/// Refuses a model whose files say that its weights are quantised. Not for a GGUF file, whose
/// weights say so themselves.
///
/// # Errors
/// [`ConfigError::Unsupported`] with the method's name and the file that says so.
pub(super) fn refuse(source: &ConfigSource<'_>) -> Result<(), ConfigError> {
    let files = source.files;
    if files.is_described() {
        return Ok(());
    }
    let root = &source.root;
    for (key, whose) in KEYS {
        if let Some(found) = root.get(key).and_then(|value| method(value, whose)) {
            return Err(unsupported(root.file(), key, &found));
        }
    }
    for part in root.keys() {
        let Some(part_of) = root.get(part).and_then(Value::as_object) else { continue };
        for (key, whose) in KEYS {
            if let Some(found) = part_of.get(*key).and_then(|value| method(value, whose)) {
                return Err(unsupported(root.file(), &format!("{part}.{key}"), &found));
            }
        }
    }
    FILES.iter().try_for_each(|row| by_file(files, row))
}

fn by_file(
    files: &ModelFiles,
    &(file, place, whose): &(&str, &str, &str),
) -> Result<(), ConfigError> {
    let Some(value) = files.json(file)? else { return Ok(()) };
    let root = Fields::root(files.label(file), &value)?;
    let found = if place.is_empty() {
        method(&value, whose)
    } else {
        // ModelOpt writes the file with no method where only the cache is quantised.
        let part = root.object(place)?;
        part.get("quant_algo").map(|algo| format!("{whose} {}", text(algo)))
    };
    found.map_or(Ok(()), |found| Err(unsupported(root.file(), "quant_method", &found)))
}

/// The name of the method that an object announces, `whose` if it has none; `None` if it announces
/// no method.
fn method(value: &Value, whose: &str) -> Option<String> {
    let Some(object) = value.as_object() else {
        return (!value.is_null()).then(|| short(value));
    };
    if object.is_empty() {
        return None;
    }
    let bits = |key: &str| object.get(key) == Some(&Value::Bool(true));
    let (four, eight) = (bits("load_in_4bit"), bits("load_in_8bit"));
    let named = object.get("quant_method").filter(|v| !v.is_null()).map(text);
    match named.as_deref() {
        // transformers runs such a model as it is if neither width is asked for.
        Some("bitsandbytes") if !four && !eight => None,
        None if four || eight => Some("bitsandbytes".into()),
        _ => Some(named.unwrap_or_else(|| whose.to_owned())),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| short(value), str::to_owned)
}

fn unsupported(file: &str, field: &str, found: &str) -> ConfigError {
    ConfigError::Unsupported {
        file: format!("{file}: `{field}`"),
        what: "quantisation",
        found: found.to_owned(),
        supported: "weights in F32, BF16 or F16, and GGUF files; use the checkpoint before it was \
                    quantised"
            .into(),
    }
}
