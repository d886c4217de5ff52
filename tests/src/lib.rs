//! The harness of the black-box tests, the demo and the benchmarks: a real httpd with a configuration
//! written for one test, the offload host behind it, real clients, and conditions to wait for.
//!
//! Reading order: [`Setup`] describes a server and [`Httpd`] is one that runs; [`offload`] puts a base
//! and an offload host together; [`Curl`] and [`Raw`] are the clients. Everything that a test makes lies
//! in its own [`Scratch`] folder and goes away with it.

// This is test code: what does not hold ends the test, with the place where it did not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod artifacts;
pub mod choke;
mod client;
pub mod crowd;
mod daemon;
mod data;
mod download;
pub mod h2;
mod httpd;
pub mod limits;
pub mod load;
pub mod network;
mod nginx;
pub mod offload;
mod origin;
mod ports;
mod relay;
mod scratch;
mod site;
pub mod soak;
mod status;
mod supervisor;
pub mod tls;

use std::thread;
use std::time::{Duration, Instant};

pub use artifacts::{Artifacts, workspace};
pub use client::{Answer, Curl, Head, Raw, Running};
pub use daemon::{Daemon, DaemonSetup, as_server};
pub use data::{age, bytes, same_file, set_modified, write_bytes};
pub use download::Download;
pub use httpd::{Check, Entry, Httpd, Mpm, Setup, modules_folder};
pub use nginx::Nginx;
pub use origin::{Origin, Request};
pub use ports::Port;
pub use relay::Relay;
pub use scratch::{Scratch, reachable_by_server, server_user};
pub use site::Site;
pub use supervisor::supervised;

/// How long a test waits for a condition before it fails: long enough for a machine under load.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for a condition, and returns what it found; panics with `what` when it does not come true.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
