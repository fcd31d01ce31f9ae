//! The command's own parsers behind bytes, for the fuzz targets of the workspace: no promise to
//! anybody else.
//!
//! A file that is refused is fine; a panic, or a journal that forgets what it was given, is not.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::args;
use crate::config::{Settings, Source};
use crate::journal::{Access, Journal, Keyed};

/// Puts bytes where a reader of files finds them.
fn on_disk(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    fs::File::create(&path).and_then(|mut f| f.write_all(bytes)).expect("written");
    read(&path);
}

/// A configuration file: read for the program's own flags, as the user's and as the folder's.
pub fn command_config(bytes: &[u8]) {
    on_disk("secateur.toml", bytes, |path| {
        for is_local in [false, true] {
            let _ = Settings::read(&[Source::new(path, is_local)], &args::command());
        }
    });
}

/// A journal: looked at and left alone, then opened for writing, which gives the same records.
pub fn journal(bytes: &[u8]) {
    for keyed in [Keyed::Place, Keyed::Text { extension: ".txt" }] {
        on_disk("journal.jsonl", bytes, |path| {
            let holds = |_: &Path, _: &str| true;
            let looked = Journal::open(path, Access::Look, keyed, holds);
            assert_eq!(fs::read(path).expect("still there"), bytes, "looking changed the file");
            let opened = Journal::open(path, Access::Write, keyed, holds);
            assert_eq!(looked.is_ok(), opened.is_ok(), "looked: {looked:?}, opened: {opened:?}");
            if opened.is_err() {
                assert_eq!(fs::read(path).expect("there"), bytes, "a refusal changed the file");
            }
        });
    }
}
