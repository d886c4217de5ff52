//! Where the base server is: its name, which is half of every cache key, and its address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The base server: scheme, host in lower case, port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Base {
    tls: bool,
    host: String,
    port: u16,
}

impl Base {
    /// Reads `http(s)://HOST[:PORT]`.
    ///
    /// # Errors
    /// A sentence that names the word and what would be accepted.
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{word}' is not a base; use http://HOST[:PORT] or https://HOST[:PORT]");
        let (scheme, rest) = word.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong()),
        };
        let (host, port) = split(rest.strip_suffix('/').unwrap_or(rest)).ok_or_else(wrong)?;
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host, port })
    }

    /// The address of a path on the base; `Host` and SNI follow from it.
    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        if self.port == self.default_port() {
            format!("{scheme}://{}{path}", self.host)
        } else {
            format!("{scheme}://{}:{}{path}", self.host, self.port)
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    fn default_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }
}

/// The base's name in a cache key: always with a port, so that two spellings are one.
impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// What to connect to instead of looking the base's name up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Address {
    host: String,
    port: Option<u16>,
}

impl Address {
    /// Reads `address[:port]`; IPv6 stands in brackets, or bare when no port follows.
    ///
    /// # Errors
    /// A sentence that names the word and what would be accepted.
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        if let Ok(address) = word.parse::<Ipv6Addr>() {
            return Ok(Self { host: format!("[{address}]"), port: None });
        }
        let (host, port) = split(word).ok_or_else(|| {
            format!("'{word}' is not an address; use address[:port], such as 10.0.0.1:8080 or [::1]:8080")
        })?;
        Ok(Self { host, port })
    }

    /// `host:port`, with the base's port where none was given.
    pub(crate) fn authority(&self, base: &Base) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(base.port()))
    }
}

/// Splits `HOST[:PORT]` and makes sure that the host is a name or an address.
fn split(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse::<u16>().ok().filter(|port| digits && *port != 0)?;
            (host, Some(port))
        }
        _ => (text, None),
    };
    let host = host.to_ascii_lowercase();
    if let Some(literal) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address = literal.parse::<Ipv6Addr>().ok()?;
        return Some((format!("[{address}]"), port));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    // `1.2.3.4.` is no address, and no name either.
    let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let valid = if numeric { host.parse::<IpAddr>().is_ok() } else { host.split('.').all(label) };
    (valid && host.len() <= 253).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_has_one_name() {
        for (word, name, url) in [
            ("http://Base.Test", "http://base.test:80", "http://base.test/x"),
            ("HTTP://base.test:80/", "http://base.test:80", "http://base.test/x"),
            ("http://base.test:8080", "http://base.test:8080", "http://base.test:8080/x"),
            ("https://base.test", "https://base.test:443", "https://base.test/x"),
            ("https://base.test:80", "https://base.test:80", "https://base.test:80/x"),
            ("http://127.0.0.1:81", "http://127.0.0.1:81", "http://127.0.0.1:81/x"),
            ("http://[0::1]", "http://[::1]:80", "http://[::1]/x"),
        ] {
            let base = Base::parse(word).unwrap();
            assert_eq!((base.to_string().as_str(), base.url("/x").as_str()), (name, url), "{word}");
        }
    }

    #[test]
    fn what_is_no_base_is_refused() {
        for word in [
            "",
            "base.test",
            "ftp://base.test",
            "http://",
            "http:///",
            "http://a/b",
            "http://a?b",
            "http://u@a",
            "http://a:0",
            "http://a:",
            "http://a:+1",
            "http://a:65536",
            "http://a b",
            "http://[::1",
            "http://[x]",
            "http://1.2.3",
            "http://a..b",
            "http://a\r\nx",
        ] {
            let error = Base::parse(word).unwrap_err();
            assert!(error.contains("http://HOST[:PORT]"), "{word}: {error}");
        }
    }

    #[test]
    fn an_address_may_have_a_port_and_may_be_ipv6() {
        let base = Base::parse("http://base.test:81").unwrap();
        for (word, authority) in [
            ("10.0.0.1", "10.0.0.1:81"),
            ("10.0.0.1:8080", "10.0.0.1:8080"),
            ("[::1]:8080", "[::1]:8080"),
            ("[::1]", "[::1]:81"),
            ("::1", "[::1]:81"),
            ("inner.test:90", "inner.test:90"),
        ] {
            assert_eq!(Address::parse(word).unwrap().authority(&base), authority, "{word}");
        }
        for word in ["", ":80", "[::1]:x", "http://x", "a/b"] {
            assert!(Address::parse(word).is_err(), "{word}");
        }
    }
}
