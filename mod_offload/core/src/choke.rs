//! The values of throttling's directives.

use std::fmt;
use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::setting::{Context, Entry, Word};
use crate::units::{Bytes, Rate};

/// How many workers throttling may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Held {
    /// So many.
    Workers(u32),
    /// So many of a hundred.
    Percent(u32),
}

impl Held {
    /// How many that is, where there are so many workers in all; rounded up.
    pub fn of(self, workers: u32) -> u32 {
        match self {
            Self::Workers(number) => number,
            Self::Percent(part) => {
                let held = (u64::from(workers) * u64::from(part)).div_ceil(100);
                u32::try_from(held).unwrap_or(u32::MAX)
            }
        }
    }
}

impl Word for Held {
    fn read(word: &str) -> Result<Self, String> {
        let number = |digits: &str, most| {
            digits.parse().ok().filter(|&number| number <= most && !digits.starts_with('+'))
        };
        match word.strip_suffix('%') {
            Some(digits) => number(digits, 100).map(Self::Percent),
            None => number(word, 1_000_000).map(Self::Workers),
        }
        .ok_or_else(|| {
            format!("'{word}' is no number of workers; use one such as 64, or a part such as 50%")
        })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers(number) => write!(f, "{number}"),
            Self::Percent(part) => write!(f, "{part}%"),
        }
    }
}

/// What becomes of a response that would hold one worker too many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overflow {
    /// It goes as fast as it can.
    Unthrottled,
    /// It is refused.
    Refuse,
}

impl Word for Overflow {
    fn read(word: &str) -> Result<Self, String> {
        match word {
            word if word.eq_ignore_ascii_case("unthrottled") => Ok(Self::Unthrottled),
            word if word.eq_ignore_ascii_case("refuse") => Ok(Self::Refuse),
            _ => Err(format!("'{word}' is neither; use unthrottled or refuse")),
        }
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Refuse { "refuse" } else { "unthrottled" })
    }
}

/// How much of what a generator makes is put into a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Spool(pub Bytes);

impl Spool {
    /// Nothing.
    pub const OFF: Self = Self(Bytes::new(0));
}

impl Word for Spool {
    fn read(word: &str) -> Result<Self, String> {
        if word.eq_ignore_ascii_case("off") {
            return Ok(Self::OFF);
        }
        Bytes::parse(word).map(Self).map_err(|sentence| format!("{sentence}, or Off"))
    }
}

impl fmt::Display for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::OFF { f.write_str("Off") } else { self.0.fmt(f) }
    }
}

/// Who shares a rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sharers {
    /// The connections of one client.
    Client,
    /// The connections of one authenticated user.
    User,
    /// All connections to the virtual host.
    Host,
}

impl Sharers {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; crate::transfers::KINDS] = [Self::Client, Self::User, Self::Host];

    /// What keeps their rate in a virtual host of this name apart from every other one: the same number in
    /// every process and after every restart.
    fn place(self, host: &str) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(0, 0);
        hasher.write(&[self as u8]);
        hasher.write(host.as_bytes());
        hasher.finish()
    }
}

/// A rate that connections have together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share {
    /// Who shares it.
    pub sharers: Sharers,
    /// The rate.
    pub rate: Rate,
    /// The server or virtual host that says so, as a number.
    owner: u64,
}

impl Share {
    /// What keeps the rate apart from every other one, in a virtual host of this name: the sharers of a rate
    /// of the server's are those of all its virtual hosts, but each virtual host has a rate of its own.
    pub fn place(&self, host: &str) -> u64 {
        match self.sharers {
            Sharers::Host => self.sharers.place(host),
            Sharers::Client | Sharers::User => self.owner,
        }
    }
}

impl Entry for Share {
    fn read_all(words: &[&str], context: &Context<'_>) -> Result<Vec<Self>, String> {
        let [sharers, rate] = words else { return Err("takes two arguments".to_owned()) };
        let sharers = match sharers.to_ascii_lowercase().as_str() {
            "client" => Sharers::Client,
            "user" => Sharers::User,
            "vhost" => Sharers::Host,
            _ => return Err(format!("'{sharers}' shares nothing; use client, user or vhost")),
        };
        let rate = Rate::new(Bytes::parse(rate)?.count())
            .ok_or_else(|| format!("'{rate}' is no rate to share; use one such as 1M"))?;
        let owner = sharers.place(&(context.server)());
        Ok(vec![Self { sharers, rate, owner }])
    }

    fn same_subject(&self, other: &Self) -> bool {
        self.sharers == other.sharers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::tests::context;

    #[test]
    fn the_workers_held_are_a_number_or_a_part() {
        assert_eq!(Held::read("64").unwrap().of(400), 64);
        assert_eq!(Held::read("50%").unwrap().of(25), 13);
        assert_eq!(Held::read("0").unwrap().of(25), 0);
        for word in ["", "%", "101%", "-1", "+1", "1.5", "x"] {
            assert!(Held::read(word).unwrap_err().contains("50%"), "{word}");
        }
    }

    #[test]
    fn a_spool_has_a_size_or_is_off() {
        assert_eq!(Spool::read("off"), Ok(Spool::OFF));
        assert_eq!(Spool::read("64M").unwrap().to_string(), "64M");
        assert!(Spool::read("much").unwrap_err().ends_with("or Off"));
    }

    #[test]
    fn a_share_says_who_and_how_much() {
        let read = |words: &[&str]| Share::read_all(words, &context());
        let shares = read(&["Client", "1M"]).unwrap();
        assert_eq!((shares[0].sharers, shares[0].rate.per_second()), (Sharers::Client, 1 << 20));
        for (words, complaint) in [
            (&["all", "1M"][..], "'all'"),
            (&["user"], "two"),
            (&["user", "0"], "'0'"),
            (&["vhost", "x"], "'x'"),
        ] {
            assert!(read(words).unwrap_err().contains(complaint), "{words:?}");
        }
        assert_eq!(shares[0].place("a"), shares[0].place("b"), "the server's clients are one");
        let host = &read(&["vhost", "1M"]).unwrap()[0];
        assert_ne!(host.place("a"), host.place("b"));
        assert!(Overflow::read("drop").unwrap_err().contains("refuse"));
    }
}
