//! bf16 products with AVX-512 BF16: one instruction multiplies two inputs of 16 outputs.
#![allow(unsafe_code, reason = "inner loops over packed panels")]

use std::arch::x86_64::*;

use super::PANEL;
use super::finish::BLOCK;

/// One row block, `a: [lines][size]` pairs, times one or two panels into `sums: [size, BLOCK]`.
pub(super) fn multiply(a: &[u32], size: usize, panels: &[u32], words: usize, sums: &mut [f32]) {
    let lines = words / PANEL;
    assert!(a.len() >= lines * size, "packed sizes");
    assert!(panels.len() >= words && sums.len() >= size * BLOCK, "packed sizes");
    // With one panel the second stream repeats the first and its columns are not stored.
    let second = if panels.len() > words { &panels[words..] } else { panels };
    let (a, b0, b1, out) = (a.as_ptr(), panels.as_ptr(), second.as_ptr(), sums.as_mut_ptr());
    macro_rules! size {
        ($n:literal) => {
            // SAFETY: only `Isa::Avx512Bf16` comes here; sizes are checked above.
            unsafe { micro::<$n>(lines, a, b0, b1, out) }
        };
    }
    match size {
        1 => size!(1),
        2 => size!(2),
        3 => size!(3),
        4 => size!(4),
        6 => size!(6),
        8 => size!(8),
        12 => size!(12),
        _ => unreachable!("no block has {size} rows"),
    }
}

/// # Safety
/// The CPU has AVX-512 F and BF16; `a` has `lines` groups of `MR` pairs, both streams have `lines`
/// lines, `out` has `MR` rows of `BLOCK`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn micro<const MR: usize>(
    lines: usize,
    a: *const u32,
    b0: *const u32,
    b1: *const u32,
    out: *mut f32,
) {
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    for k in 0..lines {
        // SAFETY: the caller's word on all three; a vector of words is a vector of bf16 pairs.
        unsafe {
            let (p0, p1) = (b0.add(k * PANEL), b1.add(k * PANEL));
            if MR <= 4 {
                _mm_prefetch::<_MM_HINT_T0>(p0.wrapping_add(512).cast());
                _mm_prefetch::<_MM_HINT_T0>(p1.wrapping_add(512).cast());
            }
            let pairs = |v: __m512i| std::mem::transmute::<__m512i, __m512bh>(v);
            let v0 = pairs(_mm512_loadu_si512(p0.cast()));
            let v1 = pairs(_mm512_loadu_si512(p1.cast()));
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = pairs(_mm512_set1_epi32(*a.add(k * MR + i) as i32));
                acc[0] = _mm512_dpbf16_ps(acc[0], x, v0);
                acc[1] = _mm512_dpbf16_ps(acc[1], x, v1);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: row `i` of the sums.
        unsafe {
            _mm512_storeu_ps(out.add(i * BLOCK), acc[0]);
            _mm512_storeu_ps(out.add(i * BLOCK + PANEL), acc[1]);
        }
    }
}
