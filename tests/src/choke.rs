//! What the tests of throttling have in common.

use std::fs;
use std::ops::RangeInclusive;

use nix::unistd::Pid;

use crate::limits::{Client, OBSERVER, Status, limited};
use crate::{Httpd, Mpm, Setup, eventually};

/// A server that throttles, with the pages that say what it does; these are not throttled.
pub fn throttled(mpm: Mpm, directives: &str) -> Setup {
    let pages = "Choke On\n<Location /choke-status>\nChoke Off\n</Location>\n\
                 <Location /server-status>\nSetHandler server-status\nChoke Off\n</Location>\n\
                 <Location /off>\nChoke Off\n</Location>";
    limited(mpm, pages).module("status").directives(directives)
}

/// A program for ScriptAlias, which prints its head itself.
pub fn script(setup: &Setup, name: &str, text: &str) {
    setup.scratch().folder("cgi");
    let plain = setup.scratch().write(&format!("{name}.sh"), &format!("#!/bin/sh\n{text}\n"));
    setup.scratch().install(&plain, &format!("cgi/{name}"));
}

/// How many workers are busy and idle, as mod_status says; the one that says it is busy.
pub fn workers(server: &Httpd) -> (u32, u32) {
    let (head, page) = Client::of(server).from(OBSERVER).get("/server-status?auto");
    assert_eq!(head.status, 200, "{page}");
    let number = |name: &str| {
        let rest = page.lines().find_map(|line| line.strip_prefix(name));
        rest.and_then(|rest| rest.trim().parse().ok()).unwrap_or_else(|| panic!("{name} {page}"))
    };
    (number("BusyWorkers:"), number("IdleWorkers:"))
}

/// The bytes of memory that a process has written to and shares with nobody.
pub fn memory(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Waits until nothing is sent and no worker is held any more.
pub fn eventually_still(server: &Httpd) {
    eventually("no transfer is left, and nothing is held", || {
        let status = Status::try_of(server)?;
        (status.transfers.is_empty() && status.choke["held"] == 0).then_some(())
    });
}

/// How long a paced download may take that should take so many seconds: it is never faster than it may
/// be, and the machine may be busy.
pub fn about(seconds: f64) -> RangeInclusive<f64> {
    seconds * 0.8..=seconds * 1.2 + 1.0
}

/// What `ChokeSummary` said about a transfer.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the words of the line
pub struct Summary {
    pub path: String,
    pub client: String,
    pub bytes: f64,
    pub seconds: f64,
    pub rate: f64,
    pub set: u64,
    pub burst: u64,
    pub how: String,
    pub aborted: bool,
}

impl Summary {
    /// Reads a line of the error log, if it is one.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.split_once("mod_offload: sent ")?.1;
        let (path, rest) = rest.split_once(" to ")?;
        let (client, rest) = rest.split_once(": ")?;
        let (bytes, rest) = rest.split_once(" bytes in ")?;
        let (seconds, rest) = rest.split_once(" s, ")?;
        let (rate, rest) = rest.split_once(" B/s of ")?;
        let (set, rest) = rest.split_once(", burst ")?;
        let (burst, how) = rest.split_once(", ")?;
        let (how, aborted) = match how.split_once(", ") {
            Some((how, word)) => {
                assert_eq!(word, "aborted", "{line}");
                (how, true)
            }
            None => (how, false),
        };
        assert_eq!(seconds.split_once('.').map(|parts| parts.1.len()), Some(3), "{line}");
        Some(Self {
            path: path.to_owned(),
            client: client.to_owned(),
            bytes: bytes.parse().unwrap(),
            seconds: seconds.parse().unwrap(),
            rate: rate.parse().unwrap(),
            set: set.parse().unwrap(),
            burst: burst.parse().unwrap(),
            how: how.to_owned(),
            aborted,
        })
    }

    /// Every line so far.
    pub fn all(server: &Httpd) -> Vec<Self> {
        let log = server.error_log();
        // The last line may be half written.
        let lines = log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        lines.filter_map(Self::parse).collect()
    }

    /// Waits for the line about a path.
    pub fn of(server: &Httpd, path: &str) -> Self {
        eventually(&format!("a summary of {path}"), || {
            Self::all(server).into_iter().find(|summary| summary.path == path)
        })
    }
}
