//! No worker is held where none need be, and never more than may be.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use offload_tests::choke::{eventually_still, script, throttled, workers};
use offload_tests::crowd::{Crowd, Download, Downloads, raise_file_limit};
use offload_tests::h2::Connection;
use offload_tests::limits::{BIG, Client, Status, put_big};
use offload_tests::tls::Tls;
use offload_tests::{Httpd, Mpm, Setup, eventually};

/// A small file on a connection of its own comes at once; the slowest of some.
fn slowest_answer(server: &Httpd) -> Duration {
    let answer = || {
        let start = Instant::now();
        assert_eq!(Client::of(server).status("/off/small"), 200);
        start.elapsed()
    };
    (0..10).map(|_| answer()).max().unwrap()
}

/// Every download has its rate, and nearly all workers are idle.
fn assert_nobody_works(server: &Httpd, downloads: &Downloads, count: usize, rate: f64) {
    downloads.eventually_started(count);
    downloads.begin();
    let end = Instant::now() + Duration::from_secs(3);
    let mut most = 0;
    while Instant::now() < end {
        most = most.max(workers(server).0);
        thread::sleep(Duration::from_millis(100));
    }
    let (rates, slowest) = (downloads.end(), slowest_answer(server));
    assert_eq!(rates.with_data(), count, "downloads that got data");
    let mean = rates.mean() / rate;
    assert!((0.8..1.2).contains(&mean), "the mean rate is {mean} of what it should be");
    // The one that answers, and one or two that just write.
    assert!(most <= 5, "{most} of 16 workers were busy");
    assert!(slowest < Duration::from_millis(1500), "{slowest:?} for a small file");
}

#[test]
fn forty_downloads_hold_no_worker() {
    let text = "ChokeRate 100K\nAsyncRequestWorkerFactor 20";
    let server = throttled(Mpm::Event, text).one_child().start().settled();
    put_big(&server, "big");
    server.put("off/small", "hello");
    let downloads = Crowd::of(server.address(), "/big").ethernet().open(40);
    assert_nobody_works(&server, &downloads, 40, 102_400.0);
    let status = Status::of(&server);
    assert_eq!((status.transfers_of("/big").len(), status.choke["held"]), (40, 0), "{status:?}");
    drop(downloads);
    eventually_still(&server);
}

#[test]
fn forty_downloads_over_tls_hold_no_worker() {
    let text = "ChokeRate 100K\nAsyncRequestWorkerFactor 20";
    let tls = Tls::default();
    let server = tls.serve(throttled(Mpm::Event, text).one_child()).start().settled();
    put_big(&server, "big");
    server.put("off/small", "hello");
    let downloads = Crowd::of(tls.address(), "/big").tls().ethernet().open(40);
    assert_nobody_works(&server, &downloads, 40, 102_400.0);
    let status = Status::of(&server);
    assert!(status.transfers_of("/big").iter().all(|one| one.how == "pulled"), "{status:?}");
    assert_eq!((status.transfers_of("/big").len(), status.choke["held"]), (40, 0), "{status:?}");
    drop(downloads);
    eventually_still(&server);
}

/// The short form of ten thousand.
#[test]
fn a_thousand_downloads_run_on_sixteen_workers() {
    raise_file_limit();
    let text = "ChokeRate 20K\nAsyncRequestWorkerFactor 100\nListenBacklog 4096";
    let server = throttled(Mpm::Event, text).one_child().start().settled();
    put_big(&server, "big");
    server.put("off/small", "hello");
    let downloads = Crowd::of(server.address(), "/big").ethernet().open(1000);
    downloads.eventually_started(1000);
    // What was not paced has come.
    thread::sleep(Duration::from_secs(1));
    assert_nobody_works(&server, &downloads, 1000, 20_480.0);
    assert_eq!(Status::of(&server).transfers_of("/big").len(), 1000);
    drop(downloads);
    eventually_still(&server);
}

/// A program that prints 600 KB and one that prints without end.
fn with_programs(setup: Setup) -> Setup {
    let head = "printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'";
    script(&setup, "some", &format!("{head}\nexec head -c 600000 /dev/zero"));
    script(&setup, "big", &format!("{head}\nexec head -c {BIG} /dev/zero"));
    setup.directives("ScriptAlias /cgi/ ${SCRATCH}/cgi/")
}

fn server(mpm: Mpm, directives: &str) -> Httpd {
    let text = format!("ChokeRate 200K\n{directives}");
    let server = with_programs(throttled(mpm, &text).module(mpm.cgi_module())).start().settled();
    server.put("some", vec![0; 600_000]);
    put_big(&server, "big");
    server
}

/// The most that were held until all had ended.
fn most_held(server: &Httpd, downloads: &Downloads) -> u64 {
    let mut most = 0;
    eventually("every download has ended", || {
        most = most.max(Status::of(server).choke["held"]);
        thread::sleep(Duration::from_millis(20));
        (downloads.running() == 0).then_some(())
    });
    most
}

/// Two are throttled and held; the others go on at full speed.
fn no_more_are_held_than_may_be(mpm: Mpm, directives: &str, path: &str) {
    let server = server(mpm, &format!("ChokeMaxHeld 2\n{directives}"));
    assert_eq!(Status::of(&server).choke["max_held"], 2);
    let downloads = Crowd::of(server.address(), path).ethernet().open(6);
    let most = most_held(&server, &downloads);
    let each = downloads.each();
    let seconds = |one: &Download| one.ended.unwrap().as_secs_f64();
    let slow = each.iter().filter(|one| seconds(one) > 2.0).count();
    let fast = each.iter().filter(|one| seconds(one) < 1.5).count();
    assert_eq!((slow, fast, most), (2, 4, 2), "{path}: {each:?}");
    assert!(each.iter().all(|one| one.status == 200 && one.bytes > 600_000), "{each:?}");
    eventually_still(&server);
}

#[test]
fn no_more_programs_are_held_than_may_be() {
    no_more_are_held_than_may_be(Mpm::Event, "", "/cgi/some");
}

#[test]
fn no_more_sleepers_are_held_than_may_be() {
    no_more_are_held_than_may_be(Mpm::Event, "ChokePacing Off", "/some");
}

#[test]
fn no_more_of_worker_are_held_than_may_be() {
    no_more_are_held_than_may_be(Mpm::Worker, "", "/some");
}

#[test]
fn no_more_of_prefork_are_held_than_may_be() {
    no_more_are_held_than_may_be(Mpm::Prefork, "", "/some");
}

#[test]
fn no_more_sleepers_of_prefork_are_held_than_may_be() {
    no_more_are_held_than_may_be(Mpm::Prefork, "ChokePacing Off", "/cgi/some");
}

/// Whoever would be one too many gets a 503 that says when to come again.
fn who_is_one_too_many_is_refused(mpm: Mpm, directives: &str, path: &str) {
    let text = format!("ChokeMaxHeld 2\nChokeOverflow refuse\n{directives}");
    let server = server(mpm, &text);
    let client = Client::of(&server);
    for _ in 0..2 {
        // One after the other, so that it is known which ones are let in.
        let held: Vec<_> = (0..2)
            .map(|number| {
                let held = client.hold(path);
                eventually("it is held", || {
                    (Status::of(&server).choke["held"] == number + 1).then_some(())
                });
                held
            })
            .collect();
        for _ in 0..2 {
            let (head, _) = client.get(path);
            assert_eq!(head.status, 503);
            assert!(head.field("retry-after").unwrap().parse::<u32>().unwrap() > 0, "{head:?}");
        }
        assert_eq!(client.status("/off/some"), 404, "where nothing is throttled");
        assert_eq!(Status::of(&server).choke["held"], 2);
        drop(held);
        eventually_still(&server);
    }
    let refused = server.entries().into_iter().filter(|entry| entry.refused == "ChokeMaxHeld");
    assert_eq!(refused.filter(|entry| entry.status == 503).count(), 4);
}

#[test]
fn a_program_too_many_is_refused() {
    who_is_one_too_many_is_refused(Mpm::Event, "", "/cgi/big");
}

#[test]
fn a_sleeper_too_many_is_refused() {
    who_is_one_too_many_is_refused(Mpm::Event, "ChokePacing Off", "/big");
}

#[test]
fn a_download_too_many_is_refused_by_prefork() {
    who_is_one_too_many_is_refused(Mpm::Prefork, "", "/big");
}

#[test]
fn half_of_the_workers_may_be_held_unless_told_otherwise() {
    for (directive, most) in [("", 8), ("ChokeMaxHeld 25%", 4), ("ChokeMaxHeld 3", 3)] {
        let server = throttled(Mpm::Event, directive).one_child().start().settled();
        assert_eq!(Status::of(&server).choke["max_held"], most, "{directive}");
    }
}

/// What a killed child's workers held is given back, and what others hold stays.
#[test]
fn what_a_killed_child_held_is_given_back() {
    let server = server(Mpm::Event, "ChokeMaxHeld 20");
    let client = Client::of(&server);
    let held = client.hold_all("/cgi/big", 12);
    let count = || Status::try_of(&server).map(|status| status.choke["held"]);
    eventually("12 are held", || (count() == Some(12)).then_some(()));
    let homes: Vec<_> = held.iter().map(|one| server.server_of(one.raw.local())).collect();
    kill(homes[0], Signal::SIGKILL).unwrap();
    let left = homes.iter().filter(|&&home| home != homes[0]).count();
    let left = u64::try_from(left).unwrap();
    eventually("what the child held is back", || (count() == Some(left)).then_some(()));
    drop(held);
    eventually_still(&server);
    let again = client.hold_all("/cgi/big", 12);
    eventually("12 are held again", || (count() == Some(12)).then_some(()));
    drop(again);
    eventually_still(&server);
}

/// HTTP/2 keeps its worker, or it does not: never more than may be, and the rest is served.
#[test]
fn no_more_of_http_2_are_held_than_may_be() {
    let text =
        "ChokeRate 200K\nChokeMaxHeld 2\nProtocols h2c http/1.1\nAsyncRequestWorkerFactor 20";
    let setup = throttled(Mpm::Event, text).module("http2").one_child();
    let server = setup.start().settled();
    server.put("some", vec![0; 600_000]);
    server.put("off/small", "hello");
    let over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                most = most.max(Status::of(&server).choke["held"]);
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let clients: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(&server, "127.0.0.1");
                    let stream = connection.get("/some");
                    connection.finish(stream).length
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(500));
        let slowest = slowest_answer(&server);
        let lengths: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(lengths, [600_000; 20]);
        assert!(slowest < Duration::from_millis(1500), "{slowest:?} for a small file");
        let most = watch.join().unwrap();
        assert!(most <= 2, "{most} were held");
    });
    eventually_still(&server);
}
