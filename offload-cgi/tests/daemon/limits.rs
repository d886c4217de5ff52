//! Too many, too slow, too late.

use std::time::{Duration, Instant};

use super::base::{Base, Page};
use super::host::{Connection, eventually, start};
use super::pattern;

#[test]
fn a_connection_too_many_is_told_to_come_again() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "max-client-connections = 3\nadmin = 127.0.0.1:0\n");
    let mut connections: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        assert_eq!(connection.get("/a").status, 200);
    }
    let mut refused = daemon.connect();
    let answer = refused.receive();
    assert_eq!((answer.status, answer.field("Retry-After")), (503, "10"));
    assert!(answer.text().ends_with("moment.\n") && refused.has_ended());
    drop(connections.pop());
    eventually("there is room again", || {
        let mut connection = daemon.connect();
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        (connection.receive().status == 200).then_some(())
    });
    assert!(daemon.look("/.offload/status?json").number("refused_connections") > 0);
}

#[test]
fn connections_are_counted_in_all_too() {
    let base = Base::start();
    let daemon = start(&base, "max-connections = 2\n");
    let mut connections: Vec<_> = (0..2).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        assert_eq!(connection.get("/robots.txt").status, 200);
    }
    assert_eq!(daemon.connect().receive().status, 503);
}

#[test]
fn a_thousand_heads_that_never_end_delay_nobody_and_are_ended() {
    let (base, body) = (Base::start(), pattern(100_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "header-timeout = 2s\nadmin = 127.0.0.1:0\n");
    assert!(daemon.get("/a").body == body);
    let mut slow: Vec<_> = (0..1000).map(|_| daemon.connect()).collect();
    for connection in &mut slow {
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\nX: ");
    }
    let open = || daemon.look("/.offload/status?json").number("connections_open");
    eventually("all are in", || (open() >= 1000).then_some(()));
    for _ in 0..20 {
        assert!(daemon.get("/a").body == body);
    }
    // A byte now and then keeps none of them alive.
    eventually("all are ended", || {
        for connection in &mut slow {
            let _ = std::io::Write::write_all(connection.stream.get_mut(), b"a");
        }
        (open() == 0).then_some(())
    });
    assert_eq!(slow[0].receive().status, 408);
}

#[test]
fn an_idle_connection_is_ended_and_a_silent_one_too() {
    let base = Base::start();
    let daemon = start(&base, "idle-timeout = 1s\nheader-timeout = 2s\n");
    let (mut idle, mut silent) = (daemon.connect(), daemon.connect());
    assert_eq!(idle.get("/robots.txt").status, 200);
    assert!(idle.has_ended());
    assert!(silent.has_ended());
}

#[test]
fn a_client_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
    let (base, body) = (Base::start(), pattern(8_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "timeout = 3s\nmin-rate = 1000\nadmin = 127.0.0.1:0\n");
    assert!(daemon.get("/a").body == body);
    let (mut stuck, mut slow) = (daemon.connect_slow(), daemon.connect_slow());
    for connection in [&mut stuck, &mut slow] {
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(connection.head().status, 200);
    }
    let look = || daemon.look("/.offload/status?json");
    let begun = Instant::now();
    let mut read = Vec::new();
    eventually("the one that takes nothing is cut off", || {
        // 8 KB now and then: more than 1000 bytes a second, by far.
        read.extend(slow.read(8 << 10));
        std::thread::sleep(Duration::from_millis(50));
        (look().number("timeouts") == 1).then_some(())
    });
    assert!(begun.elapsed() >= Duration::from_secs(3));
    assert!(look().text().contains("GET /a"), "the slow one goes on");
    read.extend(slow.read(8_000_000 - read.len()));
    assert!(read == body);
    assert!(stuck.rest().len() < 8_000_000);
}

#[test]
fn a_client_that_takes_nothing_of_what_passes_through_is_cut_off() {
    let (base, body) = (Base::start(), pattern(30_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()).with(&[("Cache-Control", "no-store")]));
    let daemon = start(&base, "timeout = 2s\nmin-rate = 100000\nadmin = 127.0.0.1:0\n");
    let mut slow = daemon.connect_slow();
    slow.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(slow.head().status, 200);
    let look = || daemon.look("/.offload/status?json");
    eventually("it is shown", || (look().number("downloads") == 1).then_some(()));
    // Each byte is progress for who only asks whether there was any.
    eventually("it is cut off", || {
        slow.read(1);
        std::thread::sleep(Duration::from_millis(50));
        (look().number("timeouts") == 1).then_some(())
    });
    eventually("its place is free", || (look().number("connections_open") == 0).then_some(()));
    assert!(slow.rest().len() < 30_000_000);
    assert!(daemon.get("/a").body == body);
}

#[test]
fn who_breaks_the_connection_off_while_waiting_for_the_base_is_forgotten_at_once() {
    let (base, body) = (Base::start(), pattern(2_000_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1_000_000);
    base.put("/a", page);
    let daemon = start(&base, "admin = 127.0.0.1:0\n");
    let mut gone: Vec<_> = (0..10).map(|_| daemon.connect()).collect();
    let mut stays = daemon.connect();
    for connection in gone.iter_mut().chain([&mut stays]) {
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(connection.head().status, 200);
        assert!(connection.read(900_000) == body[..900_000]);
    }
    gone.iter().for_each(reset);
    drop(gone);
    eventually("they are gone", || {
        (daemon.look("/.offload/status?json").number("connections_open") == 1).then_some(())
    });
    base.release();
    assert!(stays.read(1_100_000) == body[900_000..]);
}

#[test]
fn a_connection_whose_client_has_vanished_without_a_word_is_ended() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can make a socket vanish; that who says nothing is ended is tested above.
        return;
    }
    let (base, body) = (Base::start(), pattern(8_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(
        &base,
        "timeout = 2s\nidle-timeout = 2s\nheader-timeout = 2s\nadmin = 127.0.0.1:0\nmin-rate = 1000\n",
    );
    assert!(daemon.get("/a").body == body);
    let (silent, mut idle) = (daemon.connect(), daemon.connect());
    assert_eq!(idle.get("/robots.txt").status, 200);
    let (mut half, mut loading) = (daemon.connect(), daemon.connect_slow());
    half.send("GET /a HTTP/1.1\r\nHo");
    loading.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(loading.head().status, 200);
    let open = || daemon.look("/.offload/status?json").number("connections_open");
    eventually("all are in", || (open() >= 4).then_some(()));
    for connection in [silent, idle, half, loading] {
        vanish(connection.stream.get_ref());
    }
    eventually("all are ended", || (open() == 0).then_some(()));
    assert!(daemon.get("/a").body == body);
}

/// Lets a socket go as if its host had lost its power: nothing is sent (TCP_REPAIR, tcp(7)).
fn vanish(stream: &std::net::TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(stream, sockopt::TcpRepair, &1).unwrap();
}

#[test]
fn a_base_that_hangs_is_asked_for_nobody_who_has_gone_or_waited_too_long() {
    let base = Base::start();
    for path in ["/a", "/b", "/c", "/d"] {
        base.put(path, Page::new("\"v1\"", "text"));
    }
    base.hold_heads();
    let daemon = start(&base, "workers = 1\ntimeout = 2s\nadmin = 127.0.0.1:0\n");
    let ask = |path: &str| {
        let mut connection = daemon.connect();
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        connection
    };
    let mut first = ask("/a");
    base.wait_for("HEAD", 1);
    // The second may just be in time, the third cannot.
    let (mut second, mut third, gone) = (ask("/b"), ask("/c"), ask("/d"));
    eventually("all are in", || {
        (daemon.look("/.offload/status?json").number("connections_open") == 4).then_some(())
    });
    reset(&gone);
    drop(gone);
    eventually("it is forgotten", || {
        (daemon.look("/.offload/status?json").number("connections_open") == 3).then_some(())
    });
    for connection in [&mut first, &mut second, &mut third] {
        assert_eq!(connection.receive().status, 504);
    }
    assert!(base.count("HEAD") <= 2, "{} were asked", base.count("HEAD"));
    base.release_heads();
}

/// Has a connection end with a reset.
fn reset(connection: &Connection) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let option = nix::sys::socket::sockopt::Linger;
    nix::sys::socket::setsockopt(connection.stream.get_ref(), option, &linger).unwrap();
}
