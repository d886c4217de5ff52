//! Every MPM: the module loads and works, survives graceful restarts under load, and a panic in it.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use offload_tests::{Mpm, Raw, Setup, bytes, eventually};

const REDIRECT: &str = "OffloadEngine On\nOffloadHost 127.0.0.2:9\n";

fn works(mpm: Mpm) {
    let base = Setup::default().mpm(mpm).offload().directives(REDIRECT).start();
    base.put("a.zip", bytes(1, 6000));
    base.put("small.txt", "hello");
    let answer = base.get("/a.zip");
    assert_eq!((answer.status(), answer.location()), (307, "http://127.0.0.2:9/a.zip"));
    assert_eq!(base.get("/small.txt").body(), b"hello");
    assert_eq!(base.verdict(&answer), "offload http://127.0.0.2:9");
}

/// Clients ask without a pause while httpd reads its configuration anew, again and again.
fn survives_graceful_restarts_under_load(mpm: Mpm) {
    let base = Setup::default().mpm(mpm).offload().directives(REDIRECT).start();
    base.put("a.zip", bytes(1, 6000));
    base.put("small.txt", "hello");
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = || {
        while !over.load(Ordering::Relaxed) {
            for (path, status) in [("/a.zip", 307), ("/small.txt", 200)] {
                // A connection of its own: httpd may close a kept one at any time, which loses nothing.
                let mut raw = Raw::connect(base.address());
                raw.send(format!(
                    "GET {path} HTTP/1.1\r\nHost: base.test\r\nConnection: close\r\n\r\n"
                ));
                let (head, body) = raw.receive();
                assert_eq!(head.status, status, "{path}");
                assert!(status == 307 || body == b"hello", "{path}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        for _ in 0..5 {
            let before = answered.load(Ordering::Relaxed);
            base.graceful();
            eventually("100 more answers", || {
                let lost = clients.iter().any(thread::ScopedJoinHandle::is_finished);
                (lost || answered.load(Ordering::Relaxed) > before + 100).then_some(())
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    let log = base.error_log();
    assert!(
        !log.contains("panic") && !log.contains("Segmentation") && !log.contains("exit signal"),
        "{log}"
    );
}

fn a_panic_is_a_500_and_the_child_lives_on(mpm: Mpm) {
    let base = Setup::default().mpm(mpm).one_child().faulty_offload().directives(REDIRECT).start();
    base.put("a.zip", bytes(1, 6000));
    let before = base.get("/a.zip");
    assert_eq!(before.status(), 307);
    let panicked = base.curl("/a.zip").header("X-Fault-Injection: handler").run();
    assert_eq!(panicked.status(), 500, "{panicked:?}");
    let line = base.eventually_logged(&["a fault was injected", ".rs:"]);
    let after = base.get("/a.zip");
    assert_eq!((after.status(), after.location()), (307, "http://127.0.0.2:9/a.zip"));
    let pids = [&before, &panicked, &after].map(|answer| base.entry(answer).pid);
    assert_eq!(pids, [pids[0]; 3], "the child's process");
    let log = base.error_log();
    let about = |line: &&str| [".rs:", "fault", "panic"].iter().any(|word| line.contains(word));
    let lines: Vec<&str> = log.lines().filter(about).collect();
    assert_eq!(lines, [line], "one line about the panic");
}

#[test]
fn event_loads_and_redirects() {
    works(Mpm::Event);
}

#[test]
fn worker_loads_and_redirects() {
    works(Mpm::Worker);
}

#[test]
fn prefork_loads_and_redirects() {
    works(Mpm::Prefork);
}

#[test]
fn event_loses_no_request_over_graceful_restarts() {
    survives_graceful_restarts_under_load(Mpm::Event);
}

#[test]
fn worker_loses_no_request_over_graceful_restarts() {
    survives_graceful_restarts_under_load(Mpm::Worker);
}

#[test]
fn prefork_loses_no_request_over_graceful_restarts() {
    survives_graceful_restarts_under_load(Mpm::Prefork);
}

#[test]
fn event_survives_a_panic() {
    a_panic_is_a_500_and_the_child_lives_on(Mpm::Event);
}

#[test]
fn worker_survives_a_panic() {
    a_panic_is_a_500_and_the_child_lives_on(Mpm::Worker);
}

#[test]
fn prefork_survives_a_panic() {
    a_panic_is_a_500_and_the_child_lives_on(Mpm::Prefork);
}

#[test]
fn a_graceful_restart_reads_the_configuration_anew() {
    let base = Setup::default().offload().directives(REDIRECT).start();
    base.put("a.zip", bytes(1, 6000));
    assert_eq!(base.get("/a.zip").location(), "http://127.0.0.2:9/a.zip");
    for number in 10..15 {
        base.scratch().write(
            "directives.conf",
            &format!("OffloadEngine On\nOffloadHost 127.0.0.2:{number}\n"),
        );
        base.graceful();
        let wanted = format!("http://127.0.0.2:{number}/a.zip");
        eventually("a new child answers", || {
            (base.get("/a.zip").location() == wanted).then_some(())
        });
    }
}
