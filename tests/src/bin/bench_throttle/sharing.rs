//! Part 5: one rate for all downloads of a client, over several children.

use std::thread;
use std::time::{Duration, Instant};

use offload_tests::crowd::{Crowd, Downloads, Rates};

use crate::peers::{Peer, Plan, Server, Workers};
use crate::{Bench, Verdict};

const KIB: u64 = 4096;
const RATE: f64 = (KIB * 1024) as f64;
/// What the slow one reads, in bytes a second.
const SLOW: u64 = 100_000;

/// How far a part may be from its share, and the sum from the rate, in percent.
const WANTED_EACH: f64 = 10.0;
const WANTED_SUM: f64 = 5.0;
/// When the others must have what an ended one had.
const WANTED_TIME: Duration = Duration::from_secs(2);

/// Until the shares are settled.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) fn run(bench: &Bench) -> Vec<Verdict> {
    let plan = Plan {
        network: &bench.network,
        site: &bench.site,
        workers: Workers { children: 4, threads: 16, factor: 20 },
        sendfile: false,
        limits: &[],
        ours: &format!("<Location /free>\nChoke On\n</Location>\nChokeShare client {KIB}K"),
    };
    println!("ChokeShare client {} MB/s over {} children, in % of the share\n", KIB / 1024, 4);
    let mut verdicts = Vec::new();
    for server in plan.start(&[Peer::Ours]) {
        let (mut each, mut sum) = (0.0_f64, 0.0_f64);
        for count in [1, 3, 10] {
            let downloads = crowd(&server).open(count);
            thread::sleep(SETTLE);
            let rates = downloads.measure(bench.window);
            let off = print(&format!("{count}"), &rates, 0.0);
            (each, sum) = (each.max(off.0), sum.max(off.1));
        }
        {
            let slow = crowd(&server).reading(SLOW).open(1);
            let fast = crowd(&server).open(2);
            thread::sleep(SETTLE);
            [&slow, &fast].into_iter().for_each(Downloads::begin);
            thread::sleep(bench.window);
            let (slow, fast) = (slow.end().total(), fast.end());
            println!("  a slow reader          {slow:.0} of {SLOW} B/s");
            let off = print("2 beside it", &fast, slow);
            (each, sum) = (each.max(off.0), sum.max(off.1));
        }
        verdicts.push(Verdict {
            what: format!(
                "shares: at most {each:.1} % off, their sum {sum:.1} %; wanted: {WANTED_EACH} %, {WANTED_SUM} %"
            ),
            good: each <= WANTED_EACH && sum <= WANTED_SUM,
        });
        let mut times: Vec<Duration> = (0..bench.rounds).map(|_| taken_over(&server)).collect();
        times.sort_unstable();
        println!("  one of four ends       the others have its share after {times:?}");
        let longest = times.last().copied().unwrap_or_default();
        verdicts.push(Verdict {
            what: format!(
                "an ended one's share is taken over after {longest:?}; wanted: {WANTED_TIME:?}"
            ),
            good: longest <= WANTED_TIME,
        });
    }
    verdicts
}

fn crowd(server: &Server) -> Crowd {
    Crowd::of(server.address(false), "/free/big")
}

/// Prints how these share what others leave; how far one of them is off, and the sum.
#[allow(clippy::cast_precision_loss)] // few
fn print(name: &str, rates: &Rates, others: f64) -> (f64, f64) {
    let share = (RATE - others) / rates.each.len() as f64;
    let [least, greatest] = [rates.least(), rates.greatest()].map(|rate| 100.0 * rate / share);
    let sum = 100.0 * (rates.total() + others) / RATE;
    println!("  {name:<22} {least:.1} to {greatest:.1} each, {sum:.1} in all");
    ((least - 100.0).abs().max((greatest - 100.0).abs()), (sum - 100.0).abs())
}

/// One of four downloads ends: how long until the others together have the rate, to 5 %, for a quarter of a
/// second.
#[allow(clippy::cast_precision_loss)] // far below 2^52
fn taken_over(server: &Server) -> Duration {
    const WINDOW: Duration = Duration::from_millis(250);
    let downloads = crowd(server).open(4);
    thread::sleep(SETTLE);
    downloads.leave(0);
    let begin = Instant::now();
    let mut seen = vec![(begin, downloads.bytes())];
    while begin.elapsed() < 3 * WANTED_TIME {
        thread::sleep(Duration::from_millis(10));
        let now = (Instant::now(), downloads.bytes());
        seen.push(now);
        let Some(&before) = seen.iter().rfind(|before| now.0 - before.0 >= WINDOW) else {
            continue;
        };
        let rate = (now.1 - before.1) as f64 / (now.0 - before.0).as_secs_f64();
        if rate >= 0.95 * RATE {
            return before.0 - begin;
        }
    }
    begin.elapsed()
}
