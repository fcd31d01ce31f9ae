//! Checkpoints: tensors of memory-mapped files, under canonical names.
//!
//! Invariants
//! - Nothing is copied here: a [`WeightView`] is a name, a shape and a range of a mapped file.
//! - Names in files differ between releases; a family maps each to one canonical name
//!   ([`Weights::renamed`]), and everything after asks by that.
//! - A tensor is handed out only with the shape that the caller's configuration needs.
//!
//! Not here: packing for a kernel (`ops`), downloads (the command).

mod blocks;
mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::SafeTensors;

pub use blocks::BlockFormat;
pub use view::{Format, WeightFile, WeightView};

use crate::error::WeightsError;
use crate::tensor::DType;

#[derive(Clone)]
enum Source {
    Files(BTreeMap<String, WeightView>),
    /// Values drawn from a seed for whatever is asked: benchmarks of a named shape.
    Random {
        seed: u64,
        dtype: DType,
    },
}

/// All tensors of a checkpoint.
#[derive(Clone)]
pub struct Weights {
    label: Arc<str>,
    source: Source,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// Missing, truncated or inconsistent files, with the file's name.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let mut tensors = BTreeMap::new();
        if single.is_file() {
            load_file(&WeightFile::map(&single)?, &mut tensors)?;
        } else if index.is_file() {
            for shard in shard_names(&index)? {
                load_file(&WeightFile::map(&dir.join(shard))?, &mut tensors)?;
            }
        } else {
            return Err(WeightsError::Io {
                path: single,
                source: std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "neither model.safetensors nor model.safetensors.index.json is there",
                ),
            });
        }
        Ok(Self { label: dir.display().to_string().into(), source: Source::Files(tensors) })
    }

    /// Reads a safetensors file that is part of the program.
    ///
    /// # Errors
    /// If the bytes are not a valid file.
    pub fn from_static(label: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        let mut tensors = BTreeMap::new();
        load_file(&WeightFile::embedded(label, bytes), &mut tensors)?;
        Ok(Self { label: label.into(), source: Source::Files(tensors) })
    }

    /// Tensors that were found otherwise, under the names that a checkpoint would give them.
    pub fn from_views(label: &str, views: impl IntoIterator<Item = (String, WeightView)>) -> Self {
        Self { label: label.into(), source: Source::Files(views.into_iter().collect()) }
    }

    /// Weights of any name and shape, drawn from `seed` (normal-like, standard deviation 0.02;
    /// vectors whose name speaks of a norm are ones).
    pub fn random(seed: u64, dtype: DType) -> Self {
        Self {
            label: format!("random weights (seed {seed})").into(),
            source: Source::Random { seed, dtype },
        }
    }

    /// Where they come from.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The same tensors under canonical names; those for which `canonical` gives `None` are
    /// dropped. Random weights stay as they are.
    #[must_use]
    pub fn renamed(self, canonical: impl Fn(&str) -> Option<String>) -> Self {
        let source = match self.source {
            Source::Files(tensors) => Source::Files(
                tensors.into_iter().filter_map(|(n, v)| Some((canonical(&n)?, v))).collect(),
            ),
            random @ Source::Random { .. } => random,
        };
        Self { label: self.label, source }
    }

    /// Whether a tensor of that canonical name is there (random weights have every name that
    /// does not end in `bias`).
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Files(tensors) => tensors.contains_key(name),
            Source::Random { .. } => !name.ends_with("bias"),
        }
    }

    /// Canonical names, ascending.
    pub fn names(&self) -> Vec<&str> {
        match &self.source {
            Source::Files(tensors) => tensors.keys().map(String::as_str).collect(),
            Source::Random { .. } => Vec::new(),
        }
    }

    /// The tensor `name`, of exactly this shape.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] or [`WeightsError::Shape`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<WeightView, WeightsError> {
        let tensors = match &self.source {
            Source::Files(tensors) => tensors,
            Source::Random { seed, dtype } => return Ok(random_view(*seed, *dtype, name, shape)),
        };
        let view = tensors.get(name).ok_or_else(|| WeightsError::Missing {
            file: self.label.to_string(),
            name: name.to_owned(),
            expected: format!("{shape:?}"),
        })?;
        if view.shape() != shape {
            return Err(WeightsError::Shape {
                file: view.file().to_owned(),
                name: view.name().to_owned(),
                expected: format!("{shape:?}"),
                found: format!("{:?}", view.shape()),
            });
        }
        Ok(view.clone())
    }

    /// The tensor `name` if it is there, of exactly this shape.
    ///
    /// # Errors
    /// [`WeightsError::Shape`].
    pub fn optional(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<WeightView>, WeightsError> {
        if self.contains(name) { self.tensor(name, shape).map(Some) } else { Ok(None) }
    }

    /// The shape of a tensor that is there.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        match &self.source {
            Source::Files(tensors) => tensors.get(name).map(WeightView::shape),
            Source::Random { .. } => None,
        }
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights of {}", self.label)
    }
}

/// The files that an index (`model.safetensors.index.json`) names, ascending.
///
/// # Errors
/// Unreadable, no `weight_map`, a name that is not one of a file beside the index.
pub fn shard_names(index: &Path) -> Result<Vec<String>, WeightsError> {
    let io = |source| WeightsError::Io { path: index.to_path_buf(), source };
    let format =
        |reason: String| WeightsError::Format { file: index.display().to_string(), reason };
    let text = std::fs::read_to_string(index).map_err(io)?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format(e.to_string()))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| format("no object `weight_map`".into()))?;
    let mut shards = std::collections::BTreeSet::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| format(format!("`{tensor}`: the shard is not a string")))?;
        let plain = Path::new(shard).file_name().is_some_and(|n| n == shard);
        if !plain {
            return Err(format(format!("`{tensor}`: shard `{shard}` is outside the folder")));
        }
        shards.insert(shard.to_owned());
    }
    Ok(shards.into_iter().collect())
}

fn load_file(
    file: &WeightFile,
    tensors: &mut BTreeMap<String, WeightView>,
) -> Result<(), WeightsError> {
    let wrong = |reason: String| WeightsError::Format { file: file.label().to_owned(), reason };
    let all = file.bytes();
    let parsed =
        SafeTensors::deserialize(all).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    for (name, tensor) in parsed.tensors() {
        let dtype = match tensor.dtype() {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::BF16 => DType::Bf16,
            safetensors::Dtype::F16 => DType::F16,
            // Integer tensors are buffers such as `position_ids`; no family reads one.
            safetensors::Dtype::I64 | safetensors::Dtype::I32 | safetensors::Dtype::BOOL => {
                continue;
            }
            other => {
                return Err(WeightsError::DType {
                    file: file.label().to_owned(),
                    name,
                    found: format!("{other:?}"),
                });
            }
        };
        let start = tensor.data().as_ptr() as usize - all.as_ptr() as usize;
        let view = file.view(&name, Format::Plain(dtype), tensor.shape(), start)?;
        if tensors.insert(name.clone(), view).is_some() {
            return Err(wrong(format!("tensor `{name}` stands in two shards")));
        }
    }
    Ok(())
}

/// Values for benchmarks: one cheap generator a tensor, seeded by its name.
fn random_view(seed: u64, dtype: DType, name: &str, shape: &[usize]) -> WeightView {
    let len: usize = shape.iter().product();
    let mut state = name.bytes().fold(seed ^ 0x9E37_79B9_7F4A_7C15, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    let is_norm = shape.len() == 1 && name.contains("norm") && name.ends_with("weight");
    let mut next = || {
        if is_norm {
            return 1.0;
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // The sum of four uniforms is close enough to a normal of the same variance.
        let sum: f32 = (0..4).map(|i| ((state >> (16 * i)) & 0xFFFF) as f32 / 65536.0 - 0.5).sum();
        sum * (0.02 * 1.732)
    };
    let bytes: Vec<u8> = match dtype {
        DType::F32 => (0..len).flat_map(|_| next().to_le_bytes()).collect(),
        DType::Bf16 => (0..len).flat_map(|_| bf16::from_f32(next()).to_le_bytes()).collect(),
        DType::F16 => (0..len).flat_map(|_| f16::from_f32(next()).to_le_bytes()).collect(),
    };
    WeightFile::in_memory("random", bytes)
        .view(name, Format::Plain(dtype), shape, 0)
        .expect("as many bytes as the shape needs")
}
