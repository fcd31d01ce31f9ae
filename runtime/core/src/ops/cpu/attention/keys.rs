//! Keys and values of one head as blocks of f32 rows, wherever they are stored.
#![allow(unsafe_code, reason = "vector loads and stores")]

use crate::cache::CacheValues;
use crate::ops::cpu::simd::Simd;
use crate::ops::{Heads, Keys};

/// Rows of a block of keys.
pub(super) const BLOCK: usize = 64;

/// Rows of one head: `len` rows of `head_dim` values, `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    store: Store<'a>,
    stride: usize,
    pub(super) len: usize,
    pub(super) head_dim: usize,
    /// Values enter products of bf16: they are rounded.
    rounded: bool,
}

#[derive(Clone, Copy)]
enum Store<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl<'a> Rows<'a> {
    /// Columns of head `head` of rows `first .. first + len` of a tensor.
    pub(super) fn of_heads(
        x: Heads<'a>,
        head: usize,
        first: usize,
        len: usize,
        rounded: bool,
    ) -> Self {
        let stride = x.tensor.cols();
        let offset = x.offset + head * x.head_dim;
        assert!(head < x.heads && offset + x.head_dim <= stride, "the head lies in the tensor");
        let data = x.tensor.host().get(first * stride + offset..).unwrap_or(&[]);
        Self { store: Store::F32(data), stride, len, head_dim: x.head_dim, rounded }.checked()
    }

    /// Keys and values of KV head `head` of a segment.
    pub(super) fn of_keys(keys: Keys<'a>, head: usize, rounded: bool) -> (Self, Self) {
        match keys {
            Keys::Rows { keys, values, first, len } => (
                Self::of_heads(keys, head, first, len, rounded),
                Self::of_heads(values, head, first, len, rounded),
            ),
            Keys::Cached(cache) => {
                let start = head * cache.capacity * cache.head_dim;
                let rows = |values: &'a CacheValues| {
                    let store = match values {
                        CacheValues::F32(v) => Store::F32(&v[start..]),
                        CacheValues::Bf16(v) => Store::Bf16(&v[start..]),
                    };
                    let head_dim = cache.head_dim;
                    Self { store, stride: head_dim, len: cache.len, head_dim, rounded }.checked()
                };
                (rows(&cache.keys), rows(&cache.values))
            }
        }
    }

    fn checked(self) -> Self {
        let have = match self.store {
            Store::F32(v) => v.len(),
            Store::Bf16(v) => v.len(),
        };
        let need = if self.len == 0 { 0 } else { (self.len - 1) * self.stride + self.head_dim };
        assert!(have >= need, "{} rows of a head need {need} values, there are {have}", self.len);
        self
    }

    /// Values of a row of a block: `head_dim` and zeros up to a multiple of 16.
    pub(super) fn padded(self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Rows `first .. first + count` as f32 with their stride: in place if that is how they are
    /// stored, else in `buffer`, which has room for `count` rows of `padded()`.
    ///
    /// Rows in place have no padding; `head_dim` is then a multiple of 16.
    #[inline(always)]
    pub(super) fn block<'b, S: Simd>(
        self,
        s: S,
        first: usize,
        count: usize,
        buffer: &'b mut [f32],
    ) -> (&'b [f32], usize)
    where
        'a: 'b,
    {
        debug_assert!(first + count <= self.len);
        let width = self.padded();
        if let Store::F32(v) = self.store
            && !self.rounded
            && width == self.head_dim
        {
            return (&v[first * self.stride..], self.stride);
        }
        for (r, to) in buffer.chunks_exact_mut(width).take(count).enumerate() {
            let from = (first + r) * self.stride;
            match self.store {
                Store::F32(v) => copy(s, &v[from..][..self.head_dim], to, self.rounded),
                Store::Bf16(v) => widen(s, &v[from..][..self.head_dim], to),
            }
        }
        (buffer, width)
    }

    /// Row `r` rounded to bf16 where it is not yet, into `to`, with zeros behind it.
    #[inline(always)]
    pub(super) fn bf16_row<S: Simd>(self, s: S, r: usize, to: &mut [u16]) {
        let from = r * self.stride;
        let (row, rest) = to.split_at_mut(self.head_dim);
        rest.fill(0);
        match self.store {
            Store::Bf16(v) => row.copy_from_slice(&v[from..][..self.head_dim]),
            Store::F32(v) => narrow(s, &v[from..][..self.head_dim], row),
        }
    }
}

/// Copies a row, rounded to bf16 if asked, with zeros behind it.
#[inline(always)]
pub(super) fn copy<S: Simd>(s: S, from: &[f32], to: &mut [f32], rounded: bool) {
    to[..from.len()].copy_from_slice(from);
    to[from.len()..].fill(0.0);
    if rounded {
        for part in to.chunks_exact_mut(S::LANES) {
            // SAFETY: `LANES` values.
            unsafe { s.store(part.as_mut_ptr(), s.round_bf16(s.load(part.as_ptr()))) };
        }
    }
}

/// bf16 as f32, with zeros behind it.
#[inline(always)]
fn widen<S: Simd>(s: S, from: &[u16], to: &mut [f32]) {
    let whole = from.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES` is at most the length of both.
        unsafe { s.store(to[i..].as_mut_ptr(), s.load_bf16(from.as_ptr().add(i))) };
    }
    for (t, f) in to[whole..].iter_mut().zip(&from[whole..]) {
        *t = f32::from_bits(u32::from(*f) << 16);
    }
    to[from.len()..].fill(0.0);
}

/// f32 rounded to bf16; slices of one length.
#[inline(always)]
pub(in crate::ops::cpu) fn narrow<S: Simd>(s: S, from: &[f32], to: &mut [u16]) {
    assert_eq!(from.len(), to.len(), "slices of one length");
    let whole = from.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES` is at most the length of both.
        unsafe { s.store_bf16(to.as_mut_ptr().add(i), s.load(from.as_ptr().add(i))) };
    }
    for (t, f) in to[whole..].iter_mut().zip(&from[whole..]) {
        *t = half::bf16::from_f32(*f).to_bits();
    }
}
