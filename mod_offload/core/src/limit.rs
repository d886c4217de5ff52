//! The values of the limits' directives: numbers, groups of paths, sections, prefixes.

use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::admission::{Kind, ScopeName, Spot};
use crate::setting::{Condition, Context, Entry, Word};

/// So many at a time, perhaps under a condition. Zero means no limit.
#[derive(Clone, Debug)]
pub struct Limit {
    most: u32,
    condition: Option<Condition>,
}

impl Limit {
    /// How many at a time; `None` if this lifts the limit of an outer section.
    pub fn most(&self) -> Option<u32> {
        (self.most > 0).then_some(self.most)
    }

    /// When it holds, if that was said.
    pub fn condition(&self) -> Option<&Condition> {
        self.condition.as_ref()
    }

    /// Reads `N ["if=EXPR"]` and what stands between the two.
    fn parse<'w>(
        words: &'w [&'w str],
        context: &Context<'_>,
    ) -> Result<(Self, &'w [&'w str]), String> {
        let Some((number, rest)) = words.split_first() else {
            return Err("names no number".to_owned());
        };
        let most = count(number)?;
        let (rest, condition) = match rest.split_last() {
            Some((last, before)) if last.starts_with("if=") => {
                (before, Some((context.compile)(&last["if=".len()..])?))
            }
            _ => (rest, None),
        };
        Ok((Self { most, condition }, rest))
    }
}

fn count(word: &str) -> Result<u32, String> {
    // What the ledger can count.
    const MOST: u32 = 1_000_000;
    match word.parse::<u32>() {
        Ok(number) if number <= MOST && word.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(number)
        }
        _ => Err(format!("'{word}' is no number; use a whole number up to {MOST}, 0 for no limit")),
    }
}

fn nothing_left(rest: &[&str]) -> Result<(), String> {
    match rest.first() {
        None => Ok(()),
        Some(word) => Err(format!("'{word}' is unknown here; use N or N \"if=EXPR\"")),
    }
}

impl Entry for Limit {
    fn read_all(words: &[&str], context: &Context<'_>) -> Result<Vec<Self>, String> {
        let (limit, rest) = Self::parse(words, context)?;
        nothing_left(rest)?;
        Ok(vec![limit])
    }
}

/// A limit that belongs to a section, and in it to some methods.
#[derive(Clone, Debug)]
pub struct SectionLimit {
    /// So many requests at a time.
    pub limit: Limit,
    /// The section that owns the counter.
    pub section: Arc<str>,
    /// Its counter.
    pub scope: ScopeName,
    /// What the process knows of the counter.
    pub spot: Arc<Spot>,
    methods: u64,
}

impl SectionLimit {
    /// Whether it is about requests of the method with this number (httpd's).
    pub fn covers(&self, method: u32) -> bool {
        1u64.checked_shl(method).is_some_and(|bit| self.methods & bit != 0)
    }
}

impl Entry for SectionLimit {
    fn read_all(words: &[&str], context: &Context<'_>) -> Result<Vec<Self>, String> {
        let (limit, rest) = Limit::parse(words, context)?;
        nothing_left(rest)?;
        let section = (context.section)().ok_or("must stand in a section such as <Location>")?;
        let methods = context.methods;
        // A section with a limit for GET and another one for POST has two counters.
        let place =
            if methods == u64::MAX { section } else { format!("{section} methods {methods:x}") };
        let scope = ScopeName::of(Kind::MaxConcurrentReqs, &place);
        let spot = Arc::new(Spot::new(scope));
        Ok(vec![Self { limit, section: place.into(), scope, spot, methods }])
    }
}

/// Paths that are limited together.
#[derive(Clone, Debug)]
pub struct Group {
    /// So many requests at a time.
    pub limit: Limit,
    /// What the group is called: its paths and where it was declared.
    pub name: Arc<str>,
    /// The longest one first; of two that are the same, in their order.
    paths: Arc<[GroupPath]>,
    first_path: Arc<str>,
}

#[derive(Clone, Debug)]
struct GroupPath {
    /// Without slashes at its end.
    trimmed: Box<[u8]>,
    position: Position,
}

impl GroupPath {
    /// Whether it covers the URL path.
    #[inline]
    fn covers(&self, path: &[u8]) -> bool {
        // What comes behind it is seen at a glance, and mostly tells.
        matches!(path.get(self.trimmed.len()), None | Some(b'/')) && path.starts_with(&self.trimmed)
    }
}

impl Group {
    /// Whether the URL path is in the group, and under its first path. Paths cover whole segments: `/a`
    /// covers `/a` and `/a/b`, not `/ab`; where two cover it, the longer one does.
    #[inline(always)]
    pub fn position(&self, path: &[u8]) -> Option<Position> {
        for group in &*self.paths {
            if group.covers(path) {
                return Some(group.position);
            }
        }
        None
    }

    /// Its first path.
    pub fn first_path(&self) -> &str {
        &self.first_path
    }
}

/// Where in a group a path lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Position {
    /// Under the first path.
    First,
    /// Under another one.
    Other,
}

impl Entry for Group {
    fn read_all(words: &[&str], context: &Context<'_>) -> Result<Vec<Self>, String> {
        let (limit, paths) = Limit::parse(words, context)?;
        if let Some(path) = paths.iter().find(|path| !path.starts_with('/')) {
            return Err(format!("'{path}' is no URL path; use one that begins with /"));
        }
        let Some(&first_path) = paths.first() else { return Err("names no path".to_owned()) };
        let server = (context.server)();
        let name = format!("{} of {server}", paths.join(" "));
        let position = |at| if at == 0 { Position::First } else { Position::Other };
        let mut paths: Vec<GroupPath> = paths
            .iter()
            .enumerate()
            .map(|(at, path)| GroupPath {
                trimmed: path.trim_end_matches('/').as_bytes().into(),
                position: position(at),
            })
            .collect();
        paths.sort_by_key(|path| Reverse(path.trimmed.len()));
        Ok(vec![Self {
            limit,
            name: name.into(),
            paths: paths.into(),
            first_path: first_path.into(),
        }])
    }
}

/// How many bits of an address make one client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prefixes {
    /// Of an IPv4 address: up to 32.
    pub v4: u8,
    /// Of an IPv6 address: up to 128.
    pub v6: u8,
}

impl Prefixes {
    /// Every IPv4 address is a client; an IPv6 household has a /64.
    pub const USUAL: Self = Self { v4: 32, v6: 64 };

    /// The bytes by which a client is known: its family and the bits that count.
    pub fn client(self, address: IpAddr) -> Client {
        let (mut bytes, mut length) = ([0; 17], 17);
        match address.to_canonical() {
            IpAddr::V4(address) => {
                length = 5;
                let mask = u32::MAX.checked_shl(32 - u32::from(self.v4)).unwrap_or(0);
                bytes[0] = 4;
                bytes[1..5].copy_from_slice(&(address.to_bits() & mask).to_be_bytes());
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.v6)).unwrap_or(0);
                bytes[0] = 6;
                bytes[1..].copy_from_slice(&(address.to_bits() & mask).to_be_bytes());
            }
        }
        Client { bytes, length }
    }
}

/// A client by its address; the default one is everybody without an address.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Client {
    bytes: [u8; 17],
    length: usize,
}

impl Client {
    /// Its family and the bits that count.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Entry for Prefixes {
    fn read_all(words: &[&str], _context: &Context<'_>) -> Result<Vec<Self>, String> {
        let wrong = |word: &str, most| {
            format!(
                "'{word}' is no number of bits; use two numbers, up to 32 and up to 128 (not {most})"
            )
        };
        let bits = |word: &str, most: u8| match word.parse::<u8>() {
            Ok(bits) if bits <= most && word.bytes().all(|byte| byte.is_ascii_digit()) => Ok(bits),
            _ => Err(wrong(word, most)),
        };
        let [v4, v6] = words else { return Err("takes two arguments".to_owned()) };
        Ok(vec![Self { v4: bits(v4, 32)?, v6: bits(v6, 128)? }])
    }
}

impl fmt::Display for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.v4, self.v6)
    }
}

/// The status of a refusal: an error of the client or of the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status(pub u16);

impl Word for Status {
    fn read(word: &str) -> Result<Self, String> {
        match word.parse::<u16>() {
            Ok(code @ 400..=599) => Ok(Self(code)),
            _ => Err(format!(
                "'{word}' is no status for a refusal; use one from 400 to 599, such as 503 or 429"
            )),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// For how many clients the counters have room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clients(pub u32);

impl Word for Clients {
    fn read(word: &str) -> Result<Self, String> {
        match word.parse::<u32>() {
            Ok(number @ 1..=4_000_000) => Ok(Self(number)),
            _ => Err(format!("'{word}' is no number of clients; use one from 1 to 4000000")),
        }
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of an environment variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Variable(pub String);

impl Word for Variable {
    fn read(word: &str) -> Result<Self, String> {
        if word.is_empty() || word.contains('=') {
            return Err(format!("'{word}' is no name of a variable; use one such as CHOKE_RATE"));
        }
        Ok(Self(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Entry>(statement: &str) -> Result<T, String> {
        let words: Vec<&str> = statement.split_whitespace().collect();
        let context = Context {
            compile: &|text| Ok(Condition::new(text.to_owned())),
            section: &|| Some("<Location /a>".to_owned()),
            server: &|| "www.example.org:80".to_owned(),
            methods: 0b101,
        };
        Ok(T::read_all(&words, &context)?.remove(0))
    }

    #[test]
    fn a_limit_is_a_number_and_perhaps_a_condition() {
        assert_eq!(read::<Limit>("10").unwrap().most(), Some(10));
        assert_eq!(read::<Limit>("0").unwrap().most(), None);
        let limit = read::<Limit>("3 if=%{x}").unwrap();
        assert_eq!(limit.condition().unwrap().compiled::<String>().unwrap(), "%{x}");
        for (statement, word) in
            [("-1", "-1"), ("x", "x"), ("1 2", "2"), ("99999999", "99999999"), ("+1", "+1")]
        {
            assert!(
                read::<Limit>(statement).unwrap_err().contains(&format!("'{word}'")),
                "{statement}"
            );
        }
    }

    #[test]
    fn a_group_covers_whole_segments_and_knows_its_first_path() {
        let group = read::<Group>("5 /a /img/").unwrap();
        for (path, place) in [
            ("/a", Some(Position::First)),
            ("/a/b", Some(Position::First)),
            ("/ab", None),
            ("/img", Some(Position::Other)),
            ("/img/x.png", Some(Position::Other)),
            ("/", None),
        ] {
            assert_eq!(group.position(path.as_bytes()), place, "{path}");
        }
        assert_eq!(read::<Group>("5 /").unwrap().position(b"/anything"), Some(Position::First));
        let nested = read::<Group>("5 /a /a/img").unwrap();
        assert_eq!(nested.position(b"/a/img/x"), Some(Position::Other));
        assert_eq!(nested.position(b"/a/x"), Some(Position::First));
        assert!(read::<Group>("5").unwrap_err().contains("names no path"));
        assert!(read::<Group>("5 a").unwrap_err().contains("'a'"));
    }

    #[test]
    fn a_section_limit_is_about_its_methods_only() {
        let limit = read::<SectionLimit>("2").unwrap();
        assert!(limit.covers(0) && !limit.covers(1) && limit.covers(2) && !limit.covers(64));
        assert_eq!(&*limit.section, "<Location /a> methods 5");
    }

    #[test]
    fn the_prefix_says_what_one_client_is() {
        let client = |address: &str| Prefixes::USUAL.client(address.parse().unwrap());
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(
            client("192.0.2.1"),
            client("::ffff:192.0.2.1"),
            "a mapped address is the IPv4 one"
        );
        let wide = read::<Prefixes>("24 0").unwrap();
        assert_eq!(
            wide.client("192.0.2.1".parse().unwrap()),
            wide.client("192.0.2.2".parse().unwrap())
        );
        assert_eq!(wide.client("::1".parse().unwrap()), wide.client("2001:db8::".parse().unwrap()));
        assert!(read::<Prefixes>("33 64").is_err() && read::<Prefixes>("32").is_err());
    }

    #[test]
    fn a_refusal_is_an_error_status() {
        assert_eq!(Status::read("429"), Ok(Status(429)));
        for word in ["200", "399", "600", "x", ""] {
            assert!(Status::read(word).unwrap_err().contains("503"), "{word}");
        }
    }
}
