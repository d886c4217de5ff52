//! What a client gets: cold, warm, growing, parts, from several bases, past the cache.

use std::path::Path;
use std::thread;

use super::base::{Base, Page};
use super::host::{eventually, start, start_with};
use super::pattern;

#[test]
fn cold_and_warm_are_the_same_and_the_base_sends_it_once() {
    let (base, body) = (Base::start(), pattern(3_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "fresh = 10s\n");
    let mut connection = daemon.connect();
    let cold = connection.get("/a");
    assert!(cold.body == body);
    assert_eq!(cold.field("Cache-Status"), "offload; fwd=miss; stored");
    assert_eq!(cold.field("ETag"), "\"v1\"");
    for _ in 0..20 {
        let warm = connection.get("/a");
        assert!(warm.body == body);
        assert!(warm.field("Cache-Status").starts_with("offload; hit"), "{warm:?}");
    }
    connection.send("GET /a HTTP/1.1\r\nHost: x\r\nRange: bytes=5-9,2000000-2000009\r\n\r\n");
    let parts = connection.receive();
    assert!(parts.field("Content-Type").starts_with("multipart/byteranges"), "{parts:?}");
    assert_eq!((base.count("HEAD"), base.count("GET")), (1, 1));
}

#[test]
fn a_changed_file_is_served_as_it_is_now() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "one"));
    let daemon = start(&base, "fresh = 0\n");
    for (etag, body) in [("\"v1\"", "one"), ("\"v2\"", "two, longer"), ("\"v3\"", "3")] {
        base.put("/a", Page::new(etag, body));
        assert_eq!(daemon.get("/a").text(), body);
        assert_eq!(daemon.get("/a").text(), body);
    }
}

#[test]
fn many_clients_of_a_growing_file_get_its_bytes_as_they_land() {
    let (base, body) = (Base::start(), pattern(2_000_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1_000_000);
    base.put("/a", page);
    let daemon = start(&base, "");
    let mut connections: Vec<_> = (0..100).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    for connection in &mut connections {
        assert_eq!(connection.head().status, 200);
        assert!(connection.read(900_000) == body[..900_000]);
    }
    base.release();
    for connection in &mut connections {
        assert!(connection.read(1_100_000) == body[900_000..]);
    }
    assert_eq!(base.count("GET"), 1);
    // The connection goes on, as after any reply.
    assert_eq!(connections[0].get("/a").body.len(), 2_000_000);
}

#[test]
fn a_base_that_breaks_off_is_asked_for_the_rest() {
    let (base, body) = (Base::start(), pattern(2_000_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.break_at = Some(700_000);
    base.put("/a", page);
    base.put_after_get("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "");
    assert!(daemon.get("/a").body == body);
    assert_eq!(base.count("GET"), 2);
}

#[test]
fn a_base_that_cannot_be_asked_is_an_answer_and_not_a_hang() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "fresh = 0\n");
    assert_eq!(daemon.get("/a").status, 200);
    base.go_down();
    let mut connection = daemon.connect();
    assert_eq!(connection.get("/b").status, 502);
    let stale = connection.get("/a");
    assert_eq!((stale.status, stale.text().as_str()), (200, "text"));
    assert!(stale.field("Cache-Status").contains("stale-if-error"), "{stale:?}");
}

#[test]
fn what_may_not_be_stored_is_passed_through() {
    let (base, body) = (Base::start(), pattern(500_000));
    base.put("/a", Page::new("\"v1\"", body.clone()).with(&[("Cache-Control", "no-store")]));
    let daemon = start(&base, "");
    for count in 1..4 {
        let answer = daemon.get("/a");
        assert!(answer.body == body && answer.field("Connection") == "close");
        assert_eq!(base.count("GET"), count);
    }
    let mut connection = daemon.connect();
    connection.send("GET /a HTTP/1.1\r\nHost: x\r\nRange: bytes=100-199\r\n\r\n");
    assert_eq!(connection.receive().body, body[100..200]);
    connection.send("HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(connection.has_ended(), "after a body from the base the connection ends");
}

#[test]
fn a_cache_that_is_full_serves_all_the_same() {
    let (base, body) = (Base::start(), pattern(3_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "cache-max = 1M\n");
    for _ in 0..2 {
        assert!(daemon.get("/a").body == body);
    }
    daemon.wait_for_line("there is no room");
}

#[test]
fn the_host_name_says_which_base_is_meant() {
    let (one, two) = (Base::start(), Base::start());
    one.put("/a", Page::new("\"same\"", "of one"));
    two.put("/a", Page::new("\"same\"", "of two"));
    let daemon = start_with(&format!(
        "listen = 127.0.0.1:0\ncache = {{folder}}/cache\nkeep-free = 0\n\
         [base one]\nbase = http://one.test\nbase-address = 127.0.0.1:{}\nhost = one.test\n\
         [base two]\nbase = http://two.test\nbase-address = 127.0.0.1:{}\nhost = two.test, 2.test\n",
        one.port, two.port
    ));
    let mut connection = daemon.connect();
    for _ in 0..3 {
        for (host, text) in
            [("one.test", "of one"), ("TWO.test:80", "of two"), ("2.test.", "of two")]
        {
            connection.send(format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(connection.receive().text(), text, "{host}");
        }
        connection.send("GET http://two.test/a HTTP/1.1\r\nHost: one.test\r\n\r\n");
        assert_eq!(connection.receive().text(), "of two");
        connection.send("GET /a HTTP/1.1\r\nHost: three.test\r\n\r\n");
        assert_eq!(connection.receive().status, 421);
    }
}

#[test]
fn a_unix_socket_and_ipv6_are_addresses_too() {
    use std::io::{Read as _, Write as _};
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let daemon = start(
        &base,
        "listen = unix:{folder}/socket\nlisten = [::1]:0\ntrust = unix:\nlog = {folder}/log\n",
    );
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.path("socket")).unwrap();
    stream.write_all(b"GET /a HTTP/1.0\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("\r\n\r\ntext"), "{text}");
    eventually("the log names who asks behind the proxy", || {
        std::fs::read_to_string(daemon.path("log"))
            .ok()?
            .starts_with("192.0.2.7 - - ")
            .then_some(())
    });
    let line = daemon.wait_for_line("serves on");
    let ipv6 = line.split(' ').find(|word| word.starts_with("[::1]:")).unwrap();
    let stream = std::net::TcpStream::connect(ipv6).unwrap();
    assert_eq!(super::host::Connection::new(stream).get("/a").text(), "text");
}

#[test]
fn a_client_that_goes_away_leaves_nothing_behind() {
    let (base, body) = (Base::start(), pattern(30_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "admin = 127.0.0.1:0\n");
    assert!(daemon.get("/a").body == body);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count();
    eventually("nobody is connected", || {
        (daemon.look("/.offload/status?json").number("connections_open") == 0).then_some(())
    });
    // What is kept open for its freshness is closed after a while.
    let before = eventually("the file is closed", || {
        let now = descriptors();
        thread::sleep(std::time::Duration::from_millis(50));
        (descriptors() == now).then_some(now)
    });
    for round in 0..50 {
        let mut connection = daemon.connect();
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        if round % 2 == 0 {
            connection.read(1000);
        }
    }
    eventually("all have gone", || {
        (daemon.look("/.offload/status?json").number("connections_open") == 0).then_some(())
    });
    eventually("all descriptors are closed", || (descriptors() <= before).then_some(()));
}

/// How many files in this folder and below have this length.
fn files_of(folder: &Path, length: usize) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let counts = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => files_of(&entry.path(), length),
        Ok(found) => usize::from(found.len() == length as u64),
        Err(_) => 0,
    });
    counts.sum()
}

#[test]
fn what_the_base_has_no_more_goes_with_the_last_download_of_it() {
    for fresh in ["0", "3s"] {
        let (base, body) = (Base::start(), pattern(20_000_000));
        base.put("/a", Page::new("\"v1\"", body.clone()));
        let daemon = start(&base, &format!("fresh = {fresh}\n"));
        assert!(daemon.get("/a").body == body);
        daemon.settle();
        assert!(daemon.get("/a").body == body, "it may be kept open now");
        let mut slow = daemon.connect_slow();
        slow.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(slow.head().field("Cache-Status"), "offload; hit");
        base.put("/a", Page::status(404, &[]));
        eventually("it is known", || (daemon.get("/a").status == 404).then_some(()));
        // Not in the first moment: nobody looks for changes then.
        thread::sleep(std::time::Duration::from_millis(300));
        assert!(slow.read(body.len()) == body);
        drop(slow);
        eventually("it is gone", || {
            (files_of(&daemon.path("cache"), body.len()) == 0).then_some(())
        });
    }
}

#[test]
fn downloads_of_one_file_share_it_although_the_base_is_asked_for_each() {
    let (base, body) = (Base::start(), pattern(20_000_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "fresh = 0\n");
    assert!(daemon.get("/a").body == body);
    daemon.settle();
    let open = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().flatten();
        let places = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        places.filter(|place| place.extension().is_some_and(|kind| kind == "body")).count()
    };
    let mut slow: Vec<_> = (0..30).map(|_| daemon.connect_slow()).collect();
    for connection in &mut slow {
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(connection.head().field("Cache-Status"), "offload; hit");
    }
    eventually("one is open for all", || (open() == 1).then_some(()));
    for connection in &mut slow {
        assert!(connection.read(body.len()) == body);
    }
    drop(slow);
    eventually("it is closed", || (open() == 0).then_some(()));
}
