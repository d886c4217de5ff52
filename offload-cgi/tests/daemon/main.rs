//! The offload host as a daemon, with a base that misbehaves on demand and real clients.

// Helpers of tests are tests: what fails in them is to stop the test.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "../cgi/base.rs"]
#[allow(dead_code)] // The tests of the CGI need more of it.
mod base;
mod beginning;
mod browser;
mod clients;
mod framing;
mod host;
mod life;
mod limits;
mod looking;
mod many;
mod serving;
mod soak;
mod speed;
mod waiting;
#[path = "../cgi/world.rs"]
mod world;

/// Bytes without a pattern that could hide a wrong offset.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
