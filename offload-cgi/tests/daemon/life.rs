//! Start, reload, upgrade, end: no download is lost.

use std::fs;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::base::{Base, Page};
use super::host::{Connection, Daemon, Successor, eventually, start};
use super::pattern;

const LENGTH: usize = 20_000_000;

/// A daemon with a file, and downloads of it that have begun and go on as the test reads.
fn with_downloads(lines: &str) -> (Base, Daemon, Vec<u8>, Vec<Connection>) {
    let (base, body) = (Base::start(), pattern(LENGTH));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, lines);
    assert!(daemon.get("/a").body == body);
    let connections = (0..10)
        .map(|_| {
            let mut connection = daemon.connect_slow();
            connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(connection.head().status, 200);
            connection
        })
        .collect();
    (base, daemon, body, connections)
}

#[test]
fn a_term_lets_downloads_finish_and_nobody_new_in() {
    let (_base, mut daemon, body, connections) = with_downloads("");
    let mut idle = daemon.connect();
    assert_eq!(idle.get("/robots.txt").status, 200);
    daemon.signal(Signal::SIGTERM);
    assert!(idle.has_ended(), "a connection without a request ends at once");
    eventually("no new connections", || TcpStream::connect(daemon.address).is_err().then_some(()));
    assert!(!daemon.has_ended());
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
        assert!(connection.has_ended());
    }
    assert!(daemon.wait());
}

#[test]
fn who_asks_twice_is_in_a_hurry() {
    let (_base, mut daemon, _, connections) = with_downloads("");
    daemon.signal(Signal::SIGINT);
    let line = daemon.wait_for_line("a second signal ends them at once");
    assert!(line.contains(" within 300s"), "{line}");
    daemon.signal(Signal::SIGINT);
    assert!(daemon.wait());
    drop(connections);
}

#[test]
fn a_drain_has_an_end() {
    let (_base, mut daemon, _, connections) =
        with_downloads("drain = 300ms\nlog = {folder}/log\nlog-format = json\n");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait());
    daemon.wait_for_line("cut off at the end of the drain");
    let log = fs::read_to_string(daemon.path("log")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("\"whole\":false")).count(), 10, "{log}");
    drop(connections);
}

#[test]
fn a_reload_changes_settings_and_drops_no_download() {
    let (_base, daemon, body, connections) = with_downloads("");
    daemon.configure(|text| text + "burst = x\n");
    daemon.signal(Signal::SIGHUP);
    let line = daemon.wait_for_line("not reloaded");
    assert!(line.contains("offload.conf:7: burst:"), "{line}");
    daemon.configure(|text| {
        text.replace("burst = x\n", "max-client-connections = 11\nlisten = 127.0.0.2:0\n")
    });
    daemon.signal(Signal::SIGHUP);
    eventually("reloaded", || {
        let line = daemon.lines().into_iter().find(|line| line.ends_with(": reloaded"));
        line.map(drop)
    });
    let mut more = daemon.connect();
    assert_eq!(more.get("/robots.txt").status, 200);
    let mut refused = daemon.connect();
    assert_eq!(refused.receive().status, 503);
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
    }
}

#[test]
fn a_reload_opens_the_log_anew() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "log = {folder}/log\n");
    let (log, old) = (daemon.path("log"), daemon.path("log.1"));
    daemon.get("/a");
    eventually("a line", || fs::read_to_string(&log).ok().filter(|text| text.contains("GET /a")));
    fs::rename(&log, &old).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_line("reloaded");
    eventually("a line in the new file", || {
        daemon.get("/b");
        log.exists().then_some(())
    });
}

#[test]
fn an_upgrade_refuses_no_connection_and_cuts_no_download() {
    let (_base, mut daemon, body, connections) = with_downloads("admin = 127.0.0.1:0\n");
    let address = daemon.address;
    // Somebody who connects all the time.
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    let visitor = thread::spawn(move || {
        let mut count = 0;
        while !end.load(Ordering::SeqCst) {
            let stream = TcpStream::connect(address).expect("a connection is refused");
            let mut connection = Connection::new(stream);
            connection.send("GET /robots.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            assert_eq!(connection.receive().status, 200);
            count += 1;
        }
        count
    });
    daemon.signal(Signal::SIGUSR2);
    let line = daemon.wait_for_line("takes over");
    let successor = Successor(
        line.split(' ').find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}")),
    );
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
    }
    assert!(daemon.wait(), "the old process ends when its downloads have");
    assert!(daemon.get("/a").body == body, "the new one has the cache");
    assert_eq!(daemon.look("/.offload/status?json").status, 200);
    ended.store(true, Ordering::SeqCst);
    assert!(visitor.join().unwrap() > 0);
    successor.signal(Signal::SIGTERM);
    eventually("the new process ends", || TcpStream::connect(address).is_err().then_some(()));
}

#[test]
fn reloads_and_upgrades_under_load_lose_no_download() {
    let (base, body) = (Base::start(), pattern(2_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "");
    assert!(daemon.get("/a").body == body);
    let (address, ended) = (daemon.address, Arc::new(AtomicBool::new(false)));
    let visitors: Vec<_> = (0..8)
        .map(|_| {
            let (ended, body) = (Arc::clone(&ended), body.clone());
            thread::spawn(move || {
                let mut count = 0;
                while !ended.load(Ordering::SeqCst) {
                    let stream = TcpStream::connect(address).expect("a connection is refused");
                    let mut connection = Connection::new(stream);
                    connection.send("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                    assert!(connection.receive().body == body);
                    count += 1;
                }
                count
            })
        })
        .collect();
    // The old ones live as long as their downloads.
    let mut all = vec![Successor(daemon.id())];
    for upgrade in 1..=3 {
        let now = &all[upgrade - 1];
        for _ in 0..5 {
            now.signal(Signal::SIGHUP);
            thread::sleep(Duration::from_millis(20));
        }
        now.signal(Signal::SIGUSR2);
        // All of them write to the same error log.
        all.push(eventually("the next process takes over", || {
            let lines = daemon.lines();
            let mut over = lines.iter().filter(|line| line.ends_with("takes over"));
            let line = over.nth(upgrade - 1)?.clone();
            line.split(' ').find_map(|word| word.parse().ok()).map(Successor)
        }));
    }
    ended.store(true, Ordering::SeqCst);
    let counts: Vec<i32> = visitors.into_iter().map(|visitor| visitor.join().unwrap()).collect();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let reloads = daemon.lines().iter().filter(|line| line.ends_with(": reloaded")).count();
    assert!(reloads >= 3, "{reloads}");
    all[3].signal(Signal::SIGTERM);
    eventually("the last process ends", || TcpStream::connect(address).is_err().then_some(()));
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let (_base, daemon, body, connections) = with_downloads("");
    daemon.configure(|text| text + "nonsense\n");
    daemon.signal(Signal::SIGUSR2);
    daemon.wait_for_line("no upgrade");
    assert!(daemon.get("/a").body == body);
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
    }
}

#[test]
fn a_base_that_is_not_served_any_more_keeps_no_file_open() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", pattern(1000)));
    let daemon = start(&base, "fresh = 10s\n");
    let open = || {
        let files = fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().flatten();
        let names = files.filter_map(|file| fs::read_link(file.path()).ok());
        names.filter(|name| name.extension().is_some_and(|end| end == "body")).count()
    };
    eventually("a file is kept open", || {
        assert_eq!(daemon.get("/a").status, 200);
        (open() > 0).then_some(())
    });
    let change = |from: &str, to: &str| {
        daemon.configure(|text| text.replace(from, to));
        let before = daemon.lines().len();
        daemon.signal(Signal::SIGHUP);
        eventually("reloaded", || {
            daemon.lines()[before..].iter().any(|line| line.ends_with(": reloaded")).then_some(())
        });
    };
    change("fresh = 10s", "fresh = 11s");
    eventually("it is closed", || (open() == 0).then_some(()));
    // The first settings again: the site that is there already.
    change("fresh = 11s", "fresh = 10s");
    eventually("a file is kept open again", || {
        assert_eq!(daemon.get("/a").status, 200);
        (open() > 0).then_some(())
    });
}

#[test]
fn a_filler_that_ends_leaves_no_zombie() {
    let (base, daemon, ..) = with_downloads("");
    for name in 0..10 {
        base.put(&format!("/{name}"), Page::new("\"x\"", pattern(1000)));
        daemon.get(&format!("/{name}"));
    }
    eventually("no child is left", || {
        let path = format!("/proc/{0}/task/{0}/children", daemon.id());
        fs::read_to_string(path).unwrap().is_empty().then_some(())
    });
}
