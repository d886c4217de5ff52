//! What counts, request by request: every kind of answer gives back what it took, in every order, and
//! under a crowd the limit is exact.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Barrier;
use std::thread;

use nix::sys::signal::{Signal, kill};
use offload_tests::limits::{
    BIG, Client, OBSERVER, Status, eventually_empty, eventually_held, limited, put_big,
};
use offload_tests::{Httpd, Mpm, Raw, eventually};

fn server(mpm: Mpm, directives: &str) -> Httpd {
    let server = limited(mpm, directives).start().settled();
    put_big(&server, "big");
    server.put("small", "hello");
    server
}

/// One place under every limit.
const ONE_PLACE: &str = "MaxConnectionsPerIP 1\nLoadLimitServer 1\nLoadLimit 1 /\n\
                         <Location />\nMaxConcurrentReqs 1\n</Location>";

/// Each answer, whatever it is, has given back by its last byte what it took.
fn one_after_the_other_is_never_refused(mpm: Mpm) {
    let server = server(
        mpm,
        &format!(
            "{ONE_PLACE}\n<Location /forbidden>\nRequire all denied\n</Location>\n\
             <Location /off>\nOffloadEngine On\nOffloadMinSize 0\nOffloadHost 127.0.0.2:9\n</Location>"
        ),
    );
    server.put("empty", "");
    server.put("off/a.zip", "hello");
    let ask = Client::of(&server);
    let kinds = [
        (ask.clone(), "/small", 200),
        (ask.clone(), "/empty", 200),
        (ask.clone(), "/off/a.zip", 307),
        (ask.clone().field("If-Modified-Since: Wed, 01 Jan 2025 00:00:00 GMT"), "/small", 304),
        (ask.clone().field("Range: bytes=1-2"), "/small", 206),
        (ask.clone().field("Range: bytes=0-0,2-3"), "/small", 206),
        (ask.clone().field("Range: bytes=99-"), "/small", 416),
        (ask.clone().field("If-Match: \"x\""), "/small", 412),
        (ask.clone(), "/nowhere", 404),
        (ask.clone(), "/forbidden", 403),
        (ask.clone().method("DELETE"), "/small", 405),
        (ask.clone().method("OPTIONS"), "/small", 200),
        // httpd closes after this one.
        (ask.clone().field("Expect: 100-continue"), "/small", 200),
    ];
    // On one connection ...
    let mut connection = ask.connect();
    for round in 0..5 {
        for (client, path, status) in &kinds[..kinds.len() - 1] {
            let answer = client.ask(connection, path);
            assert_eq!(answer.status(), *status, "{path} in round {round}: {answer:?}");
            connection = answer.finish().1;
        }
    }
    drop(connection);
    eventually_empty(&server);
    // ... and on one for each.
    for (client, path, status) in &kinds {
        assert_eq!(client.status(path), *status, "{path} on a connection of its own");
        eventually_empty(&server);
    }
}

#[test]
fn one_after_the_other_is_never_refused_by_event() {
    one_after_the_other_is_never_refused(Mpm::Event);
}

#[test]
fn one_after_the_other_is_never_refused_by_worker() {
    one_after_the_other_is_never_refused(Mpm::Worker);
}

#[test]
fn one_after_the_other_is_never_refused_by_prefork() {
    one_after_the_other_is_never_refused(Mpm::Prefork);
}

/// What one client sends ahead on one connection is answered one after the other.
#[test]
fn pipelined_requests_do_not_refuse_each_other() {
    for idle in ["On", "Off"] {
        let text = format!("{ONE_PLACE}\nMaxConnectionsCountIdle {idle}");
        let server = server(Mpm::Event, &text);
        let mut raw = Client::of(&server).connect();
        raw.send("GET /small HTTP/1.1\r\nHost: base.test\r\n\r\n".repeat(10));
        for number in 0..10 {
            let (head, body) = raw.receive();
            assert_eq!((head.status, &*body), (200, &b"hello"[..]), "{number}, idle {idle}");
        }
        drop(raw);
        eventually_empty(&server);
    }
}

/// Whatever a client comes with, a request that is not understood takes nothing for ever.
#[test]
fn nonsense_takes_nothing() {
    let server = server(Mpm::Event, ONE_PLACE);
    for text in [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET /small HTTP/9.9\r\n\r\n",
        "GET /small HTTP/1.1\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nHost: base.test\r\n\r\n",
        "POST /small HTTP/1.1\r\nHost: base.test\r\nContent-Length: 99\r\n\r\nabc",
        "GET /small HTTP/1.1\r\nHost: base.test\r\n",
    ] {
        let mut raw: Raw = Client::of(&server).connect();
        raw.send(text);
        drop(raw);
        eventually_empty(&server);
    }
    drop(Client::of(&server).hold("/big"));
}

fn a_crowd_gets_exactly_what_there_is(mpm: Mpm) {
    let server = server(
        mpm,
        "MaxConnectionsPerIP 5\n<Location /section>\nMaxConcurrentReqs 5\n</Location>\nLoadLimit 5 /group",
    );
    put_big(&server, "section/big");
    put_big(&server, "group/big");
    for (path, alone) in [("/big", true), ("/section/big", false), ("/group/big", false)] {
        let barrier = Barrier::new(12);
        let held: Vec<_> = thread::scope(|scope| {
            let client = |number: usize| {
                let from = if alone { "127.0.0.1".into() } else { format!("127.0.3.{number}") };
                let (barrier, client) = (&barrier, Client::of(&server).from(&from));
                scope.spawn(move || {
                    let connection = client.connect();
                    barrier.wait();
                    client.ask(connection, path)
                })
            };
            let clients: Vec<_> = (1..=12).map(client).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let let_in = held.iter().filter(|answer| answer.status() == 200).count();
        let refused = held.iter().filter(|answer| answer.status() == 503).count();
        assert_eq!((let_in, refused), (5, 7), "{path}");
        drop(held);
        eventually_empty(&server);
    }
}

#[test]
fn a_crowd_gets_exactly_what_there_is_from_event() {
    a_crowd_gets_exactly_what_there_is(Mpm::Event);
}

#[test]
fn a_crowd_gets_exactly_what_there_is_from_worker() {
    a_crowd_gets_exactly_what_there_is(Mpm::Worker);
}

#[test]
fn a_crowd_gets_exactly_what_there_is_from_prefork() {
    a_crowd_gets_exactly_what_there_is(Mpm::Prefork);
}

/// A section's limit holds for those too who come to it by another name.
#[test]
fn an_internal_redirect_leads_into_the_limit_of_its_goal() {
    let text = "<Files index.html>\nMaxConcurrentReqs 1\n</Files>\n\
                <Location /goal>\nMaxConcurrentReqs 1\n</Location>\n\
                <Directory ${DOCROOT}>\nOptions +FollowSymLinks\nRewriteEngine On\nRewriteRule ^start$ /goal/big\n</Directory>";
    let server = limited(Mpm::Event, text).module("rewrite").start().settled();
    put_big(&server, "folder/index.html");
    put_big(&server, "goal/big");
    let client = Client::of(&server);
    for (name, goal) in [("/folder/", "/folder/index.html"), ("/start", "/goal/big")] {
        for held in [name, goal] {
            let held = client.hold(held);
            for refused in [name, goal] {
                client.assert_refused(refused, "Too many requests");
            }
            drop(held);
            eventually_empty(&server);
        }
    }
}

#[test]
fn a_connection_counts_in_the_virtual_host_that_it_asked_last() {
    let host = |name: &str| {
        format!(
            "<VirtualHost ${{ADDRESS}}:${{PORT}}>\nServerName {name}\nMaxConnectionsPerIP 1\n</VirtualHost>\n"
        )
    };
    let server = server(Mpm::Event, &(host("one.test") + &host("two.test")));
    let client = Client::of(&server);
    let (one, two) = (client.clone().host("one.test"), client.host("two.test"));
    let kept = one.hold("/small").finish().1;
    one.assert_refused("/small", "your address");
    let kept = two.ask(kept, "/small").finish().1;
    two.assert_refused("/small", "your address");
    let held = one.hold("/big");
    assert_eq!(Status::of(&server).held("MaxConnectionsPerIP"), 2);
    // There it is refused, and closed.
    assert_eq!(one.ask(kept, "/small").status(), 503);
    drop(held);
    eventually_empty(&server);
}

/// An offload costs little, and is a request like all others.
#[test]
fn a_redirection_to_an_offload_host_is_limited_too() {
    let server = server(
        Mpm::Event,
        "MaxConnectionsPerIP 1\n<Location /off>\nOffloadEngine On\nOffloadMinSize 0\nOffloadHost 127.0.0.2:9\n</Location>",
    );
    server.put("off/a.zip", "hello");
    let held = Client::of(&server).hold("/big");
    Client::of(&server).assert_refused("/off/a.zip", "your address");
    drop(held);
    eventually_held(&server, "MaxConnectionsPerIP", 0);
    assert_eq!(Client::of(&server).status("/off/a.zip"), 307);
}

/// Children that come and go in good order leave nothing behind, neither counts nor places.
fn children_that_end_leave_nothing(mpm: Mpm) {
    let server = server(mpm, "MaxConnectionsPerIP 2\nMaxConnectionsPerChild 2");
    let client = Client::of(&server);
    // A child may end between accepting and answering nothing; what is answered is let in.
    for _ in 0..12 {
        if let Ok((head, _)) = client.try_get("/small") {
            assert!([200, 503].contains(&head.status), "{head:?}");
        }
    }
    eventually_empty(&server);
    eventually("the places of those that ended are free", || {
        let status = Status::try_of(&server)?;
        (status.table["processes"] <= u64::try_from(server.children().len()).unwrap() + 1)
            .then_some(())
    });
    let held = client.hold_all("/big", 2);
    client.assert_refused("/small", "your address");
    drop(held);
    eventually_empty(&server);
}

#[test]
fn children_of_event_that_end_leave_nothing() {
    children_that_end_leave_nothing(Mpm::Event);
}

#[test]
fn children_of_worker_that_end_leave_nothing() {
    children_that_end_leave_nothing(Mpm::Worker);
}

#[test]
fn children_of_prefork_that_end_leave_nothing() {
    children_that_end_leave_nothing(Mpm::Prefork);
}

/// A restart that is not graceful ends every download. (Event waits for them up to ten seconds, as it
/// does without the module; so it is not tried here.)
#[test]
fn a_restart_ends_all_and_counts_none() {
    for mpm in [Mpm::Worker, Mpm::Prefork] {
        let server = server(mpm, "MaxConnectionsPerIP 2\nLoadLimitServer 2");
        let held = Client::of(&server).hold_all("/big", 2);
        kill(server.pid(), Signal::SIGHUP).unwrap();
        eventually("the downloads have ended", || {
            let log = server.error_log();
            (log.matches("resuming normal operations").count() == 2).then_some(())
        });
        eventually_empty(&server);
        for one in held {
            let mut raw = one.raw;
            assert!(raw.try_receive_body(&one.head).is_err(), "a download outlived the restart");
        }
        let client = Client::of(&server);
        let mut held = client.hold_all("/big", 2);
        client.assert_refused("/small", "Too many");
        let (length, _connection) = held.pop().unwrap().finish();
        assert_eq!(length, BIG);
        assert_eq!(client.clone().from(OBSERVER).status("/small"), 200);
    }
}
