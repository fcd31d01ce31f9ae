//! Pictures made ready ahead of the model, by several threads, handed over in order.
//!
//! Invariants
//! - A picture is decoded and brought to the model's size by one thread, which then lets the original
//!   go. Before it decodes, it takes what the header says decoding holds from [`DECODING_BYTES`]: the
//!   threads together never hold more, whatever their number and the pictures' sizes.
//! - At most `ahead` pictures and about `budget` bytes of ready ones wait; the picture that the
//!   consumer needs next is always let through, and who holds bytes for decoding waits for nobody, so
//!   that nothing can block for ever.
//! - The order is that of the list, whatever thread is faster: who runs beside whom does not depend on
//!   timing.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use secateur::Clip;
use secateur::image::{Header, load, probe};

use crate::failure::of_input;
use crate::identity::Stamp;
use crate::record::{ErrorInfo, ErrorKind};
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

/// Something that waits, and how much memory it takes.
pub(crate) trait Ready {
    /// Bytes of its pixels.
    fn bytes(&self) -> usize;
}

struct State<T> {
    next: usize,
    taken: usize,
    ready: BTreeMap<usize, Result<T, ErrorInfo>>,
    /// Of those in `ready`.
    bytes: usize,
    /// Held by threads that decode.
    decoding: u64,
    is_stopped: bool,
}

/// What is made of picture number `index`, in the thread that decoded it.
type Prepare<'a, T> = Box<dyn Fn(usize, Decoded) -> Result<T, ErrorInfo> + Sync + 'a>;

/// The pictures of a job on their way to the model.
pub(crate) struct Feed<'a, T> {
    paths: Vec<&'a Path>,
    frames: Frames,
    ahead: usize,
    budget: usize,
    prepare: Prepare<'a, T>,
    state: Mutex<State<T>>,
    changed: Condvar,
}

/// Ready pixels that may wait.
const BUDGET_BYTES: usize = 128 << 20;
/// What decoding may hold at a time; a picture that needs more than this decodes alone.
const DECODING_BYTES: u64 = 320_000_000;

impl<'a, T: Ready> Feed<'a, T> {
    /// A feed of `paths`, of which `ahead` may be ready before they are needed.
    pub(crate) fn new(
        paths: Vec<&'a Path>,
        frames: Frames,
        ahead: usize,
        prepare: impl Fn(usize, Decoded) -> Result<T, ErrorInfo> + Sync + 'a,
    ) -> Self {
        Self {
            paths,
            frames,
            ahead: ahead.max(1),
            budget: BUDGET_BYTES,
            prepare: Box::new(prepare),
            state: Mutex::new(State {
                next: 0,
                taken: 0,
                ready: BTreeMap::new(),
                bytes: 0,
                decoding: 0,
                is_stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State<T>>) -> MutexGuard<'s, State<T>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the bytes that decoding a picture holds; gives what was taken.
    fn hold(&self, bytes: u64) -> u64 {
        let bytes = bytes.min(DECODING_BYTES);
        let mut state = self.state();
        while !state.is_stopped && state.decoding + bytes > DECODING_BYTES {
            state = self.wait(state);
        }
        state.decoding += bytes;
        bytes
    }

    /// Reads and prepares one picture or video.
    fn make(&self, index: usize) -> Result<T, ErrorInfo> {
        let path = self.paths[index];
        let stamp = Stamp::of(path);
        let header = header(path, &self.frames)?;
        // Frames are many: one video at a time.
        let held = self.hold(header.map_or(DECODING_BYTES, |h| h.peak_bytes));
        let made = decode(path, header, stamp, &self.frames).and_then(|decoded| {
            // A panic is our bug; it costs one record, not a thread that others wait for.
            catch_unwind(AssertUnwindSafe(|| (self.prepare)(index, decoded))).unwrap_or_else(|_| {
                Err(ErrorInfo::new(ErrorKind::Internal, "a picture could not be prepared"))
            })
        });
        self.state().decoding -= held;
        self.changed.notify_all();
        made
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
            let made = self.make(index);
            let mut state = self.state();
            state.bytes += made.as_ref().map_or(0, T::bytes);
            state.ready.insert(index, made);
            self.changed.notify_all();
        }
    }

    /// The next picture, in order, once it is there; `None` when all were taken.
    pub(crate) fn take(&self) -> Option<Result<T, ErrorInfo>> {
        let mut state = self.state();
        while state.taken < self.paths.len() {
            let index = state.taken;
            let Some(made) = state.ready.remove(&index) else {
                state = self.wait(state);
                continue;
            };
            state.bytes -= made.as_ref().map_or(0, T::bytes);
            state.taken += 1;
            self.changed.notify_all();
            return Some(made);
        }
        None
    }

    /// Ends the threads.
    pub(crate) fn stop(&self) {
        self.state().is_stopped = true;
        self.changed.notify_all();
    }
}

/// What a picture's header says; a video has none.
fn header(path: &Path, frames: &Frames) -> Result<Option<Header>, ErrorInfo> {
    if video::is_video(path) {
        return Ok(None);
    }
    probe(path, frames.limits()).map(Some).map_err(|e| of_input(&e, path))
}

/// Reads one picture or, where there is no header, video.
fn decode(
    path: &Path,
    header: Option<Header>,
    stamp: Option<Stamp>,
    frames: &Frames,
) -> Result<Decoded, ErrorInfo> {
    let start = Instant::now();
    let clip = match header {
        Some(_) => load(path, frames.limits()),
        None => frames.load(path),
    };
    let clip = clip.map_err(|e| of_input(&e, path))?;
    let orientation = header.map_or(1, |h| h.orientation);
    Ok(Decoded { clip, orientation, ms: start.elapsed().as_secs_f64() * 1e3, stamp })
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Ready for Decoded {
        fn bytes(&self) -> usize {
            self.clip.frames().iter().map(|f| f.rgb.len()).sum()
        }
    }

    fn as_it_is<'a>(paths: Vec<&'a Path>, ahead: usize) -> Feed<'a, Decoded> {
        Feed::new(paths, Frames::pictures_only(), ahead, |_, decoded| Ok(decoded))
    }

    #[test]
    fn threads_together_hold_no_more_than_the_bytes_for_decoding() {
        let feed = as_it_is(Vec::new(), 1);
        let most = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for i in 0..8u64 {
                let (feed, most) = (&feed, &most);
                scope.spawn(move || {
                    for j in 0..50 {
                        // Some need more than there is: they decode alone.
                        let held = feed.hold((i + 1) * (j % 7 + 1) * 10_000_000);
                        let all = feed.state().decoding;
                        most.fetch_max(all, std::sync::atomic::Ordering::Relaxed);
                        feed.state().decoding -= held;
                        feed.changed.notify_all();
                    }
                });
            }
        });
        assert_eq!(feed.state().decoding, 0);
        assert!(most.into_inner() <= DECODING_BYTES);
    }

    #[test]
    fn pictures_come_in_order_whatever_thread_is_faster() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..40u32).map(|i| folder.path().join(format!("{i}.png"))).collect();
        for (i, path) in paths.iter().enumerate() {
            if i % 7 != 3 {
                image::RgbImage::new(i as u32 + 1, 1).save(path).unwrap();
            }
        }
        let mut feed = as_it_is(paths.iter().map(|p| &**p).collect(), 3);
        feed.budget = 10;
        let mut widths = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| feed.work());
            }
            while let Some(made) = feed.take() {
                widths.push(made.map_err(|e| e.kind).map(|d| d.clip.width()));
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
        let feed = as_it_is(vec![path; 1000], 2);
        std::thread::scope(|scope| {
            scope.spawn(|| feed.work());
            assert!(feed.take().is_some());
            feed.stop();
        });
    }
}
