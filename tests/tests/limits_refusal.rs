//! The refusal: what the client is told, what the logs are told, and whom it spares.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use offload_tests::limits::{Client, OBSERVER, Status, eventually_empty, limited, put_big};
use offload_tests::{Httpd, Mpm, Setup};

fn server(directives: &str) -> Httpd {
    let server = limited(Mpm::Event, directives).start().settled();
    put_big(&server, "big");
    server.put("small", "hello");
    server
}

/// Each limit with one place, the words on the page.
const LIMITS: [(&str, &str, &str); 6] = [
    ("MaxConnectionsPerIP", "MaxConnectionsPerIP 1", "Too many connections from your address"),
    (
        "GlobalMaxConnectionsPerIP",
        "GlobalMaxConnectionsPerIP 1",
        "Too many connections from your address",
    ),
    ("LoadLimitServer", "LoadLimitServer 1", "Too many users are connected to this server"),
    ("LoadLimit", "LoadLimit 1 /small /big", "Too many users are connected to /small"),
    ("LoadLimit1", "LoadLimit1 1 /small /big", "Too many users are connected to /small"),
    (
        "MaxConcurrentReqs",
        "<Location />\nMaxConcurrentReqs 1\n</Location>",
        "Too many requests are being answered in this part of the server",
    ),
];

#[test]
fn a_refusal_says_which_limit_was_met_and_never_who_holds_it() {
    for (directive, text, words) in LIMITS {
        let server = server(text);
        let held = Client::of(&server).hold("/big");
        let answer = server.curl("/small").run();
        assert_eq!(answer.status(), 503, "{directive}: {answer:?}");
        let page = String::from_utf8(answer.body()).unwrap();
        assert!(page.contains(words) && page.len() < 1000, "{directive}: {page}");
        assert!(!page.contains("127.0.0.1"), "{directive}: {page}");
        assert_eq!(answer.field("cache-control"), "no-store", "{directive}");
        let after: u32 = answer.field("retry-after").parse().unwrap();
        assert!((1..=3600).contains(&after), "{directive}: Retry-After: {after}");
        let entry = server.entry(&answer);
        assert_eq!((entry.status, &*entry.refused), (503, directive));
        let status = Status::of(&server);
        let scope = status.scope(directive);
        assert_eq!((scope.limit, scope.held, scope.refused), (1, 1, 1), "{scope:?}");
        drop(held);
        eventually_empty(&server);
        let answer = server.curl("/small").run();
        assert_eq!((answer.status(), &*server.entry(&answer).refused), (200, "-"), "{directive}");
    }
}

#[test]
fn the_status_of_a_refusal_may_be_another_one() {
    let server = server("MaxConnectionsPerIP 1\nLimitStatus 429\nErrorDocument 429 \"slow down\"");
    let _held = Client::of(&server).hold("/big");
    let (head, body) = Client::of(&server).get("/small");
    assert_eq!((head.status, &*body), (429, "slow down"), "{head:?}");
    assert!(head.field("retry-after").is_some(), "{head:?}");
    assert_eq!(head.field("cache-control"), Some("no-store"), "{head:?}");
}

#[test]
fn a_virtual_host_may_have_a_status_of_its_own() {
    let host = |name: &str, text: &str| {
        format!("<VirtualHost ${{ADDRESS}}:${{PORT}}>\nServerName {name}\n{text}\n</VirtualHost>\n")
    };
    let text = format!(
        "MaxConnectionsPerIP 1\nLimitStatus 403\n{}{}",
        host("one.test", ""),
        host("two.test", "LimitStatus 429")
    );
    let server = server(&text);
    for (name, status) in [("one.test", 403), ("two.test", 429)] {
        let client = Client::of(&server).host(name);
        let _held = client.hold("/big");
        assert_eq!(client.status("/small"), status, "{name}");
    }
}

#[test]
fn a_dry_run_counts_and_logs_and_refuses_nobody() {
    for (directive, text, _) in LIMITS {
        let server = server(&format!("{text}\nLimitDryRun On"));
        let client = Client::of(&server);
        let held = client.hold_all("/big", 3);
        let answer = server.curl("/small").run();
        assert_eq!((answer.status(), answer.body()), (200, b"hello".to_vec()), "{directive}");
        assert_eq!(answer.field("retry-after"), "", "{directive}");
        assert_eq!(server.entry(&answer).refused, format!("dry-run {directive}"));
        let status = Status::of(&server);
        let scope = status.scope(directive);
        assert!(scope.dry_refused >= 1 && scope.refused == 0, "{directive}: {scope:?}");
        drop(held);
        eventually_empty(&server);
        let answer = server.curl("/small").run();
        assert_eq!((answer.status(), &*server.entry(&answer).refused), (200, "-"), "{directive}");
    }
}

#[test]
fn who_is_exempt_is_neither_refused_nor_counted() {
    let server = server(
        "MaxConnectionsPerIP 1\nGlobalMaxConnectionsPerIP 1\nLoadLimitServer 2\nLimitExempt 127.0.0.2 127.0.1.0/24",
    );
    for from in ["127.0.0.2", "127.0.1.7", OBSERVER] {
        let _held = Client::of(&server).from(from).hold_all("/big", 5);
        assert!(Status::of(&server).is_empty(), "{from}");
    }
    for from in ["127.0.0.1", "127.0.2.7"] {
        let client = Client::of(&server).from(from);
        let _held = client.hold("/big");
        client.assert_refused("/small", "Too many connections from your address");
        drop(_held);
        eventually_empty(&server);
    }
}

#[test]
fn a_limit_may_hold_under_a_condition_only() {
    let server = server(
        "MaxConnectionsPerIP 1 \"if=%{QUERY_STRING} == 'all'\"\n\
         <Location />\nMaxConcurrentReqs 2 \"if=%{HTTP:X-Robot} == 'yes'\"\n</Location>\n\
         LoadLimit 3 /big \"if=%{QUERY_STRING} == 'group'\"",
    );
    let client = Client::of(&server);
    let free = client.hold_all("/big", 5);
    assert!(Status::of(&server).is_empty(), "what a limit is not about does not count");
    let one = client.hold("/big?all");
    client.assert_refused("/small?all", "Too many connections from your address");
    let robot = client.clone().field("X-Robot: yes");
    let robots = robot.hold_all("/big", 2);
    robot.assert_refused("/small", "Too many requests");
    let group = client.hold_all("/big?group", 3);
    client.assert_refused("/big?group", "Too many users are connected to /big");
    assert_eq!(client.status("/small"), 200);
    drop((free, one, robots, group));
    eventually_empty(&server);
}

#[test]
fn the_status_page_is_subject_to_limits_like_every_other_one() {
    let server = server("MaxConnectionsPerIP 1");
    let client = Client::of(&server);
    let _held = client.hold("/big");
    client.assert_refused("/choke-status", "Too many connections from your address");
    let (head, json) = client.clone().from("127.0.0.2").get("/choke-status?json");
    assert_eq!(head.status, 200);
    assert_eq!(Status::read(&json).scope("MaxConnectionsPerIP").held, 2, "with its own");
}

#[test]
fn the_status_page_is_text_for_people() {
    let server = server(
        "MaxConnectionsPerIP 7\nLoadLimit 3 /big\n<Location /big>\nMaxConcurrentReqs 9\n</Location>",
    );
    let _held = Client::of(&server).hold_all("/big", 2);
    let (head, text) = Client::of(&server).from(OBSERVER).get("/choke-status");
    assert_eq!(head.status, 200);
    assert!(head.field("content-type").unwrap().starts_with("text/plain"), "{head:?}");
    for word in
        ["MaxConnectionsPerIP", "LoadLimit", "MaxConcurrentReqs", "/big", "7", "3", "9", "2"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    let (head, body) = Client::of(&server).from(OBSERVER).method("HEAD").get("/choke-status");
    assert_eq!((head.status, &*body), (200, ""));
}

#[test]
fn the_status_page_is_where_it_was_put_and_nowhere_else() {
    let setup = Setup::default().offload().directives(
        "MaxConnectionsPerIP 5\n<Location /choke-status>\nSetHandler choke-status\nRequire ip 127.0.0.2\n</Location>",
    );
    let server = setup.start().settled();
    let client = Client::of(&server);
    assert_eq!(client.status("/choke-status"), 403);
    assert_eq!(client.clone().from("127.0.0.2").status("/choke-status"), 200);
    assert_eq!(client.status("/other-status"), 404);
}

#[test]
fn a_mistake_in_a_limit_is_told_with_its_line() {
    for (text, words) in [
        ("MaxConnectionsPerIP", "MaxConnectionsPerIP"),
        ("MaxConnectionsPerIP ten", "'ten'"),
        ("MaxConnectionsPerUser -1", "'-1'"),
        ("MaxConnectionsPerIP 5 10", "'10'"),
        ("MaxConnectionsPerIP 5 \"if=%{\"", "if="),
        (
            "<VirtualHost *>\nGlobalMaxConnectionsPerIP 5\n</VirtualHost>",
            "GlobalMaxConnectionsPerIP",
        ),
        ("<VirtualHost *>\nLoadLimitServer 5\n</VirtualHost>", "LoadLimitServer"),
        ("<Location /a>\nMaxConnectionsPerIP 5\n</Location>", "MaxConnectionsPerIP"),
        ("MaxConcurrentReqs 5", "section"),
        ("LoadLimit 5", "path"),
        ("LoadLimit 5 pub", "'pub'"),
        ("LoadLimit1 5 pub", "'pub'"),
        ("LimitExempt 10.0.0.0/99", "10.0.0.0/99"),
        ("LimitClientPrefix 33 64", "'33'"),
        ("LimitClientPrefix 32", "two"),
        ("LimitStatus 200", "'200'"),
        ("LimitDryRun Perhaps", "'Perhaps'"),
        ("LimitTableSize 0", "'0'"),
        ("MaxConnectionsCountIdle 1", "'1'"),
    ] {
        let check = Setup::default().offload().directives(text).check();
        assert!(!check.ok, "{text} is accepted");
        let line = if text.starts_with('<') { "line 2" } else { "line 1" };
        assert!(check.text.contains(words) && check.text.contains(line), "{text}: {}", check.text);
    }
}
