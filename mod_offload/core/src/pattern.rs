//! Wildcards and address ranges, as the exclusion directives take them.

use std::fmt;
use std::net::IpAddr;

use crate::setting::Word;

/// A pattern of `*` (any bytes, also none), `?` (one byte) and literal bytes, letter case ignored.
///
/// Matching takes time in proportion to pattern times text at worst: no client can stall it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wildcard(String);

impl Wildcard {
    /// Whether the whole of `text` fits the pattern.
    pub fn matches(&self, text: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut read) = (0, 0);
        // Where the last star stood, and how much of the text it has swallowed so far.
        let mut star: Option<(usize, usize)> = None;
        while read < text.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, read));
                    at += 1;
                }
                Some(byte) if *byte == b'?' || byte.eq_ignore_ascii_case(&text[read]) => {
                    at += 1;
                    read += 1;
                }
                _ => {
                    let Some((star_at, swallowed)) = star else { return false };
                    star = Some((star_at, swallowed + 1));
                    at = star_at + 1;
                    read = swallowed + 1;
                }
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }
}

impl Word for Wildcard {
    fn read(word: &str) -> Result<Self, String> {
        if word.is_empty() {
            return Err("'' matches nothing; use a pattern such as 'text/*'".to_owned());
        }
        Ok(Self(word.to_owned()))
    }
}

impl fmt::Display for Wildcard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Addresses that share their first bits, such as `10.0.0.0/8` or `2001:db8::/32` (RFC 4632).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether the address lies in the network. An IPv4 address is never in an IPv6 network.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                first.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                first.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl Word for Network {
    fn read(word: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{word}' is not a network; use ADDRESS/BITS such as 10.0.0.0/8 or 2001:db8::/32"
            )
        };
        let (address, bits) = word.split_once('/').ok_or_else(wrong)?;
        let first: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        if bits.is_empty() || !bits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        match bits.parse::<u8>() {
            Ok(bits) if bits <= most => Ok(Self { first, bits }),
            _ => Err(format!("'{word}' has too many bits; use at most /{most}")),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

/// Which clients an `OffloadExcludeAddress` means: one address, a network, or a wildcard on the text
/// of the address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AddressPattern {
    /// Exactly this address, however it is spelled.
    One(IpAddr),
    /// Every address of the network.
    Network(Network),
    /// Every address whose text fits, such as `192.168.*`.
    Text(Wildcard),
}

impl AddressPattern {
    /// Whether a client is meant; `text` is its address as the server writes it.
    pub fn matches(&self, address: Option<IpAddr>, text: &[u8]) -> bool {
        match self {
            Self::One(one) => address == Some(*one),
            Self::Network(network) => address.is_some_and(|address| network.contains(address)),
            Self::Text(wildcard) => wildcard.matches(text),
        }
    }
}

impl Word for AddressPattern {
    fn read(word: &str) -> Result<Self, String> {
        if word.contains('/') {
            return Network::read(word).map(Self::Network);
        }
        if let Ok(address) = word.parse() {
            return Ok(Self::One(address));
        }
        let plausible = |byte: u8| byte.is_ascii_hexdigit() || b".:*?".contains(&byte);
        if word.is_empty() || !word.bytes().all(plausible) {
            return Err(format!(
                "'{word}' is not an address; use an address, a network such as 10.0.0.0/8, or a wildcard such as 192.168.*"
            ));
        }
        Wildcard::read(word).map(Self::Text)
    }
}

impl fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(address) => address.fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Text(wildcard) => wildcard.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits(pattern: &str, text: &str) -> bool {
        Wildcard::read(pattern).unwrap().matches(text.as_bytes())
    }

    #[test]
    fn a_wildcard_covers_the_whole_text_and_ignores_letter_case() {
        for (pattern, text) in [
            ("text/*", "text/html"),
            ("TEXT/*", "text/HTML"),
            ("*", ""),
            ("*", "anything"),
            ("*bot*", "Googlebot/2.1"),
            ("a?c", "abc"),
            ("a*b*c", "aXbYbZc"),
            ("**", "x"),
            ("*a", "aaa"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("text/*", "xtext/html"),
            ("text", "text/html"),
            ("a?c", "ac"),
            ("*bot", "bots"),
            ("a", ""),
            ("?", ""),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_hostile_text_costs_no_more_than_pattern_times_text() {
        let pattern = "*a".repeat(50) + "b";
        assert!(!fits(&pattern, &"a".repeat(20_000)));
    }

    #[test]
    fn an_address_pattern_is_an_address_a_network_or_a_wildcard() {
        let matches = |pattern: &str, address: &str| {
            AddressPattern::read(pattern).unwrap().matches(address.parse().ok(), address.as_bytes())
        };
        for (pattern, address) in [
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.0.0/16", "10.1.255.255"),
            ("0.0.0.0/0", "203.0.113.9"),
            ("10.1.*", "10.1.2.3"),
            ("2001:DB8::1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1"),
            ("::/0", "::1"),
            ("2001:db8:*", "2001:db8::1"),
        ] {
            assert!(matches(pattern, address), "{pattern} {address}");
        }
        for (pattern, address) in [
            ("10.1.0.0/16", "10.2.0.0"),
            ("10.1.2.3/32", "10.1.2.4"),
            ("10.1.*", "10.10.2.3"),
            ("0.0.0.0/0", "::1"),
            ("2001:db8::/32", "2001:db9::"),
        ] {
            assert!(!matches(pattern, address), "{pattern} {address}");
        }
    }

    #[test]
    fn a_bad_address_pattern_is_named_with_what_would_be_accepted() {
        for word in [
            "",
            "localhost",
            "10.0.0.0/33",
            "::/129",
            "10/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "1.2.3.4/x",
        ] {
            let error = AddressPattern::read(word).unwrap_err();
            assert!(error.contains(&format!("'{word}'")) && error.contains("use "), "{error}");
        }
    }

    /// What a wildcard means, said without any care for time.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                naive(rest, text) || (!text.is_empty() && naive(pattern, &text[1..]))
            }
            (Some((b'?', rest)), Some((_, left))) => naive(rest, left),
            (Some((a, rest)), Some((b, left))) => a.eq_ignore_ascii_case(b) && naive(rest, left),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_wildcard_means_what_the_naive_one_means(pattern in "[ab*?]{1,8}", text in "[abAB]{0,10}") {
            prop_assert_eq!(fits(&pattern, &text), naive(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_network_holds_the_addresses_with_its_first_bits(first: u32, address: u32, bits in 0u8..=32) {
            let network = Network { first: IpAddr::from(first.to_be_bytes()), bits };
            let same = (0..bits).all(|bit| (first ^ address) >> (31 - bit) & 1 == 0);
            prop_assert_eq!(network.contains(IpAddr::from(address.to_be_bytes())), same);
        }
    }
}
