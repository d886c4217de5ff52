//! Bases of every kind while fillers are killed: whatever a client gets is of one version.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::base::{Base, Page};
use super::host::{Host, kill};
use super::pattern;

const LENGTH: usize = 3_000_000;

/// The same numbers in each run, below `below`.
fn roll(dice: &mut u64, below: usize) -> usize {
    *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*dice >> 33).unwrap() % below
}

/// Clients of one path while fillers are killed: what each wanted, the body that it got, and whether it was told
/// that this is all.
fn disturb(host: &Host, path: &str, dice: &mut u64) -> Vec<(Range<usize>, Vec<u8>, bool)> {
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let wanted = if number % 2 == 0 { 0 } else { roll(dice, LENGTH) }..LENGTH;
            let header = format!("bytes={}-", wanted.start);
            let headers = [("Range", header.as_str())];
            (wanted, host.ask("GET", path, if number % 2 == 0 { &[] } else { &headers }))
        })
        .collect();
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(roll(dice, 60) as u64));
        host.fillers().into_iter().for_each(|filler| kill(filler, Signal::SIGKILL));
    }
    let replies = clients.into_iter().map(|(wanted, client)| {
        let (reply, success) = client.rest_within(Duration::from_secs(90)).expect("it hangs");
        let head = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let is_file = reply.starts_with(b"Status: 20");
        let body = if is_file { reply[head + 4..].to_vec() } else { Vec::new() };
        (wanted, body, success && is_file)
    });
    replies.collect()
}

#[test]
fn under_a_weak_validator_a_client_gets_the_bytes_of_one_get() {
    let base = Base::start();
    let host = Host::new(&base);
    let mut page = Page::new("W/\"v1\"", vec![0; LENGTH]);
    page.modified = None;
    page.numbered = true;
    page.slow = Some((64 << 10, Duration::from_millis(1)));
    let mut dice = 1;
    for round in 0..8 {
        let path = format!("/{round}");
        base.put(&path, page.clone());
        for (wanted, body, success) in disturb(&host, &path, &mut dice) {
            assert!(body.iter().all(|byte| *byte == body[0]), "bytes of two GETs in round {round}");
            assert!(!success || body.len() == wanted.len(), "{} of {wanted:?}", body.len());
        }
        let reply = host.get(&path);
        assert!(reply.success && reply.body.len() == LENGTH, "{}", reply.log);
        assert!(reply.body.iter().all(|byte| *byte == reply.body[0]));
    }
}

#[test]
fn whatever_a_base_knows_of_ranges_no_byte_is_in_the_wrong_place() {
    let base = Base::start();
    let host = Host::new(&base);
    let body = pattern(LENGTH);
    let mut dice = 1;
    for round in 0..9 {
        let mut page = Page::new("\"v1\"", body.clone());
        (page.simple, page.forgetful, page.terse) =
            (round % 3 == 0, round % 3 == 1, round % 3 == 2);
        page.slow = Some((64 << 10, Duration::from_millis(1)));
        let path = format!("/{round}");
        base.put(&path, page);
        for (wanted, got, success) in disturb(&host, &path, &mut dice) {
            let there = wanted.start..wanted.start + got.len();
            assert!(got == body[there], "wrong bytes of {wanted:?} in round {round}");
            assert!(!success || got.len() == wanted.len(), "{} of {wanted:?}", got.len());
        }
        let reply = host.get(&path);
        assert!(reply.success && reply.body == body, "{}", reply.log);
    }
}
