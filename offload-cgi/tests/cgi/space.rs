//! Room: the cache keeps within its limits, and nothing that is in use goes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::base::{Base, Page};
use super::host::Host;
use super::pattern;

/// What the cache takes on the disk.
fn taken(host: &Host) -> u64 {
    // Damaged or not.
    let kinds = ["body", "part", "meta", "map", "current", "lock", "extents"];
    let files = kinds.iter().flat_map(|kind| host.files(kind));
    files.map(|path| fs::metadata(path).unwrap().blocks() * 512).sum()
}

#[test]
fn the_cache_keeps_within_its_maximum() {
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_CACHE_MAX", "3M");
    for number in 0..20 {
        let path = format!("/{number}");
        let body = pattern(400_000 + number);
        base.put(&path, Page::new("\"v1\"", body.clone()));
        let reply = host.get(&path);
        assert!(reply.body == body && reply.success, "{}", reply.log);
        assert_eq!(reply.cache_status(), "offload; fwd=miss; stored", "{number}: {}", reply.log);
        assert!(taken(&host) <= 3 << 20, "{number}: {}", taken(&host));
    }
    let kept = host.files("body").len();
    assert!((4..=7).contains(&kept), "{kept}");
}

#[test]
fn what_a_base_without_ranges_sends_besides_is_stored_as_far_as_there_is_room() {
    let (base, body) = (Base::start(), pattern(12 << 20));
    let mut page = Page::new("\"v1\"", body.clone());
    page.simple = true;
    base.put("/a", page);
    let mut host = Host::new(&base);
    host.set("OFFLOAD_CACHE_MAX", "4M");
    let reply = host.get_with("/a", &[("Range", "bytes=10485760-10485769")]);
    assert!(reply.success && reply.body == body[10_485_760..10_485_770], "{}", reply.log);
    assert!(taken(&host) <= 4 << 20, "{}", taken(&host));
    assert!(taken(&host) > 2 << 20, "{}", taken(&host));
}

#[test]
fn concurrent_fills_do_not_take_more_than_there_is_together() {
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_CACHE_MAX", "3M");
    let body = pattern(700_000);
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1000);
    for number in 0..8 {
        base.put(&format!("/{number}"), page.clone());
    }
    let mut clients: Vec<_> =
        (0..8).map(|number| host.ask("GET", &format!("/{number}"), &[])).collect();
    for client in &mut clients {
        assert_eq!(client.read_body(1000), body[..1000]);
    }
    let filling = host.files("part").len() - host.files("error").len();
    assert!(filling <= 4 && taken(&host) <= 3 << 20, "{filling} {}", taken(&host));
    base.release();
    for client in clients {
        let (rest, success) = client.rest();
        assert!(success && rest == body[1000..]);
    }
}

#[test]
fn what_is_being_read_is_not_removed() {
    let base = Base::start();
    let mut host = Host::new(&base);
    let body = pattern(2_000_000);
    base.put("/old", Page::new("\"v1\"", body.clone()));
    host.get("/old");
    host.set("OFFLOAD_CACHE_MAX", "2300K");
    let mut reader = host.ask("GET", "/old", &[]);
    reader.read_body(1);
    base.put("/new", Page::new("\"v1\"", body.clone()));
    let reply = host.get("/new");
    assert!(reply.body == body && reply.cache_status() == "offload; fwd=miss; detail=no-room");
    assert!(reply.log.contains("OFFLOAD_CACHE_MAX"), "{}", reply.log);
    assert!(reader.rest().1);
    let reply = host.get("/new");
    assert!(
        reply.body == body && reply.cache_status() == "offload; fwd=miss; stored",
        "{}",
        reply.log
    );
    assert_eq!(host.get("/old").cache_status(), "offload; fwd=miss; stored");
}

#[test]
fn small_things_that_are_wanted_stay_when_a_large_one_comes() {
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_CACHE_MAX", "5M");
    for number in 0..10 {
        base.put(&format!("/{number}"), Page::new("\"v1\"", pattern(50_000)));
        (0..3).for_each(|_| drop(host.get(&format!("/{number}"))));
    }
    for number in 0..5 {
        base.put(&format!("/large{number}"), Page::new("\"v1\"", pattern(3_000_000)));
        assert_eq!(host.get(&format!("/large{number}")).status, 200);
    }
    let before = base.count("GET");
    (0..10).for_each(|number| drop(host.get(&format!("/{number}"))));
    assert_eq!(base.count("GET"), before, "the small ones are still there");
}

#[test]
fn who_only_looks_takes_no_more_than_there_is_and_nothing_goes_for_it() {
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_CACHE_MAX", "96K");
    base.put("/kept", Page::new("\"v1\"", pattern(20_000)));
    assert_eq!(host.get("/kept").cache_status(), "offload; fwd=miss; stored");
    for number in 0..40 {
        let path = format!("/{number}");
        base.put(&path, Page::new("\"v1\"", "text"));
        assert_eq!(host.head(&path).header("Content-Length"), Some("4"), "{path}");
        assert!(taken(&host) <= 96 << 10, "{number}: {}", taken(&host));
    }
    assert_eq!(host.get("/kept").cache_status(), "offload; hit");
    assert_eq!(host.get("/39").cache_status(), "offload; fwd=miss; stored");
}

#[test]
fn without_a_cache_folder_everything_is_passed_through() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "0123456789"));
    let mut host = Host::new(&base);
    let subject = host.folder.path().join("tmp");
    fs::create_dir(&subject).unwrap();
    host.set("TMPDIR", subject.to_str().unwrap());
    host.set("OFFLOAD_CACHE", "/dev/null/cache");
    for (number, (headers, status, text)) in [
        (&[][..], 200, "0123456789"),
        (&[("Range", "bytes=2-3")], 206, "23"),
        (&[("Range", "bytes=0-0,9-9")], 206, "0123456789"),
        (&[("If-None-Match", "\"v1\"")], 304, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = host.ask("GET", "/a", headers).end();
        assert_eq!((reply.status, reply.text()), (status, text), "{}", reply.log);
        // One line a minute.
        assert_eq!(reply.log.lines().count(), usize::from(number == 0), "{}", reply.log);
    }
    assert_eq!(host.ask("HEAD", "/a", &[]).end().status, 200);
    assert_eq!(host.ask("GET", "/never-was", &[]).end().status, 404);
}

#[test]
fn what_the_dead_and_strangers_have_left_keeps_nothing_from_being_stored() {
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_CACHE_MAX", "5M");
    let body = pattern(1_200_000);
    let get = |name: &str| {
        base.put(name, Page::new("\"v1\"", body.clone()));
        let reply = host.get(name);
        assert_eq!(reply.cache_status(), "offload; fwd=miss; stored", "{name}: {}", reply.log);
    };
    ["/1", "/2", "/3", "/4"].into_iter().for_each(get);
    // Killed while he asked; killed before he noted what he had heard; somebody else's, some with our names.
    let current = host.files("current").remove(0);
    let digits = &current.file_name().unwrap().to_str().unwrap()[..3];
    let key = |number: u32| format!("{digits}{number:061}");
    let body_name = host.files("body").remove(0).file_name().unwrap().to_str().unwrap().to_owned();
    for left in [
        key(0) + ".check",
        key(1) + ".lock",
        key(2) + ".current.tmp",
        "x".repeat(70),
        format!("{}-{}.other", key(3), &body_name[65..97]),
    ] {
        fs::write(current.with_file_name(left), "").unwrap();
    }
    ["/5", "/6", "/7", "/8", "/9"].into_iter().for_each(get);
    let keys: Vec<_> = host.files("check").into_iter().chain(host.files("tmp")).collect();
    assert!(keys.is_empty(), "{keys:?}");
    assert!(current.with_file_name("x".repeat(70)).exists());
}

#[test]
fn what_was_damaged_takes_no_room_from_what_is_not() {
    let base = Base::start();
    let mut host = Host::new(&base);
    host.set("OFFLOAD_CACHE_MAX", "5M");
    let body = pattern(1_200_000);
    for number in 0..6 {
        let path = format!("/{number}");
        base.put(&path, Page::new("\"v1\"", body.clone()));
        assert_eq!(host.get(&path).cache_status(), "offload; fwd=miss; stored", "{path}");
        let mut bodies = host.files("body");
        bodies.retain(|path| path.parent().unwrap().file_name().unwrap() != "quarantine");
        for body in bodies {
            fs::File::options().append(true).open(body).unwrap().set_len(1_199_999).unwrap();
        }
        let reply = host.get(&path);
        assert!(reply.log.contains("put aside") && reply.body == body, "{path}: {}", reply.log);
        assert!(taken(&host) <= 5 << 20, "{path}: {}", taken(&host));
    }
    // It was the first to go.
    let reply = host.get("/5");
    assert_eq!(reply.cache_status(), "offload; hit");
}
