//! How fast a download may be. On loopback a paced socket moves 64 KB at a time, so rates are high here.

use std::time::{Duration, Instant};

use super::base::{Base, Page};
use super::host::{Connection, Daemon, eventually, start};
use super::pattern;

const LENGTH: usize = 40_000_000;

fn with_file(lines: &str) -> (Base, Daemon) {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", pattern(LENGTH)));
    base.put("/b", Page::new("\"v1\"", pattern(LENGTH)));
    let daemon = start(&base, &format!("{lines}fresh = 10s\n"));
    for path in ["/a", "/b"] {
        // A HEAD, and a part: the whole would take its time.
        let mut connection = daemon.connect();
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n"));
        assert_eq!(connection.receive().status, 206);
    }
    (base, daemon)
}

fn begin(daemon: &Daemon, path: &str) -> Connection {
    let mut connection = daemon.connect();
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(connection.head().status, 200);
    connection
}

/// Bytes a second of all together, over a while and after the first bytes.
fn rate(connections: &mut [Connection], bytes_each: usize) -> f64 {
    std::thread::scope(|scope| {
        let readers: Vec<_> = connections
            .iter_mut()
            .map(|connection| {
                scope.spawn(move || {
                    connection.read(1_000_000);
                    let begun = Instant::now();
                    connection.read(bytes_each);
                    bytes_each as f64 / begun.elapsed().as_secs_f64()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    })
}

fn assert_near(rate: f64, wanted: f64) {
    assert!((wanted * 0.7..wanted * 1.3).contains(&rate), "{rate:.0} instead of {wanted:.0}");
}

#[test]
fn a_connection_has_its_rate_and_the_next_request_on_it_too() {
    let (_base, daemon) = with_file("rate = 4M\n");
    let wanted = 4.0 * 1024.0 * 1024.0;
    assert_near(rate(&mut [begin(&daemon, "/a")], 6_000_000), wanted);
    assert_near(rate(&mut [begin(&daemon, "/a"), begin(&daemon, "/a")], 4_000_000), 2.0 * wanted);
}

#[test]
fn a_burst_goes_first() {
    let (_base, daemon) = with_file("rate = 1M\nburst = 10M\n");
    let mut connection = begin(&daemon, "/a");
    let begun = Instant::now();
    connection.read(9_000_000);
    assert!(begun.elapsed() < Duration::from_secs(4), "9 MB at 1 MB/s took {:?}", begun.elapsed());
    connection.read(1_500_000);
    let begun = Instant::now();
    connection.read(2_000_000);
    assert!(begun.elapsed() > Duration::from_secs(1), "2 MB at 1 MB/s took {:?}", begun.elapsed());
}

#[test]
fn the_burst_of_a_slow_client_is_not_cut_short() {
    let (_base, daemon) = with_file("rate = 64K\nburst = 3M\nadmin = 127.0.0.1:0\n");
    let mut connection = daemon.connect_slow();
    connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.head().status, 200);
    // It stalls until the kernel takes no more.
    let mut seen = Vec::new();
    eventually("nothing more is taken", || {
        let status = daemon.look("/.offload/status?json").text();
        let (_, transfer) = status.split_once("\"transfers\":[{").unwrap();
        let (_, sent) = transfer.split_once("\"bytes\":").unwrap();
        seen.push(sent.split(',').next().unwrap().to_owned());
        (seen.iter().rev().take_while(|sent| Some(*sent) == seen.last()).count() > 40).then_some(())
    });
    let begun = Instant::now();
    // What waits in the kernel when the burst's last byte is handed to it goes out at the rate: 64 KB and no more.
    connection.read((3 << 20) - (128 << 10));
    assert!(begun.elapsed() < Duration::from_secs(8), "3 MB took {:?}", begun.elapsed());
}

#[test]
fn all_downloads_of_a_client_share_its_rate() {
    let (_base, daemon) = with_file("client-rate = 8M\n");
    let mut all = [begin(&daemon, "/a"), begin(&daemon, "/a"), begin(&daemon, "/b")];
    assert_near(rate(&mut all, 4_000_000), 8.0 * 1024.0 * 1024.0);
}

#[test]
fn an_accelerator_gets_what_one_connection_gets() {
    let (_base, daemon) = with_file("rate = 4M\ndupe-mode = share\n");
    let mut four = [(); 4].map(|()| begin(&daemon, "/a"));
    assert_near(rate(&mut four, 2_000_000), 4.0 * 1024.0 * 1024.0);
}

#[test]
fn many_small_parts_are_no_faster_than_one_large_one() {
    let (_base, daemon) = with_file("rate = 2M\nburst = 1M\n");
    let mut connection = daemon.connect();
    let begun = Instant::now();
    let size = 256 << 10;
    // 8 MB: 1 MB at once, and what the buffers take, the rest at 2 MB a second.
    for part in 0..32 {
        let (first, last) = (part * size, (part + 1) * size - 1);
        connection
            .send(format!("GET /a HTTP/1.1\r\nHost: x\r\nRange: bytes={first}-{last}\r\n\r\n"));
        assert_eq!(connection.receive().body.len(), size);
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "8 MB took {:?}", begun.elapsed());
}

#[test]
fn what_passes_through_has_the_same_rate() {
    let base = Base::start();
    let page = Page::new("\"v1\"", pattern(LENGTH)).with(&[("Cache-Control", "no-store")]);
    base.put("/a", page);
    let daemon = start(&base, "rate = 4M\n");
    assert_near(rate(&mut [begin(&daemon, "/a")], 6_000_000), 4.0 * 1024.0 * 1024.0);
}
