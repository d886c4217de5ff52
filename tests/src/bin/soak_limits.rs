//! `make soak-limits`: whether limits count right while children are killed (see [`offload_tests::soak`]).
//!
//! `KILLS` (200), `MPM` (event; worker, prefork) and `SEED` can be set.

// A program for developers ends where something does not hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::env;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use offload_tests::Mpm;
use offload_tests::soak::{Plan, run};

fn main() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let plan = Plan {
        mpm: match env::var("MPM").as_deref() {
            Ok("prefork") => Mpm::Prefork,
            Ok("worker") => Mpm::Worker,
            Ok("event") | Err(_) => Mpm::Event,
            Ok(other) => panic!("MPM={other}: use event, worker or prefork"),
        },
        kills: env::var("KILLS").map_or(200, |text| text.parse().expect("KILLS")),
        seed: env::var("SEED")
            .map_or(u64::from(now.subsec_nanos()), |text| text.parse().expect("SEED")),
    };
    println!("SEED={} KILLS={} MPM={:?}", plan.seed, plan.kills, plan.mpm);
    let report = run(plan);
    println!("\n{}", report.table);
    for failure in report.failures.iter().take(50) {
        println!("FAILED: {failure}");
    }
    println!("{} failures", report.failures.len());
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
