//! A base that does not answer is left in peace, and nobody can make one look so.

use std::net::TcpListener;

use super::base::{Base, Page};
use super::host::Host;

#[test]
fn a_base_that_says_nothing_any_more_is_left_in_peace_after_a_few_failures() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    host.set("OFFLOAD_STALE_IF_ERROR", "0s");
    host.get("/a");
    let before = base.attempts();
    base.go_down();
    let replies: Vec<_> = (0..6).map(|_| host.get("/a")).collect();
    assert!(replies.iter().all(|reply| reply.status == 502));
    assert!(replies[5].log.contains("not asked for a while"), "{}", replies[5].log);
    assert_eq!(base.attempts() - before, 3);
}

#[test]
fn a_base_that_hangs_keeps_nobody_waiting_after_a_few_failures() {
    let base = Base::start();
    let page = Page::new("\"v1\"", "text");
    base.put("/a", page.clone());
    let mut host = Host::new(&base);
    host.get("/a");
    base.put("/a", Page { mute: true, ..page });
    host.set("OFFLOAD_TIMEOUT", "100ms");
    for number in 0..5 {
        let reply = host.get("/a");
        assert_eq!(reply.cache_status(), "offload; hit; detail=stale-if-error");
        let refused = reply.log.contains("not asked for a while");
        assert_eq!(refused, number >= 3, "{number}: {}", reply.log);
    }
    base.release();
}

#[test]
fn a_base_that_cannot_be_reached_is_left_in_peace_whatever_is_asked_for() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = Host::of(nobody);
    let replies: Vec<_> = (0..6).map(|number| host.get(&format!("/{number}"))).collect();
    assert!(replies.iter().all(|reply| reply.status == 502));
    assert!(replies[5].log.contains("not asked for a while"), "{}", replies[5].log);
}

#[test]
fn what_the_base_cannot_answer_is_asked_in_vain_and_harms_nobody() {
    let base = Base::start();
    base.put("/endless", Page::new("\"v1\"", "text").with(&[("X", &"x".repeat(100_000))]));
    let many: Vec<_> = (0..500).map(|_| ("X-Line", "x")).collect();
    base.put("/many", Page::new("\"v1\"", "text").with(&many));
    base.put("/mute", Page { mute: true, ..Page::new("\"v1\"", "text") });
    let mut host = Host::new(&base);
    host.set("OFFLOAD_TIMEOUT", "200ms");
    for (path, status) in [("/endless", 502), ("/many", 502), ("/mute", 504)] {
        for _ in 0..4 {
            assert_eq!(host.get(path).status, status, "{path}");
        }
        host.set("OFFLOAD_TIMEOUT", "20s");
        let good = format!("/good{path}");
        base.put(&good, Page::new("\"v1\"", "text"));
        let reply = host.get(&good);
        assert_eq!(reply.status, 200, "{path}: {}", reply.log);
        host.set("OFFLOAD_TIMEOUT", "200ms");
    }
    base.release();
}
