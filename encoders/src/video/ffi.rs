//! The one field of FFmpeg's packets that its binding does not show.
#![allow(unsafe_code, reason = "a plain field of a C structure that the binding leaves out")]

use ffmpeg_next::codec::packet::{Packet, Ref};
use ffmpeg_next::ffi::AV_PKT_FLAG_DISCARD;

/// Whether a packet is decoded for others' sake and never shown: before the start of an edit list.
pub(super) fn is_hidden(packet: &Packet) -> bool {
    // SAFETY: `as_ptr` gives the address of the `AVPacket` inside `packet`, which is borrowed here
    // and initialised; `flags` is a plain integer of it.
    let flags = unsafe { (*packet.as_ptr()).flags };
    flags & AV_PKT_FLAG_DISCARD != 0
}
