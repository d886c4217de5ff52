//! The crowd itself: what it says about downloads is what httpd did.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use offload_tests::crowd::Crowd;
use offload_tests::limits::{BIG, put_big};
use offload_tests::{Httpd, Port, Setup, bytes, eventually, tls};

fn server() -> Httpd {
    let throttled =
        "<Location /slow>\nSetOutputFilter RATE_LIMIT\nSetEnv rate-limit 100\n</Location>";
    let server = Setup::default().module("ratelimit").directives(throttled).start();
    server.put("/file", bytes(1, 300_000));
    put_big(&server, "/slow");
    put_big(&server, "/big");
    server
}

#[test]
fn every_download_of_a_crowd_is_whole() {
    let server = server();
    let crowd =
        Crowd::of(server.address(), "/file").from("127.0.0.7").from("127.0.0.8").unanswered(9);
    let downloads = crowd.open(100);
    downloads.eventually_ended();
    for download in downloads.each() {
        assert!(download.whole && download.failure.is_none(), "{download:?}");
        assert_eq!((download.status, download.length), (200, Some(300_000)));
    }
    for client in ["127.0.0.7", "127.0.0.8"] {
        let came = server.entries().iter().filter(|entry| entry.client == client).count();
        assert_eq!(came, 50, "{client}");
    }
    let missing = Crowd::of(server.address(), "/missing").open(3);
    missing.eventually_ended();
    assert_eq!(missing.answered(404), 3);
}

#[test]
fn the_rate_of_a_crowd_is_what_httpd_sends() {
    let server = server();
    let downloads = Crowd::of(server.address(), "/slow").open(10);
    downloads.eventually_started(10);
    let rates = downloads.measure(Duration::from_secs(3));
    assert_eq!(rates.with_data(), 10);
    // mod_ratelimit sends a fifth each 200 ms.
    let wanted = 102_400.0;
    assert!((rates.mean() / wanted - 1.0).abs() < 0.2, "{rates:?}");
    assert!(rates.least() > 0.5 * wanted && rates.greatest() < 2.0 * wanted, "{rates:?}");
}

#[test]
fn a_crowd_speaks_tls() {
    let port = Port::of([127, 0, 0, 1].into());
    let server = tls::listening(Setup::default(), &port).start();
    server.put("/file", bytes(1, 300_000));
    let downloads = Crowd::of(port.address(), "/file").tls().open(20);
    downloads.eventually_ended();
    for download in downloads.each() {
        assert_eq!((download.status, download.length), (200, Some(300_000)), "{download:?}");
        assert!(download.bytes > 300_000 && download.failure.is_none(), "{download:?}");
    }
}

#[test]
fn a_crowd_reads_slowly_and_leaves() {
    let server = server();
    let slow = Crowd::of(server.address(), "/big").reading(50_000).open(2);
    slow.eventually_started(2);
    let rates = slow.measure(Duration::from_secs(2));
    assert!(rates.greatest() < 100_000.0 && rates.least() > 0.0, "{rates:?}");
    slow.leave(0);
    eventually("one has gone", || (slow.running() == 1).then_some(()));
    let gone = &slow.each()[0];
    assert!(gone.ended.is_some() && !gone.whole && gone.bytes < BIG, "{gone:?}");
    server.eventually_entry("the download is in the access log", |entry| entry.path == "/big");
}
