//! Where text files lie: beside the pictures, or in a mirror of their tree.

use std::path::{Path, PathBuf};

use crate::journal::text_file;
use crate::walk::{Item, Selection, place_of};

/// Where text files lie.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    is_mirror: bool,
    /// One a root: what stands in front of an item's path in the mirror.
    prefixes: Vec<PathBuf>,
    /// Roots of the outputs, links resolved, one a root of the selection.
    roots: Vec<PathBuf>,
    extension: String,
}

/// Where one text file lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The output's root, links resolved.
    pub(crate) root: PathBuf,
    /// The file, below the root.
    pub(crate) below: PathBuf,
}

impl Layout {
    /// The layout of an output in the folder `mirror`, or beside the pictures.
    pub(crate) fn new(selection: &Selection, mirror: Option<&Path>, extension: &str) -> Self {
        let prefix = |root: &PathBuf| match root.file_name() {
            Some(name) if !selection.is_one_tree && selection.roots.len() > 1 => {
                PathBuf::from(name)
            }
            _ => PathBuf::new(),
        };
        let extension = if extension.starts_with('.') || extension.is_empty() {
            extension.to_owned()
        } else {
            format!(".{extension}")
        };
        Self {
            is_mirror: mirror.is_some(),
            prefixes: selection.roots.iter().map(prefix).collect(),
            roots: match mirror {
                Some(mirror) => vec![place_of(mirror); selection.roots.len()],
                None => selection.root_places.clone(),
            },
            extension,
        }
    }

    /// The ending of text files, with its dot.
    pub(crate) fn extension(&self) -> &str {
        &self.extension
    }

    /// Whether text files lie in a tree of their own.
    pub(crate) fn is_mirror(&self) -> bool {
        self.is_mirror
    }

    /// Where the text file of an item lies.
    pub(crate) fn place(&self, item: &Item) -> Place {
        let picture = if self.is_mirror {
            self.prefixes[item.root].join(&item.relative)
        } else {
            item.relative.clone()
        };
        let below = text_file(&picture, &self.extension);
        Place { root: self.roots[item.root].clone(), below }
    }
}
