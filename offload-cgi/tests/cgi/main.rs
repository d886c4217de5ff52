//! The program as a CGI, run by hand against a base that does what its script says.

// Helpers of tests are tests: what fails in them is to stop the test.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod accelerators;
mod base;
mod breaker;
mod clocks;
mod dates;
mod failing;
mod fresh;
mod holes;
mod host;
mod kinds;
mod local;
mod patience;
mod serving;
mod settings;
mod slots;
mod soak;
mod space;
mod stretches;
mod together;
mod tools;
mod world;
mod worst;

/// Bytes that differ from each other, so that a wrong offset is noticed.
fn pattern(length: usize) -> Vec<u8> {
    let period: Vec<u8> =
        (0..=250u8).cycle().zip((0..=12u8).cycle()).map(|(a, b)| a ^ b).take(251 * 13).collect();
    let mut bytes = period.repeat(length / period.len() + 1);
    bytes.truncate(length);
    bytes
}
