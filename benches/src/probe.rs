//! The two ceilings of a kernel on this machine, measured.

use std::hint::black_box;
use std::time::Instant;

use secateur_core::ops::Precision;
use secateur_core::ops::cpu::Isa;

/// What this machine can do with a number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Arithmetic from registers, GFLOP/s.
    pub gflops: f64,
    /// Reading memory far beyond the caches, GB/s.
    pub gbytes: f64,
}

/// Measures both ceilings; takes half a second.
pub fn roofline(precision: Precision, isa: Isa, threads: usize) -> Roofline {
    Roofline { gflops: arithmetic(precision, isa, threads), gbytes: memory(threads) }
}

/// Best of some runs of `f`, which does `work` a thread, in units of work a nanosecond.
fn best(threads: usize, work: f64, f: impl Fn(usize) + Sync) -> f64 {
    let mut best = 0.0f64;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|s| {
            for t in 1..threads {
                let f = &f;
                s.spawn(move || f(t));
            }
            f(0);
        });
        best = best.max(work * threads as f64 / start.elapsed().as_nanos() as f64);
    }
    best
}

/// Reads 256 MiB a thread, from huge pages where the system gives them, as packed weights are read.
fn memory(threads: usize) -> f64 {
    let len = 32 << 20;
    let data: Vec<Vec<u64>> = (0..threads).map(|t| huge(len, t as u64)).collect();
    best(threads, (len * 8) as f64, |t| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: just detected.
            return unsafe { read_wide(&data[t]) };
        }
        read(&data[t]);
    })
}

/// `len` numbers; huge pages are asked for before the first touch.
fn huge(len: usize, value: u64) -> Vec<u64> {
    const HUGE: usize = 2 << 20;
    let mut data: Vec<u64> = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        let start = (data.as_mut_ptr() as usize).next_multiple_of(HUGE);
        let end = (data.as_mut_ptr() as usize + len * 8) / HUGE * HUGE;
        // SAFETY: whole pages inside the vector's memory; the advice does not change contents.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
    data.resize(len, value);
    data
}

#[inline(always)]
fn read(data: &[u64]) {
    let mut sums = [0u64; 32];
    for (i, lines) in data.chunks_exact(32).enumerate() {
        #[cfg(target_arch = "x86_64")]
        for line in 0..4 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let ahead = data.as_ptr().wrapping_add(i * 32 + line * 8 + 512);
            // SAFETY: a prefetch of any address is allowed and SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = i;
        for (s, x) in sums.iter_mut().zip(lines) {
            *s ^= x;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_wide(data: &[u64]) {
    read(data);
}

#[cfg(target_arch = "x86_64")]
fn arithmetic(precision: Precision, isa: Isa, threads: usize) -> f64 {
    const TURNS: usize = 400_000;
    match (precision, isa) {
        (Precision::Bf16, Isa::Amx) => best(threads, (TURNS * 4 * 16 * 16 * 32 * 2) as f64, |_| {
            tiles(TURNS);
        }),
        (_, Isa::Scalar) => best(threads, (TURNS * 8 * 4 * 2) as f64, |_| baseline(TURNS)),
        (_, Isa::Avx2) => best(threads, (TURNS * 12 * 8 * 2) as f64, |_| {
            // SAFETY: an `Isa` of this rank exists only where the CPU has AVX2 and FMA.
            unsafe { eight_lanes(TURNS) }
        }),
        _ => best(threads, (TURNS * 16 * 16 * 2) as f64, |_| {
            // SAFETY: an `Isa` of this rank exists only where the CPU has AVX-512 F.
            unsafe { sixteen_lanes(TURNS) }
        }),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn arithmetic(_: Precision, _: Isa, threads: usize) -> f64 {
    const TURNS: usize = 400_000;
    best(threads, (TURNS * 8 * 4 * 2) as f64, |_| baseline(TURNS))
}

/// Multiplies and adds in eight vectors of four.
fn baseline(turns: usize) {
    let mut acc = [[0.5f32; 4]; 8];
    let x = black_box([0.999f32; 4]);
    for _ in 0..turns {
        for acc in &mut acc {
            for (a, x) in acc.iter_mut().zip(&x) {
                *a = *a * x + x;
            }
        }
    }
    black_box(acc);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn eight_lanes(turns: usize) {
    use std::arch::x86_64::*;
    let x = black_box(_mm256_set1_ps(0.999));
    let mut acc = [x; 12];
    for _ in 0..turns {
        for acc in &mut acc {
            *acc = _mm256_fmadd_ps(*acc, x, x);
        }
    }
    black_box(acc);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sixteen_lanes(turns: usize) {
    use std::arch::x86_64::*;
    let x = black_box(_mm512_set1_ps(0.999));
    let mut acc = [x; 16];
    for _ in 0..turns {
        for acc in &mut acc {
            *acc = _mm512_fmadd_ps(*acc, x, x);
        }
    }
    black_box(acc);
}

/// Four products a turn on tiles that hold numbers of a usual size: with zeros the CPU draws less
/// and clocks higher.
#[cfg(target_arch = "x86_64")]
fn tiles(turns: usize) {
    #[repr(C, align(64))]
    struct Aligned<const N: usize>([u8; N]);
    let mut config = Aligned([0u8; 64]);
    config.0[0] = 1;
    for tile in 0..8 {
        config.0[16 + 2 * tile] = 64;
        config.0[48 + tile] = 16;
    }
    let mut values = Aligned([0u8; 1024]);
    for (i, pair) in values.0.chunks_exact_mut(2).enumerate() {
        // bf16 patterns between 0.5 and 2, with mixed signs.
        let bits = 0x3F00u16 | (i as u16).wrapping_mul(37) & 0x80FF;
        pair.copy_from_slice(&bits.to_le_bytes());
    }
    // SAFETY: called only under `Isa::Amx`: the CPU has tiles and the process may use them. The
    // configuration is valid and released at the end; `values` is a whole tile.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tileloadd tmm4, [{values} + {line}]", "tileloadd tmm5, [{values} + {line}]",
            "tileloadd tmm6, [{values} + {line}]", "tileloadd tmm7, [{values} + {line}]",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const config,
            values = in(reg) &raw const values,
            line = in(reg) 64usize,
            n = inout(reg) turns => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}
