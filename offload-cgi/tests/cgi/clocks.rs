//! Clocks that are set back: what was noted before lies in the future, and nobody knows how old it is.

use std::fs;
use std::thread;
use std::time::{Duration, SystemTime};

use super::base::{Base, Page};
use super::host::Host;

/// Makes the last check of the only object of a cache one of this moment.
fn check_at(host: &Host, moment: SystemTime) {
    let current = fs::File::options().append(true).open(&host.files("current")[0]).unwrap();
    current.set_modified(moment).unwrap();
}

#[test]
fn after_the_clock_was_set_back_the_new_version_is_the_current_one_at_once() {
    for ahead in [60, 600, 100_000] {
        let base = Base::start();
        base.put("/a", Page::new("\"v1\"", "old"));
        let host = Host::new(&base);
        host.get("/a");
        base.put("/a", Page::new("\"v2\"", "new"));
        check_at(&host, SystemTime::now() + Duration::from_secs(ahead));
        base.hold_heads();
        let clients: Vec<_> = (0..5).map(|_| host.ask("GET", "/a", &[])).collect();
        base.wait_for("HEAD", 2);
        thread::sleep(Duration::from_millis(300));
        base.release_heads();
        for client in clients {
            let reply = client.end();
            assert_eq!(reply.text(), "new", "{ahead}: {}", reply.log);
        }
        host.settle();
        (0..3).for_each(|_| assert_eq!(host.get("/a").cache_status(), "offload; hit"));
        assert_eq!(base.count("GET"), 2, "{ahead}");
    }
}

#[test]
fn what_was_checked_nobody_knows_when_is_not_served_unchecked() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text").with(&[("Cache-Control", "no-cache")]));
    let host = Host::new(&base);
    host.get("/a");
    check_at(&host, SystemTime::now() + Duration::from_secs(600));
    base.go_down();
    assert_eq!(host.get("/a").status, 502);
}
