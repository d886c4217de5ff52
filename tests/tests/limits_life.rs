//! What was taken comes back: when a client leaves or falls asleep, when a child is killed; and it is
//! kept when the server reads its configuration anew.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use offload_tests::limits::{
    BIG, Client, Opened, Status, eventually_empty, eventually_held, limited, put_big,
};
use offload_tests::{Httpd, Mpm, eventually};

/// Every kind of limit that files meet, each with room for what is held.
const LIMITS: &str = "MaxConnectionsPerIP 6\nGlobalMaxConnectionsPerIP 6\nLoadLimitServer 6\nLoadLimit 6 /big\n\
                      LoadLimit1 6 /page /big\n<Location /big>\nMaxConcurrentReqs 6\n</Location>";
const KINDS: usize = 6;

fn server(mpm: Mpm, more: &str) -> Httpd {
    let server = limited(mpm, &format!("{LIMITS}\n{more}")).start().settled();
    put_big(&server, "big");
    server.put("small", "hello");
    server
}

/// So many are held under every limit.
fn assert_held(server: &Httpd, count: u64) {
    let status = Status::of(server);
    let held: Vec<u64> = status.scopes.iter().map(|scope| scope.held).collect();
    assert_eq!(held, [count; KINDS], "{status:?}");
}

fn eventually_all_held(server: &Httpd, count: u64) {
    eventually(&format!("{count} held under every limit"), || {
        let status = Status::try_of(server)?;
        status.scopes.iter().all(|scope| scope.held == count).then_some(())
    });
}

fn no_complaint(server: &Httpd) {
    let log = server.error_log();
    assert!(!log.contains("panic") && !log.contains("Segmentation"), "{log}");
}

/// All are there again, and no more.
fn works_as_before(server: &Httpd) {
    let client = Client::of(server);
    let held = client.hold_all("/big", 6);
    assert_eq!(client.status("/big"), 503);
    drop(held);
    eventually_empty(server);
    no_complaint(server);
}

fn a_client_that_leaves_is_not_counted_any_more(mpm: Mpm) {
    let server = server(mpm, "");
    let mut held = Client::of(&server).hold_all("/big", 6);
    assert_held(&server, 6);
    for count in (0..6).rev() {
        held.pop();
        eventually_all_held(&server, count);
    }
    works_as_before(&server);
}

#[test]
fn a_client_that_leaves_event_is_not_counted_any_more() {
    a_client_that_leaves_is_not_counted_any_more(Mpm::Event);
}

#[test]
fn a_client_that_leaves_worker_is_not_counted_any_more() {
    a_client_that_leaves_is_not_counted_any_more(Mpm::Worker);
}

#[test]
fn a_client_that_leaves_prefork_is_not_counted_any_more() {
    a_client_that_leaves_is_not_counted_any_more(Mpm::Prefork);
}

fn a_client_that_sleeps_is_not_counted_for_ever(mpm: Mpm) {
    let server = server(mpm, "Timeout 1");
    let held = Client::of(&server).hold_all("/big", 2);
    eventually_empty(&server);
    // They are still there, and have read nothing.
    assert!(held.iter().all(|one| one.raw.local().port() > 0));
    no_complaint(&server);
}

#[test]
fn a_client_that_sleeps_is_not_counted_for_ever_by_event() {
    a_client_that_sleeps_is_not_counted_for_ever(Mpm::Event);
}

#[test]
fn a_client_that_sleeps_is_not_counted_for_ever_by_worker() {
    a_client_that_sleeps_is_not_counted_for_ever(Mpm::Worker);
}

#[test]
fn a_client_that_sleeps_is_not_counted_for_ever_by_prefork() {
    a_client_that_sleeps_is_not_counted_for_ever(Mpm::Prefork);
}

#[test]
fn a_connection_that_idles_too_long_is_not_counted_any_more() {
    for mpm in Mpm::ALL {
        let server = server(mpm, "KeepAliveTimeout 1");
        let mut idle = Client::of(&server).hold("/small").finish().1;
        assert!(idle.ended());
        // Until the client closes too, the server lingers, and that counts.
        drop(idle);
        eventually_empty(&server);
    }
}

/// The processes that serve these downloads.
fn processes(server: &Httpd, held: &[Opened]) -> Vec<Pid> {
    held.iter().map(|one| server.server_of(one.raw.local())).collect()
}

/// What a killed child held is given back, and nothing else.
fn a_killed_child_holds_nothing(mpm: Mpm) {
    let server = server(mpm, "");
    let client = Client::of(&server);
    let held = client.hold_all("/big", 6);
    assert_held(&server, 6);
    assert_eq!(client.status("/small"), 503);
    let of = processes(&server, &held);
    kill(of[0], Signal::SIGKILL).unwrap();
    let left = u64::try_from(of.iter().filter(|&&pid| pid != of[0]).count()).unwrap();
    eventually_all_held(&server, left);
    let again: Vec<_> = (left..6).map(|_| client.hold("/big")).collect();
    assert_eq!(client.status("/small"), 503);
    for child in server.children() {
        let _ = kill(child, Signal::SIGKILL);
    }
    eventually_empty(&server);
    drop((held, again));
    works_as_before(&server);
}

#[test]
fn a_killed_child_of_event_holds_nothing() {
    a_killed_child_holds_nothing(Mpm::Event);
}

#[test]
fn a_killed_child_of_worker_holds_nothing() {
    a_killed_child_holds_nothing(Mpm::Worker);
}

#[test]
fn a_killed_child_of_prefork_holds_nothing() {
    a_killed_child_holds_nothing(Mpm::Prefork);
}

/// Downloads that go on in old children still count, whatever the new configuration says.
fn a_graceful_restart_forgets_nothing(mpm: Mpm) {
    let server = server(mpm, "");
    let client = Client::of(&server);
    let mut held = client.hold_all("/big", 4);
    let old = processes(&server, &held);
    let said = server.scratch().path().join("directives.conf");
    let text = fs::read_to_string(&said).unwrap();
    for (round, limit) in [6, 5, 6].into_iter().enumerate() {
        // A limit more, before all others, and other numbers.
        let more = format!("LoadLimit {round} /nowhere{round}\n");
        let text = text.replace(" 6", &format!(" {limit}"));
        fs::write(&said, more + &text).unwrap();
        server.graceful();
        eventually("the new configuration holds", || {
            let status = Status::of(&server);
            (status.scope("MaxConnectionsPerIP").limit == limit).then_some(())
        });
        let status = Status::of(&server);
        let counts = |place: &str| if place.contains("nowhere") { 0 } else { 4 };
        assert!(status.scopes.iter().all(|scope| scope.held == counts(&scope.place)), "{status:?}");
        let more = client.hold_all("/big", usize::try_from(limit - 4).unwrap());
        assert_eq!(client.status("/big"), 503, "limit {limit}");
        drop(more);
        eventually_held(&server, "MaxConnectionsPerIP", 4);
    }
    assert_eq!(processes(&server, &held), old, "the downloads are still with the old children");
    // Whole, and to the last byte.
    let (length, connection) = held.pop().unwrap().finish();
    assert_eq!(length, BIG);
    drop(connection);
    eventually_held(&server, "MaxConnectionsPerIP", 3);
    kill(old[0], Signal::SIGKILL).unwrap();
    let left = old[..3].iter().filter(|&&pid| pid != old[0]).count();
    eventually_held(&server, "MaxConnectionsPerIP", u64::try_from(left).unwrap());
    drop(held);
    eventually_empty(&server);
    works_as_before(&server);
}

#[test]
fn a_graceful_restart_of_event_forgets_nothing() {
    a_graceful_restart_forgets_nothing(Mpm::Event);
}

#[test]
fn a_graceful_restart_of_worker_forgets_nothing() {
    a_graceful_restart_forgets_nothing(Mpm::Worker);
}

#[test]
fn a_graceful_restart_of_prefork_forgets_nothing() {
    a_graceful_restart_forgets_nothing(Mpm::Prefork);
}

/// A stop and a start: nobody is there, and nobody counts. (Worker, since event waits ten seconds for
/// downloads, as it does without the module.)
#[test]
fn a_server_that_starts_again_begins_with_nothing() {
    let mut server = server(Mpm::Worker, "");
    let held = Client::of(&server).hold_all("/big", 6);
    server.stop();
    drop(held);
    server.start_again();
    eventually_empty(&server);
    works_as_before(&server);
}

/// The whole server is killed at once, and nobody tidied up: the next one begins with nothing.
#[test]
fn a_server_that_was_killed_leaves_nothing_that_counts() {
    let mut server = server(Mpm::Event, "");
    let held = Client::of(&server).hold_all("/big", 6);
    let all: Vec<Pid> = [server.pid()].into_iter().chain(server.children()).collect();
    for pid in all {
        let _ = kill(pid, Signal::SIGKILL);
    }
    server.stop();
    drop(held);
    let _ = fs::remove_file(server.scratch().path().join("run/httpd.pid"));
    server.start_again();
    eventually_empty(&server);
    works_as_before(&server);
}

/// A table of another size is another table, and what is held would be forgotten: it waits for a stop.
#[test]
fn a_graceful_restart_keeps_the_table_as_it_is() {
    let server = server(Mpm::Event, "LimitTableSize 1000");
    let held = Client::of(&server).hold_all("/big", 6);
    let said = server.scratch().path().join("directives.conf");
    let text = fs::read_to_string(&said).unwrap();
    fs::write(&said, text.replace("TableSize 1000", "TableSize 2000")).unwrap();
    server.graceful();
    server.eventually_logged(&["LimitTableSize", "stopped and started"]);
    eventually_all_held(&server, 6);
    assert_eq!(Client::of(&server).status("/small"), 503);
    drop(held);
    eventually_empty(&server);
    works_as_before(&server);
}
