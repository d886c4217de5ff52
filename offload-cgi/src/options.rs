//! Environment and command line -> Options: one row a setting, and one sentence for each wrong one.

mod base;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use offload_core::ledger::TableSize;
use offload_core::units::{Bytes, Span};

pub(crate) use self::base::{Address, Base};
use crate::client::Trust;

/// What the administrator has decided.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The base, whose name is sent as `Host`.
    pub(crate) base: Base,
    /// Where to connect to, instead of looking the base's name up.
    pub(crate) address: Option<Address>,
    /// The cache's folder; none in no-cache mode.
    pub(crate) cache: Option<PathBuf>,
    /// The folder that has the files, in no-cache mode.
    pub(crate) document_root: Option<PathBuf>,
    /// How much the cache may take of its disk.
    pub(crate) cache_max: Share,
    /// What the cache leaves free on its disk.
    pub(crate) keep_free: Share,
    /// How long what the base said is good where it does not say so itself.
    pub(crate) fresh: Span,
    /// How many bytes a stretch goes on for when nobody wants it any more.
    pub(crate) fill_budget: Bytes,
    pub(crate) max_fills: u32,
    /// How old the last good check may be when a copy is served while the base is down.
    pub(crate) stale_if_error: Span,
    /// How long to wait without progress.
    pub(crate) timeout: Span,
    /// Simultaneous connections of one client for one file; 0 = any number.
    pub(crate) max_dupes: u32,
    /// What becomes of one more.
    pub(crate) dupe_mode: DupeMode,
    /// For how many downloads there is room in the table.
    pub(crate) max_clients: u32,
    /// Whose `X-Forwarded-For` is believed.
    pub(crate) trust: Trust,
    /// Certificates to trust for an https base, instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// The access log.
    pub(crate) log: Option<PathBuf>,
    /// Whether to say why each request was answered as it was.
    pub(crate) debug: bool,
    /// The settings as they were written, for the process that fills the cache.
    pub(crate) written: Vec<(&'static str, OsString)>,
    /// What is odd but no reason to stop; one line each.
    pub(crate) warnings: Vec<String>,
}

/// A part of a disk: so many bytes, or so many of a hundred.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Share {
    Bytes(Bytes),
    Percent(u8),
}

impl Share {
    fn parse(word: &str) -> Result<Self, String> {
        let Some(number) = word.strip_suffix('%') else {
            return Bytes::parse(word).map(Self::Bytes).map_err(|error| {
                if error.contains("too large") { error } else { format!("{error}, or 0% to 100%") }
            });
        };
        match number.parse::<u8>() {
            Ok(percent) if percent <= 100 && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Self::Percent(percent))
            }
            _ => Err(format!("'{word}' is not a share of the disk; use 0% to 100%, or bytes")),
        }
    }

    /// The bytes of a disk of `total` bytes.
    pub(crate) fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.count(),
            Self::Percent(percent) => {
                let percent = u64::from(percent);
                total / 100 * percent + total % 100 * percent / 100
            }
        }
    }
}

/// What becomes of a connection too many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DupeMode {
    /// It is refused.
    Deny,
    /// It waits until another one ends.
    Queue,
    /// It is let in, and all together get what one would get; only the daemon can do that.
    Share,
}

impl DupeMode {
    fn parse(word: &str) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_str() {
            "deny" => Ok(Self::Deny),
            "queue" => Ok(Self::Queue),
            "share" => Ok(Self::Share),
            _ => Err(format!("'{word}' is neither deny, queue nor share; use one of these")),
        }
    }
}

/// What has been set so far; what is missing gets its default in `finish`.
#[derive(Default)]
struct Draft {
    base: Option<Base>,
    address: Option<Address>,
    cache: Option<PathBuf>,
    document_root: Option<PathBuf>,
    max_dupes: Option<u32>,
    dupe_mode: Option<DupeMode>,
    max_clients: Option<u32>,
    trust: Option<Trust>,
    cache_max: Option<Share>,
    keep_free: Option<Share>,
    fresh: Option<Span>,
    fill_budget: Option<Bytes>,
    max_fills: Option<u32>,
    stale_if_error: Option<Span>,
    timeout: Option<Span>,
    ca: Option<PathBuf>,
    log: Option<PathBuf>,
    debug: bool,
}

/// One setting: environment variable and flag have the same name in two spellings.
struct Setting {
    variable: &'static str,
    flag: &'static str,
    help: &'static str,
    set: fn(&mut Draft, &OsStr) -> Result<(), String>,
}

const SETTINGS: [Setting; 18] = [
    Setting {
        variable: "OFFLOAD_BASE",
        flag: "base",
        help: "http(s)://HOST[:PORT] of the base server (required)",
        set: |draft, value| put(&mut draft.base, Base::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_BASE_ADDRESS",
        flag: "base-address",
        help: "address[:port] to connect to instead of looking HOST up",
        set: |draft, value| put(&mut draft.address, Address::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_CACHE",
        flag: "cache",
        help: "the cache's folder, absolute; made 0700 when missing (required)",
        set: |draft, value| put(&mut draft.cache, absolute(value)),
    },
    Setting {
        variable: "OFFLOAD_CACHE_MAX",
        flag: "cache-max",
        help: "the most that the cache takes of its disk: bytes (K M G T) or % [90%]",
        set: |draft, value| put(&mut draft.cache_max, Share::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_KEEP_FREE",
        flag: "keep-free",
        help: "what stays free on the cache's disk: bytes (K M G T) or %, and % of its inodes [5%]",
        set: |draft, value| put(&mut draft.keep_free, Share::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_FRESH",
        flag: "fresh",
        help: "how long the base's answer is good if it does not say so itself (Cache-Control) [1s]",
        set: |draft, value| put(&mut draft.fresh, Span::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_FILL_BUDGET",
        flag: "fill-budget",
        help: "how much is fetched on for clients that have left, if no more than half is there [16M]",
        set: |draft, value| put(&mut draft.fill_budget, Bytes::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_MAX_FILLS",
        flag: "max-fills",
        help: "how many connections to the base may fill the cache at the same time; more wait [256]",
        set: |draft, value| put(&mut draft.max_fills, number(word(value)?, 1, 1 << 16)),
    },
    Setting {
        variable: "OFFLOAD_STALE_IF_ERROR",
        flag: "stale-if-error",
        help: "how old a copy may be served while the base is down [1d]",
        set: |draft, value| put(&mut draft.stale_if_error, Span::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_TIMEOUT",
        flag: "timeout",
        help: "how long to wait for the base without progress [45s]",
        set: |draft, value| put(&mut draft.timeout, patience(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_MAX_DUPES",
        flag: "max-dupes",
        help: "simultaneous connections of one client (IPv4 address, IPv6 /64) for one file; 0 = off [1]",
        set: |draft, value| put(&mut draft.max_dupes, number(word(value)?, 0, u32::MAX)),
    },
    Setting {
        variable: "OFFLOAD_DUPE_MODE",
        flag: "dupe-mode",
        help: "deny answers one more with 403; queue lets it wait for OFFLOAD_TIMEOUT; share (daemon only) \
               lets it in, and all get one's rate [deny]",
        set: |draft, value| put(&mut draft.dupe_mode, DupeMode::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_MAX_CLIENTS",
        flag: "max-clients",
        help: "for how many downloads the table has room; about 85 bytes of disk each [100000]",
        set: |draft, value| put(&mut draft.max_clients, number(word(value)?, 1, TableSize::MAX)),
    },
    Setting {
        variable: "OFFLOAD_TRUST",
        flag: "trust",
        help: "proxies whose X-Forwarded-For is believed: networks (10.0.0.0/8 ::1), unix: over a Unix socket [none]",
        set: |draft, value| put(&mut draft.trust, Trust::parse(word(value)?)),
    },
    Setting {
        variable: "OFFLOAD_DOCUMENT_ROOT",
        flag: "document-root",
        help: "no-cache mode: what this folder has as the base has it is served from there [none]",
        set: |draft, value| put(&mut draft.document_root, absolute(value)),
    },
    Setting {
        variable: "OFFLOAD_CA",
        flag: "ca",
        help: "PEM file of certificates to trust for an https base [the system's]",
        set: |draft, value| put(&mut draft.ca, absolute(value)),
    },
    Setting {
        variable: "OFFLOAD_LOG",
        flag: "log",
        help: "access log file, combined format [none]",
        set: |draft, value| put(&mut draft.log, absolute(value)),
    },
    Setting {
        variable: "OFFLOAD_DEBUG",
        flag: "debug",
        help: "on or off: say on stderr why each request was answered as it was [off]",
        set: |draft, value| {
            draft.debug = switch(word(value)?)?;
            Ok(())
        },
    },
];

impl Options {
    /// Reads the environment, then the flags (`name`, value), which win.
    ///
    /// # Errors
    /// One sentence that names the setting, what it is set to and what would be accepted.
    pub(crate) fn read(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[(String, OsString)],
    ) -> Result<Self, String> {
        let mut warnings = Vec::new();
        let mut written: Vec<(&'static str, OsString)> = Vec::new();
        for (name, value) in environment {
            if let Some(setting) = SETTINGS.iter().find(|setting| name == setting.variable) {
                written.push((setting.variable, value));
            } else if name.as_encoded_bytes().starts_with(b"OFFLOAD_") {
                warnings.push(format!("{} is no setting and is ignored", name.display()));
            }
        }
        for (flag, value) in flags {
            let setting = SETTINGS.iter().find(|setting| setting.flag == flag);
            let setting = setting.ok_or_else(|| format!("--{flag} is no setting; see --help"))?;
            written.retain(|(variable, _)| *variable != setting.variable);
            written.push((setting.variable, value.clone()));
        }
        // Not the environment's order, so that the first of two mistakes is always the same one.
        let mut draft = Draft::default();
        for setting in &SETTINGS {
            for (_, value) in written.iter().filter(|(variable, _)| *variable == setting.variable) {
                (setting.set)(&mut draft, value)
                    .map_err(|error| format!("{}: {error}", setting.variable))?;
            }
        }
        draft.finish(written, warnings)
    }

    /// Where small notes about what was logged may be kept.
    pub(crate) fn notes(&self) -> &Path {
        self.cache.as_deref().unwrap_or(Path::new("/nonexistent"))
    }

    /// The text that `--help` prints about the settings.
    pub(crate) fn help() -> String {
        let mut text = String::new();
        for setting in &SETTINGS {
            let _ = writeln!(
                text,
                "  --{:<15} {:<23} {}",
                setting.flag, setting.variable, setting.help
            );
        }
        text
    }

    /// Whether a value will do for the setting of this flag's name; `None` when there is no such setting.
    pub(crate) fn check(flag: &str, value: &OsStr) -> Option<Result<(), String>> {
        let setting = SETTINGS.iter().find(|setting| setting.flag == flag)?;
        Some((setting.set)(&mut Draft::default(), value))
    }

    /// The names of all flags.
    pub(crate) fn flags() -> impl Iterator<Item = &'static str> {
        SETTINGS.iter().map(|setting| setting.flag)
    }

    /// Whether there is a flag of this name.
    pub(crate) fn has_flag(flag: &str) -> bool {
        SETTINGS.iter().any(|setting| setting.flag == flag)
    }
}

impl Draft {
    fn finish(
        self,
        written: Vec<(&'static str, OsString)>,
        warnings: Vec<String>,
    ) -> Result<Options, String> {
        let missing =
            |variable: &str, what: &str| format!("{variable} is not set; set it to {what}");
        Ok(Options {
            base: self
                .base
                .ok_or_else(|| missing("OFFLOAD_BASE", "http://HOST[:PORT] of the base server"))?,
            address: self.address,
            cache: match self.cache {
                None if self.document_root.is_none() => {
                    return Err(missing("OFFLOAD_CACHE", "the absolute path of a folder"));
                }
                cache => cache,
            },
            document_root: self.document_root,
            max_dupes: self.max_dupes.unwrap_or(1),
            dupe_mode: self.dupe_mode.unwrap_or(DupeMode::Deny),
            max_clients: self.max_clients.unwrap_or(100_000),
            trust: self.trust.unwrap_or_default(),
            cache_max: self.cache_max.unwrap_or(Share::Percent(90)),
            keep_free: self.keep_free.unwrap_or(Share::Percent(5)),
            fresh: self.fresh.unwrap_or(Span::seconds(1)),
            fill_budget: self.fill_budget.unwrap_or(Bytes::new(16 << 20)),
            max_fills: self.max_fills.unwrap_or(256),
            stale_if_error: self.stale_if_error.unwrap_or(Span::seconds(86_400)),
            timeout: self.timeout.unwrap_or(Span::seconds(45)),
            ca: self.ca,
            log: self.log,
            debug: self.debug,
            written,
            warnings,
        })
    }
}

fn put<T>(field: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *field = Some(value?);
    Ok(())
}

fn word(value: &OsStr) -> Result<&str, String> {
    value.to_str().ok_or_else(|| format!("'{}' is not text", value.display()))
}

fn absolute(value: &OsStr) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("'{}' is not an absolute path; begin it with '/'", value.display()))
    }
}

fn number(word: &str, least: u32, most: u32) -> Result<u32, String> {
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let number = word.parse().ok().filter(|number| digits && (least..=most).contains(number));
    number.ok_or_else(|| format!("'{word}' is no number that fits; use {least} to {most}"))
}

fn patience(word: &str) -> Result<Span, String> {
    match Span::parse(word)? {
        span if span.duration().is_zero() => {
            Err(format!("'{word}' is no time at all; use 1s or more"))
        }
        span => Ok(span),
    }
}

fn switch(word: &str) -> Result<bool, String> {
    match word.to_ascii_lowercase().as_str() {
        "on" | "yes" | "true" | "1" => Ok(true),
        "off" | "no" | "false" | "0" => Ok(false),
        _ => Err(format!("'{word}' is neither on nor off; use one of these")),
    }
}

#[cfg(test)]
mod tests;
