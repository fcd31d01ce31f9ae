//! What the benches share: probes of the machine, and made-up values.
//!
//! A time says little on a machine whose clock floats and whose memory is shared. Each bench prints
//! its rate beside two figures taken in the same minute: the arithmetic peak from registers, and
//! the rate at which memory can be read.

pub mod probe;

/// Deterministic values in `(-scale, scale)`.
pub fn values(len: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..len).map(|_| next()).collect()
}
