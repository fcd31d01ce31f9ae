//! One vocabulary of vector instructions, so that a loop is written once for every CPU.
//!
//! Invariants
//! - A token (`Avx512`, `Avx2`, `Portable`) exists only where its instructions do: [`run`] makes
//!   one from an [`Isa`], which is the proof.
//! - Every function here is `#[inline(always)]` and holds no state, so that it takes on the
//!   features of the [`Job`] it is inlined into. A job's `run` must be `#[inline(always)]` as well.
//! - `fma` is one rounding on AVX-512 and AVX2 and two in `Portable`: results differ between
//!   variants in the last bits, never within one.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod portable;

use super::detect::Isa;

/// A vector of `LANES` f32 and what can be done with it.
#[allow(unsafe_code, reason = "loads and stores go through pointers")]
pub(super) trait Simd: Copy {
    /// The vector.
    type F: Copy;
    /// Its number of lanes; divides 16.
    const LANES: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `LANES` values can be read at `p`.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// `LANES` values can be written at `p`.
    unsafe fn store(self, p: *mut f32, x: Self::F);
    /// bf16 bit patterns as f32.
    ///
    /// # Safety
    /// `LANES` values can be read at `p`.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Rounds to bf16, nearest even.
    ///
    /// # Safety
    /// `LANES` values can be written at `p`.
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F);
    /// `LANES` pairs of bf16 as two vectors: the lower and the upper halves.
    ///
    /// # Safety
    /// `LANES` words can be read at `p`.
    unsafe fn load_pairs(self, p: *const u32) -> (Self::F, Self::F);
    /// The nearest bf16 (ties to even), as f32.
    fn round_bf16(self, x: Self::F) -> Self::F;

    /// Asks for the line at `p`, which need not be readable.
    #[inline(always)]
    fn prefetch(self, p: *const u32) {
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "a hint, without effect on memory")]
        // SAFETY: a prefetch of any address is allowed and SSE is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }
    /// The same, into the second level only.
    #[inline(always)]
    fn prefetch_far(self, p: *const u32) {
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "a hint, without effect on memory")]
        // SAFETY: as above.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` if one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` if one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest integer.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^n` for integers `-126 <= n <= 127`.
    fn exp2_int(self, n: Self::F) -> Self::F;
    /// Lane by lane `if a <= b { x } else { y }`; false if one is NaN.
    fn if_le(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Whether `a == b` in every lane.
    fn all_equal(self, a: Self::F, b: Self::F) -> bool;
    /// The sum of the lanes, in a fixed order.
    fn sum(self, a: Self::F) -> f32;

    /// `2^x` for `x <= 0` or NaN, to 17 bits; zero from -126 down, `-inf` included.
    #[inline(always)]
    fn exp2_negative(self, x: Self::F) -> Self::F {
        self.exp(self.mul(x, self.splat(std::f32::consts::LN_2)))
    }

    /// `exp x`, to two units in the last place; zero below `-87.3`, at most `exp 88`.
    ///
    /// `2^n exp r` with `n = round(x / ln 2)` and the Cephes polynomial (`expf`, degree 5 on
    /// `|r| <= ln 2 / 2`).
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let floor = self.splat(-87.3);
        let v = self.max(self.min(x, self.splat(88.0)), floor);
        let n = self.round(self.mul(v, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-0.693_359_4), v);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        let e = self.mul(p, self.exp2_int(n));
        // `x <= x` is false for NaN alone, which is handed on.
        self.if_le(x, floor, self.splat(0.0), self.if_le(x, x, e, x))
    }

    /// `1 / (1 + exp -x)` as `exp x / (1 + exp x)`, which is zero for very negative `x`.
    #[inline(always)]
    fn sigmoid(self, x: Self::F) -> Self::F {
        let e = self.exp(x);
        self.div(e, self.add(self.splat(1.0), e))
    }

    /// `tanh x` as `2 sigmoid(2 x) - 1`: absolute error 1e-7.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        let two = self.splat(2.0);
        self.fma(two, self.sigmoid(self.mul(two, x)), self.splat(-1.0))
    }

    /// `erf x`: the rational approximation of Eigen's `generic_fast_erf_float`, absolute error 3e-7;
    /// exactly 1 from 3.9 on, so that `x (1 + erf x)` vanishes for negative `x`.
    #[inline(always)]
    fn erf(self, x: Self::F) -> Self::F {
        let one = self.splat(1.0);
        let x = self.max(self.min(x, self.splat(4.0)), self.splat(-4.0));
        let x2 = self.mul(x, x);
        let mut p = self.splat(-2.726_142_3e-10);
        for c in [
            2.770_681_5e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ] {
            p = self.fma(p, x2, self.splat(c));
        }
        let mut q = self.splat(-1.456_607_2e-5);
        for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
            q = self.fma(q, x2, self.splat(c));
        }
        let y = self.if_le(self.splat(3.9), x, one, self.div(self.mul(x, p), q));
        self.if_le(x, self.splat(-3.9), self.splat(-1.0), y)
    }
}

/// A loop that runs under the instructions of a CPU.
pub(super) trait Job {
    /// What it returns.
    type Out;
    /// The loop. Mark it `#[inline(always)]`: else it is compiled without the CPU's features.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs a job under the widest vectors that `isa` has.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "entering code compiled for more features than the crate's baseline")]
#[inline]
pub(super) fn run<J: Job>(isa: Isa, job: J) -> J::Out {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn wide<J: Job>(job: J) -> J::Out {
        job.run(avx512::Avx512::new())
    }
    #[target_feature(enable = "avx2,fma")]
    fn middle<J: Job>(job: J) -> J::Out {
        job.run(avx2::Avx2::new())
    }
    match isa {
        Isa::Scalar => job.run(portable::Portable),
        // SAFETY: an `Isa` of this rank exists only where the CPU has these features.
        Isa::Avx2 => unsafe { middle(job) },
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { wide(job) },
    }
}

/// Runs a job.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(super) fn run<J: Job>(_isa: Isa, job: J) -> J::Out {
    job.run(portable::Portable)
}
