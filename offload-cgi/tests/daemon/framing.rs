//! Requests that are none, that follow one another, that come in pieces.

use super::base::{Base, Page};
use super::host::{Daemon, start};
use super::pattern;

fn with_file() -> (Base, Daemon) {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", pattern(1000)));
    let daemon = start(&base, "");
    assert_eq!(daemon.get("/a").status, 200);
    (base, daemon)
}

#[test]
fn what_is_no_request_is_refused_and_what_follows_it_is_never_read() {
    let (_base, daemon) = with_file();
    let large = format!("GET /a HTTP/1.1\r\nHost: x\r\n{}", "A: b\r\n".repeat(4000));
    for (text, status) in [
        ("GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
        (
            "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("GET /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
        ("GET /a HTTP/1.1\nHost: x\n\n", 400),
        ("GET /a HTTP/1.1\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        ("GET /a HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (large.as_str(), 431),
        ("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 403),
    ] {
        let mut connection = daemon.connect();
        connection.send(text);
        connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = connection.receive();
        assert_eq!(answer.status, status, "{text:?}");
        assert_eq!(answer.field("Connection"), "close", "{text:?}");
        assert!(connection.has_ended(), "{text:?}: something follows");
    }
}

#[test]
fn requests_that_are_refused_for_what_they_ask_leave_the_connection_open() {
    let (_base, daemon) = with_file();
    let mut connection = daemon.connect();
    for (request, status) in [
        ("GET /a?b HTTP/1.1", 403),
        ("DELETE /a HTTP/1.1", 403),
        ("GET /../etc/passwd HTTP/1.1", 400),
        ("GET /a%2fb HTTP/1.1", 400),
        ("GET /robots.txt HTTP/1.1", 200),
        ("GET http://other.test/a HTTP/1.1", 200),
        ("OPTIONS * HTTP/1.1", 403),
    ] {
        connection.send(format!("{request}\r\nHost: x\r\n\r\n"));
        assert_eq!(connection.receive().status, status, "{request}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let (base, daemon) = with_file();
    base.put("/b", Page::new("\"b\"", pattern(300_000)));
    let mut connection = daemon.connect();
    let one = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    let mut text = String::new();
    for _ in 0..30 {
        text += &one("/a", "");
        text += &one("/b", "");
        text += &one("/none", "");
        text += &one("/a", "If-None-Match: \"v1\"\r\n");
        text += "HEAD /b HTTP/1.1\r\nHost: x\r\n\r\n";
        text += &one("/a", "Range: bytes=10-19\r\n");
    }
    connection.send(text);
    for _ in 0..30 {
        assert!(connection.receive().body == pattern(1000));
        assert!(connection.receive().body == pattern(300_000));
        assert_eq!(connection.receive().status, 404);
        assert_eq!(connection.receive().status, 304);
        assert_eq!(connection.head().field("Content-Length"), "300000");
        let part = connection.receive();
        assert_eq!((part.status, part.body), (206, pattern(1000)[10..20].to_vec()));
    }
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let (_base, daemon) = with_file();
    let mut connection = daemon.connect();
    for _ in 0..2 {
        for byte in b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" {
            connection.send([*byte]);
        }
        assert!(connection.receive().body == pattern(1000));
    }
}

#[test]
fn the_old_version_ends_its_connections_unless_it_asks() {
    let (_base, daemon) = with_file();
    let mut connection = daemon.connect();
    connection.send("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let answer = connection.receive();
    assert_eq!((answer.status, answer.field("Connection")), (200, "keep-alive"));
    connection.send("GET /a HTTP/1.0\r\n\r\n");
    let answer = connection.receive();
    assert_eq!((answer.status, answer.field("Connection")), (200, "close"));
    assert!(connection.has_ended());
}

#[test]
fn a_client_may_end_its_side_before_the_answer() {
    let (_base, daemon) = with_file();
    let mut connection = daemon.connect();
    connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    connection.stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(connection.receive().body == pattern(1000));
    assert!(connection.has_ended());
}
