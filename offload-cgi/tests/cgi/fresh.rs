//! How often the base is asked, and what is said about the age of what is served.

use std::thread;
use std::time::Duration;

use super::base::{Base, Page};
use super::host::Host;

fn text(cache_control: &str) -> Page {
    let page = Page::new("\"v1\"", "text");
    if cache_control.is_empty() { page } else { page.with(&[("Cache-Control", cache_control)]) }
}

#[test]
fn a_check_is_good_for_a_while() {
    for (fresh, cache_control, heads) in [
        ("1h", "", 1),
        ("0", "", 3),
        ("0", "max-age=100", 1),
        ("1h", "max-age=0", 3),
        ("1h", "no-cache", 3),
        ("0", "s-maxage=100, max-age=0", 1),
    ] {
        let base = Base::start();
        base.put("/a", text(cache_control));
        let mut host = Host::new(&base);
        host.set("OFFLOAD_FRESH", fresh);
        for _ in 0..3 {
            let reply = host.get("/a");
            assert_eq!(reply.text(), "text");
        }
        assert_eq!(base.count("HEAD"), heads, "{fresh} {cache_control}");
        assert_eq!(base.count("GET"), 1);
        let reply = host.get("/a");
        assert!(reply.header("Age").is_some() && reply.header("Date").is_some());
    }
}

#[test]
fn what_another_cache_has_had_is_as_old_as_it_says() {
    let base = Base::start();
    base.put("/a", text("max-age=1000").with(&[("Age", "990")]));
    let host = Host::new(&base);
    host.get("/a");
    let age: u64 = host.get("/a").header("Age").unwrap().parse().unwrap();
    assert!((990..1000).contains(&age), "{age}");
    assert_eq!(base.count("HEAD"), 1);
    for (path, age) in [("/b", "1000"), ("/c", "99999999999")] {
        base.put(path, text("max-age=1000").with(&[("Age", age)]));
        let before = base.count("HEAD");
        (0..2).for_each(|_| assert_eq!(host.get(path).text(), "text"));
        assert_eq!(base.count("HEAD"), before + 2, "{path}");
    }
}

#[test]
fn simultaneous_checks_are_one() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    assert_eq!(host.get("/a").text(), "text");
    base.put("/moved", Page::status(302, &[("Location", "http://elsewhere.test/")]));
    for (path, status) in [("/a", 200), ("/moved", 302), ("/never-was", 404)] {
        let before = base.count("HEAD");
        base.hold_heads();
        let clients: Vec<_> = (0..30).map(|_| host.ask("GET", path, &[])).collect();
        base.wait_for("HEAD", before + 1);
        // All of them wait for one; whoever came too late for it asks once more.
        thread::sleep(Duration::from_millis(300));
        base.release_heads();
        for client in clients {
            let reply = client.end();
            assert_eq!(reply.status, status, "{}", reply.log);
            if status == 302 {
                assert_eq!(reply.header("Location"), Some("http://elsewhere.test/"));
            }
        }
        assert!(base.count("HEAD") <= before + 2, "{path}: {}", base.count("HEAD") - before);
    }
    assert!(host.files("check").is_empty(), "nothing is left of them");
}

#[test]
fn somebody_who_is_stopped_while_he_asks_stops_nobody_else() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    host.set("OFFLOAD_TIMEOUT", "100ms");
    base.hold_heads();
    let stopped = host.ask("GET", "/a", &[]);
    base.wait_for("HEAD", 1);
    stopped.stop();
    base.release_heads();
    assert_eq!(host.get("/a").text(), "text");
    stopped.kill();
}

#[test]
fn a_base_that_fails_fails_all_who_wait_at_once() {
    let base = Base::start();
    let host = Host::new(&base);
    base.hold_heads();
    let clients: Vec<_> = (0..20).map(|_| host.ask("GET", "/a", &[])).collect();
    base.wait_for("HEAD", 1);
    thread::sleep(Duration::from_millis(300));
    base.go_down();
    base.release_heads();
    for client in clients {
        assert!(matches!(client.end().status, 404 | 502));
    }
}

#[test]
fn the_base_s_new_headers_are_stored_though_the_file_is_the_same() {
    let base = Base::start();
    let page =
        |disposition| Page::new("\"v1\"", "text").with(&[("Content-Disposition", disposition)]);
    base.put("/a", page("one"));
    let mut host = Host::new(&base);
    host.get("/a");
    base.put("/a", page("two"));
    host.get("/a");
    host.set("OFFLOAD_FRESH", "1h");
    let reply = host.get("/a");
    assert_eq!(reply.header("Content-Disposition"), Some("two"));
    assert_eq!((base.count("HEAD"), base.count("GET")), (2, 1));
}

#[test]
fn a_stale_copy_is_served_at_once_while_the_base_is_asked() {
    let base = Base::start();
    base.put("/a", text("max-age=0, stale-while-revalidate=1000"));
    let host = Host::new(&base);
    host.get("/a");
    base.put("/a", Page::new("\"v2\"", "new").with(&[("Cache-Control", "max-age=1000")]));
    base.hold_heads();
    let mut reply = host.ask("GET", "/a", &[]);
    // It comes although the base says nothing yet.
    assert_eq!(reply.read_body(4), b"text");
    base.release_heads();
    assert!(reply.rest().1);
    assert_eq!(base.count("HEAD"), 2);
    let reply = host.get("/a");
    assert_eq!((reply.text(), base.count("HEAD")), ("new", 2));
}

#[test]
fn what_was_checked_before_is_as_old_as_that_though_its_bytes_come_now() {
    let base = Base::start();
    let page = Page::new("\"v1\"", super::pattern(3 << 20));
    base.put("/a", page.with(&[("Cache-Control", "max-age=1000, stale-while-revalidate=1000")]));
    let host = Host::new(&base);
    let reply = host.get_with("/a", &[("Range", "bytes=0-0")]);
    assert_eq!(reply.header("Age"), None, "it was checked now");
    for (age, heads) in [(500, 0), (1500, 1)] {
        let before = base.count("HEAD");
        let current = std::fs::File::options().append(true).open(&host.files("current")[0]);
        let checked = std::time::SystemTime::now() - Duration::from_secs(age);
        current.unwrap().set_modified(checked).unwrap();
        for reply in [
            host.get_with("/a", &[("If-None-Match", "\"v1\"")]),
            host.head("/a"),
            host.get_with("/a", &[("Range", &format!("bytes={}-", age * 1000))]),
        ] {
            let told = reply.header("Age").and_then(|age| age.parse().ok());
            // Whoever was served first has asked again by now.
            let is_old = told >= Some(age) || (heads > 0 && base.count("HEAD") > before);
            assert!(is_old, "{:?}", reply.headers);
        }
        assert_eq!(base.count("HEAD"), before + heads, "{age}");
    }
}

#[test]
fn one_process_asks_about_a_stale_copy_and_no_other_stays() {
    let base = Base::start();
    base.put("/a", text("max-age=0, stale-while-revalidate=1000"));
    let host = Host::new(&base);
    host.get("/a");
    base.hold_heads();
    let mut first = host.ask("GET", "/a", &[]);
    first.read_body(4);
    base.wait_for("HEAD", 2);
    for _ in 0..10 {
        // It ends although the base has not answered.
        assert_eq!(host.get("/a").text(), "text");
    }
    let (mut process, _) = first.take_apart();
    assert!(process.try_wait().unwrap().is_none(), "who asks is still there");
    assert_eq!(base.count("HEAD"), 2);
    base.release_heads();
    assert!(process.wait().unwrap().success());
}

#[test]
fn what_must_be_revalidated_is_not_served_unchecked() {
    for (cache_control, status) in [
        ("max-age=0", 200),
        ("max-age=0, must-revalidate", 502),
        ("max-age=0, stale-if-error=0", 502),
    ] {
        let base = Base::start();
        base.put("/a", text(cache_control));
        let host = Host::new(&base);
        host.get("/a");
        thread::sleep(Duration::from_millis(5));
        base.go_down();
        let reply = host.get("/a");
        assert_eq!(reply.status, status, "{cache_control}");
    }
}

#[test]
fn a_part_that_is_there_is_served_while_the_base_is_down() {
    let base = Base::start();
    let body = super::pattern(3 << 20);
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    host.get_with("/a", &[("Range", "bytes=5-9")]);
    base.go_down();
    let reply = host.get_with("/a", &[("Range", "bytes=5-9")]);
    assert_eq!(reply.cache_status(), "offload; hit; detail=stale-if-error");
    assert!(reply.body == body[5..10]);
    assert_eq!(host.get_with("/a", &[("Range", "bytes=2000000-")]).status, 502);
}

#[test]
fn a_check_that_lies_in_the_future_is_none() {
    let base = Base::start();
    base.put("/a", text("max-age=1000"));
    let host = Host::new(&base);
    host.get("/a");
    let current = std::fs::File::options().append(true).open(&host.files("current")[0]).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(100_000);
    current.set_modified(later).unwrap();
    host.get("/a");
    host.get("/a");
    assert_eq!(base.count("HEAD"), 2);
}
