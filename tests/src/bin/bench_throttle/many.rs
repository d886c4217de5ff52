//! Part 4: thousands of slow downloads on a few workers.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use offload_tests::crowd::{Crowd, Downloads};

use crate::peers::{Limit, Peer, Plan, Server, Workers};
use crate::probe::{Waits, busy_workers};
use crate::{Bench, Verdict, as_many_as_come};

const KIB: u64 = 10;
/// How far the mean may be from the rate, in percent.
const WANTED: f64 = 1.0;

pub(crate) fn run(bench: &Bench) -> Vec<Verdict> {
    let (children, threads) = (4, 16);
    // httpd takes children x (threads + idle threads x factor) connections; a third more, since they do
    // not spread evenly over the children.
    let factor = (bench.downloads * 4 / 3 / children).div_ceil(threads);
    let plan = Plan {
        network: &bench.network,
        site: &bench.site,
        workers: Workers { children, threads, factor },
        sendfile: false,
        limits: &[Limit { folder: "10", kib: KIB, downloads: 1 }],
        ours: "",
    };
    println!(
        "{} downloads at {KIB} KB/s, httpd with {} workers (AsyncRequestWorkerFactor {factor})\n",
        bench.downloads,
        plan.workers.all(),
    );
    let mut verdicts = Vec::new();
    for peer in [Peer::Ours, Peer::Nginx] {
        // One after the other: the memory of the kernel's connections is counted for the whole machine.
        for server in plan.start(&[peer]) {
            let seen = measure(bench, &server);
            if peer == Peer::Ours {
                verdicts = judge(bench, &seen);
            }
        }
    }
    verdicts
}

struct Seen {
    with_data: usize,
    percent: f64,
    waits: Waits,
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn measure(bench: &Bench, server: &Server) -> Seen {
    let wanted = (KIB * 1024) as f64;
    Waits::for_answers(server, false);
    let idle = Waits::of(server, false, Duration::from_secs(1));
    let (memory, kernel) = (server.memory(), kernel_memory());
    let begin = Instant::now();
    let crowd = Crowd::of(server.address(false), "/10/big").open(bench.downloads);
    as_many_as_come(bench.downloads, || crowd.answered(200));
    let opened = begin.elapsed();
    thread::sleep(Duration::from_secs(3));
    let (time, bytes, begin) = (server.processor_time(), crowd.bytes(), Instant::now());
    crowd.begin();
    let waits = Waits::of(server, false, bench.window * 2);
    let rates = crowd.end();
    let spent = (server.processor_time() - time).as_secs_f64();
    let bytes = (crowd.bytes() - bytes) as f64;
    let (seconds, busy) = (begin.elapsed().as_secs_f64(), busy_workers(server));
    let each = |all: u64| all as f64 / bench.downloads as f64 / 1024.0;
    println!("{}", server.peer.name());
    println!(
        "  all answered after     {:.1} s, the last first byte after {:.1} s",
        opened.as_secs_f64(),
        slowest(&crowd)
    );
    println!("  with data              {} of {}", rates.with_data(), bench.downloads);
    println!(
        "  rate                   mean {:.0} B/s ({:.2} %), {:.0} to {:.0} B/s",
        rates.mean(),
        100.0 * rates.mean() / wanted,
        rates.least(),
        rates.greatest()
    );
    println!("  in all                 {:.1} MB/s", bytes / seconds / 1e6);
    println!(
        "  a visitor waits        median {:.2} ms, max {:.1} ms, {} of {} in vain; idle: median {:.2} ms",
        waits.median(),
        waits.longest(),
        waits.in_vain,
        waits.count(),
        idle.median()
    );
    if let Some(busy) = busy {
        println!("  busy workers           {busy}, of which one answers the question");
    }
    println!(
        "  memory a download      {:.1} KB of the processes",
        each(server.memory().saturating_sub(memory))
    );
    println!(
        "                         {:.1} KB of the kernel for TCP",
        each(kernel_memory().saturating_sub(kernel))
    );
    println!("  CPU of the server      {:.2} s a GB\n", spent / bytes * 1e9);
    Seen { with_data: rates.with_data(), percent: 100.0 * rates.mean() / wanted, waits }
}

fn slowest(crowd: &Downloads) -> f64 {
    let first = crowd.each().into_iter().filter_map(|download| download.first);
    first.max().unwrap_or_default().as_secs_f64()
}

/// What the kernel holds for TCP's buffers, in bytes.
fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let pages = line.split_whitespace().skip_while(|word| *word != "mem").nth(1).unwrap();
    pages.parse::<u64>().unwrap() * 4096
}

fn judge(bench: &Bench, seen: &Seen) -> Vec<Verdict> {
    let off = (seen.percent - 100.0).abs();
    vec![Verdict {
        what: format!(
            "{} of {} downloads get data, {off:.2} % off the rate, {} visitors in vain; wanted: all, \
             {WANTED} %, none",
            seen.with_data, bench.downloads, seen.waits.in_vain
        ),
        good: seen.with_data == bench.downloads && off <= WANTED && seen.waits.in_vain == 0,
    }]
}
