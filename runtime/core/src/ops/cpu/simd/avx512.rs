//! Sixteen lanes with AVX-512 F, BW, DQ and VL.
#![allow(unsafe_code, reason = "CPU instructions beyond the crate's baseline")]

use std::arch::x86_64::*;

use super::Simd;

/// Exists only in code compiled for AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(in crate::ops::cpu) struct Avx512(());

impl Avx512 {
    /// A token; only code that runs under these features can ask for it without `unsafe`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    #[inline]
    pub(in crate::ops::cpu) fn new() -> Self {
        Self(())
    }
}

/// The vector as 32-bit words whose upper halves are the nearest bf16 (ties to even).
#[target_feature(enable = "avx512f")]
#[inline]
fn rounded(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x0040_0000))
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn sum(a: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves AVX-512 F, BW, DQ and VL; so in every function below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m512) {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: __m512) {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            let half = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(x)));
            _mm256_storeu_si256(p.cast(), half);
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u32) -> (__m512, __m512) {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            let words = _mm512_loadu_si512(p.cast());
            let upper = _mm512_and_si512(words, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(upper))
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe {
            let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(rounded(x), upper))
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn exp2_int(self, n: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    /// A minimax polynomial of degree 4 on `|r| <= 1/2`, relative error 2.7e-6: the results are
    /// rounded to bf16. Rounding by a magic number leaves `n` in the low bits of the sum, which
    /// saves the slow rounding and scaling instructions (half the time of the softmax loop).
    #[inline(always)]
    fn exp2_negative(self, x: __m512) -> __m512 {
        let magic = self.splat(12_582_912.0); // 1.5 * 2^23
        let t = self.add(x, magic);
        let r = self.sub(x, self.sub(t, magic));
        let mut p = self.splat(9.570_1e-3);
        for c in [5.591_786e-2, 2.402_474_4e-1, 6.931_218e-1, 9.999_993e-1] {
            p = self.fma(p, r, self.splat(c));
        }
        // SAFETY: as in `splat`.
        unsafe {
            // Not `x <= -126`, so that NaN passes.
            let kept = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(x, self.splat(-126.0));
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            let bits = _mm512_maskz_add_epi32(kept, _mm512_castps_si512(p), exponent);
            _mm512_castsi512_ps(bits)
        }
    }
    #[inline(always)]
    fn if_le(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn all_equal(self, a: __m512, b: __m512) -> bool {
        // SAFETY: as in `splat`.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) == 0xFFFF }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: as in `splat`.
        unsafe { sum(a) }
    }
}
