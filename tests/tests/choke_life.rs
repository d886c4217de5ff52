//! Clients that go at any time, graceful restarts and killed children: nothing leaks, nothing crashes, and
//! no socket is changed that belongs to somebody else.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use offload_tests::choke::{eventually_still, memory};
use offload_tests::crowd::Crowd;
use offload_tests::h2::Connection;
use offload_tests::limits::{Client, Status, put_big};
use offload_tests::{Httpd, Mpm, Raw, Setup, Site, bytes, eventually};

/// Numbers that are the same every time and look like chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % most
    }
}

const TEXT: &str = "ChokeRate 300K\nChokeBurst 20K\nChokeSummary On\nChokeMaxHeld 100%\nChokeShare client 40M\n\
     <IfModule mpm_event_module>\nAsyncRequestWorkerFactor 20\n</IfModule>\n<Location /proxy>\nChokeSpool 500K\n</Location>\n\
     <LocationMatch /slept$>\nChokePacing Off\n</LocationMatch>";

const PATHS: [&str; 6] =
    ["/data", "/cgi/data", "/proxy/data", "/proxy/cgi/data", "/data/slept", "/nothing"];

/// A client that asks for this and that, and goes in the middle.
fn visit(site: &Site, chance: &mut Chance, h2: bool) {
    let path = PATHS[usize::try_from(chance.below(6)).unwrap()];
    let get = format!("GET {path} HTTP/1.1\r\nHost: base.test\r\n\r\n");
    let raw = |chance: &mut Chance, mut raw: Raw| {
        // The server may be killed or restarting: then this client was unlucky, and that is all.
        raw.wait_at_most(Duration::from_millis(400));
        let _ = raw.try_send(get.repeat(1 + usize::try_from(chance.below(2)).unwrap()));
        if chance.below(4) > 0 {
            let most = usize::try_from(1 + chance.below(60_000)).unwrap();
            let _ = raw.read_exactly(most);
        }
        thread::sleep(Duration::from_millis(chance.below(40)));
    };
    match chance.below(10) {
        0 => {
            let options = [["-tls1_2"], ["-tls1_3"]];
            let version = &options[usize::try_from(chance.below(2)).unwrap()];
            raw(chance, site.tls.connect(version));
        }
        1 if h2 => {
            let running = site.server.curl(path).arg("--http2-prior-knowledge").start();
            thread::sleep(Duration::from_millis(chance.below(80)));
            running.abort();
        }
        _ => {
            if let Ok(connection) = Raw::try_connect(site.server.address()) {
                raw(chance, connection);
            }
        }
    }
}

/// So many visits by eight clients at a time.
fn visits(site: &Site, count: usize, h2: bool) {
    let made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 1..=8 {
            let made = &made;
            scope.spawn(move || {
                let mut chance = Chance(seed << 32 | 0x9E37_79B9);
                while made.fetch_add(1, Ordering::Relaxed) < count {
                    visit(site, &mut chance, h2);
                }
            });
        }
    });
}

fn no_complaint(server: &Httpd) {
    let log = server.error_log();
    for word in ["exit signal", "internal error", "panic", "Segmentation", "still did not exit"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(word)).collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
}

/// The open files of a process.
fn files(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn one_child(setup: Setup) -> Setup {
    setup.one_child()
}

/// Clients that go leave no file open, no memory taken, nothing held and no transfer in the list.
#[test]
fn clients_that_go_leave_nothing_behind() {
    let site = Site::prepared(Mpm::Event, 500_000, TEXT, one_child);
    let server = &site.server;
    visits(&site, 60, true);
    eventually_still(server);
    let child = server.children().into_iter().max_by_key(|&pid| files(pid)).unwrap();
    let (open, before) = (files(child), memory(child));
    for _ in 0..2 {
        visits(&site, 120, true);
        eventually_still(server);
    }
    // Kept-alive connections to the server behind count as well, and close by themselves.
    eventually("no more files are open than before", || (files(child) <= open + 4).then_some(()));
    let grown = memory(child).saturating_sub(before);
    assert!(grown < 12 << 20, "{grown} bytes more after 240 visits");
    assert!(server.children().contains(&child), "the child has died");
    no_complaint(server);
}

/// The same with many children, which are replaced and killed meanwhile.
fn clients_that_go_do_no_harm(mpm: Mpm, rounds: usize) {
    let site = Site::start(mpm, 500_000, TEXT);
    let server = &site.server;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                visits(&site, 40, mpm != Mpm::Prefork);
            }
        });
        for _ in 0..rounds {
            thread::sleep(Duration::from_millis(300));
            server.graceful();
            thread::sleep(Duration::from_millis(300));
            let serving = |pid: &Pid| files(*pid) > 0;
            let child = server.children().into_iter().filter(serving).max_by_key(|pid| files(*pid));
            // A server that goes with what it holds; what it held has to come back.
            if let Some(child) = child {
                let _ = kill(child, Signal::SIGKILL);
            }
        }
        over.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
    eventually_still(server);
    let log = server.error_log();
    for word in ["Segmentation", "internal error", "panic", "Aborted"] {
        assert!(!log.contains(word), "{log}");
    }
    let killed = log.matches("exit signal").count();
    assert!(killed <= rounds, "{killed} children died, {rounds} were killed");
    let got = Client::of(server).download("/data");
    assert!(got.body == site.data && got.seconds() > 1.0, "{} s", got.seconds());
    eventually_still(server);
}

#[test]
fn clients_that_go_do_no_harm_to_event() {
    clients_that_go_do_no_harm(Mpm::Event, 3);
}

#[test]
fn clients_that_go_do_no_harm_to_worker() {
    clients_that_go_do_no_harm(Mpm::Worker, 2);
}

#[test]
fn clients_that_go_do_no_harm_to_prefork() {
    clients_that_go_do_no_harm(Mpm::Prefork, 2);
}

/// A graceful restart ends no download, and does not change its rate.
#[test]
fn a_graceful_restart_cuts_no_download() {
    let site = Site::start(Mpm::Event, 900_000, "ChokeRate 300K\nAsyncRequestWorkerFactor 20");
    let client = Client::of(&site.server);
    thread::scope(|scope| {
        let (site, client) = (&site, &client);
        let plain = ["/data", "/cgi/data", "/proxy/data"]
            .map(|path| scope.spawn(move || (path, client.download(path))));
        let tls = scope.spawn(move || ("TLS", client.download_on(site.tls.connect(&[]), "/data")));
        thread::sleep(Duration::from_millis(700));
        site.server.graceful();
        // The old children still send, and say so.
        let status = Status::of(&site.server);
        assert_eq!(status.transfers.len(), 4, "{status:?}");
        for (name, got) in plain.into_iter().chain([tls]).map(|one| one.join().unwrap()) {
            assert!(got.body == site.data, "{name}: other bytes");
            assert!((2.3..5.0).contains(&got.seconds()), "{name}: {} s", got.seconds());
        }
    });
    eventually_still(&site.server);
    no_complaint(&site.server);
}

/// A client that sleeps is given up after the Timeout, whatever it was being sent.
#[test]
fn a_client_that_sleeps_is_given_up() {
    let text = "ChokeRate 300K\nAsyncRequestWorkerFactor 20\nTimeout 2\nProtocols h2 h2c http/1.1\n\
         <Location /proxy>\nChokeSpool 20M\n</Location>";
    let site = Site::prepared(Mpm::Event, 8_000_000, text, one_child);
    let (server, client) = (&site.server, Client::of(&site.server));
    let mut held: Vec<_> =
        ["/data", "/cgi/data", "/proxy/data"].map(|path| client.ask(client.connect(), path)).into();
    held.push(client.ask(site.tls.connect(&[]), "/data"));
    let mut streams = Connection::open(server, "127.0.0.1");
    let stream = streams.get("/data");
    assert!(streams.is_ok(stream));
    let count = || Status::of(server).transfers.len();
    eventually("all are under way", || (count() == 5).then_some(()));
    eventually_still(server);
    drop((held, streams));
    no_complaint(server);
}

/// A client that has said that it will send no more gets its answer all the same.
#[test]
fn a_client_that_has_closed_its_side_gets_its_answer() {
    let site = Site::start(Mpm::Event, 500_000, "ChokeRate 300K");
    thread::scope(|scope| {
        for path in ["/data", "/cgi/data", "/proxy/data"] {
            let site = &site;
            scope.spawn(move || {
                let client = Client::of(&site.server).field("Connection: close");
                let mut opened = client.ask(client.connect(), path);
                opened.raw.say_no_more();
                let body = opened.raw.try_receive_body(&opened.head).unwrap();
                assert!(body == site.data, "{path}: {} bytes", body.len());
            });
        }
    });
    eventually_still(&site.server);
}

/// A stream that is given up leaves the rate to the others of its connection.
#[test]
fn a_stream_that_is_given_up_leaves_the_rest() {
    let site = Site::start(Mpm::Event, 600_000, "ChokeRate 300K\nAsyncRequestWorkerFactor 20");
    put_big(&site.server, "big");
    let mut connection = Connection::open(&site.server, "127.0.0.1");
    for round in 0..3 {
        let streams = ["/data", "/big", "/cgi/data", "/big"].map(|path| connection.get(path));
        assert!(streams.iter().all(|&stream| connection.is_ok(stream)));
        connection.cancel(streams[1]);
        connection.cancel(streams[3]);
        let start = Instant::now();
        let lengths = [streams[0], streams[2]].map(|stream| connection.finish(stream).length);
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(lengths, [600_000; 2], "round {round}");
        assert!((2.0..8.0).contains(&seconds), "round {round}: {seconds} s");
        eventually_still(&site.server);
    }
    no_complaint(&site.server);
}

/// A file that becomes shorter while it is sent ends its downloads and nothing else: it takes long to
/// send, so this happens.
#[test]
fn a_file_that_shrinks_does_not_kill_the_child() {
    let text = "ChokeRate 300K\nAsyncRequestWorkerFactor 20\nTimeout 5";
    let site = Site::prepared(Mpm::Event, 300_000, text, one_child);
    let (server, client) = (&site.server, Client::of(&site.server));
    put_big(server, "big");
    let mut held = vec![client.ask(client.connect(), "/big")];
    held.extend(
        ["-tls1_2", "-tls1_3"].map(|version| client.ask(site.tls.connect(&[version]), "/big")),
    );
    let ended = thread::scope(|scope| {
        let readers: Vec<_> = held
            .into_iter()
            .map(|mut one| {
                scope.spawn(move || {
                    // The Timeout and more.
                    one.raw.wait_at_most(Duration::from_secs(10));
                    one.raw.try_receive_body(&one.head).map_err(|error| error.kind())
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(700));
        fs::File::options().write(true).open(server.path("big")).unwrap().set_len(1000).unwrap();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    // Not a whole answer, and not one that never ends.
    assert!(ended.iter().all(|end| *end == Err(ErrorKind::UnexpectedEof)), "{ended:?}");
    assert!(client.download("/data").body == site.data);
    eventually_still(server);
    no_complaint(server);
}

/// Connections that get the descriptors of throttled ones which have just gone are not throttled, though
/// rates are being changed all the time.
#[test]
fn a_descriptor_that_is_used_again_has_no_rate() {
    let text = "ChokeRate 100K\nChokeShare client 1M\nAsyncRequestWorkerFactor 20";
    let site = Site::prepared(Mpm::Event, 500_000, text, one_child);
    let server = &site.server;
    put_big(server, "big");
    server.put("off/large", bytes(9, 4 << 20));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Their shares change with each that comes or goes.
        let crowds = scope.spawn(|| {
            let mut chance = Chance(7);
            while !over.load(Ordering::Relaxed) {
                let crowd = Crowd::of(server.address(), "/big").ethernet().open(10);
                thread::sleep(Duration::from_millis(30 + chance.below(100)));
                drop(crowd);
            }
        });
        let client = Client::of(server).from("127.0.0.7").buffer(1 << 20);
        let mut slowest: f64 = 0.0;
        for _ in 0..60 {
            for number in 0..3 {
                // One goes, and the next one gets its number.
                drop(client.sample(client.connect(), "/big", 0.01 * f64::from(number)));
                let free = client.download("/off/large");
                assert_eq!(free.body.len(), 4 << 20);
                slowest = slowest.max(free.seconds());
            }
        }
        over.store(true, Ordering::Relaxed);
        crowds.join().unwrap();
        // At 100 KB/s it would take 40 s.
        assert!(slowest < 4.0, "4 MB without a rate took {slowest} s");
    });
    eventually_still(server);
    let status = Status::of(server);
    assert_eq!(status.choke["held"], 0, "{status:?}");
    no_complaint(server);
}
