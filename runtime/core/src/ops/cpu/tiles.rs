//! The tile configuration of a thread.
#![allow(unsafe_code, reason = "tile instructions exist as assembly only")]

use std::arch::asm;

/// Tiles are configured on this thread until this value is dropped.
///
/// Registers 0 to 5 have the configured number of rows, 6 and 7 have 16; all have 64 bytes a row.
/// Released tiles cost a context switch nothing.
pub(super) struct Tiles {
    /// Not `Send`: the configuration is the thread's.
    _thread: std::marker::PhantomData<*const ()>,
}

#[repr(C, align(64))]
struct Config([u8; 64]);

impl Tiles {
    /// Registers 0 to 5 get `rows` rows, `1 <= rows <= 16`.
    ///
    /// Call it only under [`super::detect::Isa::Amx`]: elsewhere the instruction does not exist.
    pub(super) fn configure(rows: usize) -> Self {
        assert!((1..=16).contains(&rows), "a tile has 1 to 16 rows");
        debug_assert!(super::detect::Isa::Amx.is_available());
        let mut config = Config([0; 64]);
        config.0[0] = 1; // palette 1: eight tiles of at most 1 KiB
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64;
            config.0[48 + tile] = if tile < 6 { rows as u8 } else { 16 };
        }
        // SAFETY: the CPU has tiles and the process may use them (`Isa::Amx`); the block is a
        // valid configuration.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly));
        }
        Self { _thread: std::marker::PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: configured by this thread; no tile holds a value that is still needed.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}
