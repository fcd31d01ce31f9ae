//! The index of a checkpoint in several files, `model.safetensors.index.json`.
//!
//! Invariant: a file that an index names lies in the folder of the index or below it, whatever the
//! index says.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use crate::error::WeightsError;

/// Larger files are no index: the field's largest are below 1 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The files that an index names, ascending, relative to its folder.
///
/// # Errors
/// Unreadable, no `weight_map`, a name that leads out of the folder.
pub fn shard_names(index: &Path) -> Result<Vec<String>, WeightsError> {
    Ok(read(index)?.into_keys().collect())
}

/// The shards of an index, ascending, each with the tensors that it promises.
pub(super) fn read(index: &Path) -> Result<BTreeMap<String, Vec<String>>, WeightsError> {
    let io = |source| WeightsError::Io { path: index.to_path_buf(), source };
    let format =
        |reason: String| WeightsError::Format { file: index.display().to_string(), reason };
    let size = std::fs::metadata(index).map_err(io)?.len();
    if size > MAX_BYTES {
        return Err(format(format!("{size} bytes; an index has at most {MAX_BYTES}")));
    }
    let text = std::fs::read_to_string(index).map_err(io)?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format(e.to_string()))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| format("no object `weight_map`".into()))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| format(format!("`{tensor}`: the shard is not a string")))?;
        let path = below(shard)
            .ok_or_else(|| format(format!("`{tensor}`: shard `{shard}` is outside the folder")))?;
        shards.entry(path).or_default().push(tensor.clone());
    }
    Ok(shards)
}

/// A relative path without `.`; `None` if it may lead elsewhere than below its folder.
fn below(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn a_shard_lies_below_the_folder_of_its_index() {
        for (path, want) in [
            ("a.safetensors", Some("a.safetensors")),
            ("./a.safetensors", Some("a.safetensors")),
            ("parts/./a.safetensors", Some("parts/a.safetensors")),
            ("../a.safetensors", None),
            ("parts/../../a.safetensors", None),
            ("/a.safetensors", None),
            (".", None),
            ("", None),
        ] {
            assert_eq!(below(path).as_deref(), want, "{path}");
        }
    }
}
