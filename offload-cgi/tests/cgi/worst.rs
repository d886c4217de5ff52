//! The worst moments: what is left when somebody is killed between two steps, clocks that were set back, disks
//! that lose bytes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use sha2::{Digest as _, Sha256};

use super::base::{Base, Page};
use super::host::{Host, kill};
use super::pattern;

/// A file beside the `.current` of the only object of a cache.
fn beside(host: &Host, kind: &str) -> PathBuf {
    host.files("current")[0].with_extension(kind)
}

#[test]
fn what_was_told_and_not_removed_is_nobody_s_news() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    host.get("/a");
    for (moment, news) in [("1", "failure\ndown old"), ("99999999999999999", "failure\ndown new")] {
        let heads = base.count("HEAD");
        fs::write(beside(&host, "check"), format!("{moment}\n{news}\nend\n")).unwrap();
        assert_eq!(host.get("/a").text(), "text");
        assert_eq!(base.count("HEAD"), heads + 1, "{news}");
        assert!(host.files("check").is_empty());
    }
}

#[test]
fn who_waits_for_news_that_cannot_be_noted_is_not_given_the_old_version() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "old"));
    let host = Host::new(&base);
    host.get("/a");
    base.put("/a", Page::new("\"v2\"", "new"));
    // No file can be written under this name now.
    fs::create_dir(beside(&host, "current.tmp")).unwrap();
    base.hold_heads();
    let clients: Vec<_> = (0..5).map(|_| host.ask("GET", "/a", &[])).collect();
    base.wait_for("HEAD", 2);
    thread::sleep(Duration::from_millis(300));
    base.release_heads();
    for client in clients {
        let reply = client.end();
        assert_eq!(reply.text(), "new", "{}", reply.log);
    }
}

#[test]
fn what_is_put_aside_during_a_fill_ends_that_fill_and_its_readers_go_on() {
    let (base, body) = (Base::start(), pattern(4 << 20));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(2 << 20);
    base.put("/a", page);
    let host = Host::new(&base);
    let mut reader = host.ask("GET", "/a", &[]);
    assert_eq!(reader.read_body(2 << 20), body[..2 << 20]);
    let meta = host.files("meta").remove(0);
    fs::write(&meta, "nonsense").unwrap();
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let second = host.ask("GET", "/a", &[]);
    base.wait_for("HEAD", 2);
    while fs::read(&meta).is_ok_and(|text| text == b"nonsense") {
        thread::sleep(Duration::from_millis(5));
    }
    base.release();
    let reply = second.end();
    assert!(reply.success && reply.body == body, "{}", reply.log);
    let (rest, success) = reader.rest();
    assert!(success && rest == body[2 << 20..], "the client sees a pause");
    host.settle();
    // As after a reboot.
    host.files("map").iter().for_each(|map| fs::remove_file(map).unwrap());
    assert!(host.get("/a").body == body);
    assert_eq!(host.files("body").len(), 1);
}

#[test]
fn what_is_whole_and_was_not_published_is_published_without_a_byte_from_the_base() {
    let (base, body) = (Base::start(), pattern(3 << 20));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    host.get("/a");
    // As a power cut between the last checkpoint and the renaming leaves it.
    let published = host.files("body").remove(0);
    let part = published.with_extension("part");
    fs::rename(&published, &part).unwrap();
    let name = part.file_stem().unwrap().to_str().unwrap().to_owned();
    let generation = name.split('-').next_back().unwrap();
    let inode = fs::metadata(&part).unwrap().ino();
    let text = format!(
        "offload-extents 2\ngeneration {generation}\nfile {inode}\nlength {}\nrun 0 3 1048576\n",
        body.len()
    );
    let sum: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(part.with_extension("extents"), format!("{text}sum {sum}\n")).unwrap();
    let reply = host.get("/a");
    assert!(reply.success && reply.body == body, "{}", reply.log);
    assert_eq!((host.files("body").len(), host.files("part").len()), (1, 0));
    assert_eq!(base.count("GET"), 1);
}

#[test]
fn a_block_that_a_dead_filler_has_left_gets_no_hole_from_another() {
    let (base, body) = (Base::start(), pattern(6 << 20));
    let mut page = Page::new("\"v1\"", body.clone());
    page.simple = true;
    page.pause_at = Some(300_000);
    base.put("/a", page.clone());
    let mut host = Host::new(&base);
    host.set("OFFLOAD_FRESH", "60s");
    let first = host.ask("GET", "/a", &[("Range", "bytes=0-9")]);
    assert_eq!(first.end().body, body[..10]);
    let dying = host.fillers();
    // Another one is at byte 500,000 of everything when that one dies.
    page.pause_at = Some(500_000);
    base.put("/a", page);
    let second = host.ask("GET", "/a", &[("Range", "bytes=5242880-5242889")]);
    base.wait_for("GET", 2);
    thread::sleep(Duration::from_millis(300));
    dying.into_iter().for_each(|filler| kill(filler, Signal::SIGKILL));
    base.release();
    assert_eq!(second.end().body, body[5_242_880..5_242_890]);
    assert!(host.get("/a").body == body, "a hole");
}

#[test]
fn a_record_that_a_power_cut_has_emptied_costs_no_byte() {
    let (base, body) = (Base::start(), pattern(3 << 20));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    host.get_with("/a", &[("Range", "bytes=0-9")]);
    for kind in ["meta", "current"] {
        fs::write(&host.files(kind)[0], "").unwrap();
        let reply = host.get_with("/a", &[("Range", "bytes=10-19")]);
        assert!(reply.body == body[10..20] && reply.log.is_empty(), "{kind}: {}", reply.log);
    }
    assert!(host.get("/a").body == body);
    for kind in ["meta", "current"] {
        fs::write(&host.files(kind)[0], "").unwrap();
        let reply = host.get("/a");
        assert!(reply.body == body && reply.log.is_empty(), "{kind}: {}", reply.log);
        assert_eq!(reply.cache_status(), "offload; hit");
    }
    let ranges: Vec<_> =
        base.seen().iter().filter_map(|seen| seen.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=0-1048575", "bytes=1048576-3145727"]);
}

#[test]
fn what_cannot_be_opened_now_is_not_fetched_again() {
    let (base, body) = (Base::start(), pattern(3 << 20));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let host = Host::new(&base);
    host.get("/a");
    for kind in ["body", "meta"] {
        let (path, aside) = (host.files(kind).remove(0), host.folder.path().join(kind));
        let socket = host.folder.path().join("socket");
        let _socket = UnixListener::bind(&socket).unwrap();
        fs::rename(&path, &aside).unwrap();
        // It is there, and cannot be opened, as with too many open files.
        fs::rename(&socket, &path).unwrap();
        let reply = host.get("/a");
        assert!(reply.success && reply.body == body, "{kind}: {}", reply.log);
        assert_eq!(reply.cache_status(), "offload; fwd=miss; detail=no-room", "{kind}");
        assert!(host.files("part").is_empty(), "{kind}");
        fs::rename(&aside, &path).unwrap();
        assert_eq!(host.get("/a").cache_status(), "offload; hit", "{kind}");
    }
    assert_eq!(base.count("GET"), 3);
}

#[test]
fn a_growing_body_that_somebody_shortens_gets_no_hole() {
    let (base, body) = (Base::start(), pattern(3 << 20));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(512 << 10);
    base.put("/a", page.clone());
    let host = Host::new(&base);
    let mut reader = host.ask("GET", "/a", &[]);
    assert_eq!(reader.read_body(512 << 10), body[..512 << 10]);
    page.pause_at = None;
    base.put("/a", page);
    let part = fs::OpenOptions::new().write(true).open(&host.files("part")[0]).unwrap();
    part.set_len(0).unwrap();
    base.release();
    let (rest, success) = reader.rest();
    assert!(success && rest == body[512 << 10..], "a hole");
    host.settle();
    let reply = host.get("/a");
    assert!(reply.body == body && reply.cache_status() == "offload; hit", "{}", reply.log);
}
