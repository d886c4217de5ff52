//! Part 1: how fast, and what it costs.

use offload_tests::load::{median, wrk_at};

use crate::servers::{Peer, Server};
use crate::{Bench, LARGE, SMALL, SMALL_FILES, Verdict, pull};

/// Connections of the large file, and of the small ones.
const FEW: usize = 8;
const SOME: usize = 32;

/// What is asked for.
#[derive(Clone, Copy)]
enum Load {
    Large,
    Kept,
    Single,
}

impl Load {
    const ALL: [Self; 3] = [Self::Large, Self::Kept, Self::Single];

    fn title(self) -> (String, &'static str, &'static str) {
        let small = format!("{SMALL_FILES} files of {} KB, {SOME} connections", SMALL >> 10);
        match self {
            Self::Large => (format!("{} MB, {FEW} connections", LARGE >> 20), "MB/s", "CPU s a GB"),
            Self::Kept => (format!("{small} kept"), "requests/s", "CPU us each"),
            Self::Single => (format!("{small}, one a file"), "requests/s", "CPU us each"),
        }
    }

    /// How many times faster than this peer ours must be at least.
    fn wanted(self, peer: Peer) -> Option<f64> {
        match (self, peer) {
            (Self::Large, Peer::Caching) => Some(1.0),
            (Self::Large, Peer::Static) => Some(0.95),
            (Self::Kept, Peer::Caching) => Some(0.7),
            _ => None,
        }
    }
}

/// What a server did in a round: in the units of the load's title.
#[derive(Clone, Copy)]
struct Seen {
    rate: f64,
    cost: f64,
}

pub(crate) fn run(bench: &Bench) -> Vec<Verdict> {
    let servers: Vec<_> =
        Peer::ALL.into_iter().filter_map(|peer| Server::start(bench, peer)).collect();
    let script = bench.base.scratch().write("small.lua", &script());
    let script = script.to_str().unwrap();
    println!(
        "\n---- 1: medians of {} rounds of {:?}; ratios are medians of the rounds' ratios",
        bench.rounds, bench.window
    );
    let mut verdicts = Vec::new();
    for load in Load::ALL {
        let mut seen = vec![Vec::new(); servers.len()];
        for server in &servers {
            measure(bench, server, load, script);
        }
        for round in 0..bench.rounds {
            // Each round begins with another one.
            for turn in 0..servers.len() {
                let number = (round + turn) % servers.len();
                seen[number].push(measure(bench, &servers[number], load, script));
            }
            eprint!(".");
        }
        verdicts.extend(report(load, &servers, &seen));
    }
    verdicts
}

/// Has wrk ask for all small files in turn.
fn script() -> String {
    format!(
        "local requests, at = {{}}, 0\n\
         init = function()\n\
         for file = 1, {SMALL_FILES} do requests[file] = wrk.format('GET', '/small/' .. file) end\n\
         end\n\
         request = function()\n\
         at = at % #requests + 1\n\
         return requests[at]\n\
         end\n"
    )
}

fn measure(bench: &Bench, server: &Server, load: Load, script: &str) -> Seen {
    let before = server.processor_time();
    let spent = || (server.processor_time() - before).as_secs_f64();
    let seconds = bench.window.as_secs_f64();
    let (some, whole) = (format!("-c{SOME}"), usize::try_from(bench.window.as_secs()).unwrap());
    let mut arguments = vec![some.as_str(), "-s", script];
    match load {
        Load::Large => {
            let rate = pull::rate(server.address, "/large", FEW, bench.window);
            return Seen { rate: rate / 1e6, cost: spent() / (rate * seconds) * 1e9 };
        }
        Load::Kept => {}
        Load::Single => arguments.extend(["-H", "Connection: close"]),
    }
    let (rate, count) = wrk_at(&server.url("/small/1"), whole, &arguments);
    Seen { rate, cost: spent() / count * 1e6 }
}

fn report(load: Load, servers: &[Server], seen: &[Vec<Seen>]) -> Vec<Verdict> {
    let middle = |seen: &[Seen], of: fn(&Seen) -> f64| median(seen.iter().map(of).collect());
    let (title, rate, cost) = load.title();
    println!("\n{title:<46}{rate:>12}{:>12}{cost:>14}{:>12}", "ours to it", "ours to it");
    let mut verdicts = Vec::new();
    for (server, rounds) in servers.iter().zip(seen) {
        let ratio = |of: fn(&Seen) -> f64| {
            median(seen[0].iter().zip(rounds).map(|(ours, its)| of(ours) / of(its)).collect())
        };
        let faster = ratio(|seen| seen.rate);
        println!(
            "{:<46}{:>12.0}{faster:>12.2}{:>14.3}{:>12.2}",
            server.peer.name(),
            middle(rounds, |seen| seen.rate),
            middle(rounds, |seen| seen.cost),
            ratio(|seen| seen.cost),
        );
        if let Some(wanted) = load.wanted(server.peer) {
            let peer = server.peer.name();
            verdicts.push(Verdict {
                what: format!("{title}: {faster:.2} x {peer}; wanted {wanted}"),
                good: faster >= wanted,
            });
        }
    }
    verdicts
}
