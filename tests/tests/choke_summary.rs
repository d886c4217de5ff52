//! What the summary and the status say about transfers: the truth, as the client sees it.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;
use std::time::Duration;

use offload_tests::choke::{Summary, eventually_still, throttled};
use offload_tests::h2::Connection;
use offload_tests::limits::{Client, OBSERVER, Status, Transfer, put_big};
use offload_tests::{Download, Httpd, Mpm, Raw, Site, eventually};

const LENGTH: u64 = 600_000;
const RATE: u64 = 200 << 10;
const TEXT: &str = "ChokeRate 200K\nChokeBurst 10K\nChokeSummary On\nChokeMaxHeld 100%";

/// The summary says what the client has seen.
fn agree(server: &Httpd, path: &str, how: &str, got: &Download) {
    let said = Summary::of(server, path);
    let bytes = f64::from(u32::try_from(got.body.len()).unwrap());
    assert_eq!((said.set, said.burst, said.aborted), (RATE, 10_240, false), "{said:?}");
    assert_eq!((&*said.client, &*said.how), ("127.0.0.1", how), "{said:?}");
    // The head may count, and what TLS adds.
    assert!((bytes..bytes * 1.02 + 2000.0).contains(&said.bytes), "{bytes} came: {said:?}");
    let seconds = got.seconds();
    assert!((said.seconds - seconds).abs() < 0.4, "{seconds} s for the client: {said:?}");
    assert!((2.2..4.5).contains(&said.seconds), "{said:?}");
    let rate = said.bytes / said.seconds;
    assert!((said.rate / rate - 1.0).abs() < 0.05, "{rate} B/s: {said:?}");
}

fn the_summary_says_what_the_client_has_seen(mpm: Mpm, directives: &str, ways: [&str; 3]) {
    let site = Site::start(mpm, LENGTH, &format!("{TEXT}\n{directives}"));
    site.name(&["file", "tls", "file-2"]);
    let client = Client::of(&site.server);
    thread::scope(|scope| {
        let (site, client) = (&site, &client);
        for (path, how) in [("/file", ways[0]), ("/cgi/data", ways[1]), ("/proxy/file-2", ways[1])]
        {
            scope.spawn(move || agree(&site.server, path, how, &client.download(path)));
        }
        scope.spawn(move || {
            let got = client.download_on(site.tls.connect(&[]), "/tls");
            agree(&site.server, "/tls", ways[2], &got);
        });
    });
    assert_eq!(Summary::all(&site.server).len(), 4, "one line each");
}

#[test]
fn the_summary_says_what_the_client_has_seen_with_event() {
    the_summary_says_what_the_client_has_seen(Mpm::Event, "", ["paced", "paced", "pulled"]);
}

#[test]
fn the_summary_says_what_the_client_has_seen_with_prefork() {
    the_summary_says_what_the_client_has_seen(Mpm::Prefork, "", ["paced"; 3]);
}

#[test]
fn the_summary_says_what_the_client_has_seen_when_a_filter_sleeps() {
    let text = "ChokePacing Off";
    the_summary_says_what_the_client_has_seen(Mpm::Event, text, ["slept"; 3]);
}

#[test]
fn the_summary_says_when_the_client_went() {
    let site = Site::start(Mpm::Event, 3_000_000, TEXT);
    site.name(&["file", "tls"]);
    put_big(&site.server, "unread");
    let client = Client::of(&site.server);
    let leave = |raw: Raw, path: &str| {
        let got = client.sample(raw, path, 1.5);
        let bytes = got.bytes_at(1.5);
        drop(got);
        let said = Summary::of(&site.server, path);
        assert!(said.aborted && said.set == RATE, "{said:?}");
        // What the kernel has sent may be on its way when the client goes.
        assert!((bytes - 10_000.0..bytes + 200_000.0).contains(&said.bytes), "{bytes}: {said:?}");
        assert!((1.2..3.0).contains(&said.seconds), "{said:?}");
    };
    thread::scope(|scope| {
        let (leave, site, client) = (&leave, &site, &client);
        scope.spawn(move || leave(client.connect(), "/file"));
        scope.spawn(move || leave(client.connect(), "/cgi/data"));
        scope.spawn(move || leave(site.tls.connect(&[]), "/tls"));
    });
    eventually_still(&site.server);
}

/// What lies in the kernel has not been sent: the end is when the client has the last byte. And each answer
/// of a connection has its own time.
#[test]
fn the_summary_waits_for_the_client() {
    let text =
        "ChokeRate 20M\nChokeSummary On\n<LocationMatch /paced>\nChokeRate 300K\n</LocationMatch>";
    let site = Site::start(Mpm::Event, 300_000, text);
    site.name(&["plain-paced", "plain-paced-2", "tls-paced", "tls-paced-2"]);
    site.server.put("asleep", vec![b'x'; 90_000]);
    let client = Client::of(&site.server).buffer(8 << 10);
    thread::scope(|scope| {
        let (site, client) = (&site, &client);
        scope.spawn(move || {
            let asleep = client.ask(client.connect(), "/asleep");
            thread::sleep(Duration::from_millis(1500));
            assert!(Summary::all(&site.server).iter().all(|said| said.path != "/asleep"));
            assert_eq!(asleep.finish().0, 90_000);
            let said = Summary::of(&site.server, "/asleep");
            assert!((1.4..3.0).contains(&said.seconds) && !said.aborted, "{said:?}");
        });
        for (kind, mut raw) in [("plain", client.connect()), ("tls", site.tls.connect(&[]))] {
            scope.spawn(move || {
                for name in ["paced", "paced-2"] {
                    let path = format!("/{kind}-{name}");
                    let got = client.download_on(raw, &path);
                    let (said, seconds) = (Summary::of(&site.server, &path), got.seconds());
                    assert!((said.seconds - seconds).abs() < 0.4, "{seconds} s: {said:?}");
                    raw = got.raw;
                }
            });
        }
    });
}

/// A line of the client's is not a line of the log's, and a name is not a format.
#[test]
fn the_summary_cannot_be_forged() {
    let server = throttled(Mpm::Event, TEXT).start().settled();
    server.put("a%sb%n\tc\u{1b}[31m", "hello");
    let path = "/a%25sb%25n%09c%1b%5b31m";
    assert_eq!(Client::of(&server).status(path), 200);
    let said = Summary::of(&server, path);
    assert_eq!(said.client, "127.0.0.1");
    assert!(!server.error_log().contains('\u{1b}'));
}

/// The transfer of a path, when there is one.
fn transfer(server: &Httpd, path: &str) -> Option<Transfer> {
    let status = Status::of(server);
    let found = status.transfers_of(path);
    assert!(found.len() < 2, "{status:?}");
    found.first().map(|&transfer| transfer.clone())
}

fn the_status_says_what_is_under_way(mpm: Mpm, directives: &str, ways: [&str; 3]) {
    let site = Site::start(mpm, 3_000_000, &format!("{TEXT}\n{directives}"));
    site.name(&["file", "tls"]);
    let (server, client) = (&site.server, Client::of(&site.server));
    thread::scope(|scope| {
        let (site, client) = (&site, &client);
        let plain = |path| scope.spawn(move || client.sample(client.connect(), path, 3.0));
        let tls = || scope.spawn(move || client.sample(site.tls.connect(&[]), "/tls", 3.0));
        let all = [("/file", plain("/file")), ("/cgi/data", plain("/cgi/data")), ("/tls", tls())];
        thread::sleep(Duration::from_millis(500));
        let paths = all.each_ref().map(|one| one.0);
        let begin = paths.map(|path| transfer(server, path).unwrap());
        thread::sleep(Duration::from_millis(1800));
        let later = paths.map(|path| transfer(server, path).unwrap());
        let text = client.clone().from(OBSERVER).get("/choke-status").1;
        for ((before, now), how) in begin.iter().zip(&later).zip(ways) {
            let what = format!("{before:?}, then {now:?}");
            assert_eq!((&*now.client, now.rate, &*now.how), ("127.0.0.1", RATE, how), "{what}");
            assert_eq!(now.streams, 1, "{what}");
            let moved = now.bytes - before.bytes;
            let expected = RATE * 18 / 10;
            assert!((expected * 6 / 10..expected * 15 / 10).contains(&moved), "{what}");
            assert!((RATE * 6 / 10..RATE * 14 / 10).contains(&now.now), "{what}");
            let line = text.lines().find(|line| line.contains(&now.path));
            let line = line.unwrap_or_else(|| panic!("no {} in {text}", now.path));
            assert!(line.contains("127.0.0.1") && line.contains(how), "{line}");
        }
        for (path, client) in all {
            // What the client has acknowledged is not more than it has got, and not much less.
            let got = client.join().unwrap().bytes_at(3.0);
            assert!(got > 400_000.0, "{path}: {got} bytes");
        }
    });
    eventually_still(server);
    let text = client.from(OBSERVER).get("/choke-status").1;
    assert!(paths_of(&text, &["/file", "/cgi/data", "/tls"]).is_empty(), "{text}");
}

fn paths_of<'a>(text: &str, paths: &[&'a str]) -> Vec<&'a str> {
    paths.iter().copied().filter(|path| text.contains(path)).collect()
}

#[test]
fn the_status_says_what_is_under_way_with_event() {
    the_status_says_what_is_under_way(Mpm::Event, "", ["paced", "paced", "pulled"]);
}

#[test]
fn the_status_says_what_is_under_way_with_worker() {
    the_status_says_what_is_under_way(Mpm::Worker, "", ["paced"; 3]);
}

#[test]
fn the_status_says_what_is_under_way_in_every_process_of_prefork() {
    the_status_says_what_is_under_way(Mpm::Prefork, "", ["paced"; 3]);
}

#[test]
fn the_status_says_what_is_under_way_when_a_filter_sleeps() {
    the_status_says_what_is_under_way(Mpm::Event, "ChokePacing Off", ["slept"; 3]);
}

/// Whoever ends well is gone from the status; what is not throttled never is in it.
#[test]
fn the_status_forgets_what_has_ended() {
    let server = throttled(Mpm::Event, TEXT).start().settled();
    put_big(&server, "off/big");
    server.put("file", vec![b'x'; 100_000]);
    let client = Client::of(&server);
    let free = client.hold("/off/big");
    let mut raw = client.connect();
    for _ in 0..5 {
        raw = client.download_on(raw, "/file").raw;
        eventually_still(&server);
    }
    drop((free, raw));
}

#[test]
fn the_status_counts_streams() {
    let text = format!("{TEXT}\nProtocols h2c http/1.1");
    let server = throttled(Mpm::Event, &text).module("http2").start().settled();
    put_big(&server, "big");
    let mut connection = Connection::open(&server, "127.0.0.1");
    for _ in 0..3 {
        let stream = connection.get("/big");
        assert!(connection.is_ok(stream));
    }
    eventually("three streams are under way", || {
        let status = Status::of(&server);
        let streams = status.transfers_of("/big").iter().map(|one| one.streams).sum::<u64>();
        (streams == 3).then_some(())
    });
    drop(connection);
    eventually_still(&server);
}
