//! Aligned memory of the kernels: packed weights and scratch.
//!
//! Invariants
//! - Memory starts on a 64-byte boundary; from 2 MiB on it starts on a 2 MiB boundary and is
//!   advised to lie in huge pages (8 to 17 % on products of one row, 19 to 45 % on 4 to 16 rows).
//! - All bytes are initialised.
#![allow(unsafe_code, reason = "allocation with an alignment, and views of it as numbers")]

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use crate::memory::OutOfMemory;

const HUGE: usize = 2 << 20;

/// A block of bytes, aligned, initialised, of fixed length.
pub(super) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Memory` owns plain bytes; sharing and sending follow `&` and `&mut`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` zeros.
    pub(super) fn zeroed(bytes: usize) -> Self {
        crate::memory::ensure(bytes);
        let align = if bytes >= HUGE { HUGE } else { 64 };
        let layout =
            Layout::from_size_align(bytes.max(64), align).expect("a size below isize::MAX");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { OutOfMemory::refuse(bytes) };
        advise_huge(start, layout.size());
        // SAFETY: the block was just allocated with this size.
        unsafe { start.write_bytes(0, layout.size()) };
        Self { start, layout }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.layout.size()
    }

    /// The whole block as numbers.
    pub(super) fn as_slice<T: bytemuck::Pod>(&self) -> &[T] {
        // SAFETY: the block is initialised and aligned to at least 64 bytes; `T` is plain data.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes() / size_of::<T>())
        }
    }

    /// The whole block as numbers, for writing.
    pub(super) fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and `self` is borrowed for writing.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.as_ptr().cast(),
                self.bytes() / size_of::<T>(),
            )
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.bytes())
    }
}

#[cfg(target_os = "linux")]
fn advise_huge(start: NonNull<u8>, bytes: usize) {
    let whole = bytes / HUGE * HUGE;
    if whole > 0 {
        // SAFETY: the range is ours and starts on a 2 MiB boundary. A refusal changes only speed.
        unsafe { libc::madvise(start.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_start: NonNull<u8>, _bytes: usize) {}

/// Memory that grows on demand and is used again by the next operation.
#[derive(Debug, Default)]
pub(super) struct Scratch(Option<Memory>);

impl Scratch {
    /// At least `len` numbers of unspecified value.
    pub(super) fn take<T: bytemuck::Pod>(&mut self, len: usize) -> &mut [T] {
        let bytes = len * size_of::<T>();
        if self.0.as_ref().is_none_or(|m| m.bytes() < bytes) {
            // The old block goes first: two of them are never held.
            self.0 = None;
            let more = bytes + bytes / 4;
            let whole = if more >= HUGE / 2 { more.next_multiple_of(HUGE) } else { more };
            self.0 = Some(Memory::zeroed(whole));
        }
        &mut self.0.as_mut().expect("just filled").as_mut_slice()[..len]
    }
}

/// Scratch of calls and tasks that are not running: each takes a pair and gives it back.
#[derive(Debug, Default)]
pub(super) struct ScratchPool(Mutex<Vec<[Scratch; 2]>>);

impl ScratchPool {
    /// Runs `f` with scratch that nobody else uses meanwhile.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut [Scratch; 2]) -> R) -> R {
        // Scratch has no invariants that a panic could break.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        let result = f(&mut scratch);
        lock().push(scratch);
        result
    }
}

/// A buffer that several threads write at places that do not overlap.
#[derive(Clone, Copy)]
pub(super) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: every access goes through `unsafe` functions whose callers keep ranges apart.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Hands out a slice that stays borrowed as long as `Shared` is used.
    pub(super) fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// # Safety
    /// The slice given to `new` still lives, and no other thread touches this range.
    #[inline(always)]
    pub(super) unsafe fn range<'a>(self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first + len <= self.len, "a range inside the buffer");
        // SAFETY: inside the slice, which lives and is ours by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}
