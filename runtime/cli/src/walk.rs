//! From what was typed to the list of pictures: files, folders, globs, standard input.
//!
//! Invariants
//! - A file given by name is always taken, whatever it is called; files found in folders must
//!   match `--include` (by default the known picture types).
//! - Hidden entries and our own `.secateur` folders are left out of folders.
//! - Every file is taken once; with [`Order::Path`] the order does not depend on the file system.
//! - With `--frames` the items of a folder are the folders that hold pictures directly.
//! - Nothing is opened: what is no picture shows when it is decoded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::args::{CaptionArgs, Order};
use crate::named::{is_picture, pictures_of};
use crate::outcome::usage;
use crate::skipped::Skipped;
use crate::state::FOLDER;

/// Whether a file's name says that it is a video that this build reads. In folders `.ts` is more
/// often a program than a transport stream: such a file is taken by name or `--include`.
fn is_video(path: &Path) -> bool {
    let is_program = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("ts"));
    cfg!(feature = "video") && !is_program && secateur::video::is_video(path)
}

/// One picture to caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Place in [`Selection::items`].
    pub(crate) index: usize,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Index into [`Selection::roots`].
    pub(crate) root: usize,
    /// Path below the root.
    pub(crate) relative: PathBuf,
    /// The real path of the folder it is in, and its name: the same whatever was typed.
    pub(crate) place: PathBuf,
}

/// What was selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Folders that items are relative to.
    pub(crate) roots: Vec<PathBuf>,
    /// The real paths of the roots.
    pub(crate) root_places: Vec<PathBuf>,
    /// The pictures.
    pub(crate) items: Vec<Item>,
    /// Folders and patterns in which nothing was found, and folders that cannot be read.
    pub(crate) warnings: Vec<String>,
    /// Files of folders that look like pictures or videos and are not read, by ending.
    pub(crate) skipped: Skipped,
    /// Whether every item lies under one folder or pattern that was given.
    pub(crate) is_one_tree: bool,
}

/// What decides which files are taken.
#[derive(Debug)]
pub(crate) struct Rules {
    include: Option<GlobSet>,
    exclude: GlobSet,
    frames: bool,
    recursive: bool,
    hidden: bool,
    follow: bool,
    order: Order,
    limit: Option<usize>,
}

impl Rules {
    /// The rules that flags ask for.
    ///
    /// # Errors
    /// A pattern that is none.
    pub(crate) fn new(args: &CaptionArgs) -> Result<Self> {
        Ok(Self {
            include: if args.include.is_empty() { None } else { Some(globs(&args.include)?) },
            exclude: globs(&args.exclude)?,
            frames: args.frames,
            recursive: args.recursive,
            hidden: args.hidden,
            follow: args.follow,
            order: args.order,
            limit: args.limit,
        })
    }

    fn takes(&self, relative: &Path) -> bool {
        match &self.include {
            Some(include) => is_match(include, relative),
            None => is_picture(relative) || is_video(relative),
        }
    }
}

/// A pattern without `/` is held against the file name, others against the path below the root.
fn is_match(set: &GlobSet, relative: &Path) -> bool {
    set.is_match(relative) || relative.file_name().is_some_and(|name| set.is_match(name))
}

fn glob(pattern: &str) -> Result<Glob> {
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|e| usage(format!("pattern `{pattern}`: {}", e.kind())))
}

fn globs(patterns: &[String]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern)?);
    }
    set.build().context("the patterns are too large together")
}

/// Paths from standard input, one a line or one a NUL byte.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read_paths(mut input: impl Read, null: bool) -> Result<Vec<OsString>> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).context("cannot read paths from stdin")?;
    let end = if null { b'\0' } else { b'\n' };
    let paths = bytes
        .split(|&b| b == end)
        .map(|line| if null { line } else { line.strip_suffix(b"\r").unwrap_or(line) })
        .filter(|line| !line.is_empty())
        .map(os_string)
        .collect();
    Ok(paths)
}

#[cfg(unix)]
fn os_string(bytes: &[u8]) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    OsStr::from_bytes(bytes).to_owned()
}

#[cfg(not(unix))]
fn os_string(bytes: &[u8]) -> OsString {
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// Finds the pictures that `paths` name.
///
/// # Errors
/// A pattern that is none, or if not one of the paths exists.
pub(crate) fn select(paths: &[OsString], rules: &Rules) -> Result<Selection> {
    let mut walk = Walk {
        rules,
        selection: Selection::default(),
        seen: BTreeSet::new(),
        real: BTreeMap::new(),
        missing: Vec::new(),
        trees: 0,
        files: 0,
    };
    for path in paths {
        if walk.is_full() {
            break;
        }
        walk.add(Path::new(path))?;
    }
    if !walk.missing.is_empty() && walk.missing.len() == paths.len() {
        let what = if let [one] = &*walk.missing { one.clone() } else { walk.missing.join(", ") };
        return Err(usage(format!("no such file or folder: {what}")));
    }
    walk.selection.is_one_tree = walk.trees == 1 && walk.files == 0;
    Ok(walk.selection)
}

struct Walk<'a> {
    rules: &'a Rules,
    selection: Selection,
    seen: BTreeSet<PathBuf>,
    /// Real paths of folders.
    real: BTreeMap<PathBuf, PathBuf>,
    missing: Vec<String>,
    trees: usize,
    files: usize,
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.rules.limit.is_some_and(|limit| self.selection.items.len() >= limit)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let before = self.selection.items.len();
        if path.is_dir() && self.rules.frames && self.holds_frames(path) {
            self.files += 1;
            self.take_named(path);
            return Ok(());
        }
        if path.is_dir() {
            self.trees += 1;
            self.folder(path, None)?;
            if self.selection.items.len() == before && !self.is_full() {
                let deeper = if self.rules.recursive { "" } else { " (use -r to go into folders)" };
                let text = format!("no picture found in {}{deeper}", path.display());
                self.selection.warnings.push(text);
            }
            return Ok(());
        }
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[', '{']));
        if let Some(pattern) = pattern
            && !path.exists()
        {
            self.trees += 1;
            let (base, rest) = split_pattern(pattern);
            self.folder(&base, Some(&globs(&[rest])?))?;
            if self.selection.items.len() == before {
                self.selection.warnings.push(format!("nothing matches {pattern}"));
            }
            return Ok(());
        }
        if path.symlink_metadata().is_err() {
            self.missing.push(path.display().to_string());
        }
        self.files += 1;
        self.take_named(path);
        Ok(())
    }

    fn take_named(&mut self, path: &Path) {
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        let name = path.file_name().map_or_else(|| path.to_path_buf(), PathBuf::from);
        self.take(parent, name);
    }

    /// Whether a folder is a video of frames; one that cannot be read is a warning.
    fn holds_frames(&mut self, folder: &Path) -> bool {
        match pictures_of(folder) {
            Ok(pictures) => !pictures.is_empty(),
            Err(error) => {
                self.selection.warnings.push(format!("cannot read {}: {error}", folder.display()));
                false
            }
        }
    }

    fn root(&mut self, root: &Path) -> usize {
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        if let Some(known) = self.selection.roots.iter().position(|r| r == root) {
            return known;
        }
        let place = self.real(root);
        self.selection.roots.push(root.to_path_buf());
        self.selection.root_places.push(place);
        self.selection.roots.len() - 1
    }

    /// The real path of a folder.
    fn real(&mut self, folder: &Path) -> PathBuf {
        if let Some(known) = self.real.get(folder) {
            return known.clone();
        }
        let real = place_of(folder);
        self.real.insert(folder.to_path_buf(), real.clone());
        real
    }

    fn take(&mut self, root: &Path, relative: PathBuf) {
        if self.is_full() {
            return;
        }
        let path = root.join(&relative);
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let place = match path.file_name() {
            Some(name) => self.real(&folder).join(name),
            // `..`, or the root of everything.
            None => place_of(&path),
        };
        if self.seen.insert(place.clone()) {
            let (root, index) = (self.root(root), self.selection.items.len());
            self.selection.items.push(Item { index, path, root, relative, place });
        }
    }

    fn folder(&mut self, root: &Path, pattern: Option<&GlobSet>) -> Result<()> {
        let rules = self.rules;
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let depth = if rules.recursive || pattern.is_some() { usize::MAX } else { 1 };
        let mut walker =
            walkdir::WalkDir::new(root).min_depth(1).max_depth(depth).follow_links(rules.follow);
        if rules.order == Order::Path {
            walker = walker.sort_by_file_name();
        }
        let enters = |entry: &walkdir::DirEntry| {
            let name = entry.file_name();
            let is_hidden = name.as_encoded_bytes().starts_with(b".");
            let relative = entry.path().strip_prefix(root).unwrap_or(entry.path());
            name != OsStr::new(FOLDER)
                && (rules.hidden || !is_hidden)
                && !is_match(&rules.exclude, relative)
        };
        for entry in walker.into_iter().filter_entry(enters) {
            if self.is_full() {
                break;
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.selection.warnings.push(error.to_string());
                    continue;
                }
            };
            // A link to a file is a file; a link to a folder is entered with `--follow` alone.
            let is_file = entry.file_type().is_file()
                || (entry.file_type().is_symlink() && entry.path().is_file());
            let relative = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let wanted = match pattern {
                Some(pattern) => pattern.is_match(relative),
                None => true,
            };
            if rules.frames {
                if entry.file_type().is_dir() && wanted && self.holds_frames(entry.path()) {
                    self.take(root, relative.to_path_buf());
                }
            } else if is_file
                && wanted
                && (pattern.is_some() && rules.include.is_none() || rules.takes(relative))
            {
                let relative = relative.to_path_buf();
                self.take(root, relative);
            } else if is_file && pattern.is_none() && rules.include.is_none() {
                self.selection.skipped.add(relative);
            }
        }
        Ok(())
    }
}

/// The real path of a folder; of one that is not there, the path made absolute.
pub(crate) fn place_of(folder: &Path) -> PathBuf {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    folder
        .canonicalize()
        .or_else(|_| std::path::absolute(folder))
        .unwrap_or_else(|_| folder.to_path_buf())
}

/// The folder before the first part with a pattern, and the rest.
fn split_pattern(pattern: &str) -> (PathBuf, String) {
    let parts: Vec<&str> = pattern.split('/').collect();
    let first =
        parts.iter().position(|p| p.contains(['*', '?', '[', '{'])).unwrap_or(parts.len() - 1);
    let base = parts[..first].join("/");
    let base = if base.is_empty() && pattern.starts_with('/') { "/".to_owned() } else { base };
    (PathBuf::from(base), parts[first..].join("/"))
}

/// A path as records hold it: `/`-separated, bytes that are no UTF-8 percent-encoded. The flag
/// says whether they were; then `%` is encoded too.
pub(crate) fn record_path(path: &Path) -> (String, bool) {
    let is_encoded = path.to_str().is_none();
    (encoded(path, is_encoded), is_encoded)
}

/// A path as text, percent-encoded or (if it is one) as it is.
pub(crate) fn encoded(path: &Path, is_encoded: bool) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        if is_encoded {
            text.push_str(&chunk.valid().replace('%', "%25"));
        } else {
            text.push_str(chunk.valid());
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    if cfg!(windows) { text.replace('\\', "/") } else { text }
}

/// The path that [`encoded`] made a text of.
pub(crate) fn decoded(text: &str, is_encoded: bool) -> PathBuf {
    if !is_encoded {
        return PathBuf::from(text);
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(os_string(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::File::create(path).unwrap();
        }
        folder
    }

    fn rules(flags: &[&str]) -> Rules {
        use clap::FromArgMatches;
        let typed = ["secateur", "caption", "x"].iter().chain(flags);
        let matches = crate::args::command().try_get_matches_from(typed).unwrap();
        let cli = crate::args::Cli::from_arg_matches(&matches).unwrap();
        let Some(crate::args::Command::Caption(args)) = cli.command else { unreachable!() };
        Rules::new(&args).unwrap()
    }

    fn found(folder: &tempfile::TempDir, inputs: &[&str], flags: &[&str]) -> Vec<String> {
        let inputs: Vec<OsString> =
            inputs.iter().map(|i| folder.path().join(i).into_os_string()).collect();
        let selection = select(&inputs, &rules(flags)).unwrap();
        selection.items.iter().map(|i| record_path(&i.relative).0).collect()
    }

    const TREE: &[&str] = &[
        "b.png",
        "a.JPG",
        "notes.txt",
        ".hidden.png",
        "sub/c.webp",
        "sub/deep/d.gif",
        ".git/e.png",
        ".secateur/f.png",
    ];

    #[test]
    fn a_folder_gives_its_pictures_in_order() {
        let folder = tree(TREE);
        assert_eq!(found(&folder, &[""], &[]), ["a.JPG", "b.png"]);
        assert_eq!(
            found(&folder, &[""], &["-r"]),
            ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.gif"]
        );
        assert_eq!(found(&folder, &[""], &["-r", "--limit", "3"]).len(), 3);
    }

    #[test]
    fn hidden_entries_come_only_when_asked_for_and_our_own_never() {
        let folder = tree(TREE);
        let all = found(&folder, &[""], &["-r", "--hidden"]);
        assert!(all.contains(&".hidden.png".to_owned()) && all.contains(&".git/e.png".to_owned()));
        assert!(!all.iter().any(|p| p.contains("secateur")));
    }

    #[test]
    fn include_replaces_the_known_types_and_exclude_prunes_folders() {
        let folder = tree(TREE);
        assert_eq!(found(&folder, &[""], &["--include", "*.txt"]), ["notes.txt"]);
        assert_eq!(found(&folder, &[""], &["-r", "-E", "sub"]), ["a.JPG", "b.png"]);
        assert_eq!(found(&folder, &[""], &["-r", "-E", "sub/*/*"]).len(), 3);
    }

    #[test]
    fn a_file_given_by_name_is_always_taken_and_taken_once() {
        let folder = tree(TREE);
        assert_eq!(found(&folder, &["notes.txt", "./notes.txt", ".hidden.png"], &[]).len(), 2);
        assert_eq!(found(&folder, &["b.png", ""], &[]), ["b.png", "a.JPG"]);
        assert_eq!(found(&folder, &["sub", "sub/../sub", "sub/deep/../c.webp"], &[]), ["c.webp"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_picture_that_two_links_lead_to_by_their_folders_is_taken_once() {
        let folder = tree(&["real/a.png"]);
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        assert_eq!(found(&folder, &["real", "link"], &[]), ["a.png"]);
    }

    #[test]
    fn media_that_are_not_read_are_counted() {
        let folder = tree(&["a.png", "b.heic", "c.HEIC", "d.cr2", "notes.txt", ".h.heic"]);
        let inputs = [folder.path().as_os_str().to_owned()];
        let skipped = |flags: &[&str]| select(&inputs, &rules(flags)).unwrap().skipped.to_string();
        assert_eq!(skipped(&[]), "skipped 3: .heic 2, .cr2 1");
        assert_eq!(skipped(&["--include", "*.png"]), "");
    }

    #[test]
    fn a_pattern_is_expanded_below_its_fixed_part() {
        let folder = tree(TREE);
        assert_eq!(found(&folder, &["sub/*.webp"], &[]), ["c.webp"]);
        assert_eq!(found(&folder, &["**/*.gif"], &[]), ["sub/deep/d.gif"]);
    }

    #[test]
    fn a_missing_file_is_an_item_unless_nothing_exists() {
        let folder = tree(TREE);
        assert_eq!(found(&folder, &["b.png", "gone.png"], &[]), ["b.png", "gone.png"]);
        let inputs = [folder.path().join("gone.png").into_os_string()];
        assert!(select(&inputs, &rules(&[])).is_err());
    }

    #[test]
    fn paths_of_stdin_end_with_newline_or_nul() {
        let lines = read_paths(&b"a b.png\r\n\nc.png"[..], false).unwrap();
        assert_eq!(lines, ["a b.png", "c.png"]);
        let nul = read_paths(&b"a\nb.png\0c.png\0"[..], true).unwrap();
        assert_eq!(nul, ["a\nb.png", "c.png"]);
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_text_are_percent_encoded() {
        let path = PathBuf::from(os_string(b"100%/\xff\xfea.png"));
        assert_eq!(record_path(&path), ("100%25/%FF%FEa.png".to_owned(), true));
        assert_eq!(record_path(Path::new("100%.png")), ("100%.png".to_owned(), false));
        assert_eq!(decoded("100%25/%FF%FEa.png", true), path);
        assert_eq!(decoded("100%.png", false), Path::new("100%.png"));
        assert_eq!(decoded("%4", true), Path::new("%4"));
    }

    #[cfg(unix)]
    #[test]
    fn a_loop_of_links_ends() {
        let folder = tree(&["a.png"]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
        assert_eq!(found(&folder, &[""], &["-r", "--follow"]), ["a.png"]);
    }
}
