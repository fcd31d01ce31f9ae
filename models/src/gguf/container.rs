//! The container: a GGUF file's metadata and where its tensors stand.
//!
//! `magic, version, tensors, keys | key, type, value ... | name, dimensions, type, offset ... | data`
//!
//! Invariants
//! - Every length is checked against the bytes that are left before anything is allocated, so a
//!   file that lies costs no more memory than its own size.
//! - Errors name the file and the key or tensor.
//!
//! Source: the GGUF specification, versions 2 and 3, little-endian.

use std::collections::BTreeMap;
use std::path::Path;

use secateur_core::error::{ConfigError, WeightsError};
use secateur_core::tensor::DType;
use secateur_core::weights::{BlockFormat, Format, WeightFile, WeightView};
use serde_json::{Number, Value};

use crate::error::LoadError;

const MAGIC: &[u8; 4] = b"GGUF";
/// Nested arrays are in no file of the field.
const MAX_DEPTH: usize = 1;
/// Entries of a list: more than any vocabulary has merges.
const MAX_ITEMS: usize = 1 << 24;
/// GGML tensors have at most this many dimensions.
const MAX_DIMENSIONS: u32 = 4;

/// One GGUF file.
pub(super) struct GgufFile {
    file: WeightFile,
    /// Values by key, as JSON.
    keys: BTreeMap<String, Value>,
    tensors: BTreeMap<String, WeightView>,
}

impl GgufFile {
    /// Maps a file and reads everything but the numbers of its tensors.
    ///
    /// # Errors
    /// A file that is no GGUF file, contradicts itself, or holds types that are not read.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        Self::read(WeightFile::map(path)?)
    }

    fn read(file: WeightFile) -> Result<Self, LoadError> {
        let wrong = |reason: String| {
            LoadError::Weights(WeightsError::Format { file: file.label().to_owned(), reason })
        };
        let mut reader = Reader { bytes: file.bytes(), at: 0 };
        let header = |reader: &mut Reader<'_>| -> Result<(u64, u64), String> {
            if reader.take(4)? != MAGIC {
                return Err("not a GGUF file: it does not begin with `GGUF`".into());
            }
            let version = reader.u32()?;
            if !(2..=3).contains(&version) {
                return Err(format!("GGUF version {version}; read are 2 and 3, little-endian"));
            }
            Ok((reader.u64()?, reader.u64()?))
        };
        let (tensor_count, key_count) = header(&mut reader).map_err(wrong)?;
        let mut keys = BTreeMap::new();
        for i in 0..key_count {
            let key = reader.text().map_err(|e| wrong(format!("key {i}: {e}")))?;
            let value = reader.value().map_err(|e| wrong(format!("key `{key}`: {e}")))?;
            keys.insert(key, value);
        }
        let mut found = Vec::new();
        for i in 0..tensor_count {
            let tensor = reader.tensor().map_err(|e| wrong(format!("tensor {i}: {e}")))?;
            found.push(tensor);
        }
        let alignment = keys.get("general.alignment").map_or(Some(32), Value::as_u64);
        let alignment = alignment
            .and_then(|a| usize::try_from(a).ok())
            .filter(|a| a.is_power_of_two() && (8..=1 << 16).contains(a))
            .ok_or_else(|| {
                wrong("`general.alignment` is not a power of two from 8 to 65536".into())
            })?;
        let data = reader.at.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for TensorEntry { name, shape, kind, offset } in found {
            let format = format(kind).map_err(|found| {
                LoadError::Weights(WeightsError::DType {
                    file: file.label().to_owned(),
                    name: name.clone(),
                    found,
                })
            })?;
            let Some(format) = format else { continue };
            let start = usize::try_from(offset)
                .ok()
                .filter(|o| o.is_multiple_of(alignment))
                .and_then(|o| data.checked_add(o))
                .ok_or_else(|| wrong(format!("tensor `{name}`: offset {offset} is not aligned")))?;
            let view = file.view(&name, format, &shape, start)?;
            if tensors.insert(name.clone(), view).is_some() {
                return Err(wrong(format!("tensor `{name}` stands there twice")));
            }
        }
        for name in tensors.keys() {
            let stem = [".scale", ".input_scale"].iter().find_map(|end| name.strip_suffix(end));
            let weight = stem.map(|stem| format!("{stem}.weight"));
            if let Some(weight) = weight.filter(|weight| tensors.contains_key(weight)) {
                return Err(wrong(format!(
                    "tensor `{weight}` has `{name}` beside it; weights with a scale of their own \
                     are not read"
                )));
            }
        }
        Ok(Self { file, keys, tensors })
    }

    /// Name for errors.
    pub(super) fn label(&self) -> &str {
        self.file.label()
    }

    /// The tensors under the names of the file.
    pub(super) fn tensors(&self) -> &BTreeMap<String, WeightView> {
        &self.tensors
    }

    /// Typed access to the metadata.
    pub(super) fn metadata(&self) -> Metadata<'_> {
        Metadata { label: self.label(), keys: &self.keys }
    }
}

/// The metadata of a file; errors name file and key.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a> {
    label: &'a str,
    keys: &'a BTreeMap<String, Value>,
}

impl<'a> Metadata<'a> {
    #[cfg(test)]
    pub(super) fn new(label: &'a str, keys: &'a BTreeMap<String, Value>) -> Self {
        Self { label, keys }
    }

    /// Name of the file.
    pub(super) fn label(self) -> &'a str {
        self.label
    }

    /// A value as it stands there.
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.keys.get(key)
    }

    /// A value that must be there.
    pub(super) fn required(self, key: &str, expected: &str) -> Result<&'a Value, ConfigError> {
        self.get(key).ok_or_else(|| self.error(key, expected))
    }

    /// A text that must be there.
    pub(super) fn text(self, key: &str) -> Result<&'a str, ConfigError> {
        const EXPECTED: &str = "a text";
        self.required(key, EXPECTED)?.as_str().ok_or_else(|| self.error(key, EXPECTED))
    }

    /// A whole number that must be there.
    pub(super) fn size(self, key: &str) -> Result<usize, ConfigError> {
        const EXPECTED: &str = "a whole number";
        self.required(key, EXPECTED)?
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| self.error(key, EXPECTED))
    }

    /// A list that must be there.
    pub(super) fn list(self, key: &str) -> Result<&'a [Value], ConfigError> {
        const EXPECTED: &str = "a list";
        self.required(key, EXPECTED)?
            .as_array()
            .map(Vec::as_slice)
            .ok_or_else(|| self.error(key, EXPECTED))
    }

    /// A flag; `default` where it is absent or no flag.
    pub(super) fn flag(self, key: &str, default: bool) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    /// An error about a key.
    pub(super) fn error(self, key: &str, expected: &str) -> ConfigError {
        ConfigError::Field {
            file: self.label.to_owned(),
            field: key.to_owned(),
            expected: expected.to_owned(),
            found: self.get(key).map_or_else(|| "absent".to_owned(), secateur_core::files::short),
        }
    }
}

/// A tensor's entry in the table.
struct TensorEntry {
    name: String,
    /// Outermost first, as everywhere here; the file has them innermost first.
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// The format with a number of the tensor types; `None` for integers, which no family reads.
fn format(kind: u32) -> Result<Option<Format>, String> {
    Ok(Some(match kind {
        0 => Format::Plain(DType::F32),
        1 => Format::Plain(DType::F16),
        30 => Format::Plain(DType::Bf16),
        24..=28 => return Ok(None),
        _ => match BlockFormat::from_gguf(kind) {
            Some(blocks) if blocks.is_readable() => Format::Blocks(blocks),
            Some(blocks) => {
                return Err(format!("{}, which needs the feature `gguf`", blocks.name()));
            }
            None => {
                let known: Vec<&str> = BlockFormat::names().collect();
                let known = known.join(", ");
                return Err(format!("of GGML type {kind} (of the quantised, read are {known})"));
            }
        },
    }))
}

/// Takes values off the front of a file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| {
            format!(
                "the file ends at byte {}, {count} bytes after {} are missing",
                self.bytes.len(),
                self.at
            )
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length that the rest of the file could hold, if each entry had one byte.
    fn length(&mut self) -> Result<usize, String> {
        let length = self.u64()?;
        let left = self.bytes.len() - self.at;
        usize::try_from(length)
            .ok()
            .filter(|l| *l <= left)
            .ok_or_else(|| format!("a length of {length}, but only {left} bytes follow"))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text that is not UTF-8".into())
    }

    fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        self.value_of(kind, 0)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            // The shortest decimal of an f32, not the f64 of the same value: 1e-6 stays 1e-6.
            6 => float(f32::from_le_bytes(self.array()?).to_string().parse().ok()),
            7 => Value::Bool(self.take(1)?[0] != 0),
            8 => Value::String(self.text()?),
            9 if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let length = self.length()?;
                if length > MAX_ITEMS {
                    return Err(format!("a list of {length} entries; read are {MAX_ITEMS}"));
                }
                let items = (0..length).map(|_| self.value_of(kind, depth + 1));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => float(Some(f64::from_le_bytes(self.array()?))),
            other => return Err(format!("a value of the unknown type {other}")),
        })
    }

    fn tensor(&mut self) -> Result<TensorEntry, String> {
        let name = self.text()?;
        let of = |e: String| format!("`{name}`: {e}");
        let dimensions = self.u32().map_err(of)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(of(format!("{dimensions} dimensions; tensors have 1 to {MAX_DIMENSIONS}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let side = self.u64().map_err(of)?;
            shape.push(usize::try_from(side).map_err(|_| of(format!("a side of {side}")))?);
        }
        shape.reverse();
        let (kind, offset) = (self.u32().map_err(of)?, self.u64().map_err(of)?);
        Ok(TensorEntry { name, shape, kind, offset })
    }
}

/// Numbers that JSON has no word for become null, which no key accepts.
fn float(x: Option<f64>) -> Value {
    x.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}
