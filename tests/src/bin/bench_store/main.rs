//! `make bench-store`: what the offload host's store costs, beside its peers, in one run.
//!
//! 1. a hit of 64 KB through CGI, beside a CGI in C that writes 64 KB, on the same httpd;
//! 2. a cold file through the program, beside curl that writes it to the same disk;
//! 3. a hit in a cache of 1,000,000 objects, beside one of 10 (`BENCH_OBJECTS`);
//! 4. 1,000 clients (`BENCH_CLIENTS`) of a cold file of 100 MB: how many GETs, and how long after the first byte
//!    landed each has it.
//!
//! Rounds alternate and medians count. `BENCH_PARTS` (1234), `BENCH_ROUNDS` (5) and `BENCH_SECONDS` (3) can be
//! set.

// A benchmark ends where something does not hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crowd;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use offload_tests::load::{median, wrk};
use offload_tests::offload::PairSetup;
use offload_tests::{Artifacts, Mpm, Scratch, Setup, bytes, write_bytes};
use sha2::{Digest as _, Sha256};

const PEER: &str = r#"
#include <stdio.h>
#include <string.h>
static char body[65536];
int main(void) {
    memset(body, 'x', sizeof body);
    fputs("Status: 200\r\nContent-Type: text/plain\r\nContent-Length: 65536\r\n\r\n", stdout);
    fwrite(body, 1, sizeof body, stdout);
    return 0;
}
"#;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

fn main() {
    let parts = std::env::var("BENCH_PARTS").unwrap_or_else(|_| "1234".to_owned());
    let all: [(char, fn()); 4] = [('1', hits), ('2', fills), ('3', objects), ('4', crowd::run)];
    for (part, run) in all {
        if parts.contains(part) {
            run();
        }
    }
}

/// Requests a second.
fn hits() {
    let (rounds, seconds) = (number("BENCH_ROUNDS", 5), number("BENCH_SECONDS", 3));
    let setup = PairSetup::new(Mpm::Event)
        .setting("OFFLOAD_FRESH", "1h")
        .on_host("alias", "ScriptAlias /peer \"${SCRATCH}/bin/peer\"");
    let bin = setup.host.scratch().path().join("bin");
    let source = bin.join("peer.c");
    fs::write(&source, PEER).unwrap();
    let compiled =
        Command::new("cc").arg("-O2").arg("-o").arg(bin.join("peer")).arg(&source).status();
    assert!(compiled.unwrap().success());
    let pair = setup.start();
    pair.base.put("/a.bin", bytes(1, 65_536));
    assert_eq!(pair.host.get("/a.bin").status(), 200);
    pair.settle();
    assert_eq!(pair.host.get("/peer").body().len(), 65_536);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            let (path, rates) = if (round + turn) % 2 == 0 {
                ("/a.bin", &mut ours)
            } else {
                ("/peer", &mut theirs)
            };
            rates.push(wrk(&pair.host, path, seconds, &[]).0);
        }
        eprint!(".");
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "\nhit of 64 KB through CGI: {ours:.0} requests/s; a CGI in C: {theirs:.0}; ratio {:.2} (wanted 0.8)",
        ours / theirs
    );
}

/// A request, as httpd starts it.
fn program(base: &str, cache: &Path, path: &str) -> Command {
    let mut command = Command::new(Artifacts::default().cgi());
    command
        .env_clear()
        .env("GATEWAY_INTERFACE", "CGI/1.1")
        .env("REQUEST_METHOD", "GET")
        .env("REQUEST_URI", path)
        .env("REMOTE_ADDR", "192.0.2.1")
        .env("OFFLOAD_BASE", base)
        .env("OFFLOAD_CACHE", cache)
        .env("OFFLOAD_MAX_DUPES", "0")
        .env("OFFLOAD_FRESH", "1h")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Seconds for a file of 300 MB.
fn fills() {
    let base = Setup::default().without_access_log().start();
    write_bytes(&base.put("/a.bin", ""), 1, 300 << 20);
    let scratch = Scratch::new();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..number("BENCH_ROUNDS", 5) {
        for turn in 0..2 {
            let begun = Instant::now();
            if (round + turn) % 2 == 0 {
                let cache = scratch.path().join("cache");
                let url = format!("http://{}", base.authority());
                assert!(program(&url, &cache, "/a.bin").status().unwrap().success());
                ours.push(begun.elapsed().as_secs_f64());
                thread::sleep(Duration::from_secs(2));
                fs::remove_dir_all(cache).unwrap();
            } else {
                let file = scratch.path().join("a.bin");
                let mut curl = Command::new("curl");
                let done = curl.arg("-so").arg(&file).arg(base.url("/a.bin")).status();
                assert!(done.unwrap().success());
                theirs.push(begun.elapsed().as_secs_f64());
                thread::sleep(Duration::from_secs(2));
                fs::remove_file(file).unwrap();
            }
        }
        eprint!(".");
    }
    let (ours, theirs) = (300.0 / median(ours), 300.0 / median(theirs));
    println!(
        "\ncold file of 300 MB, to its last byte at the client: {ours:.0} MB/s; curl to the same disk: {theirs:.0} MB/s; ratio {:.2} (wanted 0.9)",
        ours / theirs
    );
}

/// Milliseconds of one hit.
fn objects() {
    let base = Setup::default().start();
    base.put("/a.bin", bytes(1, 65_536));
    let url = format!("http://{}", base.authority());
    let scratch = Scratch::new();
    let caches = [10, number("BENCH_OBJECTS", 1_000_000)].map(|count| {
        let cache = scratch.path().join(format!("{count}"));
        assert!(program(&url, &cache, "/a.bin").status().unwrap().success());
        fill_with_objects(&cache, count);
        (count, cache, Vec::new())
    });
    let mut caches = caches.to_vec();
    for _ in 0..200 {
        for (_, cache, times) in &mut caches {
            let begun = Instant::now();
            assert!(program(&url, cache, "/a.bin").status().unwrap().success());
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    let figures: Vec<(usize, f64, f64)> =
        caches.into_iter().map(|(count, _, times)| (count, times[0], median(times))).collect();
    for (count, first, median) in &figures {
        println!("\nhit in a cache of {count} objects: {median:.2} ms, the first {first:.2} ms");
    }
    println!("ratio {:.2}", figures[1].2 / figures[0].2);
}

/// Objects as the program lays them out: only their names and numbers matter.
fn fill_with_objects(cache: &Path, count: usize) {
    for number in 0..count {
        let key: String =
            Sha256::digest(number.to_le_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = cache.join("objects").join(&key[..3]);
        let name = "0123456789abcdef0123456789abcdef";
        if number < 100_000 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("{key}.current")), format!("{name}\n")).unwrap();
        File::create(folder.join(format!("{key}-{name}.body"))).unwrap();
    }
}
