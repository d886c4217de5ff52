//! Logs, and what the admin address shows.

use std::fs;

use nix::sys::signal::Signal;

use super::base::{Base, Page};
use super::host::{configured, eventually, start, start_in};
use super::pattern;

#[test]
fn the_log_has_apaches_format_or_json() {
    for (format, beginning, end) in [
        ("combined", "127.0.0.1 - - [", "\"GET /a?\\\" HTTP/1.1\" 403 48 \"r\" \"u\\\"\""),
        (
            "json",
            "{\"time\":\"",
            "\"request\":\"GET /a?\\\" HTTP/1.1\",\"referer\":\"r\",\"agent\":\"u\\\"\",",
        ),
    ] {
        let base = Base::start();
        base.put("/a", Page::new("\"v1\"", "text"));
        let daemon = start(&base, &format!("log = {{folder}}/log\nlog-format = {format}\n"));
        let mut connection = daemon.connect();
        connection.send("GET /a?\" HTTP/1.1\r\nHost: x\r\nReferer: r\r\nUser-Agent: u\"\r\n\r\n");
        assert_eq!(connection.receive().status, 403);
        connection.get("/a");
        let lines = eventually("two lines", || {
            let text = fs::read_to_string(daemon.path("log")).ok()?;
            (text.lines().count() == 2).then_some(text)
        });
        let line = lines.lines().next().unwrap();
        assert!(line.starts_with(beginning) && line.contains(end), "{line}");
        let line = lines.lines().nth(1).unwrap();
        let wanted =
            if format == "json" { "\"status\":200,\"bytes\":4,\"whole\":true" } else { "200 4" };
        assert!(line.contains(wanted), "{line}");
    }
}

#[test]
fn who_may_look_sees_what_is_running_and_nobody_else_sees_anything() {
    let (base, body) = (Base::start(), pattern(20_000_000));
    base.put("/a%3Cb%3E", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, "admin = 127.0.0.1:0\n");
    let mut connection = daemon.connect();
    connection.send("GET /a%3Cb%3E HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.head().status, 200);
    eventually("the download is shown", || {
        let json = daemon.look("/.offload/status?json");
        assert_eq!(json.field("Content-Type"), "application/json");
        (json.number("downloads") == 1 && json.number("misses") == 1).then_some(())
    });
    let html = daemon.look("/.offload/status");
    assert!(html.text().contains("<td>127.0.0.1</td><td>GET /a%3Cb%3E HTTP/1.1</td><td>200</td>"));
    assert_eq!(html.field("Content-Security-Policy"), "default-src 'none'");
    assert!(connection.read(20_000_000) == body);
    assert_eq!(daemon.get("/a%3Cb%3E").body.len(), 20_000_000);
    let metrics = eventually("both are counted", || {
        let text = daemon.look("/.offload/metrics").text();
        text.contains("\noffload_bytes_total 40000000\n").then_some(text)
    });
    for line in ["offload_hits_total 1", "offload_misses_total 1", "offload_downloads_running 0"] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.split_once(' ').unwrap();
        assert!(name.starts_with("offload_") && value.parse::<u64>().is_ok(), "{line}");
    }
    assert_eq!(daemon.look("/a").status, 404);
    assert_eq!(daemon.get("/.offload/status").status, 404, "the base is asked, and has none");
}

#[test]
fn what_the_caches_processes_do_is_counted_wherever_it_is_done() {
    let base = Base::start();
    for name in 0..6 {
        base.put(&format!("/{name}"), Page::new("\"v1\"", pattern(1_000_000)));
    }
    // The fillers, which are other processes, fetch and make room.
    let daemon = start(&base, "cache-max = 3M\nfresh = 1h\nadmin = 127.0.0.1:0\n");
    for name in 0..6 {
        assert_eq!(daemon.get(&format!("/{name}")).body.len(), 1_000_000);
    }
    let json = daemon.look("/.offload/status?json");
    let asked = base.count("HEAD") + base.count("GET");
    assert_eq!(json.number("base_requests"), asked as u64, "{}", json.text());
    let evictions = json.number("evictions");
    assert!(evictions >= 3, "{}", json.text());
    assert!(json.number("evicted_bytes") >= evictions * 1_000_000);
    let metrics = daemon.look("/.offload/metrics").text();
    assert!(metrics.contains("\n# TYPE offload_evictions_total counter\n"), "{metrics}");
}

#[test]
fn a_log_that_cannot_be_written_delays_nobody() {
    let (base, body) = (Base::start(), pattern(100_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let folder = configured(&base, "fresh = 10s\nlog = {folder}/log\n");
    // Whoever opens it waits until somebody reads, which nobody does.
    nix::unistd::mkfifo(&folder.path().join("log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut daemon = start_in(folder, |_| {});
    let mut connection = daemon.connect();
    for _ in 0..1000 {
        assert!(connection.get("/a").body == body);
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait());
}
