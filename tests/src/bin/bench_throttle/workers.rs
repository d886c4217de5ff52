//! Part 2: more downloads than workers, and a visitor who wants something else.

use std::thread;
use std::time::Duration;

use offload_tests::crowd::Crowd;

use crate::peers::{Limit, Peer, Plan, Server, Workers};
use crate::probe::{PATIENCE, Waits, busy_workers};
use crate::{Bench, Verdict, as_many_as_come};

const DOWNLOADS: usize = 300;
const KIB: u64 = 100;
/// So much longer than at an idle server a visitor may wait, as a factor.
const WANTED: f64 = 2.0;

const PEERS: [Peer; 5] = [Peer::Ours, Peer::Ratelimit, Peer::Bw, Peer::Qos, Peer::Nginx];

pub(crate) fn run(bench: &Bench) -> Vec<Verdict> {
    let plan = Plan {
        network: &bench.network,
        site: &bench.site,
        workers: Workers { children: 2, threads: 25, factor: 20 },
        // As httpd is when nobody says anything.
        sendfile: false,
        limits: &[Limit { folder: "100", kib: KIB, downloads: 300 }],
        ours: "",
    };
    let servers = plan.start(&PEERS);
    println!(
        "{DOWNLOADS} downloads at {KIB} KB/s on {} workers (AsyncRequestWorkerFactor {}), and visitors \
         who want six bytes\nand wait {PATIENCE:?} at the most",
        plan.workers.all(),
        plan.workers.factor
    );
    let mut verdicts = Vec::new();
    for tls in [false, true] {
        println!(
            "\n{:<16}{:>10}{:>10}{:>10}{:>12}{:>10}{:>12}{:>10}{:>10}",
            if tls { "TLS" } else { "plain" },
            "idle ms",
            "median ms",
            "max ms",
            "in vain",
            "to idle",
            "with data",
            "in all %",
            "busy"
        );
        for server in &servers {
            let ratio = row(bench, server, tls);
            if server.peer == Peer::Ours {
                let how = if tls { "TLS" } else { "plain" };
                verdicts.push(Verdict {
                    what: format!(
                        "{DOWNLOADS} downloads, {how}: a visitor waits {ratio:.2} times as long as \
                         at the idle server; wanted: {WANTED}"
                    ),
                    good: ratio <= WANTED,
                });
            }
        }
    }
    verdicts
}

/// Prints what one server does; how many times as long as when it is idle a visitor waits.
#[allow(clippy::cast_precision_loss)] // far below 2^52
fn row(bench: &Bench, server: &Server, tls: bool) -> f64 {
    let time = bench.window.div_f64(2.5);
    Waits::for_answers(server, tls);
    let before = Waits::of(server, tls, time);
    let crowd = Crowd::of(server.address(tls), "/100/big");
    let crowd = if tls { crowd.tls() } else { crowd }.open(DOWNLOADS);
    as_many_as_come(DOWNLOADS, || crowd.answered(200));
    thread::sleep(Duration::from_millis(500));
    crowd.begin();
    let waits = Waits::of(server, tls, bench.window);
    let rates = crowd.end();
    let busy = busy_workers(server).map_or_else(|| "?".to_owned(), |busy| busy.to_string());
    drop(crowd);
    Waits::for_answers(server, tls);
    let idle = before.and(&Waits::of(server, tls, time));
    let ratio = waits.median() / idle.median();
    println!(
        "{:<16}{:>10.2}{:>10.2}{:>10.1}{:>12}{ratio:>10.2}{:>12}{:>10.1}{busy:>10}",
        server.peer.name(),
        idle.median(),
        waits.median(),
        waits.longest(),
        format!("{} of {}", waits.in_vain, waits.count()),
        rates.with_data(),
        100.0 * rates.total() / (KIB * 1024) as f64 / DOWNLOADS as f64,
    );
    ratio
}
