//! Whose seat a connection has: kept connections that change their virtual host or end, and names of hosts
//! that meet.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use offload_tests::limits::{Client, eventually_empty, limited, put_big};
use offload_tests::{Httpd, Mpm};

fn start(directives: &str) -> Httpd {
    let server = limited(Mpm::Event, directives).start().settled();
    server.put("small", "hello");
    put_big(&server, "big");
    server
}

const HOSTS: &str = "
<VirtualHost ${ADDRESS}:${PORT}>
    ServerName limited.test
    MaxConnectionsPerIP 1
</VirtualHost>
<VirtualHost ${ADDRESS}:${PORT}>
    ServerName free.test
</VirtualHost>
<VirtualHost ${ADDRESS}:${PORT}>
    ServerName busy.test
    MaxConnectionsPerIP 1
    MaxConnectionsCountIdle Off
</VirtualHost>";

#[test]
fn a_connection_that_moves_to_another_virtual_host_leaves_its_seat() {
    let server = start(HOSTS);
    for other in ["free.test", "busy.test"] {
        let (limited, other) =
            (Client::of(&server).host("limited.test"), Client::of(&server).host(other));
        let kept = limited.eventually_hold("/small").finish().1;
        limited.assert_refused("/small", "address");
        let kept = other.ask(kept, "/small").finish().1;
        let _held = limited.eventually_hold("/big");
        drop(kept);
    }
    eventually_empty(&server);
}

/// What was answered before does not take the seat of what is still being sent: where httpd writes the last
/// bytes of the first answer together with the second one, it knows already that the connection will be closed.
#[test]
fn the_last_of_a_row_keeps_the_seat_until_its_own_last_byte() {
    for (mpm, first) in Mpm::ALL.into_iter().flat_map(|mpm| ["small", "big"].map(|one| (mpm, one)))
    {
        let server = limited(mpm, "MaxConnectionsPerIP 1").start().settled();
        server.put("small", "hello");
        put_big(&server, "big");
        let client = Client::of(&server);
        let mut raw = client.connect();
        let request = |path: &str, fields: &str| {
            format!("GET /{path} HTTP/1.1\r\nHost: base.test\r\n{fields}\r\n")
        };
        raw.send(request(first, "") + &request("big", "Connection: close\r\n"));
        let (head, _) = raw.receive();
        assert_eq!(head.status, 200, "{first} from {mpm:?}");
        assert_eq!(raw.try_receive_head().unwrap().status, 200, "big from {mpm:?}");
        client.assert_refused("/small", "address");
        drop(raw);
        eventually_empty(&server);
    }
}

#[test]
fn a_connection_that_will_be_closed_leaves_its_seat_with_the_last_byte() {
    let server = start("MaxConnectionsPerIP 1");
    let client = Client::of(&server).field("Connection: close");
    let begun = Instant::now();
    for _ in 0..5 {
        let (length, open) = client.eventually_hold("/small").finish();
        assert_eq!(length, 5);
        // The server has sent everything, and lingers two seconds for the client to close its end.
        drop(client.eventually_hold("/small"));
        drop(open);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "the seats waited for the connections to end: {took:?}");
    eventually_empty(&server);
}

#[test]
fn virtual_hosts_without_a_name_count_apart() {
    let server = start(
        "<VirtualHost 127.0.0.21:${PORT}>\nMaxConnectionsPerIP 1\n</VirtualHost>\n\
         <VirtualHost 127.0.0.22:${PORT}>\nMaxConnectionsPerIP 1\n</VirtualHost>\n\
         Listen 127.0.0.21:${PORT}\nListen 127.0.0.22:${PORT}",
    );
    let port = server.address().port();
    let get = |address: &str| {
        let mut raw = offload_tests::Raw::connect(
            (address.parse::<std::net::IpAddr>().unwrap(), port).into(),
        );
        let (head, _) = raw.get("/small");
        (head.status, raw)
    };
    let (one, two) = (get("127.0.0.21"), get("127.0.0.22"));
    assert_eq!((one.0, two.0), (200, 200));
    assert_eq!((get("127.0.0.21").0, get("127.0.0.22").0), (503, 503));
}

#[test]
fn the_note_survives_the_administrator_s_page() {
    let server = start("MaxConnectionsPerIP 1\nErrorDocument 503 /small");
    let client = Client::of(&server);
    let _held = client.hold("/big");
    client.assert_refused("/big", "hello");
    let entry = server.eventually_entry("the refusal", |entry| entry.status == 503);
    assert_eq!(entry.refused, "MaxConnectionsPerIP");
}

#[test]
fn a_user_s_seat_outlives_an_internal_redirect() {
    let setup = limited(
        Mpm::Event,
        "MaxConnectionsPerUser 1\n\
         <Directory ${DOCROOT}/private>\nAuthType Basic\nAuthName x\nAuthUserFile ${SCRATCH}/users\n\
         Require valid-user\nOptions +FollowSymLinks\nRewriteEngine On\nRewriteRule ^f$ /big\n</Directory>",
    );
    setup.scratch().write("users", "me:{SHA}scHYc28g2z+2wcZrsUVe1DkJ8Ng=\n");
    let server = setup.module("rewrite").start().settled();
    put_big(&server, "big");
    server.put("private/f", "not this");
    let client = Client::of(&server).user("me");
    let _held = client.hold("/private/f");
    client.assert_refused("/private/f", "user");
}
