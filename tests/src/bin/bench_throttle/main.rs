//! `make bench-throttle`: rates held, workers held, and what it costs, beside mod_ratelimit, mod_bw, mod_qos
//! and nginx's `limit_rate`, in one run. As root: it makes two network namespaces with a veth pair between
//! them, MTU 1500, since loopback's segments of 64 KB distort low rates. They have no names and end with it.
//!
//! 1. **Accuracy**: 10 KB/s to 100 MB/s for 1 and for 50 connections. Ours must be within 1 %. Where it is not,
//!    everybody is measured twice more, and the medians count.
//! 2. **Workers**: 300 downloads on 50 workers, plain and TLS, and how long a visitor waits for a small file
//!    on a new connection. With ours he must not wait more than twice as long as at the idle server.
//! 3. **Cost**: seconds of CPU a GB.
//! 4. **Many**: 10,000 downloads at 10 KB/s on 64 workers; all must get data, at the rate, and no visitor
//!    may wait in vain.
//! 5. **Sharing**: downloads of one client over four children have one rate together, each within 10 % of its
//!    share and the sum within 5 %; a slow reader's rest and an ended one's share go to the others.
//!
//! A rate is counted from the beginning of one of the sender's pieces to the beginning of a later one (see
//! [`offload_tests::crowd`]), so a sender that sends once a second is not blamed for where a window ends. K is
//! 1024 everywhere.
//!
//! `BENCH_PARTS` (12345), `BENCH_SECONDS` (5: what is measured; part 4 twice that), `BENCH_ROUNDS` (3: of parts
//! 3 and 5), `BENCH_DOWNLOADS` (10000: of part 4) and `BENCH_CONGESTION` (cubic; any that the kernel has) can be set.
//! All of it takes about seven minutes; `BENCH_SECONDS=2 BENCH_ROUNDS=1 BENCH_DOWNLOADS=1000` two.

// A benchmark ends where something does not hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accuracy;
mod cost;
mod many;
mod peers;
mod probe;
mod sharing;
mod site;
mod workers;

use std::env;
use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use offload_tests::crowd::raise_file_limit;
use offload_tests::network::Network;
use offload_tests::supervised;

use site::Site;

/// What every part needs.
pub(crate) struct Bench {
    network: Network,
    site: Site,
    /// How long is measured.
    window: Duration,
    rounds: usize,
    /// Of part 4.
    downloads: usize,
}

/// Prints what it has seen, and judges it.
type Part = fn(&Bench) -> Vec<Verdict>;

/// Whether something is as it is wanted.
pub(crate) struct Verdict {
    what: String,
    good: bool,
}

fn main() -> ExitCode {
    supervised(run)
}

/// Runs the parts; whether everything is as it is wanted.
fn run() -> Result<bool, String> {
    let number = |name: &str, default: usize| match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text}: not a number")),
        Err(_) => Ok(default),
    };
    let seconds = number("BENCH_SECONDS", 5)?.clamp(1, 60);
    let (rounds, downloads) =
        (number("BENCH_ROUNDS", 3)?.max(1), number("BENCH_DOWNLOADS", 10_000)?.max(1));
    let parts = env::var("BENCH_PARTS").unwrap_or_else(|_| "12345".to_owned());
    let congestion = env::var("BENCH_CONGESTION").unwrap_or_else(|_| "cubic".to_owned());
    // Each download is a file here and one or two at the server.
    let files = raise_file_limit();
    if files < u64::try_from(downloads + 500).unwrap() {
        return Err(format!("{downloads} downloads need more open files than {files}: ulimit -Hn"));
    }
    let size = u64::try_from(seconds + 6).unwrap() * (100 << 20);
    let folders = ["10", "100", "1024", "10240", "102400", "free"];
    let bench = Bench {
        network: Network::make(&congestion)?,
        site: Site::new(size, &folders),
        window: Duration::from_secs(u64::try_from(seconds).unwrap()),
        rounds,
        downloads,
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    println!("congestion control {congestion}; load before: {}", load.split(' ').next().unwrap());
    let mut verdicts = Vec::new();
    let all: [(char, Part); 5] = [
        ('1', accuracy::run),
        ('2', workers::run),
        ('3', cost::run),
        ('4', many::run),
        ('5', sharing::run),
    ];
    for (part, run) in all {
        if parts.contains(part) {
            println!("\n---- {part}");
            verdicts.extend(bench.network.at_client(|| run(&bench)));
        }
    }
    println!();
    for Verdict { what, good } in &verdicts {
        println!("{what}: {}", if *good { "reached" } else { "MISSED" });
    }
    Ok(verdicts.iter().all(|verdict| verdict.good))
}

/// Waits until a number is as large as wanted, or has not grown for two seconds: a peer may never get there.
pub(crate) fn as_many_as_come(wanted: usize, number: impl Fn() -> usize) {
    let (mut begin, mut most) = (Instant::now(), 0);
    while most < wanted && begin.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(20));
        let now = number();
        if now > most {
            (begin, most) = (Instant::now(), now);
        }
    }
}
