//! The small files of a model folder: configurations, tokenizer, chat template.
//!
//! A folder on disk, the files compiled into the program, and those made from the description in a
//! single file look alike from here on. Weights are [`crate::weights`].

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::error::ConfigError;

/// Larger files are refused: a tokenizer of the field is below 40 MB.
const MAX_BYTES: u64 = 128 << 20;

/// Where the files come from.
#[derive(Clone, Debug)]
enum Source {
    Folder(PathBuf),
    Static(&'static [(&'static str, &'static [u8])]),
    /// A single file, what was made of it, and the folder that it lies in.
    Described {
        path: PathBuf,
        made: Arc<[(String, Vec<u8>)]>,
    },
}

/// The files of one model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    name: String,
    source: Source,
}

impl ModelFiles {
    /// A folder in the Hugging Face layout.
    ///
    /// # Errors
    /// If it is not a folder.
    pub fn folder(path: &Path) -> Result<Self, ConfigError> {
        if !path.is_dir() {
            return Err(ConfigError::Io {
                path: path.to_path_buf(),
                source: std::io::Error::new(std::io::ErrorKind::NotFound, "no such model folder"),
            });
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, source: Source::Folder(path.to_path_buf()) })
    }

    /// Files that are part of the program, as `(name, content)`.
    pub fn embedded(name: &str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { name: name.to_owned(), source: Source::Static(files) }
    }

    /// Files that were made, as `(name, content)`, from what the single file `path` says of its
    /// model. A file of the same name beside it is read instead.
    pub fn described(name: &str, path: &Path, made: Vec<(String, Vec<u8>)>) -> Self {
        let source = Source::Described { path: path.to_path_buf(), made: made.into() };
        Self { name: name.to_owned(), source }
    }

    /// Short name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder, if there is one that holds all.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::Folder(path) => Some(path),
            Source::Static(_) | Source::Described { .. } => None,
        }
    }

    /// Whether the files were made from the description in a single file of weights.
    pub fn is_described(&self) -> bool {
        matches!(self.source, Source::Described { .. })
    }

    /// A file's name for errors.
    pub fn label(&self, file: &str) -> String {
        match &self.source {
            Source::Folder(path) => path.join(file).display().to_string(),
            Source::Static(_) => format!("{} (built in)/{file}", self.name),
            Source::Described { path, .. } => {
                let beside = path.with_file_name(file);
                if beside.is_file() {
                    return beside.display().to_string();
                }
                format!("{} (as {file})", path.display())
            }
        }
    }

    /// The content of a file; `None` if there is no such file.
    ///
    /// # Errors
    /// If it is there and cannot be read, or is too large to be what it claims.
    pub fn bytes(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>, ConfigError> {
        let (path, made) = match &self.source {
            Source::Static(files) => {
                return Ok(files.iter().find(|(n, _)| *n == file).map(|(_, b)| Cow::Borrowed(*b)));
            }
            Source::Folder(folder) => (folder.join(file), None),
            Source::Described { path, made } => {
                (path.with_file_name(file), made.iter().find(|(n, _)| n == file))
            }
        };
        let io = |source| ConfigError::Io { path: path.clone(), source };
        let meta = match std::fs::metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(made.map(|(_, content)| Cow::Owned(content.clone())));
            }
            Err(e) => return Err(io(e)),
        };
        // A pipe would be waited for.
        if !meta.is_file() {
            return Err(ConfigError::Format {
                file: self.label(file),
                reason: "expected a regular file; this is a folder, pipe or device".into(),
            });
        }
        if meta.len() > MAX_BYTES {
            return Err(ConfigError::Format {
                file: self.label(file),
                reason: format!(
                    "{} bytes; files of this kind have at most {MAX_BYTES}",
                    meta.len()
                ),
            });
        }
        Ok(Some(Cow::Owned(std::fs::read(&path).map_err(io)?)))
    }

    /// A JSON file; `None` if there is no such file.
    ///
    /// # Errors
    /// Unreadable, or not JSON (with line and column).
    pub fn json(&self, file: &str) -> Result<Option<Value>, ConfigError> {
        let Some(bytes) = self.bytes(file)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| ConfigError::Format { file: self.label(file), reason: e.to_string() })
    }

    /// A JSON file that must be there.
    ///
    /// # Errors
    /// As [`ModelFiles::json`], and if it is absent.
    pub fn required_json(&self, file: &str) -> Result<Value, ConfigError> {
        self.json(file)?.ok_or_else(|| ConfigError::Format {
            file: self.label(file),
            reason: "the file is missing; a model folder needs it".into(),
        })
    }
}

/// Typed access to one object of a configuration, with errors that name file and field.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    file: String,
    path: String,
    object: Option<&'a serde_json::Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The root of a configuration file.
    ///
    /// # Errors
    /// If it is not an object.
    pub fn root(file: impl Into<String>, value: &'a Value) -> Result<Self, ConfigError> {
        let file = file.into();
        match value {
            Value::Object(object) => Ok(Self { file, path: String::new(), object: Some(object) }),
            other => Err(ConfigError::Format {
                file,
                reason: format!("expected an object, found {}", short(other)),
            }),
        }
    }

    /// A sub-object; one that is absent or null has no fields.
    ///
    /// # Errors
    /// If it is something else.
    pub fn object(&self, key: &str) -> Result<Fields<'a>, ConfigError> {
        let path = self.path_of(key);
        match self.get(key) {
            None => Ok(Self { file: self.file.clone(), path, object: None }),
            Some(Value::Object(object)) => {
                Ok(Self { file: self.file.clone(), path, object: Some(object) })
            }
            Some(other) => Err(self.error(key, "an object", &short(other))),
        }
    }

    /// File for errors.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether the object itself is there.
    pub fn is_present(&self) -> bool {
        self.object.is_some()
    }

    /// The keys that are there, ascending or in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.object.into_iter().flat_map(|o| o.keys().map(String::as_str))
    }

    /// Whether the key is there, even as null.
    pub fn has(&self, key: &str) -> bool {
        self.object.is_some_and(|o| o.contains_key(key))
    }

    /// A value that is there and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object?.get(key).filter(|v| !v.is_null())
    }

    /// An error about a field.
    pub fn error(&self, key: &str, expected: &str, found: &str) -> ConfigError {
        ConfigError::Field {
            file: self.file.clone(),
            field: self.path_of(key),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// An integer in `range`, or `default` where it is absent.
    ///
    /// # Errors
    /// Another kind of value, or one outside the range.
    pub fn size(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<usize, ConfigError> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| self.error(key, &expected, "absent"));
        };
        value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .filter(|v| range.contains(v))
            .ok_or_else(|| self.error(key, &expected, &short(value)))
    }

    /// A finite number in `range`, or `default`.
    ///
    /// # Errors
    /// Another kind of value, or one outside the range.
    pub fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
        default: Option<f64>,
    ) -> Result<f64, ConfigError> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| self.error(key, &expected, "absent"));
        };
        value
            .as_f64()
            .filter(|v| range.contains(v))
            .ok_or_else(|| self.error(key, &expected, &short(value)))
    }

    /// `true` or `false`, or `default`.
    ///
    /// # Errors
    /// Another kind of value.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.error(key, "true or false", &short(other))),
        }
    }

    /// A text, or `default`.
    ///
    /// # Errors
    /// Another kind of value.
    pub fn text(&self, key: &str, default: &str) -> Result<String, ConfigError> {
        match self.get(key) {
            None => Ok(default.to_owned()),
            Some(Value::String(s)) => Ok(s.clone()),
            Some(other) => Err(self.error(key, "a text", &short(other))),
        }
    }
}

/// A value as it may stand in an error message.
pub fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 60 {
        let cut: String = text.chars().take(57).collect();
        format!("{cut}...")
    } else {
        text
    }
}
