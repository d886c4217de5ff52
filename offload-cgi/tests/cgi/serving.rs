//! What one client gets: cold, warm, parts, conditions, refusals.

use std::fs;

use super::base::{Base, Page};
use super::host::Host;
use super::pattern;

#[test]
fn a_cold_file_is_fetched_once_and_then_served_from_disk() {
    let (base, body) = (Base::start(), pattern(300_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    let cold = host.get("/a");
    assert_eq!((cold.status, cold.body == body), (200, true), "{}", cold.log);
    assert_eq!(cold.cache_status(), "offload; fwd=miss; stored");
    let warm = host.get("/a");
    assert_eq!((warm.status, warm.body == body), (200, true), "{}", warm.log);
    assert_eq!(warm.cache_status(), "offload; hit");
    for reply in [&cold, &warm] {
        assert_eq!(reply.header("ETag"), Some("\"v1\""));
        assert_eq!(reply.header("Last-Modified"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(reply.header("Content-Type"), Some("application/x-test"));
        assert_eq!(reply.header("Content-Length"), Some("300000"));
        assert_eq!(reply.header("Accept-Ranges"), Some("bytes"));
        assert!(reply.success && reply.log.is_empty(), "{}", reply.log);
    }
    assert_eq!((base.count("HEAD"), base.count("GET")), (2, 1));
}

#[test]
fn the_base_is_asked_with_our_own_headers_and_no_others() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    host.get_with("/a", &[("Cookie", "a=b"), ("Authorization", "Basic x"), ("Accept", "x/y")]);
    for seen in base.seen() {
        let mut names: Vec<&str> = seen.headers.keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut wanted =
            vec!["accept-encoding", "connection", "host", "user-agent", "x-mod-offload-bypass"];
        if seen.method == "GET" {
            wanted.insert(3, "if-match");
        }
        assert_eq!(names, wanted, "{seen:?}");
        assert_eq!(seen.headers["host"], "base.test");
        assert_eq!(seen.headers["x-mod-offload-bypass"], "true");
        assert_eq!(seen.headers["accept-encoding"], "identity");
        assert!(seen.headers["user-agent"].starts_with("offload-cgi/"));
    }
}

#[test]
fn no_proxy_is_ever_used() {
    let (base, proxy) = (Base::start(), Base::start());
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    let evil = format!("http://127.0.0.1:{}", proxy.port);
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"] {
        host.set(name, &evil);
    }
    assert_eq!(host.get("/a").text(), "text");
    assert!(proxy.seen().is_empty());
}

#[test]
fn every_name_reaches_the_base_in_its_one_spelling() {
    let base = Base::start();
    let host = Host::new(&base);
    for (asked, path) in [
        ("/a%20b", "/a%20b"),
        ("/100%25", "/100%25"),
        ("/a%23b", "/a%23b"),
        ("/a%3Fb", "/a%3Fb"),
        ("/a+b", "/a+b"),
        ("/%c3%bc", "/%C3%BC"),
        ("/%22q%22", "/%22q%22"),
        ("/it's", "/it's"),
        ("/%61//x/../y", "/a/y"),
        ("http://other.test/abs", "/abs"),
    ] {
        base.put(path, Page::new("\"same\"", path));
        for _ in 0..2 {
            let reply = host.get(asked);
            assert_eq!((reply.status, reply.text()), (200, path), "{asked}: {}", reply.log);
        }
    }
}

#[test]
fn an_etag_is_no_file_name_and_equal_ones_are_no_equal_files() {
    let base = Base::start();
    let host = Host::new(&base);
    for (path, etag) in
        [("/1", "\"../../../x\""), ("/2", "\"../../../x\""), ("/3", "\"/etc/passwd\"")]
    {
        base.put(path, Page::new(etag, format!("body {path}")));
        for _ in 0..2 {
            let reply = host.get(path);
            assert_eq!(reply.text(), format!("body {path}"));
            assert_eq!(reply.header("ETag"), Some(etag));
        }
    }
    assert_eq!(host.files("body").len(), 3);
    let outside: Vec<_> = fs::read_dir(host.folder.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(outside, ["cache"]);
}

#[test]
fn a_range_is_the_same_cold_and_warm() {
    let base = Base::start();
    let body = pattern(100_000);
    let host = Host::new(&base);
    for (number, (range, status, first, length)) in [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=99999-", 206, 99_999, 1),
        ("bytes=-500", 206, 99_500, 500),
        ("bytes=50000-59999", 206, 50_000, 10_000),
        ("bytes=0-", 206, 0, 100_000),
        ("bytes=5-4", 200, 0, 100_000),
        ("bytes=0-1,x", 200, 0, 100_000),
        ("bytes=0-1,5-6", 206, 0, 7),
        ("bytes=100000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{number}");
        base.put(&path, Page::new("\"v1\"", body.clone()));
        for round in ["cold", "warm"] {
            let reply = host.get_with(&path, &[("Range", range)]);
            assert_eq!(reply.status, status, "{range} {round}");
            match status {
                206 => {
                    let last = first + length - 1;
                    let wanted = format!("bytes {first}-{last}/100000");
                    assert_eq!(reply.header("Content-Range"), Some(wanted.as_str()), "{range}");
                    assert_eq!(reply.body, body[first..=last], "{range} {round}");
                }
                416 => assert_eq!(reply.header("Content-Range"), Some("bytes */100000")),
                _ => assert!(reply.body == body, "{range} {round}"),
            }
            if round == "cold" {
                host.get(&path);
            }
        }
    }
}

#[test]
fn conditions_are_answered_without_fetching() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "0123456789"));
    base.put("/weak", Page::new("W/\"v1\"", "0123456789"));
    let host = Host::new(&base);
    let then = "Sun, 06 Nov 1994 08:49:37 GMT";
    for round in 0..2 {
        for (headers, status) in [
            (vec![("If-None-Match", "\"v1\"")], 304),
            (vec![("If-Modified-Since", then)], 304),
            (vec![("If-Match", "\"v2\"")], 412),
            (vec![("Range", "bytes=10-")], 416),
        ] {
            let reply = host.get_with("/a", &headers);
            assert_eq!(reply.status, status, "{headers:?}");
            if status == 304 {
                assert!(reply.body.is_empty() && reply.header("Content-Length").is_none());
                assert_eq!(reply.header("ETag"), Some("\"v1\""));
            }
        }
        assert_eq!(base.count("GET"), round);
        assert_eq!(host.get("/a").status, 200);
    }
    let range = ("Range", "bytes=5-");
    for (path, if_range, status) in [
        ("/a", "\"v1\"", 206),
        ("/a", "\"v0\"", 200),
        ("/a", then, 206),
        ("/a", "Sun, 06 Nov 1994 08:49:38 GMT", 200),
        ("/weak", "W/\"v1\"", 200),
    ] {
        let reply = host.get_with(path, &[range, ("If-Range", if_range)]);
        assert_eq!(reply.status, status, "{path} {if_range}");
        let wanted = if status == 206 { "56789" } else { "0123456789" };
        assert_eq!(reply.text(), wanted, "{path} {if_range}");
    }
    assert_eq!(host.get("/weak").header("ETag"), Some("W/\"v1\""));
}

#[test]
fn head_is_get_without_the_body_and_fills_nothing() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "0123456789"));
    let host = Host::new(&base);
    let cold = host.head("/a");
    assert!(host.files("body").is_empty() && base.count("GET") == 0);
    host.get("/a");
    let (mut head, mut get) = (host.head("/a"), host.get("/a"));
    // A second may pass between the two.
    for reply in [&mut head, &mut get] {
        assert!(reply.header("Date").is_some() && reply.header("Age").is_some());
        reply.headers.retain(|(name, _)| name != "Date" && name != "Age");
    }
    assert_eq!(head.headers, get.headers);
    assert!(cold.body.is_empty() && head.body.is_empty());
    for reply in [cold, head] {
        assert_eq!((reply.status, reply.header("Content-Length")), (200, Some("10")));
    }
    // Behind ErrorDocument, httpd has made a GET of it.
    let reply = host.get_with("/a", &[("$REDIRECT_REQUEST_METHOD", "HEAD")]);
    assert_eq!((reply.status, reply.text()), (200, ""));
}

#[test]
fn an_empty_file_is_a_file() {
    let base = Base::start();
    base.put("/empty", Page::new("\"v1\"", ""));
    let host = Host::new(&base);
    for headers in [&[][..], &[("Range", "bytes=-5")], &[("Range", "bytes=0-")]] {
        let reply = host.get_with("/empty", headers);
        assert_eq!((reply.status, reply.header("Content-Length")), (200, Some("0")));
        assert!(reply.body.is_empty() && reply.success);
    }
    assert_eq!(base.count("GET"), 0, "there is nothing to get");
}

#[test]
fn a_bad_request_gets_its_status_and_one_line_and_asks_nobody() {
    let base = Base::start();
    let host = Host::new(&base);
    for (method, target, status) in [
        ("GET", "/a?b=c", 403),
        ("POST", "/a", 403),
        ("TRACE", "/a", 403),
        ("GET", "/../../etc/passwd", 400),
        ("GET", "/a%2f..%2fb", 400),
        ("GET", "/%zz", 400),
        ("GET", "/a\nforged: line", 400),
    ] {
        let reply = host.ask(method, target, &[]).end();
        assert_eq!(reply.status, status, "{method} {target}");
        assert_eq!(reply.log.lines().count(), 1, "{}", reply.log);
    }
    assert_eq!(host.get_with("/a", &[("$CONTENT_LENGTH", "5")]).status, 400);
    assert!(base.seen().is_empty());
}

#[test]
fn robots_are_answered_by_ourselves() {
    let base = Base::start();
    let host = Host::new(&base);
    assert_eq!(host.get("/robots.txt").text(), "User-agent: *\nDisallow: /\n");
    assert!(base.seen().is_empty());
}

#[test]
fn what_the_base_does_not_vouch_for_is_refused() {
    let base = Base::start();
    let host = Host::new(&base);
    let good = || Page::new("\"v1\"", "secret");
    let mut bare = Page::new("", "secret");
    bare.modified = None;
    for (name, page) in [
        ("401", Page::status(401, &[("WWW-Authenticate", "Basic")])),
        ("authenticate", good().with(&[("WWW-Authenticate", "Basic")])),
        ("no validator", bare),
        ("no length", good().with(&[("Transfer-Encoding", "chunked")])),
    ] {
        base.put("/x", page);
        let reply = host.get("/x");
        assert_eq!(reply.status, 403, "{name}");
        assert!(
            !reply.text().contains("secret") && reply.log.lines().count() == 1,
            "{}",
            reply.log
        );
    }
    assert_eq!(base.count("GET"), 0);
}

#[test]
fn what_is_not_for_everybody_is_passed_through_and_not_stored() {
    let base = Base::start();
    let host = Host::new(&base);
    for (number, (header, detail)) in [
        (("Set-Cookie", "a=b"), "set-cookie"),
        (("Cache-Control", "private"), "private"),
        (("Cache-Control", "no-store"), "private"),
        (("Vary", "Cookie"), "varies"),
        (("Vary", "User-Agent"), "varies"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{number}");
        base.put(&path, Page::new("\"v1\"", "0123456789").with(&[header]));
        for round in 1..3 {
            let reply = host.get(&path);
            assert_eq!((reply.status, reply.text()), (200, "0123456789"), "{header:?}");
            assert_eq!(reply.cache_status(), format!("offload; fwd=miss; detail={detail}"));
            assert!(reply.header("Set-Cookie").is_none());
            let part = host.get_with(&path, &[("Range", "bytes=2-3")]);
            assert_eq!((part.status, part.text()), (206, "23"));
            assert_eq!(base.count("GET"), 2 * round + 4 * number);
        }
    }
    assert!(host.files("body").is_empty() && host.files("meta").is_empty());
    // What was for everybody once is not served any more when it is not.
    base.put("/a", Page::new("\"v1\"", "text"));
    assert_eq!(host.get("/a").text(), "text");
    base.put("/a", Page::new("\"v1\"", "text").with(&[("Cache-Control", "private")]));
    assert_eq!(host.get("/a").cache_status(), "offload; fwd=miss; detail=private");
    assert!(host.files("body").is_empty());
}

#[test]
fn what_the_get_says_must_not_be_stored_is_passed_through_whatever_head_has_said() {
    for headers in [&[("Set-Cookie", "a=b")][..], &[("Cache-Control", "private")], &[("Vary", "*")]]
    {
        let (base, body) = (Base::start(), pattern(3 << 20));
        base.put("/a", Page::new("\"v1\"", body.clone()));
        let mut host = Host::new(&base);
        host.set("OFFLOAD_FRESH", "60s");
        // A block of it was for everybody.
        assert!(host.get_with("/a", &[("Range", "bytes=0-9")]).body == body[..10]);
        base.put_for_get("/a", Page::new("\"v1\"", body.clone()).with(headers));
        for status in ["collapsed", "detail=unstorable"] {
            let reply = host.get("/a");
            assert!(reply.status == 200 && reply.success && reply.body == body, "{}", reply.log);
            assert_eq!(reply.cache_status(), format!("offload; fwd=miss; {status}"));
            host.settle();
            for kind in ["body", "part", "current"] {
                assert!(host.files(kind).is_empty(), "{kind} of {headers:?}");
            }
        }
    }
}

#[test]
fn another_status_of_the_base_is_passed_on() {
    let base = Base::start();
    let host = Host::new(&base);
    let location = "https://elsewhere.test/a%20b";
    for (status, header, value) in [
        (301, "Location", location),
        (307, "Location", location),
        (403, "X-Other", ""),
        (404, "X-Other", ""),
        (429, "Retry-After", "7"),
        (503, "Retry-After", "9"),
    ] {
        base.put("/x", Page::status(status, &[(header, value), ("Set-Cookie", "a=b")]));
        let reply = host.get("/x");
        assert_eq!(reply.status, status);
        if !value.is_empty() {
            assert_eq!(reply.header(header), Some(value));
        }
        assert!(reply.header("Set-Cookie").is_none());
    }
}

#[test]
fn the_sum_of_the_whole_file_is_not_sent_with_a_part_of_it() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "0123456789").with(&[("Content-MD5", "sum")]));
    let host = Host::new(&base);
    for (range, sum) in [("bytes=0-", None), ("bytes=1-2,5-6", None), ("none", Some("sum"))] {
        for _ in ["cold", "warm"] {
            let reply = host.get_with("/a", &[("Range", range)]);
            assert_eq!(reply.header("Content-MD5"), sum, "{range}");
        }
    }
}
