//! The rate is there, for every content and MPM; the burst before it, and full speed after it.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;
use std::time::{Duration, Instant};

use offload_tests::choke::{about, throttled};
use offload_tests::crowd::Crowd;
use offload_tests::h2::Connection;
use offload_tests::limits::{BIG, Client, put_big};
use offload_tests::{Download, Httpd, Mpm, Raw, Site};

/// Three rates, for names that end with these words.
const THREE: &str = "<LocationMatch /slow$>\nChokeRate 250K\n</LocationMatch>\n\
                     <LocationMatch /middle$>\nChokeRate 500K\n</LocationMatch>\n\
                     <LocationMatch /quick$>\nChokeRate 1M\n</LocationMatch>";

const NAMES: [&str; 4] = ["slow", "middle", "quick", "off/data"];

/// Takes three seconds at the slowest of the three rates.
const LENGTH: u64 = 750 << 10;

fn works(site: &Site, expected: f64, download: &Download, what: &str) {
    let seconds = download.seconds();
    assert!(about(expected).contains(&seconds), "{what}: {seconds} s instead of {expected} s");
    assert_eq!(download.head.status, 200, "{what}");
    assert!(download.body == site.data, "{what}: other bytes");
}

/// Every content at once, at every rate, with and without TLS.
fn every_content_has_its_rate(mpm: Mpm, directives: &str) {
    let site = Site::start(mpm, LENGTH, &format!("{THREE}\n{directives}"));
    site.name(&NAMES);
    let client = Client::of(&site.server);
    thread::scope(|scope| {
        for (name, expected) in [("slow", 3.0), ("middle", 1.5), ("quick", 0.75)] {
            for path in [name.to_owned(), format!("cgi/data/{name}"), format!("proxy/{name}")] {
                let (site, client, path) = (&site, &client, format!("/{path}"));
                scope.spawn(move || works(site, expected, &client.download(&path), &path));
            }
        }
        for (version, path) in [("-tls1_2", "/middle"), ("-tls1_3", "/cgi/data/middle")] {
            let (site, client) = (&site, &client);
            scope.spawn(move || {
                let raw = site.tls.connect(&[version]);
                works(site, 1.5, &client.download_on(raw, path), version);
            });
        }
    });
    let free = client.download("/off/data");
    assert!(free.body == site.data && free.seconds() < 0.6, "{} s without a rate", free.seconds());
}

#[test]
fn every_content_has_its_rate_with_event() {
    every_content_has_its_rate(Mpm::Event, "");
}

#[test]
fn every_content_has_its_rate_with_worker() {
    every_content_has_its_rate(Mpm::Worker, "");
}

#[test]
fn every_content_has_its_rate_with_prefork() {
    every_content_has_its_rate(Mpm::Prefork, "");
}

#[test]
fn every_content_has_its_rate_when_a_filter_sleeps() {
    every_content_has_its_rate(Mpm::Event, "ChokePacing Off\nChokeMaxHeld 100%");
}

/// A throttled request does not slow down the one that follows it, nor the other way round.
fn the_next_request_has_its_own_rate(mpm: Mpm) {
    let site = Site::start(mpm, 250 << 10, THREE);
    site.name(&NAMES);
    put_big(&site.server, "off/big");
    let client = Client::of(&site.server);
    let visit = |raw: Raw| {
        let mut raw = raw;
        for _ in 0..2 {
            let slow = client.download_on(raw, "/middle");
            // What the kernel has still to send when the second one begins may run ahead.
            assert!((0.35..2.0).contains(&slow.seconds()), "{} s", slow.seconds());
            assert!(slow.body == site.data);
            let fast = client.download_on(slow.raw, "/off/big");
            assert_eq!(u64::try_from(fast.body.len()).unwrap(), BIG);
            // At the rate it would take 48 s.
            assert!(fast.seconds() < 6.0, "{} s for what has no rate", fast.seconds());
            let quick = client.download_on(fast.raw, "/quick");
            assert!(quick.body == site.data && quick.seconds() < 1.3, "{} s", quick.seconds());
            raw = quick.raw;
        }
    };
    thread::scope(|scope| {
        let (visit, site, client) = (&visit, &site, &client);
        scope.spawn(move || visit(client.clone().buffer(1 << 20).connect()));
        scope.spawn(move || visit(site.tls.connect(&["-tls1_2"])));
        scope.spawn(move || visit(site.tls.connect(&["-tls1_3"])));
    });
}

#[test]
fn the_next_request_has_its_own_rate_with_event() {
    the_next_request_has_its_own_rate(Mpm::Event);
}

#[test]
fn the_next_request_has_its_own_rate_with_worker() {
    the_next_request_has_its_own_rate(Mpm::Worker);
}

#[test]
fn the_next_request_has_its_own_rate_with_prefork() {
    the_next_request_has_its_own_rate(Mpm::Prefork);
}

const BURST: f64 = (1u32 << 20) as f64;
const AFTER: f64 = (40u32 << 10) as f64;

/// The burst comes at once, to within 64 KB, and then the rate begins.
fn the_burst_is_what_was_said(mpm: Mpm, directives: &str) {
    let text = format!("ChokeRate 40K\nChokeBurst 1M\n{directives}");
    let site = Site::start(mpm, 3 << 20, &text);
    // A client that is fast: what waits for a slow one in the kernel when the burst ends is paced too.
    let client = Client::of(&site.server).buffer(4 << 20);
    let burst = |raw: Raw, path: &str| {
        let sample = client.sample(raw, path, 2.0);
        let (most, bytes) = (BURST + 2.0 * AFTER * 1.2 + 65_536.0, sample.bytes_at(2.0));
        assert!((BURST - 65_536.0..most).contains(&bytes), "{path}: {bytes} bytes in 2 s");
        assert!(sample.bytes_at(1.0) > BURST - 65_536.0, "{path}: the burst comes late");
    };
    thread::scope(|scope| {
        let (burst, site, client) = (&burst, &site, &client);
        for path in ["/data", "/cgi/data", "/proxy/data"] {
            scope.spawn(move || burst(client.connect(), path));
        }
        scope.spawn(move || burst(site.tls.connect(&[]), "/data"));
        // What is not longer than the burst has no rate, and each response has a burst of its own.
        site.server.put("small", &site.data[..1_000_000]);
        let mut raw = client.connect();
        for _ in 0..3 {
            let small = client.download_on(raw, "/small");
            assert!(small.seconds() < 1.0, "{} s for less than the burst", small.seconds());
            raw = small.raw;
        }
        burst(raw, "/data");
    });
}

#[test]
fn the_burst_is_what_was_said_with_event() {
    the_burst_is_what_was_said(Mpm::Event, "");
}

#[test]
fn the_burst_is_what_was_said_with_worker() {
    the_burst_is_what_was_said(Mpm::Worker, "");
}

#[test]
fn the_burst_is_what_was_said_with_prefork() {
    the_burst_is_what_was_said(Mpm::Prefork, "");
}

#[test]
fn the_burst_is_what_was_said_when_a_filter_sleeps() {
    the_burst_is_what_was_said(Mpm::Event, "ChokePacing Off\nChokeMaxHeld 100%");
}

/// The kernel has still much to send to a slow client when the burst's last byte is written: it too belongs
/// to the burst.
#[test]
fn the_burst_of_a_slow_client_is_not_cut_short() {
    let site = Site::start(Mpm::Event, 3 << 20, "ChokeRate 40K\nChokeBurst 1M");
    let plain = Crowd::of(site.server.address(), "/data").ethernet().reading(500_000).open(1);
    let tls = Crowd::of(site.tls.address(), "/data").tls().ethernet().reading(500_000).open(1);
    for one in [&plain, &tls] {
        one.eventually_started(1);
    }
    // It reads the burst in 2.1 s.
    thread::sleep(Duration::from_millis(2600));
    for (name, one) in [("plain", &plain), ("TLS", &tls)] {
        let bytes = f64::from(u32::try_from(one.bytes()).unwrap());
        assert!((BURST - 65_536.0..BURST + 131_072.0).contains(&bytes), "{name}: {bytes} bytes");
    }
}

/// A client may stop reading for a moment just when the burst ends. What waits for it unsent in the kernel's
/// queue then is paced: no more than 64 KB of the burst, for at this rate they take 16 seconds.
fn the_burst_is_whole_for_who_stalls_at_its_end(mpm: Mpm) {
    const LAST: usize = 64 << 10;
    let text = "ChokeRate 4K\nChokeBurst 2M\nChokeBurstEnv BURST\nSetEnvIf Burst (.+) BURST=$1";
    let site = Site::start(mpm, 3 << 20, text);
    let client = Client::of(&site.server).buffer(256 << 10);
    let stall = |path: &str, client: &Client<'_>| {
        let mut raw = client.hold(path).raw;
        thread::sleep(Duration::from_millis(500));
        let window = raw.waiting();
        (raw, window)
    };
    let (_, window) = stall("/data", &client);
    thread::scope(|scope| {
        // Windows are not all alike: some of these bursts end when there is no room in the queue for more.
        for unsent in (0..16).map(|step| LAST + step * (4 << 10)) {
            let (stall, client) = (&stall, &client);
            let path = if unsent % (8 << 10) == 0 { "/data" } else { "/proxy/data" };
            scope.spawn(move || {
                let burst = window + unsent;
                let client = client.clone().field(&format!("Burst: {burst}"));
                let (mut raw, _) = stall(path, &client);
                // It goes on in small steps: on so short a way the kernel would send 64 KB before it paces.
                raw.shrink_buffer(4 << 10);
                let start = Instant::now();
                raw.read_exactly(burst - LAST).unwrap();
                let seconds = start.elapsed().as_secs_f64();
                assert!(seconds < 2.0, "{path}: {seconds} s for a burst of {burst} bytes");
            });
        }
    });
}

#[test]
fn the_burst_is_whole_for_who_stalls_at_its_end_with_event() {
    the_burst_is_whole_for_who_stalls_at_its_end(Mpm::Event);
}

#[test]
fn the_burst_is_whole_for_who_stalls_at_its_end_with_prefork() {
    the_burst_is_whole_for_who_stalls_at_its_end(Mpm::Prefork);
}

/// All streams of a connection have its rate together, and when they are done there is none.
fn streams_share_the_rate(connect: impl Fn(&Site) -> Connection) {
    let site = Site::start(Mpm::Event, 250 << 10, THREE);
    site.name(&NAMES);
    put_big(&site.server, "off/big");
    let mut connection = connect(&site);
    for round in 0..2 {
        let start = Instant::now();
        let streams = ["/middle", "/cgi/data/middle", "/proxy/middle", "/middle"]
            .map(|path| connection.get(path));
        let lengths = streams.map(|stream| connection.finish(stream).length);
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(lengths, [250 << 10; 4]);
        assert!(about(2.0).contains(&seconds), "round {round}: {seconds} s for four streams");
        let start = Instant::now();
        let free = connection.get("/off/big");
        assert_eq!(connection.finish(free).length, BIG);
        let seconds = start.elapsed().as_secs_f64();
        assert!(seconds < 6.0, "round {round}: {seconds} s for a stream without a rate");
    }
}

#[test]
fn streams_share_the_rate_of_their_connection() {
    streams_share_the_rate(|site| Connection::open(&site.server, "127.0.0.1"));
}

#[test]
fn streams_share_the_rate_of_their_connection_over_tls() {
    streams_share_the_rate(|site| {
        Connection::over_tls(site.tls.connect(&["-alpn", "h2"]), &site.server)
    });
}

/// mod_dir's index, a directory's listing, an error: whatever the handler is, it has the rate.
#[test]
fn other_content_has_the_rate_too() {
    let site = Site::start(
        Mpm::Event,
        500 << 10,
        "ChokeRate 500K\nErrorDocument 404 /missing.html\nErrorDocument 403 /cgi/data\n\
         <Location /locked>\nRequire all denied\n</Location>",
    );
    let server: &Httpd = &site.server;
    server.put("folder/index.html", &site.data);
    server.put("missing.html", &site.data);
    let client = Client::of(server);
    thread::scope(|scope| {
        for (path, status) in [("/folder/", 200), ("/nothing", 404), ("/locked", 403)] {
            let (site, client) = (&site, &client);
            scope.spawn(move || {
                let got = client.download(path);
                assert_eq!(got.head.status, status, "{path}");
                assert!(got.body == site.data, "{path}: other bytes");
                assert!(about(1.0).contains(&got.seconds()), "{path}: {} s", got.seconds());
            });
        }
    });
}

/// The rates that the kernel does not know: nothing is slower than it may be by more than the clock's
/// grain, and what is fast stays fast.
#[test]
fn a_high_rate_is_no_burden() {
    let server = throttled(Mpm::Event, "ChokeRate 100M").start().settled();
    put_big(&server, "big");
    let got = Client::of(&server).buffer(4 << 20).download("/big");
    assert_eq!(u64::try_from(got.body.len()).unwrap(), BIG);
    assert!((0.19..4.0).contains(&got.seconds()), "{} s for 24 MB at 100 MB/s", got.seconds());
}
