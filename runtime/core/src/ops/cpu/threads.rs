//! The threads of one operation set.
//!
//! A decode step is some 150 operations of 50 to 500 µs, so handing one over must cost little:
//! workers look for the next job for a short while before they sleep, and inside
//! [`Threads::keep_awake`] (a decode step, a prefill) for longer.
//!
//! Invariants
//! - A job is one closure that every thread may enter; work is taken from a counter inside it. A
//!   worker that comes late finds the job closed, so nobody waits for a thread that never started.
//! - Two callers at once: the second runs its job alone. Which thread does what never changes a
//!   result.
//! - A panic in a worker is raised again in the caller, after every thread has left the job.
#![allow(unsafe_code, reason = "a job borrows the caller's stack while the caller waits for it")]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::memory::OutOfMemory;

/// How long an idle worker looks for a job before it sleeps: about the price of waking it.
const LOOK: Duration = Duration::from_micros(50);
/// The same inside [`Threads::keep_awake`]: longer than the serial work between two operations.
const LOOK_AWAKE: Duration = Duration::from_micros(500);
/// Set in [`Board::door`] while a job may be entered; the other bits count who is inside.
const OPEN: u32 = 1 << 31;

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// What caller and workers share.
struct Board {
    /// The job behind the door; valid while the door is open or somebody is inside.
    job: UnsafeCell<*const Job<'static>>,
    door: AtomicU32,
    /// Raised with every job: what sleeping and looking workers wait for.
    number: AtomicU32,
    sleeping: AtomicU32,
    awake: AtomicU32,
    failed: AtomicBool,
    /// Bytes that a worker was refused; 0 if none was.
    refused: AtomicUsize,
    stop: AtomicBool,
}

// SAFETY: `job` is written only by the caller that holds the submit lock while the door is closed
// and nobody is inside, and read only by threads that entered through the door.
unsafe impl Sync for Board {}
// SAFETY: the pointer is only followed under the rule above.
unsafe impl Send for Board {}

/// A set of threads: the caller and `len() - 1` workers.
pub(super) struct Threads {
    board: Arc<Board>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    submit: Mutex<()>,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Threads({})", self.len())
    }
}

impl Threads {
    /// `len` threads, the caller included.
    pub(super) fn new(len: usize) -> Self {
        let board = Arc::new(Board {
            job: UnsafeCell::new(std::ptr::from_ref::<Job<'static>>(&|_: usize| {})),
            door: AtomicU32::new(0),
            number: AtomicU32::new(0),
            sleeping: AtomicU32::new(0),
            awake: AtomicU32::new(0),
            failed: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (1..len.max(1))
            .filter_map(|index| {
                let board = board.clone();
                // Fewer threads than asked for are slower, not wrong.
                std::thread::Builder::new()
                    .name(format!("secateur-{index}"))
                    .spawn(move || work(&board, index))
                    .ok()
            })
            .collect();
        let handles = workers.iter().map(|w| w.thread().clone()).collect();
        Self { board, workers, handles, submit: Mutex::new(()) }
    }

    /// Threads, the caller included.
    pub(super) fn len(&self) -> usize {
        self.workers.len() + 1
    }

    /// Lets every thread enter `job`, with its index (the caller is 0), and returns when all have
    /// left. A thread may enter more than once; the job takes its work from a counter.
    pub(super) fn enter(&self, job: &Job<'_>) {
        // A poisoned lock only says that a job panicked.
        let guard = match self.submit.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(p)) => Some(p.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        };
        if guard.is_none() || self.workers.is_empty() {
            job(0);
            return;
        }
        let board = &*self.board;
        // SAFETY: the lock is ours, the door is closed and nobody is inside (`Leave` of the job
        // before saw to it). The lifetime is erased: `Leave` below waits for all who enter.
        unsafe {
            *board.job.get() =
                std::mem::transmute::<*const Job<'_>, *const Job<'static>>(std::ptr::from_ref(job));
        }
        board.door.store(OPEN, Ordering::Release);
        board.number.fetch_add(1, Ordering::SeqCst);
        if board.sleeping.load(Ordering::SeqCst) > 0 {
            self.handles.iter().for_each(Thread::unpark);
        }
        /// Closes the door and waits, also when the caller's share panics.
        struct Leave<'a>(&'a Board);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.door.fetch_and(!OPEN, Ordering::AcqRel);
                let mut turns = 0u32;
                while self.0.door.load(Ordering::Acquire) != 0 {
                    turns += 1;
                    if turns < 4096 {
                        std::hint::spin_loop();
                    } else {
                        // The worker may have lost its core to another process.
                        std::thread::yield_now();
                    }
                }
            }
        }
        let leave = Leave(board);
        job(0);
        drop(leave);
        if board.failed.swap(false, Ordering::AcqRel) {
            let refused = board.refused.swap(0, Ordering::AcqRel);
            if refused > 0 {
                OutOfMemory::refuse(refused);
            }
            panic!("a worker thread panicked in an operation");
        }
    }

    /// Runs `task(i)` for `0 <= i < tasks` on all threads, in no particular order.
    pub(super) fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        let next = AtomicUsize::new(0);
        self.enter(&|_| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    break;
                }
                task(i);
            }
        });
    }

    /// Splits `0..len` into ranges of at least `grain` and runs `task(first, count)` for each.
    pub(super) fn ranges(&self, len: usize, grain: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        // Four ranges a thread: a thread that lost its core holds up a quarter of its share.
        let parts = (len / grain.max(1)).clamp(1, self.len() * 4);
        let size = len.div_ceil(parts).max(1);
        self.each(len.div_ceil(size), &|i| task(i * size, size.min(len - i * size)));
    }

    /// Runs `f` with workers that stay awake between jobs.
    pub(super) fn keep_awake(&self, f: &mut (dyn FnMut() + Send)) {
        struct Sleep<'a>(&'a Board);
        impl Drop for Sleep<'_> {
            fn drop(&mut self) {
                self.0.awake.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.board.awake.fetch_add(1, Ordering::Relaxed);
        let _sleep = Sleep(&self.board);
        f();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.board.stop.store(true, Ordering::SeqCst);
        self.board.number.fetch_add(1, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of jobs; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

/// The life of a worker.
fn work(board: &Board, index: usize) {
    let mut seen = 0;
    loop {
        seen = next_number(board, seen);
        if board.stop.load(Ordering::SeqCst) {
            return;
        }
        let mut door = board.door.load(Ordering::Relaxed);
        let entered = loop {
            if door & OPEN == 0 {
                break false;
            }
            match board.door.compare_exchange_weak(
                door,
                door + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => break true,
                Err(now) => door = now,
            }
        };
        if !entered {
            continue;
        }
        // SAFETY: entered through the open door: the pointer is set, and the caller keeps what it
        // points to until this thread has left.
        let job = unsafe { &**board.job.get() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(index))) {
            if let Some(OutOfMemory { bytes }) = OutOfMemory::of(&*panic) {
                board.refused.store(bytes, Ordering::Release);
            }
            board.failed.store(true, Ordering::Release);
        }
        board.door.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until the job number differs from `seen`: looks for a while, then sleeps.
fn next_number(board: &Board, seen: u32) -> u32 {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            let number = board.number.load(Ordering::Acquire);
            if number != seen {
                return number;
            }
            std::hint::spin_loop();
        }
        let awake = board.awake.load(Ordering::Relaxed) > 0;
        if start.elapsed() > if awake { LOOK_AWAKE } else { LOOK } {
            break;
        }
    }
    board.sleeping.fetch_add(1, Ordering::SeqCst);
    let number = loop {
        let number = board.number.load(Ordering::SeqCst);
        if number != seen {
            break number;
        }
        std::thread::park();
    };
    board.sleeping.fetch_sub(1, Ordering::SeqCst);
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = Threads::new(threads);
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.each(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn ranges_cover_everything_once() {
        let pool = Threads::new(3);
        for (len, grain) in [(0, 1), (1, 8), (17, 4), (1000, 1), (5, 100)] {
            let counts: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
            pool.ranges(len, grain, &|first, count| {
                counts[first..first + count].iter().for_each(|c| {
                    c.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{len} by {grain}");
        }
    }

    #[test]
    fn callers_at_once_and_nested_jobs_do_not_wait_for_each_other() {
        let pool = Threads::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        pool.each(3, &|_| {
                            pool.each(2, &|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 3 * 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_live_on() {
        let pool = Threads::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.each(64, &|i| assert_ne!(i, 40, "on purpose"));
        }));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        pool.each(10, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 10);
    }
}
