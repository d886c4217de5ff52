//! Which offload host serves a file: each file has one home.

use std::fmt;
use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::path::CanonicalPath;
use crate::setting::{Condition, Context, Entry, Word};

/// An offload host, as `OffloadHost` names it.
#[derive(Clone, Debug)]
pub struct Host {
    prefix: String,
    name: String,
    address: Option<IpAddr>,
    weight: u16,
    condition: Option<Condition>,
}

const ACCEPTED: &str = "use HOST[:PORT] or http(s)://HOST[:PORT][/PATH]";

impl Host {
    /// Scheme, authority and path, without a slash at the end: a path is appended to it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The host's name, or its address without brackets: what is to be resolved.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, if it is named by one.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// When it may be chosen, if that was said.
    pub fn condition(&self) -> Option<&Condition> {
        self.condition.as_ref()
    }

    fn parse(word: &str) -> Result<Self, String> {
        let (scheme, rest) = match word.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => ("http".to_owned(), word),
        };
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(format!("'{word}' has an unknown scheme; {ACCEPTED}")),
        };
        let (authority, path) = match rest.find('/') {
            Some(_) if !word.contains("://") => {
                return Err(format!("'{word}' has a path but no scheme; {ACCEPTED}"));
            }
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (name, port) = split_authority(authority)
            .ok_or_else(|| format!("'{word}' names no host; {ACCEPTED}"))?;
        let port = match port {
            None => None,
            Some(port) => match port.parse::<u16>() {
                Ok(number) if number > 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Some(number)
                }
                _ => {
                    return Err(format!(
                        "'{word}' has the port '{port}'; use a number from 1 to 65535"
                    ));
                }
            },
        };
        if crate::path::percent_encode(path.as_bytes()) != path {
            return Err(format!(
                "'{word}' has a character that must be written as %XX, or a query; {ACCEPTED}"
            ));
        }
        let name = name.to_ascii_lowercase();
        let mut prefix = if name.contains(':') {
            format!("{scheme}://[{name}]")
        } else {
            format!("{scheme}://{name}")
        };
        if let Some(port) = port.filter(|&port| port != default_port) {
            prefix.push_str(&format!(":{port}"));
        }
        prefix.push_str(path.trim_end_matches('/'));
        let address = name.parse().ok();
        Ok(Self { prefix, name, address, weight: 1, condition: None })
    }
}

/// Host name or address, and the port's text.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    let (name, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        (address, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else {
        let (name, port) = match authority.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (authority, None),
        };
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        {
            return None;
        }
        (name, port)
    };
    Some((name, port))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)
    }
}

/// One statement names one host: `HOST [weight=N] ["if=EXPR"]`.
impl Entry for Host {
    fn read_all(words: &[&str], context: &Context<'_>) -> Result<Vec<Self>, String> {
        let Some((word, options)) = words.split_first() else {
            return Err(format!("names no host; {ACCEPTED}"));
        };
        let mut host = Self::parse(word)?;
        for option in options {
            match option.split_once('=') {
                Some(("weight", weight)) => {
                    host.weight = weight
                        .parse()
                        .ok()
                        .filter(|_| weight.bytes().all(|byte| byte.is_ascii_digit()))
                        .ok_or_else(|| {
                            format!("'{option}' is not a weight; use weight=N with N from 0 (never chosen) to 65535")
                        })?;
                }
                Some(("if", expression)) => host.condition = Some((context.compile)(expression)?),
                _ => {
                    return Err(format!("'{option}' is unknown here; use weight=N or \"if=EXPR\""));
                }
            }
        }
        Ok(vec![host])
    }

    fn same_subject(&self, other: &Self) -> bool {
        self.prefix == other.prefix
    }
}

/// How a host is chosen among several.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Placement {
    /// Each file has one home; a new host takes over only its share of them.
    Hash,
    /// One after the other, by weight.
    Rotate,
    /// By chance, by weight.
    Random,
}

impl Word for Placement {
    fn read(word: &str) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_str() {
            "hash" => Ok(Self::Hash),
            "rotate" => Ok(Self::Rotate),
            "random" => Ok(Self::Random),
            _ => Err(format!("'{word}' is no policy; use hash, rotate or random")),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hash => "hash",
            Self::Rotate => "rotate",
            Self::Random => "random",
        })
    }
}

/// The home of a file: weighted rendezvous hashing.
///
/// Every host draws a number for the path from its own prefix, and the highest wins; with score
/// `-weight / ln(number)` a host wins in proportion to its weight, and a host that comes or goes moves
/// no file between the others (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005). The
/// answer is the same on every base server and after every restart. `None` if no host has a weight.
pub fn home<'h>(
    hosts: impl IntoIterator<Item = &'h Host>,
    path: &CanonicalPath,
) -> Option<&'h Host> {
    let mut hosts = hosts.into_iter().filter(|host| host.weight > 0);
    let first = hosts.next()?;
    let Some(second) = hosts.next() else { return Some(first) };
    let score = |host: &Host| -f64::from(host.weight) / drawn(&host.prefix, path.as_str()).ln();
    let mut best = (score(first), first);
    for host in std::iter::once(second).chain(hosts) {
        let score = score(host);
        if score > best.0 || (score == best.0 && host.prefix < best.1.prefix) {
            best = (score, host);
        }
    }
    Some(best.1)
}

/// The host whose turn it is: `turn` counts through the weights, so a host of weight 2 has two turns
/// where one of weight 1 has one. A random `turn` makes a random choice. `None` if no host has a weight.
pub fn in_turn<'h>(
    hosts: impl IntoIterator<Item = &'h Host> + Clone,
    turn: u64,
) -> Option<&'h Host> {
    let total: u64 = hosts.clone().into_iter().map(|host| u64::from(host.weight)).sum();
    let mut left = turn.checked_rem(total)?;
    for host in hosts {
        match left.checked_sub(u64::from(host.weight)) {
            None => return Some(host),
            Some(rest) => left = rest,
        }
    }
    None
}

/// A number above 0 and below 1 that looks random and is the same everywhere.
fn drawn(prefix: &str, path: &str) -> f64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(prefix.as_bytes());
    hasher.write(b"\0");
    hasher.write(path.as_bytes());
    // 52 bits: with the half in the middle every step is exact in an f64, and 0 and 1 are left out.
    let bits = hasher.finish() >> 12;
    let (high, low) = ((bits >> 32) as u32, (bits & 0xFFFF_FFFF) as u32);
    (f64::from(high) * 4_294_967_296.0 + f64::from(low) + 0.5) / 4_503_599_627_370_496.0
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn host(statement: &str) -> Result<Host, String> {
        let words: Vec<&str> = statement.split(' ').collect();
        Ok(Host::read_all(&words, &crate::setting::tests::context())?.remove(0))
    }

    fn hosts(statements: &[&str]) -> Vec<Host> {
        statements.iter().map(|statement| host(statement).unwrap()).collect()
    }

    fn path(number: usize) -> CanonicalPath {
        CanonicalPath::parse(format!("/pub/file-{number}.iso").as_bytes()).unwrap()
    }

    #[test]
    fn a_host_is_a_name_or_a_url_prefix() {
        for (word, prefix, name) in [
            ("cdn1", "http://cdn1", "cdn1"),
            ("CDN1.Example.ORG", "http://cdn1.example.org", "cdn1.example.org"),
            ("cdn1:8080", "http://cdn1:8080", "cdn1"),
            ("cdn1:80", "http://cdn1", "cdn1"),
            ("http://cdn1/", "http://cdn1", "cdn1"),
            ("https://cdn1.example.org/pub", "https://cdn1.example.org/pub", "cdn1.example.org"),
            ("HTTPS://cdn1:443/Pub/", "https://cdn1/Pub", "cdn1"),
            ("https://cdn1:8443", "https://cdn1:8443", "cdn1"),
            ("[2001:DB8::1]:8080", "http://[2001:db8::1]:8080", "2001:db8::1"),
            ("https://[::1]/a%20b", "https://[::1]/a%20b", "::1"),
            ("192.0.2.1", "http://192.0.2.1", "192.0.2.1"),
        ] {
            let host = host(word).unwrap();
            assert_eq!((host.prefix(), host.name()), (prefix, name), "{word}");
        }
    }

    #[test]
    fn a_bad_host_is_named_with_what_would_be_accepted() {
        for word in [
            "",
            "ftp://cdn1",
            "cdn1/pub",
            "http://",
            "http:///pub",
            "::1",
            "[::1",
            "[cdn1]",
            "[::1]8080",
            "cdn1:0",
            "cdn1:65536",
            "cdn1:+80",
            "cdn1:",
            "user@cdn1",
            "http://cdn1/a?b",
            "http://cdn1/a#b",
            "http://cdn1/ü",
            "http://cdn1\r\nX:y",
        ] {
            let error = host(word).unwrap_err();
            assert!(
                error.contains(&format!("'{word}'")) && error.contains("use "),
                "{word}: {error}"
            );
        }
        for option in ["weight=", "weight=-1", "weight=65536", "weight=1.5", "wait=1", "if"] {
            let error = host(&format!("cdn1 {option}")).unwrap_err();
            assert!(
                error.contains(&format!("'{option}'")) && error.contains("use "),
                "{option}: {error}"
            );
        }
    }

    #[test]
    fn a_condition_is_compiled_and_carried() {
        let host = host("cdn1 weight=3 if=%{x}").unwrap();
        assert_eq!(host.condition().unwrap().compiled::<String>().unwrap(), "%{x}");
    }

    #[test]
    fn each_file_has_one_home_whatever_the_order_of_the_hosts() {
        let mut hosts = hosts(&["cdn1", "cdn2", "cdn3"]);
        let before: Vec<String> =
            (0..100).map(|n| home(&hosts, &path(n)).unwrap().to_string()).collect();
        hosts.reverse();
        let after: Vec<String> =
            (0..100).map(|n| home(&hosts, &path(n)).unwrap().to_string()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn homes_never_move_between_releases() {
        // Were these to change, an upgrade of a base would move every file to another host.
        let hosts = hosts(&["cdn1", "cdn2", "cdn3"]);
        let homes: Vec<&str> = (0..8).map(|n| home(&hosts, &path(n)).unwrap().name()).collect();
        assert_eq!(homes, ["cdn2", "cdn3", "cdn2", "cdn1", "cdn1", "cdn2", "cdn3", "cdn3"]);
    }

    #[test]
    fn a_new_host_moves_only_its_share() {
        let old = hosts(&["cdn1", "cdn2", "cdn3"]);
        let new = hosts(&["cdn1", "cdn2", "cdn3", "cdn4"]);
        let mut moved = 0;
        for number in 0..10_000 {
            let (before, after) =
                (home(&old, &path(number)).unwrap(), home(&new, &path(number)).unwrap());
            if before.prefix() != after.prefix() {
                assert_eq!(after.name(), "cdn4");
                moved += 1;
            }
        }
        assert!((2_300..2_700).contains(&moved), "{moved}");
    }

    #[test]
    fn weights_share_out_the_files() {
        let hosts = hosts(&["cdn1", "cdn2 weight=3", "cdn3 weight=0"]);
        let mut homes: HashMap<&str, u32> = HashMap::new();
        for number in 0..10_000 {
            *homes.entry(home(&hosts, &path(number)).unwrap().name()).or_default() += 1;
        }
        assert!((2_300..2_700).contains(&homes["cdn1"]), "{homes:?}");
        assert_eq!(homes.get("cdn3"), None);
        assert!(home(&self::hosts(&["cdn3 weight=0"]), &path(1)).is_none());
    }

    #[test]
    fn turns_follow_the_weights() {
        let hosts = hosts(&["cdn1", "cdn2 weight=2", "cdn3 weight=0"]);
        let names: Vec<&str> = (0..6).map(|turn| in_turn(&hosts, turn).unwrap().name()).collect();
        assert_eq!(names, ["cdn1", "cdn2", "cdn2", "cdn1", "cdn2", "cdn2"]);
        assert!(in_turn(&self::hosts(&["cdn3 weight=0"]), 1).is_none());
        assert!(in_turn(&[] as &[Host], 1).is_none());
    }

    proptest! {
        #[test]
        fn a_number_drawn_is_above_0_and_below_1(prefix: String, path: String) {
            let number = drawn(&prefix, &path);
            prop_assert!(number > 0.0 && number < 1.0);
        }

        #[test]
        fn no_statement_makes_the_parser_panic(statement: String) {
            let _ = host(&statement);
        }

        #[test]
        fn no_host_can_break_a_header(word: String) {
            if let Ok(host) = host(&word) {
                prop_assert!(host.prefix().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
