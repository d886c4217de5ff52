//! Part 3: what a server spends on a gigabyte.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use offload_tests::crowd::Crowd;
use offload_tests::load::median;

use crate::peers::{Limit, Peer, Plan, Server, Workers};
use crate::{Bench, Verdict, as_many_as_come};

/// Folders, KiB a second, and how many.
const LOADS: [Limit; 2] = [
    Limit { folder: "10240", kib: 10 << 10, downloads: 20 },
    Limit { folder: "102400", kib: 100 << 10, downloads: 5 },
];

const PEERS: [Peer; 4] = [Peer::Ours, Peer::Ratelimit, Peer::Bw, Peer::Nginx];

pub(crate) fn run(bench: &Bench) -> Vec<Verdict> {
    let workers = Workers { children: 2, threads: 25, factor: 20 };
    let plan = Plan {
        network: &bench.network,
        site: &bench.site,
        workers,
        sendfile: true,
        limits: &LOADS,
        ours: "",
    };
    let servers = plan.start(&PEERS);
    println!(
        "seconds of CPU a GB (10^9), medians of {} alternating rounds: of the server's threads, and of the \
         whole machine,\nwhose client and neighbours count too; where the kernel paces it works between the \
         threads",
        bench.rounds
    );
    for load in LOADS {
        let mut spent = vec![Vec::new(); servers.len()];
        for round in 0..bench.rounds {
            // Each round begins with another one.
            for turn in 0..servers.len() {
                let number = (round + turn) % servers.len();
                spent[number].push(measure(bench, &servers[number], load));
            }
            eprint!(".");
        }
        println!(
            "\n{:<26}{:>10}{:>12}{:>12}{:>12}",
            format!("{} x {} MB/s", load.downloads, load.kib / 1024),
            "server",
            "to ours",
            "machine",
            "rate %"
        );
        let middle =
            |spent: &[Spent], of: fn(&Spent) -> f64| median(spent.iter().map(of).collect());
        let ours = middle(&spent[0], |spent| spent.server);
        for (server, spent) in servers.iter().zip(&spent) {
            let own = middle(spent, |spent| spent.server);
            println!(
                "{:<26}{own:>10.3}{:>12.2}{:>12.2}{:>12.1}",
                server.peer.name(),
                own / ours,
                middle(spent, |spent| spent.machine),
                middle(spent, |spent| spent.percent)
            );
        }
    }
    Vec::new()
}

/// Seconds of CPU a GB, and the rate in percent of the configured one.
#[derive(Clone, Debug)]
struct Spent {
    server: f64,
    machine: f64,
    percent: f64,
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn measure(bench: &Bench, server: &Server, load: Limit) -> Spent {
    let count = usize::try_from(load.downloads).unwrap();
    let crowd = Crowd::of(server.address(false), &format!("/{}/big", load.folder)).open(count);
    as_many_as_come(count, || crowd.answered(200));
    thread::sleep(Duration::from_millis(600));
    let (begin, bytes) = (Instant::now(), crowd.bytes());
    let (own, machine) = (server.processor_time(), machine_time());
    thread::sleep(bench.window.mul_f64(0.6));
    let (own, machine) = (server.processor_time() - own, machine_time() - machine);
    let (bytes, time) = ((crowd.bytes() - bytes) as f64, begin.elapsed().as_secs_f64());
    Spent {
        server: own.as_secs_f64() / bytes * 1e9,
        machine: machine / bytes * 1e9,
        percent: 100.0 * bytes / time / (load.kib * 1024 * load.downloads) as f64,
    }
}

/// The seconds that the processors were not idle, in all; the kernel counts in hundredths.
fn machine_time() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let fields = text.lines().next().unwrap().split_whitespace().skip(1);
    let numbers: Vec<f64> = fields.map(|field| field.parse().unwrap()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    [0, 1, 2, 5, 6].map(|field| numbers[field]).iter().sum::<f64>() / 100.0
}
