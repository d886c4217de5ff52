//! Who a client is: an address of its own network, also behind proxies that are trusted.

use std::net::IpAddr;

use offload_core::pattern::Network;
use offload_core::setting::Word as _;

/// Proxies whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Trust {
    networks: Vec<Network>,
    /// Also those who come over a Unix socket, who have no address.
    unix: bool,
}

/// The word for them.
const UNIX: &str = "unix:";

impl Trust {
    /// Reads networks, addresses or `unix:`, separated by spaces or commas.
    ///
    /// # Errors
    /// A sentence that names the word and what would be accepted.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let words = text.split([' ', ',', '\t']).filter(|word| !word.is_empty());
        let network = |word: &str| match word.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => Network::read(&format!("{address}/32")),
            Ok(IpAddr::V6(address)) => Network::read(&format!("{address}/128")),
            Err(_) => Network::read(word),
        };
        let (unix, networks): (Vec<&str>, Vec<&str>) = words.partition(|word| *word == UNIX);
        let networks = networks.into_iter().map(network).collect::<Result<_, _>>()?;
        Ok(Self { networks, unix: !unix.is_empty() })
    }

    /// Whether this is one of the proxies.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(plain(address)))
    }

    /// Whose request it is that came over a Unix socket, if whoever sent it is trusted and says so.
    pub(crate) fn client_over_unix(&self, forwarded: Option<&str>) -> Option<IpAddr> {
        let hops = forwarded.filter(|_| self.unix)?;
        let (rest, last) = hops.rsplit_once(',').unwrap_or(("", hops));
        Some(self.client(address(last.trim())?, Some(rest)))
    }

    /// Whose request it is: `remote` is who has connected, `forwarded` what its proxies say, each of which
    /// has added whom it has seen at the end. Read from right to left, the first that is no trusted
    /// proxy is the client; what is left of it anybody may have written.
    pub(crate) fn client(&self, remote: IpAddr, forwarded: Option<&str>) -> IpAddr {
        let mut client = plain(remote);
        let hops = forwarded.unwrap_or_default().rsplit(',');
        for hop in hops {
            if !self.has(client) {
                return client;
            }
            let Some(address) = address(hop.trim()) else { return client };
            client = address;
        }
        client
    }
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(plain(address));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, _port) = rest.split_once(']')?;
        return address.parse().ok().map(plain);
    }
    let (address, _port) = text.split_once(':')?;
    address.parse().ok().map(plain)
}

/// `::ffff:192.0.2.1` is 192.0.2.1.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What makes one client: an IPv4 address, or the network that a customer of a provider gets, an IPv6 /64.
pub(crate) fn prefix(address: IpAddr) -> [u8; 8] {
    match plain(address) {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            // No IPv6 network begins like this: 0::/8 is reserved.
            [0, 0, 0, 4, a, b, c, d]
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h, ..] = address.octets();
            [a, b, c, d, e, f, g, h]
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(trust: &str, remote: &str, forwarded: &str) -> String {
        let trust = Trust::parse(trust).unwrap();
        trust.client(remote.parse().unwrap(), Some(forwarded)).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_from_right_to_left() {
        for (trust, remote, forwarded, expected) in [
            ("", "192.0.2.1", "10.0.0.1", "192.0.2.1"),
            ("10.0.0.0/8", "192.0.2.1", "203.0.113.9", "192.0.2.1"),
            ("10.0.0.0/8", "10.0.0.1", "203.0.113.9", "203.0.113.9"),
            ("10.0.0.0/8", "10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
            ("10.0.0.0/8", "10.0.0.1", "203.0.113.9, 10.2.3.4", "203.0.113.9"),
            ("10.0.0.1 ::1", "::1", "1.1.1.1, 203.0.113.9,10.0.0.1", "203.0.113.9"),
            ("10.0.0.0/8", "10.0.0.1", "203.0.113.9, nonsense", "10.0.0.1"),
            ("10.0.0.0/8", "10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.0/8", "10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "203.0.113.9:1234", "203.0.113.9"),
            ("10.0.0.0/8", "10.0.0.1", "[2001:db8::1]:80", "2001:db8::1"),
        ] {
            assert_eq!(client(trust, remote, forwarded), expected, "{trust} {remote} {forwarded}");
        }
    }

    #[test]
    fn who_has_no_address_is_believed_if_that_is_said() {
        let over = |trust: &str, forwarded| {
            Trust::parse(trust).unwrap().client_over_unix(forwarded).map(|found| found.to_string())
        };
        assert_eq!(over("10.0.0.0/8", Some("192.0.2.1")), None);
        assert_eq!(over("unix:", None), None);
        assert_eq!(over("unix:", Some("nonsense")), None);
        assert_eq!(over("unix:", Some("1.1.1.1, 192.0.2.1")).as_deref(), Some("192.0.2.1"));
        let proxied = over("unix: 10.0.0.0/8", Some("192.0.2.1, 10.0.0.1"));
        assert_eq!(proxied.as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn one_client_is_an_ipv4_address_or_an_ipv6_64() {
        let prefix = |text: &str| prefix(text.parse().unwrap());
        assert_eq!(prefix("2001:db8::1"), prefix("2001:db8:0:0:ffff::2"));
        assert_ne!(prefix("2001:db8::1"), prefix("2001:db8:0:1::1"));
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.2.2"));
        assert_eq!(prefix("192.0.2.1"), prefix("::ffff:192.0.2.1"));
    }

    #[test]
    fn a_word_that_is_no_network_is_named() {
        let error = Trust::parse("10.0.0.0/8 x").unwrap_err();
        assert!(error.contains("'x'") && error.contains("ADDRESS/BITS"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let trust = Trust::parse("0.0.0.0/0 ::/0").unwrap();
            trust.client([127, 0, 0, 1].into(), Some(&text));
        }
    }
}
