//! Limits on connections of an address and of a user, whatever the handler, under every MPM.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;

use offload_tests::limits::{
    BIG, Client, Status, eventually_empty, eventually_held, limited, put_big,
};
use offload_tests::{Httpd, Mpm, Origin, Setup};

/// A server whose three sections answer in three ways with more than a connection's buffers hold.
fn three_handlers(mpm: Mpm) -> (Httpd, Origin) {
    let origin = Origin::start(|request, stream| {
        let length = if request.path.contains("small") { 5 } else { BIG };
        let mut left = length;
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        while left > 0 {
            let part = usize::try_from(left.min(65_536)).unwrap();
            // The other side may have gone.
            if stream.write_all(&vec![b'0'; part]).is_err() {
                return;
            }
            left -= u64::try_from(part).unwrap();
        }
    });
    let text = format!(
        "<Location /file>\nMaxConcurrentReqs 3\n</Location>\n<Location /cgi>\nMaxConcurrentReqs 3\n</Location>\n\
         <Location /proxy>\nMaxConcurrentReqs 3\nProxyPass {}\n</Location>\nScriptAlias /cgi/ ${{SCRATCH}}/cgi/",
        origin.url()
    );
    let setup = limited(mpm, &text).module(mpm.cgi_module()).module("proxy").module("proxy_http");
    setup.scratch().folder("cgi");
    script(&setup, "big", &format!("exec head -c {BIG} /dev/zero"));
    script(&setup, "small", "printf hello");
    let server = setup.start().settled();
    put_big(&server, "file/big");
    server.put("file/small", "hello");
    (server, origin)
}

fn script(setup: &Setup, name: &str, text: &str) {
    let text = format!("#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n{text}\n");
    let plain = setup.scratch().write(&format!("{name}.sh"), &text);
    setup.scratch().install(&plain, &format!("cgi/{name}"));
}

const SECTION: &str = "Too many requests are being answered in this part of the server";

/// N are let in, N + 1 is not; the last byte of one makes room for one, and nothing before it does.
fn every_handler_is_limited_exactly(mpm: Mpm) {
    let (server, _origin) = three_handlers(mpm);
    let client = Client::of(&server);
    for handler in ["/file", "/cgi", "/proxy"] {
        let (big, small) = (format!("{handler}/big"), format!("{handler}/small"));
        assert_eq!(client.status(&small), 200, "{small}");
        let mut held = client.hold_all(&big, 3);
        let section = |status: Status| {
            let place = |place: &str| place.contains(handler);
            status.scopes.into_iter().find(|scope| place(&scope.place)).unwrap()
        };
        let scope = section(Status::of(&server));
        assert_eq!((scope.limit, scope.held), (3, 3), "{scope:?}");
        for path in [&big, &small] {
            client.assert_refused(path, SECTION);
            client.clone().from("127.0.0.2").assert_refused(path, SECTION);
        }
        // Not yet: a byte is missing.
        let mut last = held.pop().unwrap();
        let most = usize::try_from(BIG / 2).unwrap();
        last.raw.read_exactly(most).unwrap();
        client.assert_refused(&small, SECTION);
        assert_eq!(section(Status::of(&server)).held, 3);
        drop(last);
        // The kept-alive connection is no request.
        let last = client.eventually_hold(&big);
        client.assert_refused(&small, SECTION);
        let (length, kept) = last.finish();
        assert_eq!(length, BIG);
        held.push(client.eventually_hold(&big));
        client.assert_refused(&small, SECTION);
        let kept = client.ask(kept, &small);
        assert_eq!(kept.status(), 503, "{small} on a kept-alive connection");
        drop(held);
        eventually_empty(&server);
        let scope = section(Status::of(&server));
        assert_eq!((scope.greatest, scope.uncounted), (0, 0), "{scope:?}");
        assert!(scope.refused >= 8, "{scope:?}");
    }
}

#[test]
fn every_handler_is_limited_exactly_by_event() {
    every_handler_is_limited_exactly(Mpm::Event);
}

#[test]
fn every_handler_is_limited_exactly_by_worker() {
    every_handler_is_limited_exactly(Mpm::Worker);
}

#[test]
fn every_handler_is_limited_exactly_by_prefork() {
    every_handler_is_limited_exactly(Mpm::Prefork);
}

const ADDRESS: &str = "Too many connections from your address";

/// What is kept alive counts once, however many requests it has carried, until it is closed.
fn an_idle_connection_counts_once(mpm: Mpm) {
    let server = limited(mpm, "MaxConnectionsPerIP 2").start().settled();
    put_big(&server, "big");
    server.put("small", "hello");
    let (client, other) = (Client::of(&server), Client::of(&server).from("127.0.0.2"));
    let mut idle = client.hold("/small").finish().1;
    for _ in 0..10 {
        idle = client.ask(idle, "/small").finish().1;
        let status = Status::of(&server);
        let scope = status.scope("MaxConnectionsPerIP");
        assert_eq!((scope.held, scope.clients, scope.limit), (1, 1, 2), "{scope:?}");
    }
    let busy = client.hold("/big");
    client.assert_refused("/small", ADDRESS);
    idle = client.ask(idle, "/small").finish().1;
    let others = other.hold_all("/big", 2);
    other.assert_refused("/small", ADDRESS);
    let status = Status::of(&server);
    let scope = status.scope("MaxConnectionsPerIP");
    assert_eq!((scope.held, scope.clients, scope.greatest), (4, 2, 2), "{scope:?}");
    drop(idle);
    let again = client.eventually_hold("/big");
    client.assert_refused("/small", ADDRESS);
    drop((busy, again, others));
    eventually_empty(&server);
}

#[test]
fn an_idle_connection_counts_once_with_event() {
    an_idle_connection_counts_once(Mpm::Event);
}

#[test]
fn an_idle_connection_counts_once_with_worker() {
    an_idle_connection_counts_once(Mpm::Worker);
}

#[test]
fn an_idle_connection_counts_once_with_prefork() {
    an_idle_connection_counts_once(Mpm::Prefork);
}

/// `MaxConnectionsCountIdle Off`: only a connection with a request in progress counts.
fn an_idle_connection_need_not_count(mpm: Mpm) {
    let text = "MaxConnectionsPerIP 2\nMaxConnectionsCountIdle Off";
    let server = limited(mpm, text).start().settled();
    put_big(&server, "big");
    server.put("small", "hello");
    let client = Client::of(&server);
    // A client may be back before the server has noticed that its last byte has left.
    let idle: Vec<_> = (0..4).map(|_| client.eventually_hold("/small").finish().1).collect();
    eventually_empty(&server);
    let busy = client.hold_all("/big", 2);
    let idle: Vec<_> = idle.into_iter().map(|idle| client.ask(idle, "/small")).collect();
    assert!(idle.iter().all(|answer| answer.status() == 503), "{idle:?}");
    let mut busy = busy.into_iter();
    let kept = busy.next().unwrap().finish().1;
    eventually_held(&server, "MaxConnectionsPerIP", 1);
    assert_eq!(client.ask(kept, "/small").finish().0, 5);
    drop(busy);
    eventually_empty(&server);
}

#[test]
fn an_idle_connection_need_not_count_with_event() {
    an_idle_connection_need_not_count(Mpm::Event);
}

#[test]
fn an_idle_connection_need_not_count_with_worker() {
    an_idle_connection_need_not_count(Mpm::Worker);
}

#[test]
fn an_idle_connection_need_not_count_with_prefork() {
    an_idle_connection_need_not_count(Mpm::Prefork);
}

#[test]
fn a_connection_that_was_refused_may_ask_again() {
    // After a 503 httpd closes the connection.
    let server = limited(Mpm::Event, "MaxConnectionsPerIP 1\nLimitStatus 429").start().settled();
    put_big(&server, "big");
    server.put("small", "hello");
    let client = Client::of(&server);
    let held = client.hold("/big");
    let refused = client.open("/small");
    assert_eq!(refused.status(), 429);
    let (length, connection) = refused.finish();
    assert!(length > 0);
    drop(held);
    eventually_held(&server, "MaxConnectionsPerIP", 0);
    assert_eq!(client.ask(connection, "/small").finish().0, 5);
}

const TWO_HOSTS: &str = "
<VirtualHost ${ADDRESS}:${PORT}>
    ServerName one.test
    MaxConnectionsPerIP 5
</VirtualHost>
<VirtualHost ${ADDRESS}:${PORT}>
    ServerName two.test
    MaxConnectionsPerIP 5
</VirtualHost>";

#[test]
fn two_virtual_hosts_with_five_each_give_an_address_ten() {
    let server = limited(Mpm::Event, TWO_HOSTS).start().settled();
    put_big(&server, "big");
    let client = Client::of(&server);
    let (one, two) = (client.clone().host("one.test"), client.host("two.test"));
    let _ones = one.hold_all("/big", 5);
    one.assert_refused("/big", ADDRESS);
    let _twos = two.hold_all("/big", 5);
    two.assert_refused("/big", ADDRESS);
    one.assert_refused("/big", ADDRESS);
    let status = Status::of(&server);
    let mut scopes = status.scopes_of("MaxConnectionsPerIP");
    scopes.sort_by(|one, other| one.place.cmp(&other.place));
    let held: Vec<_> = scopes.iter().map(|scope| (scope.limit, scope.held)).collect();
    assert_eq!(held, [(5, 5), (5, 5)], "{status:?}");
    assert!(scopes[0].place.contains("one.test") && scopes[1].place.contains("two.test"));
}

#[test]
fn a_global_limit_caps_the_sum_of_the_virtual_hosts() {
    let text = format!("GlobalMaxConnectionsPerIP 7\n{TWO_HOSTS}");
    let server = limited(Mpm::Event, &text).start().settled();
    put_big(&server, "big");
    let client = Client::of(&server);
    let (one, two) = (client.clone().host("one.test"), client.host("two.test"));
    let ones = one.hold_all("/big", 5);
    one.assert_refused("/big", ADDRESS);
    let twos = two.hold_all("/big", 2);
    two.assert_refused("/big", ADDRESS);
    let status = Status::of(&server);
    assert_eq!(status.scope("GlobalMaxConnectionsPerIP").held, 7, "{status:?}");
    // What was refused by one limit has not taken anything under another one.
    assert_eq!(status.held("MaxConnectionsPerIP"), 7, "{status:?}");
    drop(ones);
    eventually_held(&server, "GlobalMaxConnectionsPerIP", 2);
    let more = two.hold_all("/big", 3);
    two.assert_refused("/big", ADDRESS);
    drop((twos, more));
    eventually_empty(&server);
}

const USERS: &str = "
<Location />
    AuthType Basic
    AuthName members
    AuthUserFile ${SCRATCH}/users
    AuthBasicProvider file
    Require user anna bert
    Require ip 127.0.0.99
</Location>";

#[test]
fn a_user_is_limited_wherever_the_connections_come_from() {
    let text =
        format!("MaxConnectionsPerUser 2\nGlobalMaxConnectionsPerUser 3\n{TWO_HOSTS}\n{USERS}");
    let setup = limited(Mpm::Event, &text);
    setup.scratch().write(
        "users",
        "anna:{SHA}K8HstBDhQrzoO85vIStB4XgVNtw=\nbert:{SHA}e5ZM2TOyzJEG3qvUZBERgmz7wJQ=\n",
    );
    let server = setup.start().settled();
    put_big(&server, "big");
    let client =
        |name: &str, from: &str, host: &str| Client::of(&server).user(name).from(from).host(host);
    const USER: &str = "Too many connections of your user";
    assert_eq!(Client::of(&server).status("/big"), 401);
    let first = client("anna", "127.0.0.1", "one.test").hold("/big");
    let second = client("anna", "127.0.0.2", "one.test").hold("/big");
    client("anna", "127.0.0.3", "one.test").assert_refused("/big", USER);
    let bert = client("bert", "127.0.0.1", "one.test").hold_all("/big", 2);
    let third = client("anna", "127.0.0.1", "two.test").hold("/big");
    client("anna", "127.0.0.1", "two.test").assert_refused("/big", USER);
    let status = Status::of(&server);
    assert_eq!(status.held("MaxConnectionsPerUser"), 5, "{status:?}");
    let global = status.scope("GlobalMaxConnectionsPerUser");
    assert_eq!((global.held, global.clients, global.greatest), (5, 2, 3), "{global:?}");
    drop((first, second));
    let fourth = client("anna", "127.0.0.7", "two.test").eventually_hold("/big");
    drop((bert, third, fourth));
    eventually_empty(&server);
}
