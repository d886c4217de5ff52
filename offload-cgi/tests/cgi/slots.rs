//! However many files are asked for, and however many clients hang up: so many fills, and no more.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::base::{Base, Page};
use super::host::{Host, kill};
use super::pattern;

#[test]
fn more_files_than_there_may_be_fills_wait_for_each_other() {
    let (base, body) = (Base::start(), pattern(3 << 20));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1000);
    (0..6).for_each(|number| base.put(&format!("/{number}"), page.clone()));
    let mut host = Host::new(&base);
    host.set("OFFLOAD_MAX_FILLS", "2");
    // Two of each: who waits for the slot of a file does so for all of its readers.
    let clients: Vec<_> =
        (0..12).map(|number| host.ask("GET", &format!("/{}", number % 6), &[])).collect();
    base.wait_for("HEAD", 6);
    base.wait_for("GET", 2);
    thread::sleep(Duration::from_millis(500));
    assert_eq!((base.count("GET"), host.fillers().len()), (2, 2));
    base.release();
    for client in clients {
        let reply = client.end();
        assert!(reply.success && reply.body == body, "{}", reply.log);
    }
    assert_eq!(base.count("GET"), 6);
}

#[test]
fn clients_that_hang_up_at_once_leave_few_fills_behind() {
    let base = Base::start();
    let mut page = Page::new("\"v1\"", pattern(8 << 20));
    page.slow = Some((16 << 10, Duration::from_millis(200)));
    let host = Host::new(&base);
    for number in 0..30 {
        let path = format!("/{number}");
        base.put(&path, page.clone());
        let mut client = host.ask("GET", &path, &[]);
        client.read_body(1);
        client.abort();
    }
    let begun = Instant::now();
    while host.fillers().len() > 16 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", host.fillers().len());
        thread::sleep(Duration::from_millis(50));
    }
    host.fillers().into_iter().for_each(|filler| kill(filler, Signal::SIGKILL));
}
