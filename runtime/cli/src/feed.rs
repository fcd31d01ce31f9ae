//! Pictures decoded ahead of the model, by several threads, handed over in order.
//!
//! Invariants
//! - At most `ahead` pictures and about `budget` bytes of pixels wait; the picture that the
//!   consumer needs next is always let through, so that nothing can block for ever.
//! - The order is that of the list, whatever thread is faster: batches do not depend on timing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use secateur::Clip;
use secateur::image::{load, probe};

use crate::failure::of_input;
use crate::identity::Stamp;
use crate::record::ErrorInfo;
use crate::video::{self, Frames};

/// A picture in memory.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// Its pixels.
    pub(crate) clip: Clip,
    /// EXIF orientation, 1 to 8, that was applied.
    pub(crate) orientation: u8,
    /// What that took.
    pub(crate) ms: f64,
    /// The file as it was before it was read.
    pub(crate) stamp: Option<Stamp>,
}

#[derive(Debug, Default)]
struct State {
    next: usize,
    taken: usize,
    ready: BTreeMap<usize, Result<Decoded, ErrorInfo>>,
    bytes: usize,
    is_stopped: bool,
}

/// The pictures of a job on their way to the model.
#[derive(Debug)]
pub(crate) struct Feed<'a> {
    paths: Vec<&'a Path>,
    frames: Frames,
    ahead: usize,
    budget: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// Pixels that may wait.
const BUDGET_BYTES: usize = 256 << 20;

impl<'a> Feed<'a> {
    /// A feed of `paths`, of which `ahead` may be decoded before they are needed.
    pub(crate) fn new(paths: Vec<&'a Path>, frames: Frames, ahead: usize) -> Self {
        Self {
            paths,
            frames,
            ahead: ahead.max(1),
            budget: BUDGET_BYTES,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Decodes until nothing is left or the feed is stopped: the body of each thread.
    pub(crate) fn work(&self) {
        loop {
            let index = {
                let mut state = self.state();
                while !state.is_stopped
                    && state.next < self.paths.len()
                    && state.next > state.taken
                    && (state.next - state.taken >= self.ahead || state.bytes > self.budget)
                {
                    state = self.wait(state);
                }
                if state.is_stopped || state.next >= self.paths.len() {
                    return;
                }
                state.next += 1;
                state.next - 1
            };
            let decoded = decode(self.paths[index], &self.frames);
            let mut state = self.state();
            state.bytes += decoded.as_ref().map_or(0, bytes);
            state.ready.insert(index, decoded);
            self.changed.notify_all();
        }
    }

    /// The next pictures, at most `most`, in order; none when all were taken.
    pub(crate) fn take(&self, most: usize) -> Vec<Result<Decoded, ErrorInfo>> {
        let mut batch = Vec::new();
        let mut state = self.state();
        while batch.len() < most && state.taken < self.paths.len() {
            let index = state.taken;
            let Some(decoded) = state.ready.remove(&index) else {
                state = self.wait(state);
                continue;
            };
            state.bytes -= decoded.as_ref().map_or(0, bytes);
            state.taken += 1;
            self.changed.notify_all();
            batch.push(decoded);
        }
        batch
    }

    /// Ends the threads.
    pub(crate) fn stop(&self) {
        self.state().is_stopped = true;
        self.changed.notify_all();
    }
}

fn bytes(decoded: &Decoded) -> usize {
    decoded.clip.frames().iter().map(|f| f.rgb.len()).sum()
}

/// Reads one picture or video.
pub(crate) fn decode(path: &Path, frames: &Frames) -> Result<Decoded, ErrorInfo> {
    let stamp = Stamp::of(path);
    let start = Instant::now();
    if video::is_video(path) {
        let clip = frames.load(path).map_err(|e| of_input(&e, path))?;
        return Ok(Decoded {
            clip,
            orientation: 1,
            ms: start.elapsed().as_secs_f64() * 1e3,
            stamp,
        });
    }
    let limits = frames.limits();
    let header = probe(path, limits).map_err(|e| of_input(&e, path))?;
    let clip = load(path, limits).map_err(|e| of_input(&e, path))?;
    Ok(Decoded {
        clip,
        orientation: header.orientation,
        ms: start.elapsed().as_secs_f64() * 1e3,
        stamp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::ErrorKind;

    #[test]
    fn pictures_come_in_order_whatever_thread_is_faster() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..40u32).map(|i| folder.path().join(format!("{i}.png"))).collect();
        for (i, path) in paths.iter().enumerate() {
            if i % 7 != 3 {
                image::RgbImage::new(i as u32 + 1, 1).save(path).unwrap();
            }
        }
        let mut feed = Feed::new(paths.iter().map(|p| &**p).collect(), Frames::pictures_only(), 3);
        feed.budget = 10;
        let mut widths = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| feed.work());
            }
            loop {
                let batch = feed.take(7);
                if batch.is_empty() {
                    break;
                }
                widths.extend(
                    batch.into_iter().map(|d| d.map_err(|e| e.kind).map(|d| d.clip.width())),
                );
            }
        });
        let expected: Vec<_> = (0..40)
            .map(|i| if i % 7 == 3 { Err(ErrorKind::NotFound) } else { Ok(i + 1) })
            .collect();
        assert_eq!(widths, expected);
    }

    #[test]
    fn a_stopped_feed_lets_its_threads_go() {
        let path = Path::new("/no/such.png");
        let feed = Feed::new(vec![path; 1000], Frames::pictures_only(), 2);
        std::thread::scope(|scope| {
            scope.spawn(|| feed.work());
            assert_eq!(feed.take(1).len(), 1);
            feed.stop();
        });
    }
}
