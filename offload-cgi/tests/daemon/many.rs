//! Many downloads at a time: what they cost, and that nobody waits for them.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::base::{Base, Page};
use super::host::{Connection, Daemon, eventually, start};
use super::pattern;

const MANY: usize = 2000;
const IDLE: usize = 10_000;

fn hold(daemon: &Daemon, count: usize) -> Vec<Connection> {
    let mut connections: Vec<_> = (0..count).map(|_| daemon.connect_slow()).collect();
    for connection in &mut connections {
        connection
            .send("GET /large HTTP/1.1\r\nHost: x\r\nUser-Agent: a client like any other\r\n\r\n");
    }
    for connection in &mut connections {
        assert_eq!(connection.head().status, 200);
        connection.read(100);
    }
    connections
}

#[test]
fn two_thousand_slow_downloads_cost_a_record_each_and_no_thread() {
    let (base, large) = (Base::start(), pattern(16_000_000));
    base.put("/large", Page::new("\"v1\"", large.clone()));
    base.put("/small", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "fresh = 10s\nadmin = 127.0.0.1:0\n");
    assert_eq!(daemon.get("/large").body.len(), large.len());
    let first = hold(&daemon, 10);
    let (threads, memory) = (daemon.status("Threads"), daemon.status("VmRSS"));
    let mut others = hold(&daemon, MANY);
    assert_eq!(daemon.status("Threads"), threads);
    let each = (daemon.status("VmRSS").saturating_sub(memory)) * 1024 / MANY as u64;
    assert!(each <= 8192, "{each} bytes a download");
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(daemon.get("/small").text(), "text");
            begun.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("{each} bytes a download; a hit meanwhile: {:?}", times[50]);
    let mut last = others.pop().unwrap();
    assert!(last.read(large.len() - 100) == large[100..], "each goes on when it wants to");
    drop((first, others));
    eventually("all have gone", || {
        // The one that has all of its file is still connected.
        (daemon.look("/.offload/status?json").number("connections_open") <= 1).then_some(())
    });
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_delay_nobody() {
    let base = Base::start();
    base.put("/small", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "fresh = 10s\nadmin = 127.0.0.1:0\n");
    assert_eq!(daemon.get("/small").text(), "text");
    let (threads, before) = (daemon.status("Threads"), daemon.status("VmRSS"));
    // All tests of this process share its descriptors; `make test` may have been started with few.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    assert!(most > 2 * IDLE as u64 - 5000, "{most} descriptors: raise `ulimit -Hn`");
    let mut connections: Vec<_> = (0..IDLE).map(|_| daemon.connect()).collect();
    let round = |connections: &mut Vec<Connection>| {
        for connection in connections {
            assert_eq!(connection.get("/robots.txt").status, 200);
        }
    };
    round(&mut connections);
    let memory = daemon.status("VmRSS");
    let open = daemon.look("/.offload/status?json").number("connections_open");
    assert!(open >= IDLE as u64, "{open} are open");
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(daemon.get("/small").text(), "text");
            begun.elapsed()
        })
        .collect();
    times.sort();
    eprintln!(
        "{} bytes an idle connection; a hit meanwhile: {:?}",
        memory.saturating_sub(before) * 1024 / IDLE as u64,
        times[50]
    );
    round(&mut connections);
    let more = daemon.status("VmRSS").saturating_sub(memory);
    assert!(more < 1024, "{more} KB more after the second round: something leaks");
    assert_eq!(daemon.status("Threads"), threads);
}
