//! Limits over TLS and HTTP/2, behind a proxy that names the client, for IPv6 households, and for far
//! more addresses than the table has room for.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use nix::sys::signal::{Signal, kill};
use offload_tests::h2::Connection;
use offload_tests::limits::{
    BIG, Client, OBSERVER, Status, eventually_empty, eventually_held, limited, put_big,
};
use offload_tests::{Curl, Httpd, Mpm, Port, Raw, Running, Setup, eventually, tls};

const ADDRESS: &str = "Too many connections from your address";

fn with_files(setup: Setup) -> Httpd {
    let server = setup.start().settled();
    put_big(&server, "big");
    server.put("small", "hello");
    server
}

/// A client over TLS that has begun to read and goes on slowly.
fn tls_client(port: &Port, from: &str, path: &str, version: &str) -> Curl {
    let url = format!("https://{}{path}", port.address());
    Curl::new(url).arg("-k").arg(version).from(from)
}

fn slow(curl: Curl) -> Running {
    curl.arg("--limit-rate").arg("1000").start()
}

#[test]
fn tls_connections_count_like_all_others() {
    let port = Port::of([127, 0, 0, 1].into());
    let setup = limited(Mpm::Event, "GlobalMaxConnectionsPerIP 3").module("http2");
    let server = with_files(tls::listening(setup.directives("Protocols h2 http/1.1"), &port));
    let held = |count| eventually_held(&server, "GlobalMaxConnectionsPerIP", count);
    for version in ["--http1.1", "--http2"] {
        let client = |from| tls_client(&port, from, "/big", version);
        assert_eq!(client("127.0.0.1").method("HEAD").run().status(), 200, "{version}");
        held(0);
        let mut all: Vec<_> = (0..2).map(|_| slow(client("127.0.0.1"))).collect();
        held(2);
        let plain = Client::of(&server).hold("/big");
        let refused = client("127.0.0.1").run();
        assert_eq!(refused.status(), 503, "{version}: {refused:?}");
        assert!(String::from_utf8(refused.body()).unwrap().contains(ADDRESS), "{version}");
        Client::of(&server).assert_refused("/small", ADDRESS);
        all.push(slow(client("127.0.0.2")));
        held(4);
        drop(plain);
        held(3);
        let whole = client("127.0.0.1").run();
        assert_eq!((whole.status(), whole.file().metadata().unwrap().len()), (200, BIG));
        all.into_iter().for_each(Running::abort);
        eventually_empty(&server);
    }
}

fn h2(mpm: Mpm, directives: &str) -> Httpd {
    with_files(limited(mpm, "Protocols h2c http/1.1").module("http2").directives(directives))
}

/// Every stream in progress counts as a connection, also all of one connection.
fn streams_count(mpm: Mpm) {
    let server =
        h2(mpm, "MaxConnectionsPerIP 3\n<Location /small>\nMaxConcurrentReqs 5\n</Location>");
    let mut one = Connection::open(&server, "127.0.0.1");
    let streams: Vec<u32> = (0..3).map(|_| one.get("/big")).collect();
    assert!(streams.iter().all(|&stream| one.is_ok(stream)));
    assert_eq!(Status::of(&server).held("MaxConnectionsPerIP"), 3);
    let fourth = one.get("/small");
    assert!(!one.is_ok(fourth));
    let page = one.finish(fourth).body;
    assert!(String::from_utf8_lossy(&page).contains(ADDRESS));
    Client::of(&server).assert_refused("/small", ADDRESS);
    let mut other = Connection::open(&server, "127.0.0.2");
    let others = other.get("/big");
    assert!(other.is_ok(others));
    assert_eq!(Status::of(&server).held("MaxConnectionsPerIP"), 4);
    // The last byte of a stream makes room, though the connection stays.
    assert_eq!(one.finish(streams[0]).length, BIG);
    let again = eventually("a stream is let in", || {
        let stream = one.get("/big");
        one.is_ok(stream).then_some(stream)
    });
    Client::of(&server).assert_refused("/small", ADDRESS);
    // So does a stream that is given up.
    one.cancel(streams[1]);
    eventually_held(&server, "MaxConnectionsPerIP", 3);
    let plain = Client::of(&server).hold("/big");
    let refused = one.get("/small");
    assert!(!one.is_ok(refused));
    drop(plain);
    eventually_held(&server, "MaxConnectionsPerIP", 3);
    for stream in [again, streams[2]] {
        assert_eq!(one.finish(stream).length, BIG);
    }
    eventually_held(&server, "MaxConnectionsPerIP", 1);
    // An idle connection has no stream in progress.
    let small = one.get("/small");
    assert!(one.is_ok(small));
    assert_eq!(one.finish(small).length, 5);
    drop(other);
    eventually_empty(&server);
}

#[test]
fn streams_of_http_2_count_with_event() {
    streams_count(Mpm::Event);
}

#[test]
fn streams_of_http_2_count_with_worker() {
    streams_count(Mpm::Worker);
}

/// The request that asks for HTTP/2 is answered as the first stream: it counts as that and no more.
#[test]
fn an_upgrade_to_http_2_counts_once() {
    // With event httpd 2.4.71 closes a connection that was upgraded as soon as it waits for its client.
    let server = h2(Mpm::Worker, "MaxConnectionsPerIP 1\nLoadLimit 1 /big");
    let mut client = Raw::connect(server.address());
    // HTTP2-Settings: a window of 1000 bytes, so that the stream stands still when they have come.
    client.send(
        "GET /big HTTP/1.1\r\nHost: base.test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAQAAAPo\r\n\r\n",
    );
    assert_eq!(client.try_receive_head().unwrap().status, 101);
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    // A refusal would be shorter.
    client.read_exactly(1000).unwrap();
    assert_eq!(Status::of(&server).held("MaxConnectionsPerIP"), 1);
    assert_eq!(Status::of(&server).held("LoadLimit"), 1);
    Client::of(&server).assert_refused("/small", ADDRESS);
    drop(client);
    eventually_empty(&server);
}

/// Four streams fill a limit; they end in this way, and their places are free again.
fn streams_end(end: impl FnOnce(&Httpd, Connection)) {
    let server = h2(Mpm::Event, "MaxConnectionsPerIP 4\nLoadLimitServer 9");
    let mut one = Connection::open(&server, "127.0.0.1");
    for _ in 0..4 {
        let stream = one.get("/big");
        assert!(one.is_ok(stream));
    }
    Client::of(&server).assert_refused("/small", ADDRESS);
    end(&server, one);
    eventually_empty(&server);
    drop(Client::of(&server).hold_all("/big", 4));
}

#[test]
fn a_connection_of_http_2_that_goes_takes_its_streams_along() {
    streams_end(|_, connection| drop(connection));
}

#[test]
fn what_streams_of_a_killed_child_held_is_given_back() {
    streams_end(|server, connection| {
        kill(server.server_of(connection.local()), Signal::SIGKILL).unwrap();
        // Until the counts are back it is the server's death, and not the client's leaving, that freed them.
        eventually_empty(server);
        drop(connection);
    });
}

const BEHIND_A_PROXY: &str = "RemoteIPHeader X-Forwarded-For\nRemoteIPInternalProxy 127.0.0.1";

#[test]
fn the_address_is_the_one_that_mod_remoteip_vouches_for() {
    let server = with_files(
        limited(Mpm::Event, "MaxConnectionsPerIP 2").module("remoteip").directives(BEHIND_A_PROXY),
    );
    let for_client =
        |address: &str| Client::of(&server).field(&format!("X-Forwarded-For: {address}"));
    let first = for_client("192.0.2.1").hold_all("/big", 2);
    for_client("192.0.2.1").assert_refused("/small", ADDRESS);
    let second = for_client("192.0.2.2").hold_all("/big", 2);
    for_client("192.0.2.2").assert_refused("/small", ADDRESS);
    // Nobody vouches for what a stranger says.
    let stranger = for_client("192.0.2.3").from("127.0.0.2");
    let third = stranger.hold_all("/big", 2);
    for_client("192.0.2.4").from("127.0.0.2").assert_refused("/small", ADDRESS);
    // A connection of the proxy counts for the client whose request it carries, and while it is idle for
    // nobody: the next request on it may be anybody's.
    let kept = for_client("192.0.2.7").hold("/small").finish().1;
    let kept = for_client("192.0.2.8").ask(kept, "/small").finish().1;
    let seven = for_client("192.0.2.7").hold_all("/big", 2);
    let eight = for_client("192.0.2.8").hold_all("/big", 2);
    for_client("192.0.2.8").assert_refused("/small", ADDRESS);
    drop((first, second, third, kept, seven, eight));
    eventually_empty(&server);
}

#[test]
fn a_household_of_ipv6_is_one_client() {
    let server = with_files(
        limited(Mpm::Event, "MaxConnectionsPerIP 2").module("remoteip").directives(BEHIND_A_PROXY),
    );
    let for_client =
        |address: &str| Client::of(&server).field(&format!("X-Forwarded-For: {address}"));
    let _held =
        (for_client("2001:db8::1").hold("/big"), for_client("2001:db8::2:3:4").hold("/big"));
    for_client("2001:db8::5").assert_refused("/small", ADDRESS);
    assert_eq!(for_client("2001:db8:0:1::1").status("/small"), 200);
    assert_eq!(Status::of(&server).scope("MaxConnectionsPerIP").clients, 1);
}

#[test]
fn the_prefixes_say_what_one_client_is() {
    let server = with_files(
        limited(Mpm::Event, "MaxConnectionsPerIP 1\nLimitClientPrefix 24 128")
            .module("remoteip")
            .directives(BEHIND_A_PROXY),
    );
    let for_client =
        |address: &str| Client::of(&server).field(&format!("X-Forwarded-For: {address}"));
    let _four = for_client("192.0.2.1").hold("/big");
    for_client("192.0.2.200").assert_refused("/small", ADDRESS);
    assert_eq!(for_client("192.0.3.1").status("/small"), 200);
    let _six = for_client("2001:db8::1").hold("/big");
    for_client("2001:db8::1").assert_refused("/small", ADDRESS);
    assert_eq!(for_client("2001:db8::2").status("/small"), 200);
}

/// A limiter never takes the site down: who finds no room in the table is let in.
#[test]
fn two_thousand_addresses_in_a_table_for_ten_are_all_let_in() {
    let server = with_files(limited(Mpm::Event, "LimitTableSize 10\nMaxConnectionsPerIP 2"));
    let mut open = VecDeque::new();
    for number in 0..2000u32 {
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + number).to_string();
        let client = Client::of(&server).from(&from);
        let answer = client.open("/small");
        assert_eq!(answer.status(), 200, "{from}: {:?}", answer.head);
        open.push_back(answer.finish().1);
        // Each stays for a while, so that nearly all of the time nothing in the table is idle.
        if open.len() > 40 {
            open.pop_front();
        }
    }
    let after = Status::of(&server);
    assert!(after.table["uncounted"] > 0, "{after:?}");
    assert!((10..40).contains(&after.table["entries"]), "{after:?}");
    assert_eq!(after.scope("MaxConnectionsPerIP").refused, 0, "{after:?}");
    open.clear();
    eventually_empty(&server);
    // There is room again, and the limit holds again.
    let client = Client::of(&server).from("127.2.0.1");
    let held = client.hold_all("/big", 2);
    client.assert_refused("/small", ADDRESS);
    drop(held);
    let log = server.error_log();
    let said = log.lines().filter(|line| line.contains("LimitTableSize")).count();
    assert!((1..=8).contains(&said), "once a minute and child: {said} times");
    assert!(!log.contains("exit signal") && !log.contains("panic"), "{log}");
    // Old entries that are idle went, and the observer was never in it.
    assert!(Client::of(&server).from(OBSERVER).status("/small") == 200);
}
