//! Many clients at once, clients that leave, fillers that die.

use std::thread;

use nix::sys::signal::Signal;

use super::base::{Base, Page};
use super::host::{Host, kill};
use super::pattern;

#[test]
fn fifty_clients_of_a_cold_file_are_one_get() {
    let (base, body) = (Base::start(), pattern(500_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(100_000);
    base.put("/a", page);
    let host = Host::new(&base);
    let mut clients: Vec<_> = (0..50).map(|_| host.ask("GET", "/a", &[])).collect();
    for client in &mut clients {
        assert_eq!(client.read_body(100_000), body[..100_000]);
    }
    base.release();
    for client in clients {
        let (bytes, success) = client.rest();
        assert!(success && bytes == body[100_000..]);
    }
    assert_eq!(base.count("GET"), 1);
}

#[test]
fn fifty_clients_of_a_small_cold_file_are_one_get() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(host.get("/a").text(), "text"));
        }
    });
    assert_eq!(base.count("GET"), 1);
}

#[test]
fn bytes_go_out_as_they_land_to_all_who_wait() {
    let (base, body) = (Base::start(), pattern(200_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(70_000);
    base.put("/a", page);
    let host = Host::new(&base);
    let mut first = host.ask("GET", "/a", &[]);
    assert_eq!(first.read_body(70_000), body[..70_000]);
    let mut second = host.ask("GET", "/a", &[("Range", "bytes=1000-")]);
    assert_eq!(second.read_body(69_000), body[1000..70_000]);
    base.release();
    for reader in [first, second] {
        let (rest, success) = reader.rest();
        assert!(success && rest == body[70_000..]);
    }
    assert_eq!(base.count("GET"), 1);
}

#[test]
fn a_client_that_leaves_does_not_end_the_fill() {
    let (base, body) = (Base::start(), pattern(200_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1000);
    base.put("/a", page);
    let host = Host::new(&base);
    let mut first = host.ask("GET", "/a", &[]);
    first.read_body(1000);
    first.abort();
    let mut second = host.ask("GET", "/a", &[]);
    assert_eq!(second.read_body(1000), body[..1000]);
    base.release();
    let (rest, success) = second.rest();
    assert!(success && rest == body[1000..]);
    assert_eq!(base.count("GET"), 1);
}

/// Kills the one filler of a host when the base has sent all that it will.
fn kill_filler(host: &Host) {
    let fillers = host.fillers();
    assert_eq!(fillers.len(), 1, "{fillers:?}");
    kill(fillers[0], Signal::SIGKILL);
}

#[test]
fn a_killed_filler_is_replaced_and_its_readers_go_on() {
    let (base, body) = (Base::start(), pattern(200_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1000);
    base.put("/a", page.clone());
    let host = Host::new(&base);
    let mut readers: Vec<_> = (0..5).map(|_| host.ask("GET", "/a", &[])).collect();
    for reader in &mut readers {
        assert_eq!(reader.read_body(1000), body[..1000]);
    }
    page.pause_at = Some(500);
    base.put("/a", page);
    kill_filler(&host);
    base.wait_for("GET", 2);
    base.release();
    for reader in readers {
        let (rest, success) = reader.rest();
        assert!(success && rest == body[1000..]);
    }
    assert_eq!(base.count("GET"), 2);
    host.settle();
    assert_eq!(host.get("/a").cache_status(), "offload; hit");
}

#[test]
fn a_weak_validator_is_not_gone_on_with() {
    let (base, body) = (Base::start(), pattern(200_000));
    let mut page = Page::new("W/\"v1\"", body.clone());
    page.modified = None;
    page.pause_at = Some(1000);
    base.put("/a", page.clone());
    let host = Host::new(&base);
    let mut reader = host.ask("GET", "/a", &[]);
    assert_eq!(reader.read_body(1000), body[..1000]);
    // The same weak tag, but other bytes, which a second fill would get.
    page.pause_at = None;
    page.body = vec![b'x'; body.len()];
    base.put("/a", page.clone());
    kill_filler(&host);
    let (rest, success) = reader.rest();
    assert!(rest.is_empty() && !success, "cut, and not spliced");
    assert_eq!(host.get("/a").body, page.body);
    base.release();
}

#[test]
fn what_a_dead_filler_left_under_a_weak_validator_is_served_to_nobody() {
    let (base, body) = (Base::start(), pattern(200_000));
    let mut page = Page::new("W/\"v1\"", body.clone());
    page.pause_at = Some(1000);
    base.put("/a", page.clone());
    let host = Host::new(&base);
    let mut reader = host.ask("GET", "/a", &[]);
    assert_eq!(reader.read_body(1000), body[..1000]);
    kill_filler(&host);
    reader.kill();
    page.pause_at = None;
    page.body = vec![b'x'; body.len()];
    base.put("/a", page.clone());
    let reply = host.get("/a");
    assert!(reply.success && reply.body == page.body, "{}", reply.log);
    base.release();
}

#[test]
fn a_filler_killed_before_its_first_byte_is_replaced() {
    let (base, body) = (Base::start(), pattern(2000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(0);
    base.put("/a", page);
    let host = Host::new(&base);
    let reader = host.ask("GET", "/a", &[]);
    base.wait_for("GET", 1);
    kill_filler(&host);
    base.wait_for("GET", 2);
    base.release();
    assert_eq!(reader.end().body, body);
}
