//! The daemon's own settings, a row each, and how their words are read.

use offload_core::units::{Bytes, Span};

use crate::daemon::journal::Format;
use crate::daemon::listen::Address;

/// What has been set so far.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) listen: Vec<Address>,
    pub(super) admin: Vec<Address>,
    pub(super) user: Option<String>,
    pub(super) drain: Option<Span>,
    pub(super) workers: Option<u32>,
    pub(super) senders: Option<u32>,
    pub(super) max_connections: Option<u32>,
    pub(super) max_client_connections: Option<u32>,
    pub(super) header_timeout: Option<Span>,
    pub(super) idle_timeout: Option<Span>,
    pub(super) min_rate: Option<Bytes>,
    pub(super) log_format: Option<Format>,
    pub(super) rate: Option<Bytes>,
    pub(super) burst: Option<Bytes>,
    pub(super) client_rate: Option<Bytes>,
    pub(super) hosts: Vec<String>,
}

/// Where a setting may stand in the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    /// Above the sections.
    Daemon,
    /// In a section, and above them for all that do not say otherwise.
    Base,
    /// In a section only.
    Section,
}

pub(super) struct Row {
    pub(super) key: &'static str,
    pub(super) scope: Scope,
    pub(super) help: &'static str,
    pub(super) set: fn(&mut Draft, &str) -> Result<(), String>,
}

/// Keys that may stand in the file more than once.
pub(super) const REPEATED: [&str; 3] = ["listen", "admin", "host"];

pub(super) const ROWS: [Row; 16] = [
    Row {
        key: "listen",
        scope: Scope::Daemon,
        help: "ADDRESS:PORT or unix:/PATH to serve on; repeatable (required, unless systemd passes sockets)",
        set: |draft, word| addresses(&mut draft.listen, word),
    },
    Row {
        key: "admin",
        scope: Scope::Daemon,
        help: "where /.offload/status and /.offload/metrics are; repeatable [none]",
        set: |draft, word| addresses(&mut draft.admin, word),
    },
    Row {
        key: "user",
        scope: Scope::Daemon,
        help: "whom to become, a name in /etc/passwd, after the start as root [none]",
        set: |draft, word| put(&mut draft.user, Ok(word.to_owned())),
    },
    Row {
        key: "drain",
        scope: Scope::Daemon,
        help: "how long running downloads may go on after SIGTERM [5m]",
        set: |draft, word| put(&mut draft.drain, Span::parse(word)),
    },
    Row {
        key: "workers",
        scope: Scope::Daemon,
        help: "threads that may wait for a base, 1 to 1000 [32]",
        set: |draft, word| put(&mut draft.workers, number(word, 1, 1000)),
    },
    Row {
        key: "senders",
        scope: Scope::Daemon,
        help: "threads that send, 1 to 64 [one a processor, 32 at most]",
        set: |draft, word| put(&mut draft.senders, number(word, 1, 64)),
    },
    Row {
        key: "max-connections",
        scope: Scope::Daemon,
        help: "connections at a time; one more gets 503; 0 = three for every four descriptors [0]",
        set: |draft, word| put(&mut draft.max_connections, number(word, 0, u32::MAX)),
    },
    Row {
        key: "max-client-connections",
        scope: Scope::Daemon,
        help: "the same of one client (IPv4 address, IPv6 /64) but not of a proxy in `trust`; 0 = any number [0]",
        set: |draft, word| put(&mut draft.max_client_connections, number(word, 0, u32::MAX)),
    },
    Row {
        key: "header-timeout",
        scope: Scope::Daemon,
        help: "how long a request's head may take [10s]",
        set: |draft, word| put(&mut draft.header_timeout, time(word)),
    },
    Row {
        key: "idle-timeout",
        scope: Scope::Daemon,
        help: "how long a connection may wait for its next request [60s]",
        set: |draft, word| put(&mut draft.idle_timeout, time(word)),
    },
    Row {
        key: "min-rate",
        scope: Scope::Daemon,
        help: "bytes a second that a client must take, on average over `timeout`; 0 = any at all [100]",
        set: |draft, word| put(&mut draft.min_rate, Bytes::parse(word)),
    },
    Row {
        key: "log-format",
        scope: Scope::Daemon,
        help: "combined or json: what the lines of `log` look like [combined]",
        set: |draft, word| put(&mut draft.log_format, Format::parse(word)),
    },
    Row {
        key: "rate",
        scope: Scope::Base,
        help: "bytes a second (K M G) of a connection; 0 = no limit [0]",
        set: |draft, word| put(&mut draft.rate, Bytes::parse(word)),
    },
    Row {
        key: "burst",
        scope: Scope::Base,
        help: "so many bytes of a connection go out before a rate holds [0]",
        set: |draft, word| put(&mut draft.burst, Bytes::parse(word)),
    },
    Row {
        key: "client-rate",
        scope: Scope::Base,
        help: "bytes a second of all downloads of a client together; 0 = no limit [0]",
        set: |draft, word| put(&mut draft.client_rate, Bytes::parse(word)),
    },
    Row {
        key: "host",
        scope: Scope::Section,
        help: "host names (as in Host) that mean this base; in a section only",
        set: |draft, text| hosts(&mut draft.hosts, text),
    },
];

fn put<T>(field: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *field = Some(value?);
    Ok(())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',', '\t']).filter(|word| !word.is_empty())
}

fn addresses(field: &mut Vec<Address>, text: &str) -> Result<(), String> {
    for word in words(text) {
        field.push(Address::parse(word)?);
    }
    Ok(())
}

fn hosts(field: &mut Vec<String>, text: &str) -> Result<(), String> {
    for word in words(text) {
        let name = word.to_ascii_lowercase();
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte)) {
            return Err(format!("'{word}' is not a host name; use names without ports"));
        }
        field.push(name);
    }
    Ok(())
}

fn number(word: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = word.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("'{word}' is no number that fits; use {least} to {most}"))
}

fn time(word: &str) -> Result<Span, String> {
    let span = Span::parse(word)?;
    if span.duration().is_zero() {
        return Err(format!("'{word}' is no time at all; use 1s or more"));
    }
    Ok(span)
}
