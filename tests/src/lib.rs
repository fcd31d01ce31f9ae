//! Fixtures of the end-to-end tests: where the goldens lie and how they are read.
//!
//! Nothing here tests; the tests are in `tests/`.

pub mod bug;

pub mod fuzz;

pub mod open;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secateur::trace::{Tensors, Values};

/// The golden files, `tests/golden` of the workspace. Overridden by `SECATEUR_GOLDEN`, so that a
/// test binary can run on another machine.
pub fn golden() -> PathBuf {
    std::env::var_os("SECATEUR_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"), PathBuf::from)
}

/// A tensor of a golden file.
#[derive(Clone, Debug, PartialEq)]
pub enum Golden {
    /// f32 values.
    Floats(Vec<usize>, Vec<f32>),
    /// i64 values.
    Ints(Vec<usize>, Vec<i64>),
}

/// All tensors of a safetensors file.
///
/// # Panics
/// If the file cannot be read: a golden that is not there is a broken checkout.
pub fn tensors(path: &Path) -> BTreeMap<String, Golden> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let shape = tensor.shape().to_vec();
            let value = match tensor.dtype() {
                safetensors::Dtype::F32 => Golden::Floats(
                    shape,
                    tensor
                        .data()
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|b| f32::from_le_bytes(*b))
                        .collect(),
                ),
                safetensors::Dtype::I64 => Golden::Ints(
                    shape,
                    tensor
                        .data()
                        .as_chunks::<8>()
                        .0
                        .iter()
                        .map(|b| i64::from_le_bytes(*b))
                        .collect(),
                ),
                other => panic!("{}: `{name}` is {other:?}", path.display()),
            };
            (name, value)
        })
        .collect()
}

/// The first difference of a tensor of a run from its golden, in words. `tolerance` is the largest
/// `max|a - b| / max|b|` of floats; integers must be equal.
pub fn difference(name: &str, want: &Golden, got: &Tensors, tolerance: f64) -> Option<String> {
    let Some((shape, values)) = got.get(name) else { return Some(format!("{name}: missing")) };
    match (want, values) {
        (Golden::Ints(want_shape, want), Values::Ints(values)) => {
            if shape != want_shape.as_slice() {
                return Some(format!("{name}: shape {shape:?}, reference {want_shape:?}"));
            }
            let at = want.iter().zip(values).position(|(a, b)| a != b)?;
            Some(format!("{name}[{at}] is {}, reference {}", values[at], want[at]))
        }
        (Golden::Floats(want_shape, want), Values::Floats(values)) => {
            if shape != want_shape.as_slice() {
                return Some(format!("{name}: shape {shape:?}, reference {want_shape:?}"));
            }
            let scale = want.iter().fold(1e-6f64, |m, v| m.max(f64::from(v.abs())));
            let worst = want
                .iter()
                .zip(values)
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() / scale)
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(&b.1))?;
            (worst.1.is_nan() || worst.1 > tolerance).then(|| {
                format!(
                    "{name}[{}] is {}, reference {} (relative {:.1e}, allowed {tolerance:.1e})",
                    worst.0, values[worst.0], want[worst.0], worst.1
                )
            })
        }
        _ => Some(format!("{name}: another type")),
    }
}

/// Files of the workspace that git would track, relative to its root.
///
/// # Panics
/// If a folder cannot be read.
pub fn workspace_files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
    let root = root.unwrap_or_default();
    let mut files = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(folder) = open.pop() {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if matches!(name.as_str(), "target" | ".git" | "golden" | "__pycache__" | ".secateur") {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if let Ok(relative) = path.strip_prefix(&root) {
                files.push(relative.to_path_buf());
            }
        }
    }
    files.sort();
    files
}

/// The programs of `docs/sdk.md` are compiled and run as they stand.
#[cfg(doctest)]
#[doc = include_str!("../../docs/sdk.md")]
struct SdkGuide;

/// The program of `docs/write-a-pruner.md` is compiled and run as it stands.
#[cfg(doctest)]
#[doc = include_str!("../../docs/write-a-pruner.md")]
struct WriteAPruner;
