//! URL paths: the one canonical spelling that both sides agree on, and the safe spelling for a header.

use std::borrow::Cow;
use std::fmt;

/// A URL path in its canonical spelling.
///
/// It begins with `/`. Unreserved characters stand for themselves, what else was escaped stays so,
/// in upper case, what may not stand in a path is escaped (RFC 3986, sections 3.3 and 6.2.2), there
/// are no dot segments and no empty ones, but for a last one. So `%41` and `A`, `/a/./b` and `/a/b`, `//a` and
/// `/a` are one file, as they are for httpd (MergeSlashes On).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CanonicalPath(String);

/// Why a path has no canonical spelling. Every one of them is the client's fault: 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PathError {
    /// It does not begin with a slash.
    Relative,
    /// A `%` is not followed by two hexadecimal digits.
    BrokenEscape,
    /// It contains a NUL, a control character, a backslash or an encoded slash.
    Forbidden,
    /// Its dot segments lead above the root.
    AboveRoot,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relative => "the path does not begin with '/'",
            Self::BrokenEscape => "the path has a '%' that no two hexadecimal digits follow",
            Self::Forbidden => "the path has a control character, a backslash or an encoded slash",
            Self::AboveRoot => "the path leads above the root",
        })
    }
}

impl std::error::Error for PathError {}

impl CanonicalPath {
    /// Brings the path of a request (no query) to its canonical spelling.
    ///
    /// # Errors
    /// `PathError`, when the path is one that no server should act on: different programs would
    /// understand it differently.
    pub fn parse(raw: &[u8]) -> Result<Self, PathError> {
        let Some((b'/', rest)) = raw.split_first() else { return Err(PathError::Relative) };
        if let Some(path) = already_canonical(raw) {
            return Ok(Self(path.to_owned()));
        }
        let mut segments: Vec<String> = Vec::new();
        let mut ends_in_folder = false;
        for segment in rest.split(|&byte| byte == b'/') {
            let segment = canonical_segment(segment)?;
            ends_in_folder = matches!(segment.as_str(), "" | "." | "..");
            match segment.as_str() {
                "" | "." => {}
                ".." => {
                    segments.pop().ok_or(PathError::AboveRoot)?;
                }
                _ => segments.push(segment),
            }
        }
        let mut path = String::with_capacity(raw.len() + 8);
        for segment in &segments {
            path.push('/');
            path.push_str(segment);
        }
        if ends_in_folder || path.is_empty() {
            path.push('/');
        }
        Ok(Self(path))
    }

    /// The canonical spelling: ASCII, begins with `/`, safe in a request line and in a header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of a request target in origin form or absolute form (RFC 9112, section 3.2), as the client
/// wrote it, without query and fragment. `None` for the other forms.
pub fn of_target(target: &[u8]) -> Option<&[u8]> {
    let path = if target.starts_with(b"/") {
        target
    } else {
        let scheme = target.windows(3).position(|window| window == b"://")?;
        let rest = &target[scheme + 3..];
        match rest.iter().position(|byte| b"/?#".contains(byte)) {
            Some(end) if rest[end] == b'/' => &rest[end..],
            _ => b"/",
        }
    };
    path.split(|byte| b"?#".contains(byte)).next()
}

/// Spells a raw request path so that it can stand in a `Location` header (RFC 3986, section 3.3).
///
/// What the client wrote stays as it was; only bytes that may not stand in a path, among them CR, LF,
/// space, `"`, `#`, `?` and everything above ASCII, and a `%` that begins no escape, become `%XX`.
pub fn percent_encode(raw: &[u8]) -> Cow<'_, str> {
    let plain = |byte: &u8| *byte == b'/' || is_path_char(*byte);
    if let (true, Ok(text)) = (raw.iter().all(plain), std::str::from_utf8(raw)) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(raw.len() * 3);
    for (index, &byte) in raw.iter().enumerate() {
        let escape = byte == b'%' && escaped_byte(&raw[index..]).is_some();
        if escape || byte == b'/' || is_path_char(byte) {
            text.push(char::from(byte));
        } else {
            push_escaped(&mut text, byte);
        }
    }
    Cow::Owned(text)
}

/// Most paths of most requests are spelled canonically, which one look at each byte shows.
fn already_canonical(raw: &[u8]) -> Option<&str> {
    let mut before = 0;
    for &byte in raw {
        // A segment that is empty or begins with a dot may have to go.
        if !(is_path_char(byte) || byte == b'/') || (before == b'/' && matches!(byte, b'/' | b'.'))
        {
            return None;
        }
        before = byte;
    }
    std::str::from_utf8(raw).ok()
}

fn canonical_segment(raw: &[u8]) -> Result<String, PathError> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&first, after)) = rest.split_first() {
        let escape = first == b'%';
        let byte = if escape {
            let byte = escaped_byte(rest).ok_or(PathError::BrokenEscape)?;
            rest = &rest[3..];
            byte
        } else {
            rest = after;
            first
        };
        if byte == b'/' || byte == b'\\' || byte.is_ascii_control() {
            return Err(PathError::Forbidden);
        }
        // Only an unreserved character means the same with and without its escape: to some servers
        // `;` begins a parameter and `%3B` does not.
        let literal = if escape { is_unreserved(byte) } else { is_path_char(byte) };
        if literal { text.push(char::from(byte)) } else { push_escaped(&mut text, byte) }
    }
    Ok(text)
}

/// The byte that `%XX` at the beginning of `text` stands for.
fn escaped_byte(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

fn push_escaped(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// `unreserved` of RFC 3986, section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pchar` of RFC 3986 without the escape: unreserved, sub-delims, `:` and `@`.
fn is_path_char(byte: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 128 {
            table[byte as usize] = is_unreserved(byte)
                || matches!(
                    byte,
                    b'!' | b'$'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b','
                        | b';'
                        | b'='
                        | b':'
                        | b'@'
                );
            byte += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(raw: &str) -> Result<String, PathError> {
        CanonicalPath::parse(raw.as_bytes()).map(|path| path.to_string())
    }

    #[test]
    fn one_file_has_one_spelling() {
        for (raw, path) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/%41", "/A"),
            ("/%7e", "/~"),
            ("/%c3%bc", "/%C3%BC"),
            ("/ü", "/%C3%BC"),
            ("/a b", "/a%20b"),
            ("/a%20b", "/a%20b"),
            ("/100%25", "/100%25"),
            ("/%23%3F", "/%23%3F"),
            ("/a+b", "/a+b"),
            ("/%2b", "/%2B"),
            ("/%22quoted%22", "/%22quoted%22"),
            ("/it's", "/it's"),
            ("/a/./b", "/a/b"),
            ("/a/x/../b", "/a/b"),
            ("/a/%2e%2E/b", "/b"),
            ("//a///b", "/a/b"),
            ("/a/", "/a/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/...", "/..."),
        ] {
            assert_eq!(canonical(raw).as_deref(), Ok(path), "{raw}");
        }
    }

    #[test]
    fn what_programs_would_understand_differently_is_refused() {
        for (raw, error) in [
            ("", PathError::Relative),
            ("a", PathError::Relative),
            ("http://x/a", PathError::Relative),
            ("/%", PathError::BrokenEscape),
            ("/%4", PathError::BrokenEscape),
            ("/%zz", PathError::BrokenEscape),
            ("/a%2Fb", PathError::Forbidden),
            ("/a%5cb", PathError::Forbidden),
            ("/a\\b", PathError::Forbidden),
            ("/a%00", PathError::Forbidden),
            ("/a\r\nX: y", PathError::Forbidden),
            ("/%0d%0a", PathError::Forbidden),
            ("/%7f", PathError::Forbidden),
            ("/..", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
            ("/%2e%2e/b", PathError::AboveRoot),
        ] {
            assert_eq!(canonical(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn a_target_s_path_is_what_the_client_wrote() {
        for (target, path) in [
            ("/a%41", Some("/a%41")),
            ("/a?b/c", Some("/a")),
            ("/?", Some("/")),
            ("/a#b", Some("/a")),
            ("//a/b", Some("//a/b")),
            ("http://base/a/b?c", Some("/a/b")),
            ("http://base", Some("/")),
            ("http://base?x/y", Some("/")),
            ("HTTP://[::1]:80//a", Some("//a")),
            ("*", None),
            ("base:443", None),
            ("", None),
        ] {
            assert_eq!(of_target(target.as_bytes()), path.map(str::as_bytes), "{target}");
        }
    }

    #[test]
    fn a_location_keeps_what_the_client_wrote_and_escapes_the_rest() {
        for (raw, location) in [
            ("/a%20b/%41", "/a%20b/%41"),
            ("/a b", "/a%20b"),
            ("/ü", "/%C3%BC"),
            ("/a\r\nSet-Cookie: x", "/a%0D%0ASet-Cookie:%20x"),
            ("/50%", "/50%25"),
            ("/%g0", "/%25g0"),
            ("/a?b#c\"d", "/a%3Fb%23c%22d"),
        ] {
            assert_eq!(percent_encode(raw.as_bytes()), location, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_spelling_is_its_own(raw in "/[ -~ü]{0,40}") {
            if let Ok(path) = CanonicalPath::parse(raw.as_bytes()) {
                prop_assert_eq!(CanonicalPath::parse(path.as_str().as_bytes()), Ok(path));
            }
        }

        #[test]
        fn no_bytes_lead_to_a_panic_or_out_of_printable_ascii(raw: Vec<u8>) {
            prop_assert!(percent_encode(&raw).bytes().all(|byte| byte.is_ascii_graphic()));
            if let Ok(path) = CanonicalPath::parse(&raw) {
                prop_assert!(path.as_str().starts_with('/'));
                prop_assert!(path.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert!(!path.as_str().split('/').any(|segment| segment == ".." || segment == "."));
            }
        }

        #[test]
        fn escaping_any_byte_does_not_change_the_file(name in "[a-zA-Z0-9._~ ü-]{1,20}") {
            let escaped: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(canonical(&format!("/x/{name}")), canonical(&format!("/x/{escaped}")));
        }
    }
}
