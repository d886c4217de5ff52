//! The faults of the original program, and the holes of its class of programs, by their numbers in the
//! specification; those that other files test at length are here in short.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::base::{Base, Page};
use super::host::{Host, kill};
use super::pattern;

#[test]
fn fault_04_a_base_that_says_nothing_stalls_nobody_else() {
    let (slow, base) = (Base::start(), Base::start());
    slow.hold_heads();
    base.put("/a", Page::new("\"v1\"", "text"));
    base.put("/b", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    host.get("/a");
    host.set("OFFLOAD_BASE", "http://slow.test");
    host.set("OFFLOAD_BASE_ADDRESS", &format!("127.0.0.1:{}", slow.port));
    let stalled: Vec<_> = (0..3).map(|_| host.ask("GET", "/a", &[])).collect();
    slow.wait_for("HEAD", 1);
    host.set("OFFLOAD_BASE", "http://base.test");
    host.set("OFFLOAD_BASE_ADDRESS", &format!("127.0.0.1:{}", base.port));
    let begun = Instant::now();
    assert_eq!((host.get("/a").text(), host.get("/b").text()), ("text", "text"));
    assert!(begun.elapsed() < Duration::from_secs(10), "nobody waits for the other base");
    slow.release_heads();
    stalled.into_iter().for_each(|client| assert_eq!(client.end().status, 404));
}

#[test]
fn fault_06_a_broken_fill_is_not_begun_anew_and_cuts_nobody_off() {
    let (base, body) = (Base::start(), pattern(3_000_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.break_at = Some(1_000_000);
    base.put("/a", page);
    let host = Host::new(&base);
    let clients: Vec<_> = (0..5).map(|_| host.ask("GET", "/a", &[])).collect();
    for client in clients {
        let reply = client.end();
        assert!(reply.success && reply.body == body, "{}", reply.log);
    }
    let ranges: Vec<_> =
        base.seen().iter().filter_map(|it| it.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=1000000-2999999", "bytes=2000000-2999999"]);
}

#[test]
fn fault_08_a_file_checked_a_moment_ago_is_not_checked_again() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    host.set("OFFLOAD_FRESH", "1h");
    (0..5).for_each(|_| assert_eq!(host.get("/a").text(), "text"));
    assert_eq!(base.count("HEAD"), 1);
}

#[test]
fn fault_09_a_table_that_is_full_lets_in_and_one_that_is_not_counts_on() {
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_MAX_DUPES", "1");
    host.set("OFFLOAD_MAX_CLIENTS", "1000");
    let mut running = Vec::new();
    for number in 0..40 {
        let path = format!("/{number}");
        base.put(&path, Page::new("\"v1\"", pattern(200_000)));
        let mut client = host.ask("GET", &path, &[]);
        client.read_body(1);
        running.push(client);
    }
    for number in 0..40 {
        assert_eq!(host.ask("GET", &format!("/{number}"), &[]).end().status, 403, "{number}");
    }
    running.into_iter().for_each(|client| assert!(client.rest().1));
}

#[test]
fn fault_11_and_h04_nothing_but_the_base_is_ever_asked() {
    let (base, other) = (Base::start(), Base::start());
    let location = format!("http://127.0.0.1:{}/x", other.port);
    base.put("/moved", Page::status(302, &[("Location", &location)]));
    base.put("/x", Page::new("\"v1\"", "base"));
    let host = Host::new(&base);
    let reply = host.get("/moved");
    assert_eq!((reply.status, reply.header("Location")), (302, Some(location.as_str())));
    assert_eq!(host.get(&location).text(), "base");
    for method in ["CONNECT", "TRACE", "OPTIONS", "PROPFIND"] {
        assert_eq!(host.ask(method, "/x", &[]).end().status, 403, "{method}");
    }
    let headers = [("Host", "evil.test"), ("X-Forwarded-Host", "evil.test")];
    assert_eq!(host.get_with("/x", &headers).text(), "base");
    assert!(other.seen().is_empty());
    assert!(base.seen().iter().all(|seen| seen.headers["host"] == "base.test"));
}

#[test]
fn h01_what_a_client_says_about_the_host_is_no_part_of_a_key() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    for headers in [
        &[][..],
        &[("Host", "a.test")],
        &[("X-Forwarded-Host", "b.test")],
        &[("X-Original-URL", "/b")],
    ] {
        assert_eq!(host.get_with("/a", headers).text(), "text");
    }
    assert_eq!((base.count("GET"), host.files("body").len()), (1, 1));
}

#[test]
fn h03_a_link_in_the_cache_leads_nowhere() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    host.get("/a");
    let elsewhere = host.folder.path().join("elsewhere");
    for kind in ["body", "meta", "current"] {
        fs::write(&elsewhere, "evil").unwrap();
        let path = host.files(kind).remove(0);
        fs::remove_file(&path).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let reply = host.get("/a");
        assert_eq!((reply.status, reply.text()), (200, "text"), "{kind}: {}", reply.log);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "evil", "{kind} was written through");
        let _ = fs::remove_file(&path);
        host.get("/a");
    }
}

#[test]
fn h07_a_request_with_a_body_is_refused() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    for (name, value) in
        [("$CONTENT_LENGTH", "5"), ("Transfer-Encoding", "chunked"), ("$CONTENT_LENGTH", "x")]
    {
        assert_eq!(host.get_with("/a", &[(name, value)]).status, 400, "{name}");
    }
    assert!(base.seen().is_empty());
}

#[test]
fn h08_errors_are_not_stored() {
    let base = Base::start();
    let host = Host::new(&base);
    for status in [400, 403, 404, 410, 500, 503] {
        base.put("/a", Page::status(status, &[("Cache-Control", "max-age=1000")]));
        assert_eq!(host.get("/a").status, status);
        base.put("/a", Page::new("\"v1\"", "text"));
        assert_eq!(host.get("/a").text(), "text", "after {status}");
        base.put("/a", Page::status(404, &[]));
        host.get("/a");
    }
}

#[test]
fn h10_a_thousand_ranges_are_the_whole_file_once() {
    let base = Base::start();
    let body = pattern(100_000);
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    let ranges: Vec<String> = (0..1000).map(|at| format!("{at}-")).collect();
    let reply = host.get_with("/a", &[("Range", &format!("bytes={}", ranges.join(",")))]);
    assert!(reply.status == 200 && reply.body == body);
    let reply = host.get_with("/a", &[("Range", "bytes=0-,0-,0-")]);
    assert!(reply.status == 200 && reply.body == body);
}

#[test]
fn h11_a_head_fetches_nothing() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", pattern(5 << 20)));
    let host = Host::new(&base);
    for _ in 0..3 {
        assert_eq!(host.head("/a").header("Content-Length"), Some("5242880"));
    }
    assert_eq!(base.count("GET"), 0);
}

#[test]
fn h15_whoever_asks_for_all_may_die_over_it() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    base.hold_heads();
    let first = host.ask("GET", "/a", &[]);
    base.wait_for("HEAD", 1);
    let others: Vec<_> = (0..5).map(|_| host.ask("GET", "/a", &[])).collect();
    thread::sleep(Duration::from_millis(100));
    first.kill();
    base.wait_for("HEAD", 2);
    base.release_heads();
    for client in others {
        assert_eq!(client.end().text(), "text");
    }
    assert!(host.files("check").is_empty());
}

#[test]
fn h15_fillers_that_die_again_and_again_do_not_hang_anybody() {
    let (base, body) = (Base::start(), pattern(3_000_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(300_000);
    base.put("/a", page);
    let host = Host::new(&base);
    let mut client = host.ask("GET", "/a", &[]);
    for round in 1..=5 {
        client.read_body_more(300_000, round == 1);
        host.fillers().into_iter().for_each(|filler| kill(filler, Signal::SIGKILL));
    }
    base.release();
    let (rest, success) = client.rest();
    assert!(success && rest == body[1_500_000..]);
    assert!(base.count("GET") <= 7, "{}", base.count("GET"));
}

#[test]
fn h16_queries_make_no_other_files() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    for number in 0..5 {
        assert_eq!(host.get(&format!("/a?{number}")).status, 403);
    }
    assert!(base.seen().is_empty());
}

#[test]
fn h17_a_flood_of_paths_that_do_not_exist_leaves_nothing_on_the_disk() {
    let base = Base::start();
    let host = Host::new(&base);
    for number in 0..20 {
        assert_eq!(host.get(&format!("/none{number}")).status, 404);
    }
    for kind in ["check", "current", "meta", "lock", "part", "map"] {
        assert!(host.files(kind).is_empty(), "{kind}");
    }
}

#[test]
fn a_base_whose_headers_have_no_end_is_not_believed() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text").with(&[("X-Endless", &"x".repeat(100_000))]));
    let host = Host::new(&base);
    let reply = host.get("/a");
    assert_eq!(reply.status, 502, "{}", reply.log);
    assert!(reply.log.len() < 1000, "{}", reply.log);
}

#[test]
fn h12_ranges_of_nothing_and_of_an_empty_file_are_what_they_should_be() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "0123456789"));
    base.put("/empty", Page::new("\"v1\"", ""));
    let host = Host::new(&base);
    for (path, range, status, text) in [
        ("/a", "bytes=-0", 416, None),
        ("/a", "bytes=10-", 416, None),
        ("/a", "bytes=0--1", 200, Some("0123456789")),
        ("/a", "bytes=9-18446744073709551616", 206, Some("9")),
        ("/a", "bytes=-18446744073709551616", 206, Some("0123456789")),
        ("/empty", "bytes=-5", 200, Some("")),
        ("/empty", "bytes=0-0", 200, Some("")),
    ] {
        for _ in ["cold", "warm"] {
            let reply = host.get_with(path, &[("Range", range)]);
            assert_eq!(reply.status, status, "{path} {range}");
            if let Some(text) = text {
                assert_eq!(reply.text(), text, "{path} {range}");
            }
        }
    }
}

#[test]
fn h13_a_weak_validator_never_continues_a_download() {
    let base = Base::start();
    base.put("/a", Page::new("W/\"v1\"", "0123456789"));
    let host = Host::new(&base);
    for if_range in ["W/\"v1\"", "\"v1\""] {
        for _ in ["cold", "warm"] {
            let reply = host.get_with("/a", &[("Range", "bytes=5-"), ("If-Range", if_range)]);
            assert_eq!((reply.status, reply.text()), (200, "0123456789"), "{if_range}");
            assert_eq!(reply.header("ETag"), Some("W/\"v1\""));
        }
    }
}
