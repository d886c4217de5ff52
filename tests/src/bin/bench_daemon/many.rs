//! Part 2: thousands of slow downloads.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use offload_tests::crowd::{Crowd, Downloads};
use offload_tests::load::{self, median};

use crate::servers::{Peer, Server};
use crate::{Bench, SMALL, Verdict};

/// What each reads, bytes a second.
const READING: u64 = 4 << 10;
/// Those that are there before: what they cost is no download's.
const FIRST: usize = 10;
/// How long a visitor waits at the most, and how long after one the next comes.
const PATIENCE: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_millis(20);
const VISITORS: usize = 201;

/// Wanted at the most: bytes a download, and milliseconds until a visitor is served.
const BYTES: f64 = 8192.0;
const WAIT: f64 = 5.0;

pub(crate) fn run(bench: &Bench) -> Vec<Verdict> {
    println!("\n---- 2: {} downloads that read {} KB/s each", bench.downloads, READING >> 10);
    let mut verdicts = Vec::new();
    for peer in [Peer::Ours, Peer::Caching] {
        // One after the other: the kernel counts its memory for the whole machine.
        let Some(server) = Server::start(bench, peer) else { continue };
        let seen = measure(bench, &server);
        seen.print(bench, &server);
        if peer == Peer::Ours {
            verdicts = seen.judge(bench);
        }
    }
    verdicts
}

struct Seen {
    with_data: usize,
    opened: Duration,
    threads: (u64, u64),
    /// Bytes of the processes: before, with a few, with all.
    memory: [u64; 3],
    /// Bytes of the kernel for files, their place in tables, and waiting for them.
    tables: u64,
    /// Pages of the kernel for what is on its way, at both ends.
    buffers: u64,
    processor: Duration,
    bytes: u64,
    waits: Waits,
}

fn measure(bench: &Bench, server: &Server) -> Seen {
    let processes = server.processes();
    // With segments as large as over loopback a socket would hold megabytes.
    let crowd = Crowd::of(server.address, "/large").reading(READING).ethernet();
    let idle = load::memory(&processes);
    let first = crowd.open(FIRST);
    first.eventually_started(FIRST);
    thread::sleep(Duration::from_secs(1));
    let few = (load::memory(&processes), threads(&processes));
    let before = (tables(&processes), buffers());
    let begin = Instant::now();
    let all = crowd.open(bench.downloads);
    all.eventually_started(bench.downloads);
    let opened = begin.elapsed();
    thread::sleep(Duration::from_secs(2));
    let (bytes, spent) = (all.bytes(), server.processor_time());
    let waits = Waits::of(server.address);
    Seen {
        with_data: going_on(&all),
        opened,
        threads: (few.1, threads(&processes)),
        memory: [idle, few.0, load::memory(&processes)],
        tables: tables(&processes).saturating_sub(before.0),
        buffers: buffers().saturating_sub(before.1),
        processor: server.processor_time() - spent,
        bytes: all.bytes() - bytes,
        waits,
    }
}

/// How many go on, and have got something of the body.
fn going_on(all: &Downloads) -> usize {
    let going = |download: &offload_tests::crowd::Download| {
        download.ended.is_none() && download.bytes > SMALL
    };
    all.each().iter().filter(|download| going(download)).count()
}

fn status(process: Pid, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn threads(processes: &[Pid]) -> u64 {
    processes.iter().map(|process| status(*process, "Threads")).sum()
}

/// Bytes that the kernel holds for these processes' descriptors, apart from what is behind them: open files, their
/// tables, who waits for them, page tables.
///
/// Open files and waiters are counted for the machine. Half of those that a download adds are the client's.
fn tables(processes: &[Pid]) -> u64 {
    let slabs = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let slab = |name: &str| {
        let line = slabs.lines().find(|line| line.split(' ').next() == Some(name));
        let mut numbers = line.unwrap_or_default().split_whitespace().skip(1);
        let mut number = || numbers.next().map_or(0, |word| word.parse::<u64>().unwrap());
        let (count, _, size) = (number(), number(), number());
        (count, size)
    };
    let ((files, file), (waiters, waiter)) = (slab("filp"), slab("eventpoll_epi"));
    let entry = fs::read_to_string("/sys/kernel/slab/eventpoll_pwq/slab_size").unwrap_or_default();
    let entry: u64 = entry.trim().parse().unwrap_or(0);
    let own = processes.iter().map(|process| {
        // A pointer and two bits for each descriptor.
        status(*process, "FDSize") * 33 / 4 + status(*process, "VmPTE") * 1024
    });
    (files * file + waiters * (waiter + entry)) / 2 + own.sum::<u64>()
}

/// Bytes that the kernel holds for TCP's buffers.
fn buffers() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let pages = line.split_whitespace().skip_while(|word| *word != "mem").nth(1).unwrap();
    pages.parse::<u64>().unwrap() * 4096
}

/// How long visitors waited for a small file on a connection of their own, in milliseconds.
struct Waits {
    all: Vec<f64>,
    in_vain: usize,
}

impl Waits {
    fn of(server: SocketAddr) -> Self {
        let mut waits = Self { all: Vec::new(), in_vain: 0 };
        for _ in 0..VISITORS {
            let begin = Instant::now();
            let visit = visit(server);
            waits.in_vain += usize::from(visit.is_err());
            let time = visit.map_or(PATIENCE, |()| begin.elapsed());
            waits.all.push(1e3 * time.as_secs_f64());
            thread::sleep(PERIOD);
        }
        waits
    }

    fn longest(&self) -> f64 {
        self.all.iter().copied().fold(0.0, f64::max)
    }
}

fn visit(server: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /small/1 HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let whole = u64::try_from(answer.len()).is_ok_and(|length| length > SMALL);
    let ok = whole && answer.starts_with(b"HTTP/1.1 200");
    ok.then_some(()).ok_or_else(|| io::Error::other("no answer"))
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
impl Seen {
    /// Of the process and the kernel, a download: all that there is, not only what was added.
    fn each(&self, bench: &Bench) -> f64 {
        (self.memory[2] + self.tables) as f64 / bench.downloads as f64
    }

    fn print(&self, bench: &Bench, server: &Server) {
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        let each = |bytes: u64| kib(bytes) / bench.downloads as f64;
        let [idle, few, all] = self.memory;
        println!("\n{}", server.peer.name());
        println!(
            "  go on                  {} of {}, all answered after {:.1} s",
            self.with_data,
            bench.downloads,
            self.opened.as_secs_f64()
        );
        println!(
            "  memory                 {:.0} KB without, {:.0} KB with {FIRST}, {:.0} KB with all; {:.2} KB more for each",
            kib(idle),
            kib(few),
            kib(all),
            each(all.saturating_sub(few))
        );
        println!("  the kernel's tables    {:.2} KB each", each(self.tables));
        println!("  in all                 {:.2} KB each", self.each(bench) / 1024.0);
        println!("  the sockets' buffers   {:.1} KB each, both ends", each(self.buffers));
        println!(
            "  threads                {} with {FIRST}, {} with all",
            self.threads.0, self.threads.1
        );
        println!(
            "  a visitor waits        median {:.2} ms, longest {:.1} ms, {} of {VISITORS} in vain",
            median(self.waits.all.clone()),
            self.waits.longest(),
            self.waits.in_vain
        );
        println!(
            "  meanwhile              {:.1} MB/s in all, CPU {:.1} s a GB",
            self.bytes as f64 / 1e6 / (VISITORS as f64 * PERIOD.as_secs_f64()),
            self.processor.as_secs_f64() / self.bytes as f64 * 1e9
        );
    }

    fn judge(&self, bench: &Bench) -> Vec<Verdict> {
        let (each, wait) = (self.each(bench), median(self.waits.all.clone()));
        vec![
            Verdict {
                what: format!(
                    "{} of {} downloads go on; wanted: all",
                    self.with_data, bench.downloads
                ),
                good: self.with_data == bench.downloads,
            },
            Verdict {
                what: format!("{each:.0} bytes a download apart from sockets; wanted {BYTES}"),
                good: each <= BYTES,
            },
            Verdict {
                what: format!(
                    "{} threads, with {FIRST} {}; wanted no more",
                    self.threads.1, self.threads.0
                ),
                good: self.threads.1 <= self.threads.0,
            },
            Verdict {
                what: format!("a visitor waits {wait:.2} ms (median); wanted {WAIT}"),
                good: wait <= WAIT && self.waits.in_vain == 0,
            },
        ]
    }
}
