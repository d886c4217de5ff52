//! `make bench-daemon`: the daemon beside nginx, which caches the same base (`proxy_cache`, revalidated after a
//! second as ours is) or serves the same files from its disk, and beside Varnish, on loopback, in one run.
//!
//! 1. **Speed**: a large file over a few connections, small files over kept connections, and over a connection for
//!    each; and the CPU that they cost. Rounds alternate; what counts is the median of the ratios that the rounds
//!    have, since the machine may be busy with other things in one round and not in the next.
//! 2. **Many**: 10,000 downloads at 4 KB/s: memory, threads, and how long a visitor waits for a small file that is
//!    in the cache.
//!
//! The client of the large file has the kernel throw the bytes away instead of copying them, so that it is the
//! server that limits the speed. wrk asks for the small ones.
//!
//! `BENCH_PARTS` (12), `BENCH_SECONDS` (2: each load of each round), `BENCH_ROUNDS` (5), `BENCH_DOWNLOADS` (10000) and
//! `BENCH_TUNED` (0; 1: nginx keeps files open, `open_file_cache`, which Debian's does not) can be set. All of it takes
//! about three minutes.

// A benchmark ends where something does not hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod many;
mod pull;
mod servers;
mod speed;

use std::env;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use offload_tests::crowd::raise_file_limit;
use offload_tests::{Httpd, Setup, bytes, supervised, write_bytes};

/// What every part needs.
pub(crate) struct Bench {
    base: Httpd,
    /// How long each load lasts.
    window: Duration,
    rounds: usize,
    downloads: usize,
    /// Whether nginx keeps files open.
    tuned: bool,
}

/// Whether something is as it is wanted.
pub(crate) struct Verdict {
    what: String,
    good: bool,
}

/// The large file, and how many small ones there are.
const LARGE: u64 = 256 << 20;
const SMALL: u64 = 4 << 10;
const SMALL_FILES: usize = 64;

fn main() -> ExitCode {
    supervised(run)
}

/// Runs the parts; whether everything is as it is wanted.
fn run() -> Result<bool, String> {
    let number = |name: &str, default: usize| match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text}: not a number")),
        Err(_) => Ok(default),
    };
    let parts = env::var("BENCH_PARTS").unwrap_or_else(|_| "12".to_owned());
    let downloads = number("BENCH_DOWNLOADS", 10_000)?.max(1);
    // Each download is a file here and up to two at the server, of which the daemon fills three quarters.
    let files = raise_file_limit();
    if files < u64::try_from(downloads * 4 / 3 + 500).unwrap() {
        return Err(format!("{downloads} downloads need more open files than {files}: ulimit -Hn"));
    }
    let bench = Bench {
        base: Setup::default().without_access_log().start(),
        window: Duration::from_secs(
            u64::try_from(number("BENCH_SECONDS", 2)?.clamp(1, 60)).unwrap(),
        ),
        rounds: number("BENCH_ROUNDS", 5)?.max(1),
        downloads,
        tuned: number("BENCH_TUNED", 0)? > 0,
    };
    write_bytes(&bench.base.put("/large", ""), 1, LARGE);
    fs::create_dir_all(bench.base.path("small")).unwrap();
    for file in 1..=SMALL_FILES {
        bench.base.put(&format!("/small/{file}"), bytes(u64::try_from(file).unwrap(), SMALL));
    }
    println!("load before: {}", load());
    let mut verdicts = Vec::new();
    if parts.contains('1') {
        verdicts.extend(speed::run(&bench));
    }
    if parts.contains('2') {
        verdicts.extend(many::run(&bench));
    }
    println!("\nload after: {}\n", load());
    for Verdict { what, good } in &verdicts {
        println!("{what}: {}", if *good { "reached" } else { "MISSED" });
    }
    Ok(verdicts.iter().all(|verdict| verdict.good))
}

/// How many threads wanted a processor during the last minute: ours and those of others.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').next().unwrap().to_owned()
}
