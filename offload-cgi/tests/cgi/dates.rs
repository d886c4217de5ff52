//! Bases that give no ETag: what a date can tell apart, and what it cannot.

use super::base::{Base, Page};
use super::host::Host;
use super::pattern;

const MODIFIED: &str = "Sun, 06 Nov 1994 09:00:00 GMT";
const LATER: &str = "Sun, 06 Nov 1994 09:00:05 GMT";

/// A file without ETag that was changed at `MODIFIED`, as the base gives it at `date`.
fn page(body: impl Into<Vec<u8>>, date: &str) -> Page {
    Page { modified: Some(MODIFIED.into()), ..Page::new("", body).with(&[("Date", date)]) }
}

#[test]
fn a_file_that_changes_twice_within_a_second_is_fetched_again_a_second_later() {
    let base = Base::start();
    base.put("/a", page("old!", MODIFIED));
    let host = Host::new(&base);
    (0..2).for_each(|_| assert_eq!(host.get("/a").text(), "old!"));
    assert_eq!(base.count("GET"), 1);
    // The same date, the same length.
    base.put("/a", page("new!", LATER));
    (0..3).for_each(|_| assert_eq!(host.get("/a").text(), "new!"));
    assert_eq!((base.count("GET"), host.files("body").len()), (2, 1));
    let reply = host.get_with("/a", &[("Range", "bytes=1-2"), ("If-Range", MODIFIED)]);
    assert_eq!((reply.status, reply.text()), (206, "ew"));
}

#[test]
fn what_is_asked_for_within_the_second_may_come_after_it() {
    let base = Base::start();
    base.put("/a", page("text", MODIFIED));
    base.put_after_head("/a", page("text", LATER));
    let host = Host::new(&base);
    let reply = host.get("/a");
    assert_eq!((reply.status, reply.text()), (200, "text"), "{}", reply.log);
    assert_eq!((base.count("HEAD"), base.count("GET")), (1, 1));
    // By the date alone no one continues what came of it.
    base.put("/a", page("text", MODIFIED));
    let reply = host.get_with("/a", &[("Range", "bytes=1-2"), ("If-Range", MODIFIED)]);
    assert_eq!((reply.status, reply.text(), reply.cache_status()), (200, "text", "offload; hit"));
}

#[test]
fn parts_of_a_file_with_a_date_that_is_good_fit_together() {
    let (base, body) = (Base::start(), pattern(3 << 20));
    base.put("/a", page(body.clone(), LATER));
    let host = Host::new(&base);
    assert!(host.get_with("/a", &[("Range", "bytes=5-9")]).body == body[5..10]);
    assert!(host.get("/a").body == body);
    let ranges: Vec<_> =
        base.seen().iter().filter_map(|seen| seen.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=0-1048575", "bytes=1048576-3145727"]);
}
