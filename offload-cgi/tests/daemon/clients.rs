//! Real clients: curl, wget, aria2.

use std::fs;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::base::{Base, Page};
use super::host::{Daemon, client, eventually, start, start_counting};
use super::pattern;

const LENGTH: usize = 12_000_000;

fn with_file(lines: &str) -> (Base, Daemon, Vec<u8>) {
    let (base, body) = (Base::start(), pattern(LENGTH));
    base.put("/a.bin", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, lines);
    (base, daemon, body)
}

#[test]
fn curl_gets_it_and_resumes_it() {
    let (_base, daemon, body) = with_file("");
    let file = daemon.path("file");
    let curl = |arguments: &[&str]| {
        let mut command = client("curl");
        command.args(["-q", "-sS", "-f", "--noproxy", "*"]).args(arguments);
        let output = command.arg("-o").arg(&file).arg(daemon.url("/a.bin")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(&file).unwrap() == body);
    };
    curl(&[]);
    fs::write(&file, &body[..LENGTH / 3]).unwrap();
    curl(&["-C", "-"]);
    fs::remove_file(&file).unwrap();
    curl(&["--http1.0"]);
}

#[test]
fn wget_goes_on_with_what_it_has() {
    let (_base, daemon, body) = with_file("");
    let file = daemon.path("a.bin");
    fs::write(&file, &body[..LENGTH / 2]).unwrap();
    let mut wget = client("wget");
    wget.args(["--no-config", "-q", "-c", "--no-proxy", "-O"]).arg(&file).arg(daemon.url("/a.bin"));
    assert!(wget.status().unwrap().success());
    assert!(fs::read(&file).unwrap() == body);
}

fn aria2(daemon: &Daemon) -> bool {
    let mut aria2 = client("aria2c");
    aria2
        .args(["--no-conf", "-q", "-x16", "-s16", "-k1M", "--allow-overwrite=true", "-o", "a.bin"])
        .args(["--retry-wait=1", "--max-tries=3", "-d"])
        .arg(daemon.folder.path())
        .arg(daemon.url("/a.bin"));
    aria2.status().unwrap().success()
}

#[test]
fn an_accelerator_gets_the_file_over_as_many_connections_as_it_may_have() {
    for mode in [
        "max-dupes = 0\n",
        "max-dupes = 4\ndupe-mode = queue\n",
        "max-dupes = 1\ndupe-mode = share\n",
    ] {
        let (base, body) = (Base::start(), pattern(LENGTH));
        base.put("/a.bin", Page::new("\"v1\"", body.clone()));
        let daemon = start_counting(&base, mode);
        assert!(aria2(&daemon), "{mode}");
        assert!(fs::read(daemon.path("a.bin")).unwrap() == body, "{mode}");
    }
}

#[test]
fn one_connection_too_many_is_told_so_and_the_first_goes_on() {
    let (base, body) = (Base::start(), pattern(LENGTH));
    base.put("/a.bin", Page::new("\"v1\"", body.clone()));
    let daemon = start_counting(&base, "fresh = 10s\n");
    // The second and the third time it is a hit, that of a file which is kept open.
    for _ in 0..3 {
        // The place of the download before comes back a moment after its last byte.
        eventually("its turn", || (daemon.get("/a.bin").body.len() == LENGTH).then_some(()));
    }
    // A fast one would have all of it in its buffers, and its place given back.
    let mut first = daemon.connect_slow();
    first.send("GET /a.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(first.head().status, 200);
    let mut second = daemon.connect();
    for condition in ["", "If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT\r\n"] {
        second.send(format!("GET /a.bin HTTP/1.1\r\nHost: x\r\n{condition}\r\n"));
        let refused = second.receive();
        assert_eq!((refused.status, refused.field("Retry-After")), (403, "10"));
    }
    second.send("HEAD /a.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(second.head().status, 200);
    second.send("GET /a.bin HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"v1\"\r\n\r\n");
    assert_eq!(second.head().status, 304);
    assert!(first.read(LENGTH) == body);
    eventually("its turn", || (second.get("/a.bin").status == 200).then_some(()));
}

#[test]
fn who_has_all_of_a_download_may_have_it_again_at_once() {
    let base = Base::start();
    base.put("/a.bin", Page::new("\"v1\"", pattern(1000)));
    // On one processor the client comes before the sender that has woken it, which has its place still.
    let mut processors = CpuSet::new();
    processors.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &processors).unwrap();
    let daemon = start_counting(&base, "fresh = 10s\nsenders = 4\n");
    let statuses: Vec<u16> = (0..2000).map(|_| daemon.get("/a.bin").status).collect();
    let refused = statuses.iter().filter(|status| **status != 200).count();
    assert_eq!(refused, 0, "of {}", statuses.len());
}

#[test]
fn whose_turn_does_not_come_is_told_so_in_time() {
    let base = Base::start();
    let mut page = Page::new("\"v1\"", pattern(6_000_000));
    page.slow = Some((100_000, Duration::from_millis(100)));
    base.put("/a.bin", page);
    let daemon = start_counting(&base, "dupe-mode = queue\ntimeout = 1s\n");
    let mut first = daemon.connect();
    first.send("GET /a.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(first.head().status, 200);
    let mut second = daemon.connect();
    second.send("GET /a.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    // The first one has 6 s to go.
    assert_eq!(second.receive().status, 403);
}

#[test]
fn who_queues_gets_the_file_when_its_turn_has_come() {
    let (base, body) = (Base::start(), pattern(LENGTH));
    base.put("/a.bin", Page::new("\"v1\"", body.clone()));
    let daemon = start_counting(&base, "dupe-mode = queue\n");
    let mut first = daemon.connect_slow();
    first.send("GET /a.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(first.head().status, 200);
    let mut second = daemon.connect();
    second.send("GET /a.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(daemon.get("/other").status, 404, "others are served meanwhile");
    assert!(first.read(LENGTH) == body);
    assert!(second.receive().body == body);
}
