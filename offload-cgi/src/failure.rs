//! Why a file could not be had, in words that fit into a file as well as into a reply.

use std::fmt;
use std::io;

/// A kind of failure, and the sentence for the error log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) sentence: String,
    pub(crate) contact: Contact,
}

/// What a failure says of the base as a whole, and not only of one file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Contact {
    /// Nothing: the base has answered, or was not asked.
    #[default]
    Made,
    /// It takes requests, but has said nothing to this one; it may be the file's fault.
    Mute,
    /// There is no connection to it.
    Missing,
}

/// What can be done about a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// The base has another version by now: ask it again.
    Changed,
    /// The file is not one that an offload host may serve.
    Refused,
    /// The base does not answer, or not in a way that makes sense, or broke off.
    Down,
    /// The base, or the process that reads from it, makes no progress.
    TimedOut,
    /// The cache cannot take the file: serve it without.
    NoRoom,
    /// The base says when it sends the file that it must not be stored: serve it without the cache.
    Unstorable,
}

impl Kind {
    const ALL: [(Self, &str); 6] = [
        (Self::Changed, "changed"),
        (Self::Refused, "refused"),
        (Self::Down, "down"),
        (Self::TimedOut, "timed-out"),
        (Self::NoRoom, "no-room"),
        (Self::Unstorable, "unstorable"),
    ];

    /// The status that a client gets for it.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Changed => 503,
            Self::Refused => 403,
            Self::Down => 502,
            Self::TimedOut => 504,
            Self::NoRoom => 507,
            Self::Unstorable => 503,
        }
    }

    /// Whether the file can be had past the cache.
    pub(crate) fn is_of_cache(self) -> bool {
        matches!(self, Self::NoRoom | Self::Unstorable)
    }

    pub(crate) fn says(self, sentence: impl Into<String>) -> Failure {
        Failure { kind: self, sentence: sentence.into(), contact: Contact::default() }
    }
}

impl Failure {
    /// A failure of the cache's own disk, whatever it is: the file can still be passed through.
    pub(crate) fn of_cache(what: &str, error: &io::Error) -> Self {
        Kind::NoRoom.says(format!("{what}: {error}"))
    }

    /// Reads what `to_string` wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (word, sentence) = text.trim_end_matches('\n').split_once(' ')?;
        let (kind, _) = Kind::ALL.iter().find(|(_, name)| *name == word)?;
        Some(kind.says(sentence))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Kind::ALL.iter().find(|(kind, _)| *kind == self.kind).map_or("", |row| row.1);
        write!(f, "{word} {}", self.sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_read_back_as_it_was_written() {
        for (kind, _) in Kind::ALL {
            let failure = kind.says("the base said: no");
            assert_eq!(Failure::parse(&failure.to_string()), Some(failure));
        }
        assert_eq!(Failure::parse("nonsense here"), None);
        assert_eq!(Failure::parse(""), None);
    }
}
