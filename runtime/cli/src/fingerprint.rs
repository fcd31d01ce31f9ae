//! Which settings made a caption: a hash over everything that can change its text.
//!
//! It covers the model's files (names, sizes, the small ones whole, headers of the weights and a
//! sample of their bytes), the chain as typed and as planned, prompt, sampling, length, processor
//! settings, arithmetic and the version of the record schema. It does not cover what must not
//! change a caption: threads, batch size, limits, output.
//!
//! The sample tells a fine-tuned model from the one it was made of, whose header is the same;
//! reading all bytes of a 14 GB model would take longer than captioning a small folder.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use secateur::GgufPair;

const SAMPLES: u64 = 64;
const SAMPLE_BYTES: usize = 4096;
/// A safetensors header may not be longer by the format's own rules.
const MAX_HEADER: u64 = 100 << 20;

/// Hash of settings and model as it stands in records.
pub(crate) fn fingerprint(model: &str, settings: &serde_json::Value) -> String {
    let mut hasher = blake3::Hasher::new();
    part(&mut hasher, crate::record::SCHEMA.as_bytes());
    part(&mut hasher, model.as_bytes());
    part(&mut hasher, settings.to_string().as_bytes());
    short(&hasher)
}

/// Hash of the content of an output.
pub(crate) fn content(bytes: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes);
    short(&hasher)
}

/// Largest picture or video that is hashed whole.
const WHOLE: u64 = 64 << 20;

/// Hash of a picture or video, to tell whether it is the one of a record. Of large files, a sample:
/// a video that was cut or encoded anew differs everywhere.
///
/// # Errors
/// A file that cannot be read, and anything that is no file.
pub(crate) fn picture(path: &Path) -> Result<String> {
    // Looked at first: opening a pipe would wait for its writer.
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        bail!("{} is no regular file", path.display());
    }
    if meta.len() > WHOLE {
        let mut hasher = blake3::Hasher::new();
        hash_file(path, true, &mut hasher)?;
        return Ok(short(&hasher).replace("b3:", "b3-sample:"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?.take(WHOLE))?;
    Ok(short(&hasher))
}

fn short(hasher: &blake3::Hasher) -> String {
    format!("b3:{}", &hasher.finalize().to_hex()[..32])
}

/// Length first, so that no two lists of parts look alike.
fn part(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Hash of the built-in model: another release may hold other weights.
pub(crate) fn built_in() -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, content) in secateur::built_in::FILES {
        part(&mut hasher, name.as_bytes());
        part(&mut hasher, content);
    }
    part(&mut hasher, secateur::built_in::WEIGHTS);
    short(&hasher)
}

/// Hash of a model folder.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn model_folder(folder: &Path) -> Result<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_weights(name) || is_settings(name))
        .collect();
    names.sort();
    let mut hasher = blake3::Hasher::new();
    for name in names {
        let path = folder.join(&name);
        part(&mut hasher, name.as_bytes());
        hash_file(&path, is_weights(&name), &mut hasher)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(short(&hasher))
}

/// Hash of a GGUF pair, with the small files that lie beside the decoder.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn gguf(pair: &GgufPair) -> Result<String> {
    let folder = pair.decoder.parent().filter(|p| !p.as_os_str().is_empty());
    let beside = folder.unwrap_or(Path::new("."));
    let mut paths: Vec<PathBuf> = std::fs::read_dir(beside)
        .with_context(|| format!("cannot read {}", beside.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| is_settings(&n.to_string_lossy())))
        .collect();
    paths.sort();
    let mut hasher = blake3::Hasher::new();
    for path in [&pair.decoder, &pair.projector].into_iter().chain(&paths) {
        let is_weights = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        hash_file(path, is_weights, &mut hasher)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(short(&hasher))
}

/// Hash of one file of weights.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn weights_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hash_file(path, true, &mut hasher)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(short(&hasher))
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf") || name.ends_with(".onnx")
}

fn is_settings(name: &str) -> bool {
    [".json", ".jinja", ".model", ".txt"].iter().any(|end| name.ends_with(end))
}

fn hash_file(path: &Path, is_weights: bool, hasher: &mut blake3::Hasher) -> Result<()> {
    // A pipe of that name would be waited for.
    if !std::fs::metadata(path)?.is_file() {
        bail!("it is no regular file");
    }
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    part(hasher, &size.to_le_bytes());
    if !is_weights {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        part(hasher, &bytes);
        return Ok(());
    }
    let mut length = [0; 8];
    let header = match file.read_exact(&mut length) {
        Ok(()) if path.extension().is_some_and(|e| e == "safetensors") => {
            u64::from_le_bytes(length).min(size.saturating_sub(8))
        }
        _ => 0,
    };
    if header > MAX_HEADER {
        bail!("a header of {header} bytes");
    }
    let mut bytes = Vec::new();
    file.by_ref().take(header).read_to_end(&mut bytes)?;
    part(hasher, &bytes);
    let data = size.saturating_sub(8 + header);
    for i in 0..SAMPLES {
        let at = 8 + header + data / SAMPLES * i;
        file.seek(SeekFrom::Start(at.min(size)))?;
        bytes.clear();
        file.by_ref().take(SAMPLE_BYTES as u64).read_to_end(&mut bytes)?;
        part(hasher, &bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn model(weights: &[u8], config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            File::create(folder.path().join(name)).unwrap().write_all(bytes).unwrap();
        };
        put("config.json", config.as_bytes());
        put("model.safetensors", weights);
        put("README.md", b"whatever");
        folder
    }

    fn weights(last: u8) -> Vec<u8> {
        let mut bytes = 4u64.to_le_bytes().to_vec();
        bytes.extend(b"{}  ");
        bytes.extend([1, 2, 3, last]);
        bytes
    }

    #[test]
    fn the_same_model_elsewhere_has_the_same_fingerprint() {
        let (a, b) = (model(&weights(4), "{}"), model(&weights(4), "{}"));
        std::fs::remove_file(b.path().join("README.md")).unwrap();
        assert_eq!(model_folder(a.path()).unwrap(), model_folder(b.path()).unwrap());
    }

    #[test]
    fn another_weight_or_another_setting_changes_it() {
        let base = model_folder(model(&weights(4), "{}").path()).unwrap();
        assert_ne!(base, model_folder(model(&weights(5), "{}").path()).unwrap());
        assert_ne!(base, model_folder(model(&weights(4), "{ }").path()).unwrap());
    }

    #[test]
    fn a_file_that_lies_about_its_header_is_still_hashed() {
        for bytes in [&b""[..], b"abc", &[0xff; 8], &[0xff; 64]] {
            model_folder(model(bytes, "{}").path()).unwrap();
        }
    }

    #[test]
    fn settings_count_and_their_order_does_not_blur_them() {
        let a = fingerprint("m", &serde_json::json!({"prompt": "a"}));
        let b = fingerprint("m", &serde_json::json!({"prompt": "b"}));
        assert_ne!(a, b);
        assert!(a.starts_with("b3:") && a.len() == 35);
    }
}
