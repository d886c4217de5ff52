//! TLS without a worker: pipelining, keep-alive, renegotiation, and memory that stays as it is.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;
use std::time::Duration;

use offload_tests::choke::{eventually_still, memory};
use offload_tests::limits::{BIG, Client, Status, put_big};
use offload_tests::{Httpd, Mpm, Raw, Setup, Site, eventually};

const TEXT: &str = "ChokeRate 1M\nErrorDocument 404 /data\n\
    <Location /cipher>\nSSLVerifyClient optional_no_ca\n</Location>\n\
    <Location /quick>\nChokeRate 1G\n</Location>";

fn one_child(setup: Setup) -> Setup {
    setup.one_child()
}

/// What a row of requests in one write brings, each after the other: everything, in order, whole.
fn pipelined(site: &Site, mut raw: Raw, what: &str) {
    let data = &site.data[..];
    let row: [(&str, &str, u16, &[u8]); 10] = [
        ("GET", "/data", 200, data),
        ("GET", "/small", 200, b"hello"),
        ("HEAD", "/data", 200, b""),
        ("GET", "/nothing", 404, data),
        ("GET", "/cgi/data", 200, data),
        ("GET", "/off/small", 200, b"hello"),
        ("GET", "/proxy/data", 200, data),
        ("GET", "/small", 200, b"hello"),
        ("GET", "/small", 200, b"hello"),
        ("GET", "/data", 200, data),
    ];
    for round in 0..2 {
        let request = |(method, path, ..): &(&str, &str, u16, &[u8])| {
            format!("{method} {path} HTTP/1.1\r\nHost: base.test\r\n\r\n")
        };
        raw.send(row.iter().map(request).collect::<String>());
        for (method, path, status, body) in row {
            let what = format!("{what}, round {round}: {method} {path}");
            let head = raw.try_receive_head().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(head.status, status, "{what}");
            if method == "GET" {
                let got = raw.try_receive_body(&head);
                let got = got.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(got == body, "{what}: {} bytes", got.len());
            }
        }
    }
}

fn rows_of_requests_are_answered(mpm: Mpm, directives: &str) {
    let site = Site::start(mpm, 300_000, &format!("{TEXT}\n{directives}"));
    site.server.put("small", "hello");
    site.server.put("off/small", "hello");
    let client = Client::of(&site.server);
    thread::scope(|scope| {
        let (site, client) = (&site, &client);
        scope.spawn(move || pipelined(site, client.connect(), "plain"));
        scope.spawn(move || pipelined(site, site.tls.connect(&["-tls1_2"]), "TLS 1.2"));
        scope.spawn(move || pipelined(site, site.tls.connect(&["-tls1_3"]), "TLS 1.3"));
    });
    eventually_still(&site.server);
    let log = site.server.error_log();
    assert!(!log.contains("exit signal") && !log.contains("internal error"), "{log}");
}

#[test]
fn rows_of_requests_are_answered_by_event() {
    rows_of_requests_are_answered(Mpm::Event, "");
}

#[test]
fn rows_of_requests_are_answered_by_worker() {
    rows_of_requests_are_answered(Mpm::Worker, "");
}

#[test]
fn rows_of_requests_are_answered_by_prefork() {
    rows_of_requests_are_answered(Mpm::Prefork, "");
}

#[test]
fn rows_of_requests_are_answered_from_the_spool() {
    rows_of_requests_are_answered(Mpm::Event, "ChokeSpool 1M");
}

/// A request that comes while the answer before it is being sent has its answer after it.
#[test]
fn a_request_may_come_in_the_middle_of_an_answer() {
    let site = Site::start(Mpm::Event, 500_000, TEXT);
    site.server.put("small", "hello");
    let visit = |mut raw: Raw, what: &str| {
        for _ in 0..2 {
            for path in ["/data", "/small", "/cgi/data", "/data"] {
                raw.send(format!("GET {path} HTTP/1.1\r\nHost: base.test\r\n\r\n"));
                thread::sleep(Duration::from_millis(120));
            }
            for (path, body) in [
                ("/data", &site.data[..]),
                ("/small", b"hello"),
                ("/cgi/data", &site.data),
                ("/data", &site.data),
            ] {
                let (head, got) = raw.receive();
                assert_eq!(head.status, 200, "{what} {path}");
                assert!(got == body, "{what} {path}: {} bytes", got.len());
            }
        }
    };
    thread::scope(|scope| {
        let (visit, site) = (&visit, &site);
        scope.spawn(move || visit(Client::of(&site.server).connect(), "plain"));
        scope.spawn(move || visit(site.tls.connect(&["-tls1_2"]), "TLS 1.2"));
        scope.spawn(move || visit(site.tls.connect(&["-tls1_3"]), "TLS 1.3"));
    });
    eventually_still(&site.server);
}

/// The server asks for another handshake, or TLS 1.3 for a certificate, in the middle of a connection that
/// was and will be throttled.
#[test]
fn a_renegotiation_changes_nothing() {
    let site = Site::start(Mpm::Event, 500_000, TEXT);
    site.server.put("cipher/data", &site.data);
    thread::scope(|scope| {
        for options in [&["-tls1_2"][..], &["-tls1_3", "-enable_pha"]] {
            let site = &site;
            scope.spawn(move || renegotiates(site, site.tls.connect(options)));
        }
    });
    eventually_still(&site.server);
}

fn renegotiates(site: &Site, mut raw: Raw) {
    let client = Client::of(&site.server);
    for path in ["/data", "/cipher/data", "/data", "/cipher/data", "/cgi/data"] {
        let got = client.download_on(raw, path);
        assert_eq!(got.head.status, 200, "{path}");
        assert!(got.body == site.data, "{path}: other bytes");
        assert!((0.3..2.5).contains(&got.seconds()), "{path}: {} s", got.seconds());
        raw = got.raw;
    }
}

/// A connection that the client or the server ends after the answer ends after the whole answer.
#[test]
fn the_last_answer_of_a_connection_is_whole() {
    let text = format!("{TEXT}\n<Location /last>\nSetEnv nokeepalive 1\n</Location>");
    let site = Site::start(Mpm::Event, 500_000, &text);
    site.name(&["last"]);
    for (field, path) in [("Connection: close", "/data"), ("X-Any: thing", "/last")] {
        for raw in [site.tls.connect(&["-tls1_3"]), site.server.raw()] {
            let client = Client::of(&site.server).field(field);
            let mut got = client.download_on(raw, path);
            assert!(got.body == site.data, "{path}: other bytes");
            assert!(got.raw.ended(), "{path}: more than an answer");
        }
    }
    eventually_still(&site.server);
}

/// The child that serves all.
fn child(server: &Httpd) -> nix::unistd::Pid {
    let answer = server.get("/small");
    nix::unistd::Pid::from_raw(i32::try_from(server.entry(&answer).pid).unwrap())
}

/// Thousands of throttled answers on one connection take no more memory than hundreds.
#[test]
fn many_answers_on_one_connection_take_no_memory() {
    let site = Site::prepared(Mpm::Event, 20_000, TEXT, one_child);
    site.server.put("small", "hello");
    site.server.put("quick/data", &site.data);
    let (client, child) = (Client::of(&site.server), child(&site.server));
    let answers = |mut raw: Raw, count: usize| {
        for number in 0..count {
            let (length, kept) = client.ask(raw, "/quick/data").finish();
            assert_eq!(length, 20_000, "answer {number}");
            raw = kept;
        }
        raw
    };
    let raw = answers(site.tls.connect(&["-tls1_3"]), 500);
    let before = memory(child);
    let raw = answers(raw, 2500);
    let after = memory(child);
    let grown = after.saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes more after 2500 answers");
    drop(raw);
    eventually_still(&site.server);
}

/// A long answer is not kept in memory, neither while it is sent nor when the client sleeps.
#[test]
fn a_long_answer_takes_no_memory() {
    let site = Site::prepared(Mpm::Event, 20_000, TEXT, one_child);
    site.server.put("small", "hello");
    put_big(&site.server, "quick/big");
    put_big(&site.server, "big");
    let (client, child) = (Client::of(&site.server), child(&site.server));
    let got = client.download_on(site.tls.connect(&[]), "/quick/big");
    let before = memory(child);
    let mut raw = got.raw;
    for _ in 0..3 {
        let got = client.download_on(raw, "/quick/big");
        assert_eq!(u64::try_from(got.body.len()).unwrap(), BIG);
        raw = got.raw;
    }
    // These do not read.
    let asleep: Vec<_> = (0..10).map(|_| client.ask(site.tls.connect(&[]), "/big")).collect();
    eventually("they are under way", || {
        (Status::of(&site.server).transfers_of("/big").len() == 10).then_some(())
    });
    let grown = memory(child).saturating_sub(before);
    // A connection over TLS takes some 100 KB whatever it does.
    assert!(grown < 8 << 20, "{grown} bytes more");
    drop(asleep);
    eventually_still(&site.server);
}
