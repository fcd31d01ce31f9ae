//! Checkpoints: tensors of memory-mapped files, under canonical names.
//!
//! Invariants
//! - Nothing is copied here: a [`WeightView`] is a name, a shape and a range of a mapped file.
//! - Names in files differ between releases; a family maps each to one canonical name
//!   ([`Weights::renamed`]), and everything after asks by that.
//! - A tensor is handed out only with the shape that the caller's configuration needs.
//! - Only what is asked for is judged: a tensor of a type that is not read, or in a shard that is
//!   not there, is an error for who needs it and for nobody else.
//! - A weight is never handed out without what belongs to it: scales beside it are an error.
//!
//! Not here: packing for a kernel (`ops`), downloads (the command).

mod beside;
mod blocks;
mod shards;
mod update;
mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::SafeTensors;

pub use blocks::BlockFormat;
pub use shards::shard_names;
pub use update::LowRank;
pub use view::{Format, WeightFile, WeightView};

use crate::error::WeightsError;
use crate::tensor::DType;

/// A tensor that a file holds or promises.
#[derive(Clone)]
enum Entry {
    View(WeightView),
    /// With a change that is made when it is asked for.
    Changed(WeightView, Arc<LowRank>),
    /// Of a type that is not read.
    Unread {
        file: Arc<str>,
        name: Arc<str>,
        dtype: Arc<str>,
        shape: Arc<[usize]>,
    },
    /// In a shard that is not there.
    Absent {
        index: Arc<str>,
        shard: Arc<str>,
    },
}

impl Entry {
    fn view(&self, name: &str) -> Result<WeightView, WeightsError> {
        match self {
            Entry::View(view) => Ok(view.clone()),
            Entry::Changed(view, change) => Ok(change.added_to(view)),
            Entry::Unread { file, name, dtype, .. } => Err(WeightsError::DType {
                file: file.to_string(),
                name: name.to_string(),
                found: dtype.to_string(),
            }),
            Entry::Absent { index, shard } => Err(WeightsError::Shard {
                file: index.to_string(),
                name: name.to_owned(),
                shard: shard.to_string(),
            }),
        }
    }

    fn shape(&self) -> Option<&[usize]> {
        match self {
            Entry::View(view) | Entry::Changed(view, _) => Some(view.shape()),
            Entry::Unread { shape, .. } => Some(shape),
            Entry::Absent { .. } => None,
        }
    }
}

#[derive(Clone)]
enum Source {
    Files(BTreeMap<String, Entry>),
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
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`. A tensor that
    /// stands in several shards is that of the last, as in transformers.
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
            let label: Arc<str> = index.display().to_string().into();
            for (shard, promised) in shards::read(&index)? {
                let path = dir.join(&shard);
                if path.is_file() {
                    load_file(&WeightFile::map(&path)?, &mut tensors)?;
                    continue;
                }
                let shard: Arc<str> = shard.into();
                for name in promised {
                    let absent = Entry::Absent { index: label.clone(), shard: shard.clone() };
                    tensors.entry(name).or_insert(absent);
                }
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

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// A missing or invalid file.
    pub fn open_file(path: &Path) -> Result<Self, WeightsError> {
        let mut tensors = BTreeMap::new();
        load_file(&WeightFile::map(path)?, &mut tensors)?;
        Ok(Self { label: path.display().to_string().into(), source: Source::Files(tensors) })
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
        let entries = views.into_iter().map(|(name, view)| (name, Entry::View(view)));
        Self { label: label.into(), source: Source::Files(entries.collect()) }
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

    /// Numbers in all tensors; `None` for random weights, which have no end.
    pub fn elements(&self) -> Option<u64> {
        match &self.source {
            Source::Files(tensors) => {
                let numbers = tensors.values().map(|entry| match entry {
                    Entry::View(view) => view.len() as u64,
                    _ => 0,
                });
                Some(numbers.sum())
            }
            Source::Random { .. } => None,
        }
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

    /// Puts a tensor in place of the one of that name, or beside the others. Random weights stay as
    /// they are.
    pub fn replace(&mut self, name: &str, view: WeightView) {
        if let Source::Files(tensors) = &mut self.source {
            tensors.insert(name.to_owned(), Entry::View(view));
        }
    }

    /// Adds a change to the tensor `name`, made when that is read.
    ///
    /// # Errors
    /// No such tensor, one of another shape, one in quantised blocks, or one that has a change.
    pub fn add(&mut self, name: &str, change: LowRank) -> Result<(), WeightsError> {
        let missing = || WeightsError::Missing {
            file: self.label.to_string(),
            name: name.to_owned(),
            expected: "a tensor to change".into(),
        };
        let Source::Files(tensors) = &mut self.source else { return Err(missing()) };
        let base = match tensors.get(name) {
            Some(Entry::Changed(view, _)) => {
                return Err(WeightsError::Format {
                    file: view.file().to_owned(),
                    reason: format!("tensor `{name}` is changed twice"),
                });
            }
            Some(entry) => entry.view(name)?,
            None => return Err(missing()),
        };
        change.check(&base)?;
        tensors.insert(name.to_owned(), Entry::Changed(base, Arc::new(change)));
        Ok(())
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
    /// [`WeightsError::Missing`] or [`WeightsError::Shape`]; [`WeightsError::DType`] and
    /// [`WeightsError::Shard`] if it is there but cannot be read; [`WeightsError::Beside`] if it
    /// means nothing without what stands beside it.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<WeightView, WeightsError> {
        let tensors = match &self.source {
            Source::Files(tensors) => tensors,
            Source::Random { seed, dtype } => return Ok(random_view(*seed, *dtype, name, shape)),
        };
        self.stands_alone(name)?;
        let entry = tensors.get(name).ok_or_else(|| WeightsError::Missing {
            file: self.label.to_string(),
            name: name.to_owned(),
            expected: format!("{shape:?}"),
        })?;
        // A change is added to a tensor of the right shape only.
        if let Entry::View(view) | Entry::Changed(view, _) = entry
            && view.shape() != shape
        {
            return Err(WeightsError::Shape {
                file: view.file().to_owned(),
                name: view.name().to_owned(),
                expected: format!("{shape:?}"),
                found: format!("{:?}", view.shape()),
            });
        }
        entry.view(name)
    }

    /// Whether `name`, there or not, has nothing beside it that it means nothing without.
    fn stands_alone(&self, name: &str) -> Result<(), WeightsError> {
        let Source::Files(tensors) = &self.source else { return Ok(()) };
        let Some((other, what)) = beside::beside(tensors, name) else { return Ok(()) };
        Err(WeightsError::Beside {
            file: self.label.to_string(),
            name: name.to_owned(),
            beside: other.to_owned(),
            what,
        })
    }

    /// The matrix `{name}.weight`, `[outputs, inputs]`, with `{name}.bias` if it is to have one.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn matrix(
        &self,
        name: &str,
        [outputs, inputs]: [usize; 2],
        bias: bool,
    ) -> Result<Matrix, WeightsError> {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &[outputs])).transpose()?;
        Ok(Matrix { weight, bias })
    }

    /// The tensor `name` if it is there, of exactly this shape.
    ///
    /// # Errors
    /// As [`Weights::tensor`], but that it is missing.
    pub fn optional(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<WeightView>, WeightsError> {
        if self.contains(name) {
            return self.tensor(name, shape).map(Some);
        }
        self.stands_alone(name).map(|()| None)
    }

    /// The shape of a tensor that is there.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        match &self.source {
            Source::Files(tensors) => tensors.get(name).and_then(Entry::shape),
            Source::Random { .. } => None,
        }
    }
}

/// A matrix of a checkpoint with all that belongs to it: what operation sets make layers of.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// `[outputs, inputs]`
    pub weight: WeightView,
    /// `[outputs]`
    pub bias: Option<WeightView>,
}

impl From<WeightView> for Matrix {
    fn from(weight: WeightView) -> Self {
        Self { weight, bias: None }
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights of {}", self.label)
    }
}

fn load_file(file: &WeightFile, tensors: &mut BTreeMap<String, Entry>) -> Result<(), WeightsError> {
    let wrong = |reason: String| WeightsError::Format { file: file.label().to_owned(), reason };
    let all = file.bytes();
    let parsed =
        SafeTensors::deserialize(all).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let label: Arc<str> = file.label().into();
    for (name, tensor) in parsed.tensors() {
        let dtype = match tensor.dtype() {
            safetensors::Dtype::F32 => Some(DType::F32),
            safetensors::Dtype::BF16 => Some(DType::Bf16),
            safetensors::Dtype::F16 => Some(DType::F16),
            _ => None,
        };
        let entry = match dtype {
            Some(dtype) => {
                let start = tensor.data().as_ptr() as usize - all.as_ptr() as usize;
                Entry::View(file.view(&name, Format::Plain(dtype), tensor.shape(), start)?)
            }
            None => Entry::Unread {
                file: label.clone(),
                name: name.as_str().into(),
                dtype: format!("{:?}", tensor.dtype()).into(),
                shape: tensor.shape().into(),
            },
        };
        tensors.insert(name, entry);
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
