//! Vectors as arrays of eight: what the compiler's baseline makes of plain loops.
#![allow(unsafe_code, reason = "loads and stores through pointers, as in the other variants")]

use half::bf16;

use super::Simd;

/// The token of the baseline.
#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; 8];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Nearest bf16 (ties to even) as bits; NaN stays NaN.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

impl Simd for Portable {
    type F = V;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller vouches for eight values.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: V) {
        // SAFETY: the caller vouches for eight values.
        unsafe { p.cast::<V>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> V {
        // SAFETY: the caller vouches for eight values.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(b) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: V) {
        // SAFETY: the caller vouches for eight values.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(x.map(bf16_bits)) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u32) -> (V, V) {
        // SAFETY: the caller vouches for eight words.
        let words = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        (words.map(|w| f32::from_bits(w << 16)), words.map(|w| f32::from_bits(w & 0xFFFF_0000)))
    }
    #[inline(always)]
    fn round_bf16(self, x: V) -> V {
        x.map(|v| f32::from_bits(u32::from(bf16_bits(v)) << 16))
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        // The sum leaves no fraction bits; `f32::round_ties_even` is a library call here.
        const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23
        a.map(|x| (x + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn exp2_int(self, n: V) -> V {
        n.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn if_le(self, a: V, b: V, x: V, y: V) -> V {
        std::array::from_fn(|i| if a[i] <= b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn all_equal(self, a: V, b: V) -> bool {
        a == b
    }
    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
}
