//! An append-only file of JSON lines that survives being killed.
//!
//! Invariants
//! - One line, one `write`; `fsync` every two seconds and at the end, and then the path must still
//!   name the file: lines in a file that was removed are lost, and that is an error.
//! - A torn last line is cut off when the file is opened; a line in the middle that is no JSON
//!   object is an error, because then the file is not one of ours.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

type Object = serde_json::Map<String, serde_json::Value>;

const SYNC_EVERY: Duration = Duration::from_secs(2);

/// The open file.
#[derive(Debug)]
pub(crate) struct LineFile {
    file: File,
    path: PathBuf,
    /// Bytes so far.
    end: u64,
    synced: Instant,
    is_dirty: bool,
}

impl LineFile {
    /// Opens or makes the file, hands every line to `visit` with the bytes where it stands, and
    /// cuts off a torn last one.
    ///
    /// # Errors
    /// The file system's, a line that is no JSON object, and what `visit` refuses.
    pub(crate) fn open(
        path: &Path,
        visit: impl FnMut(Object, Range<u64>) -> Result<()>,
    ) -> Result<Self> {
        let cannot = || format!("cannot write {}", path.display());
        let mut file = crate::own::open(path).with_context(cannot)?;
        let (whole, lacks_newline) = read(&file, path, visit)?;
        let prepare = |file: &mut File| -> io::Result<()> {
            file.set_len(whole)?;
            file.seek(SeekFrom::Start(whole))?;
            if lacks_newline { file.write_all(b"\n") } else { Ok(()) }
        };
        prepare(&mut file).with_context(cannot)?;
        let (path, end) = (path.to_path_buf(), whole + u64::from(lacks_newline));
        Ok(Self { file, path, end, synced: Instant::now(), is_dirty: false })
    }

    /// Hands every whole line of a file to `visit` and changes nothing; no file, no line.
    ///
    /// # Errors
    /// As [`LineFile::open`].
    pub(crate) fn look(
        path: &Path,
        visit: impl FnMut(Object, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let file =
            crate::own::look(path).with_context(|| format!("cannot read {}", path.display()))?;
        file.map_or(Ok(()), |file| read(&file, path, visit).map(|_| ()))
    }

    /// Appends one line; returns the bytes where it stands.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub(crate) fn append(&mut self, line: &impl serde::Serialize) -> Result<Range<u64>> {
        let mut bytes = serde_json::to_vec(line).context("a record cannot be written as JSON")?;
        bytes.push(b'\n');
        self.file.write_all(&bytes).with_context(|| self.refused())?;
        self.is_dirty = true;
        let start = self.end;
        self.end += bytes.len() as u64;
        Ok(start..self.end)
    }

    /// Everything that stands in the file.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Makes everything durable if the last time is two seconds ago.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn sync_if_due(&mut self) -> Result<()> {
        if self.synced.elapsed() >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The file system's; a file that is not at its path any more.
    pub(crate) fn sync(&mut self) -> Result<()> {
        if self.is_dirty {
            self.file.sync_data().with_context(|| self.refused())?;
            self.is_dirty = false;
        }
        if !crate::own::is_in_place(&self.file, &self.path).with_context(|| self.refused())? {
            bail!(
                "{} was removed or replaced while it was written to: what this run wrote there is \
                 lost; run the same command again",
                self.path.display()
            );
        }
        self.synced = Instant::now();
        Ok(())
    }

    fn refused(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

/// Visits the whole lines. Returns their bytes, and whether the last of them lacks its newline.
fn read(
    file: &File,
    path: &Path,
    mut visit: impl FnMut(Object, Range<u64>) -> Result<()>,
) -> Result<(u64, bool)> {
    let at = |number: usize| format!("{}, line {number}", path.display());
    let mut reader = BufReader::new(file);
    let (mut whole, mut number) = (0u64, 0);
    let mut lacks_newline = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .read_until(b'\n', &mut line)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok((whole, lacks_newline));
        }
        number += 1;
        match serde_json::from_slice(&line) {
            Ok(serde_json::Value::Object(object)) => {
                visit(object, whole..whole + read as u64).with_context(|| at(number))?;
                lacks_newline = !line.ends_with(b"\n");
            }
            // A crash of the machine may leave the last line torn or full of zeros. Anything
            // else at the end is not ours to cut off.
            _ if matches!(line.first(), Some(b'{' | b'\0'))
                && reader.fill_buf().is_ok_and(<[u8]>::is_empty) =>
            {
                return Ok((whole, lacks_newline));
            }
            _ if line.trim_ascii().is_empty() => {}
            _ => bail!("{}: not a JSON object; this file was not written by secateur", at(number)),
        }
        whole += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &[u8]) -> (Result<usize>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j.jsonl");
        File::create(&path).unwrap().write_all(text).unwrap();
        let mut lines = 0;
        let opened = LineFile::open(&path, |_, _| {
            lines += 1;
            Ok(())
        });
        let opened = opened.and_then(|mut file| file.append(&serde_json::json!({"z": 1})));
        (opened.map(|_| lines), std::fs::read(&path).unwrap())
    }

    #[test]
    fn a_torn_last_line_is_cut_off_at_every_byte() {
        let text = b"{\"a\":1}\n{\"b\":\"x}y\"}\n";
        for cut in 8..text.len() {
            let (lines, after) = content(&text[..cut]);
            // The closing brace is there: nothing is torn but the line's end.
            let whole = cut == text.len() - 1;
            assert_eq!(lines.unwrap(), if whole { 2 } else { 1 }, "cut at {cut}");
            assert!(after.starts_with(b"{\"a\":1}\n"));
            assert!(after.ends_with(b"\n{\"z\":1}\n"));
        }
    }

    #[test]
    fn a_last_line_that_only_lacks_its_end_is_kept() {
        let (lines, after) = content(b"{\"a\":1}\n{\"b\":2}");
        assert_eq!(lines.unwrap(), 2);
        assert_eq!(after, b"{\"a\":1}\n{\"b\":2}\n{\"z\":1}\n");
    }

    #[test]
    fn lines_are_found_again_where_they_were_said_to_stand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j.jsonl");
        crate::write::replace_one(&path, b"{\"a\":1}\n\n{\"b\":2}").unwrap();
        let mut places = Vec::new();
        let mut file = LineFile::open(&path, |_, place| {
            places.push(place);
            Ok(())
        })
        .unwrap();
        places.push(file.append(&serde_json::json!({"z": 1})).unwrap());
        let bytes = file.bytes().unwrap();
        let found = places.iter().map(|p| bytes[p.start as usize..p.end as usize].trim_ascii());
        assert!(found.eq([&b"{\"a\":1}"[..], b"{\"b\":2}", b"{\"z\":1}"]), "{places:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_was_removed_is_noticed_when_it_is_made_durable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j.jsonl");
        let mut file = LineFile::open(&path, |_, _| Ok(())).unwrap();
        file.sync().unwrap();
        std::fs::remove_file(&path).unwrap();
        file.append(&serde_json::json!({"a": 1})).unwrap();
        let error = file.sync().unwrap_err().to_string();
        assert!(error.contains("j.jsonl was removed"), "{error}");
    }

    #[test]
    fn zeros_at_the_end_are_cut_off() {
        let (lines, after) = content(b"{\"a\":1}\n\0\0\0\0\0\0");
        assert_eq!(lines.unwrap(), 1);
        assert_eq!(after, b"{\"a\":1}\n{\"z\":1}\n");
    }

    #[test]
    fn a_file_of_somebody_else_is_refused_and_left_alone() {
        for text in [&b"my notes\nmore notes\n"[..], b"one line", b"[1, 2]"] {
            let (lines, after) = content(text);
            let error = format!("{:#}", lines.unwrap_err());
            assert!(
                error.contains("line 1") && error.contains("not written by secateur"),
                "{error}"
            );
            assert_eq!(after, text);
        }
    }
}
