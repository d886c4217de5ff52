//! The redirection: where it leads, and what it looks like to every kind of client.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use offload_tests::{Httpd, Setup, bytes};

/// A base with one child that offloads everything as these lines say.
fn base(directives: &str) -> Httpd {
    let text = format!("OffloadEngine On\nOffloadMinSize 0\n{directives}");
    let base = Setup::default().one_child().offload().directives(&text).start();
    base.put("a.zip", bytes(1, 6000));
    base
}

fn many(base: &Httpd, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| {
            base.put(&format!("many/{number}.bin"), "x");
            format!("/many/{number}.bin")
        })
        .collect()
}

/// How many Locations begin with each of the hosts.
fn shares(locations: &[String]) -> HashMap<&str, usize> {
    let mut shares = HashMap::new();
    for location in locations {
        *shares.entry(location.split('/').nth(2).unwrap()).or_default() += 1;
    }
    shares
}

const THREE: &str = "OffloadHost 127.0.0.2:81\nOffloadHost 127.0.0.2:82\nOffloadHost 127.0.0.2:83";

#[test]
fn a_location_keeps_the_escapes_that_the_client_wrote() {
    let base = base("OffloadHost 127.0.0.2:9");
    for (name, path) in [
        ("with space", "/with%20space"),
        ("100%", "/100%25"),
        ("a#b", "/a%23b"),
        ("a?b", "/a%3Fb"),
        ("a+b", "/a+b"),
        ("a+b", "/a%2Bb"),
        ("ü", "/%C3%BC"),
        ("ü", "/%c3%bc"),
        ("say \"hi\"", "/say%20%22hi%22"),
        ("it's", "/it's"),
        ("a:b@c", "/a:b@c"),
        ("semi;colon=1,2", "/semi;colon=1,2"),
        ("tilde~", "/tilde~"),
        ("A", "/%41"),
    ] {
        base.put(name, "content");
        let answer = base.get(path);
        assert_eq!(
            (answer.status(), answer.location()),
            (307, &*format!("http://127.0.0.2:9{path}"))
        );
    }
}

#[test]
fn bytes_that_may_not_stand_in_a_header_are_escaped() {
    let base = base("OffloadHost 127.0.0.2:9");
    base.put("ü", "content");
    base.put("a\"b", "content");
    for (raw, location) in [("/ü", "/%C3%BC"), ("/a\"b", "/a%22b")] {
        let mut raw_client = base.raw();
        raw_client.send(format!("GET {raw} HTTP/1.1\r\nHost: base.test\r\n\r\n"));
        let (head, _) = raw_client.receive();
        // httpd itself may refuse such a request; if it does not, the header is clean.
        if head.status != 400 {
            assert_eq!(head.field("location"), Some(&*format!("http://127.0.0.2:9{location}")));
        }
    }
}

#[test]
fn a_line_break_never_gets_into_the_answer_s_head() {
    let base = base("OffloadHost 127.0.0.2:9");
    base.put("a\r\nSet-Cookie: x", "content");
    let answer = base.get("/a%0d%0aSet-Cookie:%20x");
    assert!(answer.head().field("set-cookie").is_none(), "{answer:?}");
    assert!(!answer.location().contains(['\r', '\n']));
    let mut raw = base.raw();
    raw.send("GET /a\rSet-Cookie:x HTTP/1.1\r\nHost: base.test\r\n\r\n");
    let (head, _) = raw.receive();
    assert!(head.field("set-cookie").is_none(), "{head:?}");
}

#[test]
fn a_request_in_absolute_form_leads_to_the_same_place() {
    let base = base("OffloadHost 127.0.0.2:9");
    let mut raw = base.raw();
    raw.send("GET http://base.test/a.zip HTTP/1.1\r\nHost: base.test\r\n\r\n");
    let (head, _) = raw.receive();
    assert_eq!((head.status, head.field("location")), (307, Some("http://127.0.0.2:9/a.zip")));
}

#[test]
fn the_host_can_be_an_https_prefix_with_a_path() {
    for (host, location) in [
        ("https://cdn1.example.org/pub", "https://cdn1.example.org/pub/a.zip"),
        ("https://cdn1.example.org:8443/pub/", "https://cdn1.example.org:8443/pub/a.zip"),
        ("http://127.0.0.2:8080", "http://127.0.0.2:8080/a.zip"),
        ("127.0.0.2", "http://127.0.0.2/a.zip"),
        ("[2001:db8::1]:8080", "http://[2001:db8::1]:8080/a.zip"),
    ] {
        let base = base(&format!("OffloadHost {host}"));
        assert_eq!(base.get("/a.zip").location(), location);
    }
}

#[test]
fn the_answer_may_not_be_stored_and_says_so() {
    let base = base("OffloadHost 127.0.0.2:9");
    let answer = base.get("/a.zip");
    assert_eq!(answer.status(), 307);
    assert_eq!(answer.field("cache-control"), "no-store");
    assert_eq!(answer.head().fields.iter().filter(|field| field.0 == "location").count(), 1);
}

#[test]
fn a_file_has_the_same_home_after_a_restart_and_on_another_base() {
    let mut one = base(THREE);
    let other =
        base("OffloadHost 127.0.0.2:83\nOffloadHost 127.0.0.2:81\nOffloadHost 127.0.0.2:82");
    let paths = many(&one, 200);
    many(&other, 200);
    let homes = one.raw().locations(&paths);
    assert_eq!(one.raw().locations(&paths), homes, "asked twice");
    assert_eq!(other.raw().locations(&paths), homes, "another base, hosts in another order");
    one.stop();
    one.start_again();
    assert_eq!(one.raw().locations(&paths), homes, "after a restart");
    assert!(shares(&homes).values().all(|share| (40..95).contains(share)), "{:?}", shares(&homes));
}

#[test]
fn another_spelling_of_a_path_leads_to_the_same_host() {
    let base = base(THREE);
    let host = |path: &str| base.get(path).location().split('/').nth(2).unwrap().to_owned();
    for name in ["a", "b", "c", "d", "e", "f"] {
        base.put(&format!("{name}~ü"), "x");
        assert_eq!(host(&format!("/{name}~%c3%bc")), host(&format!("/{name}%7E%C3%BC")));
    }
}

#[test]
fn a_new_host_takes_only_its_share_and_moves_nothing_between_the_others() {
    let base = base(&format!(
        "{THREE}\n<If \"%{{HTTP:X-Four}} == '1'\">\nOffloadHost 127.0.0.2:84\n</If>"
    ));
    let paths = many(&base, 400);
    let before = base.raw().locations(&paths);
    let mut raw = base.raw();
    let after: Vec<String> = paths
        .iter()
        .map(|path| {
            raw.send(format!("GET {path} HTTP/1.1\r\nHost: base.test\r\nX-Four: 1\r\n\r\n"));
            raw.receive().0.field("location").unwrap().to_owned()
        })
        .collect();
    let moved: Vec<&String> =
        before.iter().zip(&after).filter(|(old, new)| old != new).map(|(_, new)| new).collect();
    assert!(moved.iter().all(|location| location.starts_with("http://127.0.0.2:84/")));
    assert!((60..140).contains(&moved.len()), "{} of 400 files moved", moved.len());
}

#[test]
fn a_host_with_three_times_the_weight_gets_three_times_the_files() {
    let base = base("OffloadHost 127.0.0.2:81 weight=3\nOffloadHost 127.0.0.2:82 weight=1");
    let locations = base.raw().locations(&many(&base, 400));
    let heavy = shares(&locations)["127.0.0.2:81"];
    assert!((260..340).contains(&heavy), "{heavy} of 400");
}

#[test]
fn a_host_of_weight_0_is_known_but_never_chosen() {
    let base = base("OffloadHost 127.0.0.2:81 weight=0\nOffloadHost 127.0.0.3:82");
    let locations = base.raw().locations(&many(&base, 50));
    assert_eq!(shares(&locations)["127.0.0.3:82"], 50);
    let answer = base.curl("/a.zip").from("127.0.0.2").run();
    assert_eq!(base.verdict(&answer), "keep offload-host");
}

#[test]
fn rotating_serves_the_hosts_in_turn() {
    let base = base(&format!("OffloadPolicy rotate\n{THREE}"));
    let locations = base.raw().locations(&vec!["/a.zip".to_owned(); 30]);
    assert_eq!(shares(&locations).into_values().collect::<Vec<_>>(), [10, 10, 10]);
}

#[test]
fn random_choice_reaches_every_host() {
    let base = base(&format!("OffloadPolicy random\n{THREE}"));
    let locations = base.raw().locations(&vec!["/a.zip".to_owned(); 90]);
    // One host in three stays below 10 of 90 with a probability under one in a million.
    assert!(shares(&locations).len() == 3 && shares(&locations).values().all(|&share| share >= 10));
}

#[test]
fn a_host_with_a_condition_is_used_only_where_it_holds() {
    let base = base(
        "OffloadHost 127.0.0.2:81 \"if=%{HTTP:X-Country} == 'DE'\"\n\
         OffloadHost 127.0.0.2:82 \"if=%{HTTP:X-Country} == 'FR'\"",
    );
    let from = |country: &str| base.curl("/a.zip").header(&format!("X-Country: {country}")).run();
    assert_eq!(from("DE").location(), "http://127.0.0.2:81/a.zip");
    assert_eq!(from("FR").location(), "http://127.0.0.2:82/a.zip");
    let elsewhere = from("AT");
    assert_eq!((elsewhere.status(), &*base.verdict(&elsewhere)), (200, "keep no-host"));
}

#[test]
fn it_works_over_ipv6() {
    let base = Setup::on("::1").offload();
    let base =
        base.directives("OffloadEngine On\nOffloadHost 127.0.0.2:9\nOffloadHost [::1]:81 weight=0");
    let base = base.start();
    base.put("a.zip", bytes(1, 6000));
    let answer = base.get("/a.zip");
    assert_eq!(base.verdict(&answer), "keep offload-host", "::1 is an offload host");

    let base = Setup::on("::1")
        .offload()
        .directives("OffloadEngine On\nOffloadHost [2001:db8::7]:81")
        .start();
    base.put("a.zip", bytes(1, 6000));
    assert_eq!(base.get("/a.zip").location(), "http://[2001:db8::7]:81/a.zip");
}

#[test]
fn the_connection_stays_open_after_a_redirection() {
    let base = base("OffloadHost 127.0.0.2:9\n<Files *.txt>\nOffloadEngine Off\n</Files>");
    base.put("here.txt", "hello");
    let mut raw = base.raw();
    for _ in 0..50 {
        let (head, _) = raw.get("/a.zip");
        assert_eq!((head.status, head.field("location")), (307, Some("http://127.0.0.2:9/a.zip")));
    }
    assert_eq!(raw.get("/here.txt").1, b"hello");
}

#[test]
fn requests_in_a_pipeline_are_answered_in_order() {
    let base = base("OffloadHost 127.0.0.2:9");
    let paths = many(&base, 20);
    let mut raw = base.raw();
    let requests: String = paths
        .iter()
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: base.test\r\n\r\n"))
        .collect();
    raw.send(requests);
    for path in paths {
        let (head, _) = raw.receive();
        assert_eq!(head.field("location"), Some(&*format!("http://127.0.0.2:9{path}")));
    }
}

#[test]
fn it_works_over_http_2() {
    let base = Setup::default().module("http2").offload();
    let base = base
        .directives("Protocols h2c http/1.1\nOffloadEngine On\nOffloadHost 127.0.0.2:9")
        .start();
    base.put("a.zip", bytes(1, 6000));
    base.put("small.txt", "hello");
    let answer = base.curl("/a.zip").arg("--http2-prior-knowledge").run();
    assert_eq!((answer.status(), answer.location()), (307, "http://127.0.0.2:9/a.zip"));
    assert_eq!(base.verdict(&answer), "offload http://127.0.0.2:9");
    assert_eq!(base.curl("/small.txt").arg("--http2-prior-knowledge").run().body(), b"hello");
    let bypass =
        base.curl("/a.zip").arg("--http2-prior-knowledge").header("X-Mod-Offload-Bypass: true");
    assert!(bypass.run().body() == bytes(1, 6000));
}

#[test]
fn a_host_that_cannot_be_resolved_at_the_start_is_a_warning_and_still_used() {
    let base = base("OffloadHost http://no-such-host.invalid:81");
    assert_eq!(base.get("/a.zip").location(), "http://no-such-host.invalid:81/a.zip");
    base.eventually_logged(&["warn", "no-such-host.invalid"]);
}

#[test]
fn other_modules_that_redirect_or_rewrite_come_first() {
    let base = Setup::default().module("rewrite").offload().directives(
        "OffloadEngine On\nOffloadHost 127.0.0.2:9\nRedirect 302 /moved http://elsewhere.example.org/\n\
         RewriteEngine On\nRewriteRule ^/nice/(.*)$ /plain/$1 [L]\nRewriteRule ^/gone - [G]\n\
         Alias /alias ${DOCROOT}/plain",
    );
    let base = base.start();
    base.put("plain/a.zip", bytes(1, 6000));
    assert_eq!(base.get("/moved").location(), "http://elsewhere.example.org/");
    assert_eq!(base.get("/gone").status(), 410);
    assert_eq!(base.get("/alias/a.zip").location(), "http://127.0.0.2:9/alias/a.zip");
    // The offload host asks the base for the URL that the client wrote.
    assert_eq!(base.get("/nice/a.zip").location(), "http://127.0.0.2:9/nice/a.zip");
}
