//! What this CPU has, found once.
//!
//! Invariants
//! - An [`Isa`] above `Scalar` is only ever handed out after the CPU (and, for tiles, the kernel)
//!   agreed to it: holding one is the proof that kernels rely on.
//! - `SECATEUR_ISA=scalar|avx2|avx512|avx512bf16|amx` chooses a lower variant, so that every path
//!   can be tested on one machine; a name this machine lacks is ignored with a warning.

use std::sync::OnceLock;

/// Instruction set of the kernels, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the compiler makes of plain loops.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// And AVX-512 BF16 dot products, where they are faster than conversion and FMA.
    Avx512Bf16,
    /// And AMX bf16 tiles.
    Amx,
}

impl Isa {
    /// All variants, slowest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// Name in `SECATEUR_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    /// Whether kernels of this variant run here.
    pub fn is_available(self) -> bool {
        static FOUND: OnceLock<[bool; 5]> = OnceLock::new();
        FOUND.get_or_init(|| Isa::ALL.map(probe))[self as usize]
    }

    /// The variant in use: the environment's choice, else the best.
    pub fn chosen() -> Isa {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let Ok(name) = std::env::var("SECATEUR_ISA") else {
                return best();
            };
            let found = Isa::ALL.into_iter().find(|isa| isa.name() == name);
            match found.filter(|isa| isa.is_available()) {
                Some(isa) => isa,
                None => {
                    tracing::warn!("SECATEUR_ISA={name} is not available here, using the best");
                    best()
                }
            }
        })
    }
}

/// The fastest available variant.
fn best() -> Isa {
    let usable = |isa: &Isa| isa.is_available() && (*isa != Isa::Avx512Bf16 || dot_is_fast());
    Isa::ALL.into_iter().rev().find(usable).unwrap_or(Isa::Scalar)
}

#[cfg(target_arch = "x86_64")]
fn probe(isa: Isa) -> bool {
    let avx512 = || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
    };
    let bf16 = || avx512() && is_x86_feature_detected!("avx512bf16");
    match isa {
        Isa::Scalar => true,
        Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        Isa::Avx512 => avx512(),
        Isa::Avx512Bf16 => bf16(),
        Isa::Amx => bf16() && tiles_granted(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn probe(isa: Isa) -> bool {
    isa == Isa::Scalar
}

/// Whether `vdpbf16ps` beats two f32 FMAs. AMD runs two a cycle (1.1 TFLOP/s on two Zen 5 cores);
/// Intel's server cores with it were measured at half the rate of f32 FMA (119 against 235
/// GFLOP/s), so there conversion and FMA win.
#[cfg(target_arch = "x86_64")]
fn dot_is_fast() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let mut vendor = [0u8; 12];
    for (bytes, word) in vendor.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    &vendor == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn dot_is_fast() -> bool {
    false
}

/// Whether CPU and kernel have tiles and this process may use them. Linux gives the large register
/// state only to processes that ask (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code, reason = "one CPU register and one system call")]
fn tiles_granted() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    const TILE_STATE: u64 = 0b11 << 17;

    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: the caller checked OSXSAVE, so register 0 can be read.
        unsafe { _xgetbv(0) }
    }
    let osxsave = __cpuid(1).ecx & (1 << 27) != 0;
    if !osxsave || __cpuid(0).eax < 7 {
        return false;
    }
    // Leaf 7: bit 24 is AMX-TILE, bit 22 AMX-BF16.
    let tiles = __cpuid_count(7, 0).edx & (1 << 24 | 1 << 22) == (1 << 24 | 1 << 22);
    // SAFETY: OSXSAVE is set, so `xgetbv` exists.
    if !tiles || unsafe { enabled_state() } & TILE_STATE != TILE_STATE {
        return false;
    }
    // SAFETY: this call only changes which registers the process may use.
    let refused =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    refused == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles_granted() -> bool {
    false
}

/// Physical cores that this process may run on.
pub(super) fn cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    distinct_cores().map_or(logical, |cores| cores.clamp(1, logical))
}

/// Cores behind the allowed CPUs, by the sibling lists that Linux publishes.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the affinity mask has no safe interface in std")]
fn distinct_cores() -> Option<usize> {
    // SAFETY: all-zero bytes are a valid, empty CPU set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a writable CPU set of the size passed.
    let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if failed != 0 {
        return None;
    }
    let mut siblings = std::collections::BTreeSet::new();
    for cpu in 0..libc::CPU_SETSIZE as usize {
        // SAFETY: `cpu` is below the size of the set.
        if unsafe { libc::CPU_ISSET(cpu, &set) } {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            siblings.insert(std::fs::read_to_string(path).ok()?);
        }
    }
    Some(siblings.len())
}

#[cfg(not(target_os = "linux"))]
fn distinct_cores() -> Option<usize> {
    None
}
