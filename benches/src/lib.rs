//! What the benches share: probes of the machine.
//!
//! A time says little on a machine whose clock floats and whose memory is shared. Each bench prints
//! its rate beside two figures taken in the same minute: the arithmetic peak from registers, and
//! the rate at which memory can be read.

pub mod probe;
