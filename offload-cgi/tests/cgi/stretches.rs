//! One sparse object, filled as it is asked for, and no byte fetched twice.

use nix::sys::signal::Signal;

use super::base::{Base, Page};
use super::host::{Host, kill};
use super::pattern;

const MIB: usize = 1 << 20;

/// The ranges that the base was asked for with GET; `-` for everything.
fn ranges(base: &Base) -> Vec<String> {
    let gets = base.seen().into_iter().filter(|seen| seen.method == "GET");
    gets.map(|seen| seen.headers.get("range").cloned().unwrap_or("-".into())).collect()
}

/// A file larger than what is fetched in one go.
fn large() -> Vec<u8> {
    pattern(130 * MIB)
}

#[test]
fn a_byte_pulls_its_block_and_no_more() {
    let (base, body) = (Base::start(), pattern(10 * MIB));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    let first = 3 * MIB + 77;
    for round in 0..2 {
        let reply = host.get_with("/a", &[("Range", &format!("bytes={first}-{first}"))]);
        assert_eq!((reply.status, reply.body.as_slice()), (206, &body[first..=first]));
        let status = if round == 0 { "offload; fwd=miss; stored" } else { "offload; hit" };
        assert_eq!(reply.cache_status(), status);
    }
    assert_eq!(ranges(&base), [format!("bytes={}-{}", 3 * MIB, 4 * MIB - 1)]);
}

#[test]
fn parts_add_up_to_the_whole_and_are_fetched_once() {
    let (base, body) = (Base::start(), pattern(8 * MIB + 5));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    for (first, last) in [(2 * MIB, 2 * MIB + 9), (8 * MIB + 1, 8 * MIB + 4), (MIB - 1, MIB)] {
        let reply = host.get_with("/a", &[("Range", &format!("bytes={first}-{last}"))]);
        assert!(reply.body == body[first..=last], "{}", reply.log);
    }
    let reply = host.get("/a");
    assert!(reply.success && reply.body == body, "{}", reply.log);
    assert_eq!(
        ranges(&base),
        [
            format!("bytes={}-{}", 2 * MIB, 3 * MIB - 1),
            format!("bytes={}-{}", 8 * MIB, 8 * MIB + 4),
            format!("bytes=0-{}", 2 * MIB - 1),
            format!("bytes={}-{}", 3 * MIB, 8 * MIB - 1),
        ]
    );
    assert_eq!(host.get("/a").cache_status(), "offload; hit");
    assert_eq!(host.files("body").len(), 1);
}

#[test]
fn the_end_of_a_large_file_does_not_wait_for_its_beginning() {
    let (base, body) = (Base::start(), large());
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(MIB);
    base.put("/a", page.clone());
    let host = Host::new(&base);
    let mut whole = host.ask("GET", "/a", &[]);
    assert_eq!(whole.read_body(MIB), body[..MIB]);
    page.pause_at = None;
    base.put("/a", page);
    let reply = host.ask("GET", "/a", &[("Range", "bytes=-100")]).end();
    assert!(reply.status == 206 && reply.body == body[body.len() - 100..], "{}", reply.log);
    base.release();
    let (rest, success) = whole.rest();
    assert!(success && rest == body[MIB..]);
    let mut asked: Vec<(usize, usize)> = ranges(&base)
        .iter()
        .map(|range| {
            let (first, last) = range["bytes=".len()..].split_once('-').unwrap();
            (first.parse().unwrap(), last.parse().unwrap())
        })
        .collect();
    asked.sort_unstable();
    let mut next = 0;
    for (first, last) in asked {
        assert_eq!(first, next, "every byte once, in {:?}", ranges(&base));
        next = last + 1;
    }
    assert_eq!(next, body.len());
}

#[test]
fn a_killed_filler_s_work_is_gone_on_with_from_its_last_byte() {
    let (base, body) = (Base::start(), pattern(3 * MIB));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(MIB + 500);
    base.put("/a", page.clone());
    let host = Host::new(&base);
    let mut reader = host.ask("GET", "/a", &[]);
    assert_eq!(reader.read_body(MIB + 500), body[..MIB + 500]);
    page.pause_at = None;
    base.put("/a", page);
    kill(host.fillers()[0], Signal::SIGKILL);
    let (rest, success) = reader.rest();
    assert!(success && rest == body[MIB + 500..], "the client sees a pause");
    assert_eq!(ranges(&base), ["-".to_owned(), format!("bytes={}-{}", MIB + 500, 3 * MIB - 1)]);
    base.release();
}

#[test]
fn a_base_that_comes_back_in_time_is_gone_on_with() {
    let (base, body) = (Base::start(), pattern(3 * MIB));
    let mut page = Page::new("\"v1\"", body.clone());
    page.break_at = Some(MIB + 500);
    base.put("/a", page.clone());
    let host = Host::new(&base);
    base.put_after_get("/a", Page::status(503, &[]));
    let mut reader = host.ask("GET", "/a", &[]);
    assert_eq!(reader.read_body(MIB + 500), body[..MIB + 500]);
    base.wait_for("GET", 3);
    page.break_at = None;
    base.put("/a", page);
    let (rest, success) = reader.rest();
    assert!(success && rest == body[MIB + 500..]);
    let last = ranges(&base).pop().unwrap();
    assert_eq!(last, format!("bytes={}-{}", MIB + 500, 3 * MIB - 1));
}

#[test]
fn without_clients_a_fill_ends_at_its_budget_or_at_the_end_when_more_than_half_is_there() {
    for (landed, budget, finishes) in
        [(2 * MIB, "0", false), (6 * MIB, "0", true), (2 * MIB, "16M", true)]
    {
        let (base, body) = (Base::start(), pattern(10 * MIB));
        let mut page = Page::new("\"v1\"", body.clone());
        page.pause_at = Some(landed);
        base.put("/a", page);
        let mut host = Host::new(&base);
        host.set("OFFLOAD_FILL_BUDGET", budget);
        let mut reader = host.ask("GET", "/a", &[]);
        reader.read_body(landed);
        reader.abort();
        base.release();
        host.settle();
        assert_eq!(host.files("body").len(), usize::from(finishes), "{landed} {budget}");
        let reply = host.get("/a");
        assert!(reply.success && reply.body == body);
        assert_eq!(base.count("GET"), if finishes { 1 } else { 2 });
    }
}

#[test]
fn a_slow_client_does_not_hold_up_the_fill() {
    let (base, body) = (Base::start(), pattern(5 * MIB));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    let mut slow = host.ask("GET", "/a", &[]);
    slow.read_body(1);
    host.settle();
    assert_eq!(host.files("body").len(), 1, "it is whole while the client has had one byte");
    let (rest, success) = slow.rest();
    assert!(success && rest == body[1..]);
}

#[test]
fn a_base_without_ranges_is_read_from_the_beginning_and_nothing_is_lost() {
    let (base, body) = (Base::start(), pattern(4 * MIB));
    let mut page = Page::new("\"v1\"", body.clone());
    page.simple = true;
    base.put("/a", page);
    let host = Host::new(&base);
    let reply = host.get_with("/a", &[("Range", &format!("bytes={}-", 3 * MIB))]);
    assert!(reply.body == body[3 * MIB..], "{}", reply.log);
    let reply = host.get("/a");
    assert!(reply.body == body && reply.cache_status() == "offload; hit", "{}", reply.log);
    assert_eq!(base.count("GET"), 1);
}

#[test]
fn many_parts_are_one_multipart_body_cold_and_warm() {
    let (base, body) = (Base::start(), pattern(9 * MIB));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    let last = 9 * MIB - 1;
    for _ in ["cold", "warm"] {
        let reply = host.get_with("/a", &[("Range", "bytes=10-19, -1, 2000000-2000000")]);
        assert_eq!(reply.status, 206, "{}", reply.log);
        let content_type = reply.header("Content-Type").unwrap();
        let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let mut wanted = Vec::new();
        for (first, end) in [(10, 19), (last, last), (2_000_000, 2_000_000)] {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: application/x-test\r\nContent-Range: bytes {first}-{end}/{}\r\n\r\n",
                9 * MIB
            );
            wanted.extend_from_slice(head.as_bytes());
            wanted.extend_from_slice(&body[first..=end]);
        }
        wanted.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        assert!(reply.body == wanted, "{}", String::from_utf8_lossy(&reply.body));
        assert_eq!(reply.header("Content-Length"), Some(wanted.len().to_string().as_str()));
        assert!(reply.header("Content-Range").is_none());
    }
    let mut asked = ranges(&base);
    asked.sort();
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[test]
fn a_version_that_changes_during_the_fill_is_cut_and_never_mixed() {
    let (base, body) = (Base::start(), pattern(3 * MIB));
    let mut page = Page::new("\"v1\"", body.clone());
    page.break_at = Some(MIB);
    base.put("/a", page);
    base.put_after_get("/a", Page::new("\"v2\"", vec![b'x'; 3 * MIB]));
    let host = Host::new(&base);
    let reply = host.get("/a");
    assert!(!reply.success && reply.body == body[..MIB], "{}", reply.log);
    let reply = host.get("/a");
    assert_eq!(reply.header("ETag"), Some("\"v2\""));
    assert!(reply.body.iter().all(|byte| *byte == b'x') && reply.body.len() == 3 * MIB);
    host.settle();
    assert_eq!(host.files("meta").len(), 1, "the old one is gone");
}

#[test]
fn old_readers_finish_the_old_version_while_the_new_one_is_served() {
    let (base, body) = (Base::start(), pattern(2 * MIB));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(MIB);
    base.put("/a", page);
    let host = Host::new(&base);
    let mut old = host.ask("GET", "/a", &[]);
    assert_eq!(old.read_body(MIB), body[..MIB]);
    base.put("/a", Page::new("\"v2\"", "new"));
    assert_eq!(host.ask("GET", "/a", &[]).end().text(), "new");
    base.release();
    let (rest, success) = old.rest();
    assert!(success && rest == body[MIB..]);
    host.settle();
    assert_eq!(host.get("/a").text(), "new");
    assert_eq!(host.files("meta").len(), 1, "the old one goes when nobody reads it");
}

#[test]
fn an_old_version_that_is_whole_goes_at_once_and_its_readers_finish_it() {
    let base = Base::start();
    let body = pattern(2 * MIB);
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    host.get("/a");
    let mut old = host.ask("GET", "/a", &[]);
    old.read_body(1);
    base.put("/a", Page::new("\"v2\"", "new"));
    assert_eq!(host.get("/a").text(), "new");
    assert_eq!(host.files("body").len(), 1);
    let (rest, success) = old.rest();
    assert!(success && rest == body[1..]);
    assert_eq!((host.files("body").len(), host.files("meta").len()), (1, 1));
}

#[test]
fn a_part_that_does_not_say_whose_it_is_is_not_believed() {
    for changes in [false, true] {
        let (base, body) = (Base::start(), pattern(3 * MIB));
        let mut page = Page::new("\"v1\"", body.clone());
        page.forgetful = true;
        base.put("/a", page.clone());
        let mut host = Host::new(&base);
        host.set("OFFLOAD_FRESH", "60s");
        assert!(host.get_with("/a", &[("Range", "bytes=0-9")]).body == body[..10]);
        if changes {
            page.etag = Some("\"v2\"".into());
            page.body = vec![b'x'; 3 * MIB];
            base.put("/a", page.clone());
        }
        // What is there of the old version goes out before it is known that there is a new one.
        let reply = host.get("/a");
        let there = if changes { MIB } else { 3 * MIB };
        assert!(reply.success != changes && reply.body == body[..there], "bytes of two versions");
        let reply = host.get("/a");
        assert_eq!(reply.header("ETag"), page.etag.as_deref(), "{}", reply.log);
        assert!(reply.success && reply.body == page.body);
    }
}

#[test]
fn a_change_that_the_base_tells_by_if_range_only_is_not_spliced() {
    let (base, body) = (Base::start(), pattern(3 * MIB));
    let mut page = Page::new("\"v1\"", body.clone());
    base.put("/a", page.clone());
    let mut host = Host::new(&base);
    host.set("OFFLOAD_FRESH", "60s");
    assert!(host.get_with("/a", &[("Range", "bytes=0-9")]).body == body[..10]);
    let asked = |base: &Base, name: &str| base.seen().pop().unwrap().headers.get(name).cloned();
    let v1 = Some("\"v1\"".to_owned());
    assert_eq!((asked(&base, "if-match"), asked(&base, "if-range")), (v1.clone(), v1));
    // The base heeds no If-Match, and answers If-Range with the whole of another version.
    page.etag = Some("\"v2\"".into());
    page.body = vec![b'x'; 3 * MIB];
    page.no_match = true;
    base.put("/a", page.clone());
    let reply = host.get("/a");
    assert!(!reply.success && reply.body == body[..MIB], "bytes of two versions");
    let reply = host.get("/a");
    assert_eq!(reply.header("ETag"), Some("\"v2\""), "{}", reply.log);
    assert!(reply.success && reply.body == page.body);
}

#[test]
fn a_terse_part_takes_no_header_from_the_file() {
    let (base, body) = (Base::start(), pattern(3 * MIB));
    let mut page = Page::new("\"v1\"", body.clone());
    page.terse = true;
    base.put("/a", page);
    let mut host = Host::new(&base);
    host.set("OFFLOAD_FRESH", "60s");
    for range in ["bytes=0-9", "bytes=2000000-2000009"] {
        let reply = host.get_with("/a", &[("Range", range)]);
        assert_eq!(reply.header("Content-Type"), Some("application/x-test"), "{}", reply.log);
    }
    let reply = host.get("/a");
    assert!(reply.success && reply.body == body);
    assert_eq!(reply.header("Content-Type"), Some("application/x-test"));
}
