//! The base changes, lies, breaks off or is down; the cache is damaged or full.

use std::fs;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::base::{Base, Page};
use super::host::Host;
use super::pattern;

#[test]
fn a_changed_file_is_fetched_anew_and_the_old_one_goes() {
    let base = Base::start();
    let host = Host::new(&base);
    for (etag, text) in [("\"v1\"", "one"), ("\"v2\"", "two"), ("\"v3\"", "three")] {
        base.put("/a", Page::new(etag, text));
        let reply = host.get("/a");
        assert_eq!((reply.text(), reply.header("ETag")), (text, Some(etag)));
        assert_eq!(reply.cache_status(), "offload; fwd=miss; stored");
        assert_eq!(host.get("/a").text(), text);
    }
    assert_eq!(host.files("body").len(), 1);
}

#[test]
fn a_deleted_file_is_gone_here_too() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    host.get("/a");
    host.get("/a");
    base.put("/a", Page::status(404, &[]));
    assert_eq!(host.get("/a").status, 404);
    assert!(host.files("body").is_empty() && host.files("current").is_empty());
    base.go_down();
    assert_eq!(host.get("/a").status, 502);
}

#[test]
fn a_base_that_is_down_does_not_take_the_cached_files_along() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    host.get("/a");
    host.get("/a");
    base.put("/a", Page::status(500, &[]));
    assert_eq!(host.get("/a").text(), "text");
    base.go_down();
    let reply = host.get("/a");
    assert_eq!((reply.status, reply.text()), (200, "text"));
    assert_eq!(reply.cache_status(), "offload; hit; detail=stale-if-error");
    assert!(reply.header("Age").is_some() && reply.log.contains("unchecked"), "{}", reply.log);
    assert_eq!(host.get_with("/a", &[("Range", "bytes=1-2")]).text(), "ex");
    assert_eq!(host.get_with("/a", &[("If-None-Match", "\"v1\"")]).status, 304);
    let reply = host.get("/never-seen");
    assert_eq!((reply.status, reply.header("Retry-After").is_some()), (502, true));
    host.set("OFFLOAD_STALE_IF_ERROR", "0s");
    assert_eq!(host.get("/a").status, 502);
}

#[test]
fn a_base_that_says_nothing_is_a_504() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_BASE_ADDRESS", &silent.local_addr().unwrap().to_string());
    host.set("OFFLOAD_TIMEOUT", "50ms");
    let reply = host.get("/a");
    assert_eq!(reply.status, 504, "{}", reply.log);
}

#[test]
fn a_body_that_stops_is_cut_when_patience_ends_and_gone_on_with_later() {
    let (base, body) = (Base::start(), pattern(2000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1000);
    base.put("/a", page.clone());
    let mut host = Host::new(&base);
    host.set("OFFLOAD_TIMEOUT", "3s");
    page.pause_at = Some(0);
    base.put_after_get("/a", page);
    let reply = host.get("/a");
    assert!(reply.status == 200 && !reply.success, "{}", reply.log);
    assert!(reply.log.contains("cut off after 1000 bytes"), "{}", reply.log);
    assert!(host.files("body").is_empty());
    base.put("/a", Page::new("\"v1\"", body.clone()));
    assert!(host.get("/a").body == body);
    let last = base.seen().pop().unwrap();
    assert_eq!(last.headers["range"], "bytes=1000-1999");
    base.release();
}

#[test]
fn a_version_that_changes_between_head_and_get_is_never_mixed() {
    for simple in [false, true] {
        let base = Base::start();
        let mut new = Page::new("\"v2\"", "the new version");
        new.simple = simple;
        base.put("/a", Page::new("\"v1\"", "the old"));
        base.put_after_head("/a", new);
        let host = Host::new(&base);
        let reply = host.get("/a");
        assert_eq!((reply.status, reply.text()), (200, "the new version"), "{}", reply.log);
        assert_eq!(reply.header("ETag"), Some("\"v2\""));
        assert_eq!(reply.header("Content-Length"), Some("15"));
        assert_eq!(host.get("/a").cache_status(), "offload; hit");
    }
}

#[test]
fn a_base_that_says_one_thing_to_head_and_another_to_get_is_given_up() {
    let base = Base::start();
    let host = Host::new(&base);
    for _ in 0..3 {
        base.put("/a", Page::new("\"v1\"", "one"));
        base.put_after_head("/a", Page::status(410, &[]));
        let reply = host.get("/a");
        // The second HEAD sees what the GET saw.
        assert_eq!(reply.status, 410, "{}", reply.log);
    }
}

#[test]
fn a_body_that_breaks_off_is_gone_on_with_and_the_client_sees_a_pause() {
    let (base, body) = (Base::start(), pattern(5000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.break_at = Some(1000);
    base.put("/a", page);
    let host = Host::new(&base);
    let reply = host.get("/a");
    assert!(reply.success && reply.body == body, "{}", reply.log);
    let ranges: Vec<_> =
        base.seen().iter().filter_map(|it| it.headers.get("range").cloned()).collect();
    assert_eq!(
        ranges,
        ["bytes=1000-4999", "bytes=2000-4999", "bytes=3000-4999", "bytes=4000-4999"]
    );
    assert_eq!(host.get("/a").cache_status(), "offload; hit");
}

#[test]
fn a_base_that_sends_nothing_at_all_is_a_502_and_nothing_is_kept() {
    let base = Base::start();
    let mut page = Page::new("\"v1\"", pattern(2000));
    page.break_at = Some(0);
    base.put("/a", page);
    let host = Host::new(&base);
    let reply = host.get("/a");
    assert_eq!(reply.status, 502, "{}", reply.log);
    assert!(host.files("body").is_empty());
    assert_eq!(base.count("GET"), 1);
}

#[test]
fn damage_is_put_aside_and_fetched_anew() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    for (kind, bytes) in
        [("meta", "nonsense"), ("body", "tex"), ("body", "longer text"), ("body", "")]
    {
        host.get("/a");
        let before = base.count("GET");
        fs::write(&host.files(kind)[0], bytes).unwrap();
        let reply = host.get("/a");
        assert_eq!((reply.status, reply.text()), (200, "text"), "{kind} {bytes}: {}", reply.log);
        assert!(reply.log.contains("put aside"), "{kind}: {}", reply.log);
        assert_eq!(base.count("GET"), before + 1, "{kind} {bytes}");
    }
    host.get("/a");
    fs::write(&host.files("current")[0], "nonsense").unwrap();
    assert_eq!(host.get("/a").text(), "text");
    base.go_down();
    assert_eq!(host.get("/a").text(), "text");
}

#[test]
fn a_foreign_record_is_not_believed() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "aaaa"));
    base.put("/b", Page::new("\"v1\"", "bbbb"));
    let host = Host::new(&base);
    host.get("/a");
    let a = [host.files("body").remove(0), host.files("meta").remove(0)];
    host.get("/b");
    for (kind, from) in [("body", &a[0]), ("meta", &a[1])] {
        let to = host.files(kind).into_iter().find(|path| path != from).unwrap();
        fs::copy(from, to).unwrap();
    }
    let reply = host.get("/b");
    assert_eq!(reply.text(), "bbbb");
    assert!(reply.log.contains("another file"), "{}", reply.log);
}

#[test]
fn a_cache_that_cannot_be_written_is_passed_by() {
    let (base, body) = (Base::start(), pattern(100_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    assert_eq!(host.get("/robots.txt").status, 200);
    fs::write(host.cache().join("objects"), "no folder").unwrap();
    let reply = host.get("/a");
    assert!(reply.status == 200 && reply.body == body && reply.success, "{}", reply.log);
    assert!(reply.log.contains("cannot be used"), "{}", reply.log);
}

#[test]
fn a_disk_that_is_full_in_the_middle_does_not_cut_the_client() {
    let (base, body) = (Base::start(), pattern(100_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let mut host = Host::new(&base);
    // No file may grow beyond 16 KB (32 blocks), and to try is an error, not a signal.
    host.wrapper = Some("trap '' XFSZ; ulimit -f 32");
    let reply = host.get("/a");
    assert!(reply.status == 200 && reply.body == body && reply.success, "{}", reply.log);
    assert!(reply.log.contains("passed through"), "{}", reply.log);
    assert!(host.files("body").is_empty() && host.files("part").is_empty());
}

#[test]
fn without_room_the_file_is_passed_through() {
    let (base, body) = (Base::start(), pattern(100_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let mut simple = Page::new("\"v1\"", body.clone());
    simple.simple = true;
    base.put("/simple", simple);
    let mut host = Host::new(&base);
    host.set("OFFLOAD_KEEP_FREE", "100%");
    for path in ["/a", "/simple"] {
        let reply = host.get(path);
        assert!(reply.status == 200 && reply.body == body, "{}", reply.log);
        assert_eq!(reply.cache_status(), "offload; fwd=miss; detail=no-room");
        // One line a minute.
        let lines = usize::from(path == "/a");
        assert_eq!(reply.log.matches("no room").count(), lines, "{}", reply.log);
        assert_eq!(reply.log.lines().count(), lines, "{}", reply.log);
        let reply = host.get_with(path, &[("Range", "bytes=500-599")]);
        assert!(reply.status == 206 && reply.body == body[500..600], "{}", reply.log);
    }
    assert!(host.files("body").is_empty());
}

#[test]
fn a_pipe_in_the_place_of_a_note_stops_nobody() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    host.set("OFFLOAD_KEEP_FREE", "100%");
    host.set("TMPDIR", host.folder.path().display().to_string().as_str());
    host.get("/robots.txt");
    let user = nix::unistd::Uid::effective();
    let beside = host.folder.path().join(format!("offload-cgi-{user}-logged-no-room"));
    for note in [host.cache().join("logged-no-room"), beside] {
        let _ = fs::remove_file(&note);
        mkfifo(&note, Mode::S_IRWXU).unwrap();
        let reply = host.get("/a");
        assert_eq!(reply.text(), "text");
        assert!(reply.log.contains("no room"), "{}", reply.log);
    }
}
