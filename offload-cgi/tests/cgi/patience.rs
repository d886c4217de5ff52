//! Fills that fail: nobody waits for longer than `OFFLOAD_TIMEOUT`, and the base is not hammered meanwhile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::base::{Base, Page};
use super::host::Host;
use super::pattern;

/// Far longer than anybody may wait here, and far shorter than for ever.
const LIMIT: Duration = Duration::from_secs(40);

/// Six clients of one file at the same time: each gets a reply, and its status.
fn six(host: &Host) -> Vec<String> {
    let clients: Vec<_> = (0..6).map(|_| host.ask("GET", "/a", &[])).collect();
    clients
        .into_iter()
        .map(|client| {
            let (reply, _) = client.rest_within(LIMIT).expect("it waits for ever");
            String::from_utf8_lossy(&reply[.."Status: 200".len()]).into_owned()
        })
        .collect()
}

#[test]
fn a_get_that_fails_ends_all_who_wait_be_the_validator_weak_or_strong() {
    for etag in ["\"v1\"", "W/\"v1\""] {
        let base = Base::start();
        base.put("/a", Page::new(etag, pattern(3_000_000)));
        let mut broken = Page::new(etag, pattern(3_000_000));
        broken.break_at = Some(0);
        base.put_for_get("/a", broken);
        let mut host = Host::new(&base);
        host.set("OFFLOAD_TIMEOUT", "3s");
        host.set("OFFLOAD_FRESH", "60s");
        for status in six(&host) {
            assert_eq!(status, "Status: 502", "{etag}");
        }
        // Whoever comes after a failure may try once.
        assert!(base.count("GET") <= 6, "{etag}: {}", base.count("GET"));
    }
}

#[test]
fn a_base_that_gives_another_version_than_it_says_ends_all_who_wait() {
    for (etag, other) in [("\"v1\"", "\"v2\""), ("W/\"v1\"", "W/\"v2\"")] {
        let base = Base::start();
        base.put("/a", Page::new(etag, pattern(3_000_000)));
        base.put_for_get("/a", Page::new(other, vec![b'x'; 3_000_000]));
        let mut host = Host::new(&base);
        host.set("OFFLOAD_TIMEOUT", "3s");
        host.set("OFFLOAD_FRESH", "60s");
        for status in six(&host) {
            assert_eq!(status, "Status: 503", "{etag}");
        }
        // Each asks three times at most.
        assert!(base.count("GET") <= 18, "{etag}: {}", base.count("GET"));
    }
}

#[test]
fn a_client_whose_base_has_gone_for_good_is_cut_when_patience_ends() {
    let (base, body) = (Base::start(), pattern(200_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.break_at = Some(1000);
    base.put("/a", page);
    let mut host = Host::new(&base);
    // Longer than the longest pause between two attempts: each of them fails, and is no progress.
    host.set("OFFLOAD_TIMEOUT", "5s");
    base.go_down_after_get();
    let mut client = host.ask("GET", "/a", &[]);
    assert_eq!(client.read_body(1000), body[..1000]);
    let (rest, success) = client.rest_within(LIMIT).expect("it waits for ever");
    assert!(rest.is_empty() && !success);
    assert!(base.attempts() <= 16, "{}", base.attempts());
}

#[test]
fn a_connection_that_only_trickles_is_given_up_for_another() {
    let (base, body) = (Base::start(), pattern(200_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.slow = Some((10, Duration::from_millis(500)));
    base.put("/a", page);
    base.put_after_get("/a", Page::new("\"v1\"", body.clone()));
    let mut host = Host::new(&base);
    host.set("OFFLOAD_TIMEOUT", "2s");
    let client = host.ask("GET", "/a", &[]);
    let (reply, success) = client.rest_within(LIMIT).expect("it waits for ever");
    assert!(success && reply.ends_with(&body));
    assert_eq!(base.count("GET"), 2);
}

/// How often in a row there was no connection to the base, as the cache's note says.
fn failures(host: &Host) -> u32 {
    let mut entries = fs::read_dir(host.cache()).unwrap().flatten();
    let note = entries.find(|it| it.file_name().to_string_lossy().starts_with("breaker-"));
    let text = note.and_then(|note| fs::read_to_string(note.path()).ok()).unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[test]
fn fills_that_find_no_base_open_the_circuit_breaker() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = Host::of(listener.local_addr().unwrap().port());
    let answer = |mut stream: TcpStream, body: &[u8]| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let text = "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 200000\r\n\r\n";
        stream.write_all(text.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
    };
    let mut client = host.ask("GET", "/a", &[]);
    answer(listener.accept().unwrap().0, b"");
    answer(listener.accept().unwrap().0, &pattern(1000));
    client.read_body(1000);
    // Nobody asks for anything new: only the fill of the client that waits finds out.
    drop(listener);
    let begun = Instant::now();
    while failures(&host) < 3 {
        assert!(begun.elapsed() < LIMIT, "{}", failures(&host));
        thread::sleep(Duration::from_millis(20));
    }
    client.kill();
}
