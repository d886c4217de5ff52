//! One client, one file, many connections: no more than it may have.

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use super::base::{Base, Page};
use super::host::{Host, Running};
use super::pattern;

const ADDRESS: &str = "$REMOTE_ADDR";

fn offload(limit: &str) -> (Base, Host) {
    let base = Base::start();
    // Larger than what the pipe to the client takes, so that who does not read is still being served.
    base.put("/a", Page::new("\"v1\"", pattern(1_000_000)));
    base.put("/b", Page::new("\"v1\"", pattern(1_000_000)));
    let mut host = Host::new(&base);
    host.set("OFFLOAD_MAX_DUPES", limit);
    host.get("/a");
    host.get("/b");
    (base, host)
}

/// A download that has begun and goes on until somebody reads the rest of it.
fn begin(host: &Host, path: &str, headers: &[(&str, &str)]) -> Running {
    let mut running = host.ask("GET", path, headers);
    running.read_body(1);
    running
}

#[test]
fn a_second_connection_for_the_same_file_is_refused_and_others_are_not() {
    let (_base, host) = offload("1");
    let running = begin(&host, "/a", &[]);
    let reply = host.get("/%61");
    assert_eq!((reply.status, reply.header("Retry-After")), (403, Some("10")));
    assert!(reply.text().contains("download accelerator"), "{}", reply.text());
    assert_eq!(host.get_with("/a", &[("Range", "bytes=0-0")]).status, 403);
    assert_eq!(host.get("/b").status, 200);
    assert_eq!(host.get_with("/a", &[(ADDRESS, "192.0.2.8")]).status, 200);
    // What sends no bytes of the file does not count, and is not refused.
    assert_eq!(host.head("/a").status, 200);
    assert_eq!(host.get_with("/a", &[("If-None-Match", "\"v1\"")]).status, 304);
    assert_eq!(host.get_with("/a", &[("If-None-Match", "\"v2\"")]).status, 403);
    assert!(running.rest().1);
    assert_eq!(host.get("/a").status, 200);
}

#[test]
fn as_many_as_the_limit_says_and_0_is_no_limit() {
    let (_base, mut host) = offload("3");
    let running: Vec<_> = (0..3).map(|_| begin(&host, "/a", &[])).collect();
    assert_eq!(host.get("/a").status, 403);
    host.set("OFFLOAD_MAX_DUPES", "0");
    assert_eq!(host.get("/a").status, 200);
    running.into_iter().for_each(|running| assert!(running.rest().1));
}

#[test]
fn what_a_killed_process_held_is_given_back() {
    let (_base, host) = offload("1");
    for _ in 0..5 {
        begin(&host, "/a", &[]).kill();
    }
    let running = begin(&host, "/a", &[]);
    assert_eq!(host.get("/a").status, 403);
    running.abort();
    assert_eq!(host.get("/a").status, 200);
}

#[test]
fn in_the_queue_a_connection_waits_for_its_turn() {
    let (_base, mut host) = offload("1");
    host.set("OFFLOAD_DUPE_MODE", "queue");
    let first = begin(&host, "/a", &[]);
    let second = host.ask("GET", "/a", &[]);
    host.set("OFFLOAD_TIMEOUT", "100ms");
    assert_eq!(host.get("/a").status, 403, "patience ends");
    assert!(first.rest().1);
    assert_eq!(second.end().status, 200);
}

#[test]
fn a_neighbour_in_the_same_ipv6_64_is_the_same_client() {
    let (_base, host) = offload("1");
    let running = begin(&host, "/a", &[(ADDRESS, "2001:db8::1")]);
    assert_eq!(host.get_with("/a", &[(ADDRESS, "2001:db8::2")]).status, 403);
    assert_eq!(host.get_with("/a", &[(ADDRESS, "2001:db8:0:1::1")]).status, 200);
    assert!(running.rest().1);
}

#[test]
fn only_trusted_proxies_say_whose_connection_it_is() {
    let (_base, mut host) = offload("1");
    let forwarded = |text| [(ADDRESS, "10.0.0.1"), ("X-Forwarded-For", text)];
    let running = begin(&host, "/a", &forwarded("192.0.2.1"));
    assert_eq!(host.get_with("/a", &forwarded("192.0.2.2")).status, 403, "nobody is trusted");
    assert!(running.rest().1);
    host.set("OFFLOAD_TRUST", "10.0.0.0/8");
    let running = begin(&host, "/a", &forwarded("192.0.2.1"));
    assert_eq!(host.get_with("/a", &forwarded("192.0.2.2")).status, 200);
    assert_eq!(host.get_with("/a", &forwarded("192.0.2.2, 192.0.2.1")).status, 403);
    assert!(running.rest().1);
}

#[test]
fn a_table_of_another_size_is_another_table() {
    let (_base, mut host) = offload("1");
    for clients in ["1", "1000"] {
        host.set("OFFLOAD_MAX_CLIENTS", clients);
        let running = begin(&host, "/a", &[]);
        assert_eq!(host.get("/a").status, 403, "{clients}");
        assert!(running.rest().1);
    }
}

#[test]
fn a_table_that_is_longer_than_it_should_be_counts_on() {
    let (_base, host) = offload("1");
    let running = begin(&host, "/a", &[]);
    let mut tables = fs::read_dir(host.cache()).unwrap().flatten();
    let table = tables.find(|file| file.file_name().as_bytes().starts_with(b"downloads-")).unwrap();
    fs::File::options().append(true).open(table.path()).unwrap().write_all(b"x").unwrap();
    for _ in 0..2 {
        assert_eq!(host.get("/a").status, 403);
    }
    assert!(running.rest().1);
    assert_eq!(host.get("/a").status, 200);
}
