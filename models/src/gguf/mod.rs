//! GGUF: a decoder file and its projector file (`mmproj`) as a model folder.
//!
//! Nothing behind this module knows where a model came from: the pair becomes the small files of a
//! folder in memory ([`ModelFiles`]) and tensors under the names of a published checkpoint
//! ([`Weights`]). Small files that lie beside the decoder (`tokenizer.json`, `config.json` and so
//! on) are read instead of what would be made here.
//!
//! Invariants
//! - Tensors are views of the mapped files; numbers in quantised blocks stay so until an operation
//!   set packs them.
//! - Every byte may lie: sizes are checked before use, here or where a folder's would be.

mod config;
mod container;
mod names;
mod tokenizer;

use std::path::{Path, PathBuf};

use secateur_core::error::ConfigError;
use secateur_core::files::ModelFiles;
use secateur_core::weights::Weights;

use crate::error::LoadError;
use config::{Described, PROJECTORS, Pair};
use container::GgufFile;
use tokenizer::Vocabulary;

const TOKENIZER: &str = "tokenizer.json";

/// The two files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufPair {
    /// Decoder and vocabulary.
    pub decoder: PathBuf,
    /// Vision tower and projector.
    pub projector: PathBuf,
}

impl GgufPair {
    /// The pair that a path names: a decoder's file, whose projector is the one `mmproj*.gguf`
    /// beside it, or a folder that has one decoder and no `config.json`. `None` for anything else.
    ///
    /// # Errors
    /// No projector or decoder, or several; the message lists what was found.
    pub fn find(path: &Path) -> Result<Option<Self>, ConfigError> {
        let is_gguf = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let (folder, named) = if path.is_dir() {
            (path, None)
        } else if is_gguf(path) {
            (path.parent().unwrap_or(Path::new("")), Some(path))
        } else {
            return Ok(None);
        };
        if named.is_none() && folder.join("config.json").is_file() {
            return Ok(None);
        }
        let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let io = |source| ConfigError::Io { path: listed.to_path_buf(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(listed).map_err(io)? {
            let file = folder.join(entry.map_err(io)?.file_name());
            if is_gguf(&file) {
                found.push(file);
            }
        }
        found.sort();
        let is_projector = |p: &PathBuf| {
            p.file_name().is_some_and(|n| n.to_string_lossy().to_lowercase().contains("mmproj"))
        };
        let (projectors, decoders): (Vec<_>, Vec<_>) = found.into_iter().partition(is_projector);
        if named.is_none() && decoders.is_empty() && projectors.is_empty() {
            return Ok(None);
        }
        let decoder = match named {
            Some(path) => path.to_path_buf(),
            None => one(listed, decoders, "decoder (*.gguf)", "name the one that is meant")?,
        };
        let advice = "name one of them with --mmproj, or put the right one beside the decoder";
        let projector = one(listed, projectors, "projector (mmproj*.gguf)", advice)?;
        Ok(Some(Self { decoder, projector }))
    }

    /// Reads both files, but for the numbers of their tensors.
    ///
    /// # Errors
    /// Files that are malformed, or describe a model that is not read; each error names the file
    /// and the key.
    pub fn open(&self) -> Result<(ModelFiles, Weights), LoadError> {
        let decoder = GgufFile::open(&self.decoder)?;
        let projector = GgufFile::open(&self.projector)?;
        let kind = projector_kind(&projector)?;
        let row = PROJECTORS.iter().find(|row| row.name == kind).ok_or_else(|| {
            ConfigError::Unsupported {
                file: projector.label().to_owned(),
                what: "clip.projector_type",
                found: kind.to_owned(),
                supported: PROJECTORS.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
            }
        })?;
        let mut tower_tensors = projector.tensors().clone();
        let width = projector.metadata().size("clip.vision.embedding_length")?;
        names::swap_mlp(&mut tower_tensors, width);
        names::join_frames(&mut tower_tensors)?;
        if row.joined_qkv {
            names::join_qkv(&mut tower_tensors)?;
        }
        let mut decoder_tensors = decoder.tensors().clone();
        if decoder.metadata().text("general.architecture")? == "llama" {
            names::unpermute(&mut decoder_tensors, config::head_dim(decoder.metadata())?);
        }
        let name = self.decoder.file_stem().unwrap_or_default().to_string_lossy();
        let beside = ModelFiles::described(&name, &self.decoder, Vec::new());
        let label = beside.label(TOKENIZER);
        let beside = beside.json(TOKENIZER)?;
        let beside = beside.as_ref().map(|json| (label.as_str(), json));
        let vocabulary = Vocabulary::read(decoder.metadata(), beside)?;
        let pair = Pair {
            decoder: decoder.metadata(),
            projector: projector.metadata(),
            decoder_tensors: &decoder_tensors,
            tower_tensors: &tower_tensors,
            vocabulary: &vocabulary,
        };
        let Described { config, processor, spelled } = config::describe(row, &pair)?;
        let mut files = vec![
            ("config.json", config),
            ("preprocessor_config.json", processor),
            ("tokenizer_config.json", vocabulary.tokenizer_config()),
            ("generation_config.json", vocabulary.generation_config()),
        ];
        // The vocabulary may be of a kind that is not read if its other form lies beside the file.
        if beside.is_none() {
            files.push((TOKENIZER, vocabulary.tokenizer(spelled)?));
        }
        let files = files.into_iter().map(|(n, v)| (n.to_owned(), v.to_string().into_bytes()));
        let files = ModelFiles::described(&name, &self.decoder, files.collect());
        let views = names::renamed(&decoder_tensors, &[names::DECODER])
            .into_iter()
            .chain(names::renamed(&tower_tensors, row.names));
        let label = format!("{} and {}", decoder.label(), projector.label());
        Ok((files, Weights::from_views(&label, views)))
    }
}

/// The kind of a projector file; files older than the key are LLaVA's.
fn projector_kind(file: &GgufFile) -> Result<&str, ConfigError> {
    const KIND: &str = "clip.projector_type";
    let meta = file.metadata();
    let arch = meta.text("general.architecture")?;
    if arch != "clip" {
        return Err(meta.error("general.architecture", "`clip`: a projector file (mmproj)"));
    }
    // Newer files may say it of the vision tower alone.
    for key in [KIND, "clip.vision.projector_type"] {
        if meta.get(key).is_some() {
            return meta.text(key);
        }
    }
    Ok("mlp")
}

/// The one file of a kind.
fn one(
    folder: &Path,
    mut found: Vec<PathBuf>,
    what: &str,
    advice: &str,
) -> Result<PathBuf, ConfigError> {
    if found.len() == 1 {
        return Ok(found.remove(0));
    }
    let names: Vec<String> = found.iter().map(|p| p.display().to_string()).collect();
    let reason = if names.is_empty() {
        format!("a GGUF model needs one {what} here, and there is none")
    } else {
        format!("several files could be the {what}: {}; {advice}", names.join(", "))
    };
    Err(ConfigError::Format { file: folder.display().to_string(), reason })
}
