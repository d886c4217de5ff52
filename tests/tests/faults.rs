//! The original's faults that belong to redirecting and filling: each has a test that finds it.
//!
//! The numbers are those of the list in the specification.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use offload_tests::offload::{Pair, PairSetup};
use offload_tests::{Mpm, Origin, Request, Setup, bytes, eventually, same_file, set_modified};

const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// The same time of modification for every file.
fn age(path: &Path) {
    set_modified(path, Duration::from_secs(784_111_777));
}

fn head(stream: &mut TcpStream, etag: &str, length: usize) {
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: {etag}\r\nLast-Modified: {MODIFIED}\r\n\
         Content-Type: application/zip\r\nConnection: close\r\n\r\n"
    );
}

/// An offload host of this base.
fn host_of(origin: &Origin) -> PairSetup {
    PairSetup::new(Mpm::Event)
        .setting("OFFLOAD_BASE", &origin.url())
        .setting("OFFLOAD_TIMEOUT", "5s")
}

#[test]
fn fault_01_the_host_is_not_chosen_by_the_clock() {
    let base = Setup::default()
        .offload()
        .directives("OffloadEngine On\nOffloadMinSize 0\nOffloadHost 127.0.0.2\nOffloadHost 127.0.0.3\nOffloadHost 127.0.0.4")
        .start();
    let paths: Vec<String> = (0..20).map(|number| format!("/{number}.bin")).collect();
    paths.iter().for_each(|path| drop(base.put(path, "x")));
    let second = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (homes, mut last) = (base.raw().locations(&paths), second());
    for _ in 0..2 {
        last = eventually("the next second", || Some(second()).filter(|&now| now > last));
        assert_eq!(base.raw().locations(&paths), homes);
    }
}

#[test]
fn fault_02_cache_files_are_not_named_by_etag() {
    // httpd makes an ETag of a file's time and size, so these have the same.
    let pair = Pair::start();
    let mut etags = Vec::new();
    for _ in ["cold", "warm"] {
        for (seed, path) in [(1, "/one.bin"), (2, "/two.bin"), (3, "/folder/one.bin")] {
            let file = pair.base.put(path, bytes(seed, 50_000));
            age(&file);
            etags.push(pair.assert_delivers(path, &file).field("etag").to_owned());
        }
    }
    assert!(etags[0].starts_with('"') && etags.iter().all(|etag| *etag == etags[0]), "{etags:?}");
}

#[test]
fn fault_02_two_bases_with_equal_paths_and_etags_do_not_share_a_file() {
    let setup = PairSetup::new(Mpm::Event).on_base(
        "headers",
        "<VirtualHost ${ADDRESS}:${PORT}>\nServerName one.test\nDocumentRoot ${DOCROOT}/one\n</VirtualHost>\n\
         <VirtualHost ${ADDRESS}:${PORT}>\nServerName two.test\nDocumentRoot ${DOCROOT}/two\n</VirtualHost>",
    );
    let address = setup.base.authority();
    let vhost = |name: &str| {
        format!(
            "<VirtualHost ${{ADDRESS}}:${{PORT}}>\nServerName {name}.host\nSetEnv OFFLOAD_BASE http://{name}.test\n\
             SetEnv OFFLOAD_BASE_ADDRESS {address}\nSetEnv OFFLOAD_CACHE ${{SCRATCH}}/var/cache\n\
             AliasMatch ^.*$ ${{SCRATCH}}/bin/offload-cgi\n</VirtualHost>\n"
        )
    };
    let pair = setup.on_host("alias", &(vhost("one") + &vhost("two"))).start();
    for (seed, name) in [(1, "one"), (2, "two"), (1, "one")] {
        let file = pair.base.put(&format!("/{name}/a.bin"), bytes(seed, 50_000));
        age(&file);
        let answer = pair.host.curl("/a.bin").header(&format!("Host: {name}.host")).run();
        assert_eq!(answer.status(), 200, "{name}: {answer:?}");
        assert!(same_file(answer.file(), &file), "{name} got other bytes");
    }
}

#[test]
fn fault_02_an_etag_with_slashes_does_not_leave_the_cache() {
    let content = bytes(1, 50_000);
    let body = content.clone();
    let origin = Origin::start(move |request: &Request, stream| {
        head(stream, "\"../../../evil/../x\"", body.len());
        if request.method == "GET" {
            let _ = stream.write_all(&body);
        }
    });
    let pair = host_of(&origin).start();
    let before = names(&pair);
    for _ in ["cold", "warm"] {
        let answer = pair.host.get("/a.zip");
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(answer.body() == content);
    }
    assert_eq!(names(&pair), before, "files outside of the cache");
}

/// What lies beside the cache.
fn names(pair: &Pair) -> Vec<String> {
    let scratch = pair.host.scratch().path();
    let folder =
        |name: &str| fs::read_dir(scratch.join(name)).unwrap().flatten().collect::<Vec<_>>();
    let mut names: Vec<String> = [folder("."), folder("var"), folder("www"), folder("bin")]
        .into_iter()
        .flatten()
        .filter(|entry| entry.path() != pair.cache())
        .map(|entry| entry.path().display().to_string())
        .collect();
    names.sort();
    names
}

#[test]
fn fault_03_the_head_and_the_get_may_see_two_versions() {
    let (old, new) = (bytes(1, 40_000), bytes(2, 70_000));
    let body = new.clone();
    let gets = AtomicUsize::new(0);
    let origin = Origin::start(move |request: &Request, stream| {
        if request.method == "HEAD" && gets.load(Ordering::SeqCst) == 0 {
            return head(stream, "\"old\"", old.len());
        }
        head(stream, "\"new\"", body.len());
        if request.method == "GET" {
            gets.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(&body);
        }
    });
    let pair = host_of(&origin).start();
    let first = pair.host.curl("/a.zip").attempt();
    if first.exit == 0 && first.status() == 200 {
        assert_eq!(first.field("etag"), "\"new\"", "the head must be that of the bytes");
        assert!(first.body() == new, "neither version");
    }
    let second = pair.host.get("/a.zip");
    assert_eq!((second.status(), second.field("etag")), (200, "\"new\""));
    assert!(second.body() == new);
}

#[test]
fn fault_03_a_body_that_ends_early_is_never_taken_for_the_file() {
    let content = bytes(1, 200_000);
    let (body, gets) = (content.clone(), AtomicUsize::new(0));
    let origin = Origin::start(move |request: &Request, stream| {
        head(stream, "\"one\"", body.len());
        if request.method == "GET" {
            let half = if gets.fetch_add(1, Ordering::SeqCst) == 0 { 90_000 } else { body.len() };
            let _ = stream.write_all(&body[..half]);
        }
    });
    let pair = host_of(&origin).start();
    let first = pair.host.curl("/a.zip").attempt();
    assert!(first.exit != 0 || first.status() != 200 || first.body() == content, "{first:?}");
    eventually("a later download is complete", || {
        let later = pair.host.curl("/a.zip").attempt();
        assert!(later.exit != 0 || later.status() != 200 || later.body() == content, "{later:?}");
        (later.exit == 0 && later.status() == 200).then_some(())
    });
}

#[test]
fn fault_03_what_a_killed_filler_left_is_never_taken_for_the_file() {
    let slow = "<Location />\nSetOutputFilter RATE_LIMIT\nSetEnv rate-limit 2048\n</Location>";
    let pair = PairSetup::new(Mpm::Event).on_base("ratelimit", slow).start();
    let file = pair.base.put("/a.bin", bytes(1, 3 << 20));
    let client = pair.base.curl("/a.bin").follow().start();
    eventually("some bytes are in the cache", || (landed(&pair.cache()) > 100_000).then_some(()));
    for program in pair.programs() {
        let _ = kill(program, Signal::SIGKILL);
    }
    let cut_off = client.wait();
    assert!(
        cut_off.exit != 0 || cut_off.status() != 200 || same_file(cut_off.file(), &file),
        "half a file as a whole one: {cut_off:?}"
    );
    pair.assert_delivers("/a.bin", &file);
}

/// The bytes that are there of bodies that grow: a word for each block, behind a head of 64 bytes.
fn landed(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let each = entries.flatten().map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return landed(&path);
        }
        let map = path.extension().is_some_and(|kind| kind == "map");
        let bytes = if map { fs::read(path).unwrap_or_default() } else { Vec::new() };
        let words = bytes.get(64..).unwrap_or_default().as_chunks().0;
        words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
    });
    each.sum()
}

#[test]
fn fault_07_a_base_that_is_down_does_not_fail_what_is_cached() {
    let mut pair = Pair::start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    pair.assert_delivers("/a.bin", &file);
    pair.settle();
    pair.base.stop();
    let answer = pair.host.get("/a.bin");
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(same_file(answer.file(), &file));
    let part = pair.host.curl("/a.bin").range("100-199").run();
    assert_eq!((part.status(), part.body()), (206, bytes(1, 50_000)[100..200].to_vec()));
}

#[test]
fn fault_07_a_base_that_fails_does_not_fail_what_is_cached() {
    let (content, down) = (bytes(1, 50_000), std::sync::Arc::new(AtomicUsize::new(0)));
    let (body, broken) = (content.clone(), std::sync::Arc::clone(&down));
    let origin = Origin::start(move |request: &Request, stream| {
        if broken.load(Ordering::SeqCst) == 1 {
            let _ =
                stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        head(stream, "\"one\"", body.len());
        if request.method == "GET" {
            let _ = stream.write_all(&body);
        }
    });
    let pair = host_of(&origin).start();
    assert!(pair.host.get("/a.zip").body() == content);
    pair.settle();
    down.store(1, Ordering::SeqCst);
    let answer = pair.host.get("/a.zip");
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(answer.body() == content);
}

#[test]
fn fault_12_redirections_can_lead_to_https() {
    let base = Setup::default()
        .offload()
        .directives("OffloadEngine On\nOffloadMinSize 0\nOffloadHost https://127.0.0.2:8443/pub")
        .start();
    base.put("with space.bin", "x");
    assert_eq!(
        base.get("/with%20space.bin").location(),
        "https://127.0.0.2:8443/pub/with%20space.bin"
    );
}
