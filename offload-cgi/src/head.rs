//! The head of a request: bytes -> values, with the framing of RFC 9112 taken strictly.
//!
//! Two programs that understand one head differently can be played against each other (request smuggling), so
//! whatever is not exactly what the grammar says is refused and the connection ends: a line end that
//! is not CR LF, NUL, folded lines, a space before the colon, more than one Content-Length or Host. No request
//! that is served here has a body; what follows a head is the next head.

use std::fmt;
use std::ops::Range;

use httparse::{EMPTY_HEADER, Error, Status};

/// The longest head, in bytes.
pub(crate) const LONGEST: usize = 16 << 10;
/// The longest first line.
const LONGEST_LINE: usize = 8 << 10;
/// The most fields of a head.
const MOST_FIELDS: usize = 100;

/// A well-formed head.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Head {
    bytes: Box<[u8]>,
    method: Range<usize>,
    target: Range<usize>,
    /// 0 or 1: the digit behind `HTTP/1.`.
    minor: u8,
    fields: Vec<(Range<usize>, Range<usize>)>,
    body: Body,
}

/// What the head announces behind it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Body {
    None,
    /// A length other than zero, or chunks.
    Some,
}

/// Why a head is refused. The connection is closed after each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BadHead {
    /// What is wrong with its form.
    Malformed(&'static str),
    LongLine,
    TooLong,
    TooManyFields,
    Version,
}

impl BadHead {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::LongLine => 414,
            Self::TooLong | Self::TooManyFields => 431,
            Self::Version => 505,
        }
    }
}

impl fmt::Display for BadHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => f.write_str(what),
            Self::LongLine => write!(f, "its first line is longer than {LONGEST_LINE} bytes"),
            Self::TooLong => write!(f, "its head is longer than {LONGEST} bytes"),
            Self::TooManyFields => write!(f, "its head has more than {MOST_FIELDS} fields"),
            Self::Version => f.write_str("only HTTP/1.1 and HTTP/1.0 are spoken here"),
        }
    }
}

/// Bytes of a connection, of which the first head is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    /// Where the head begins: behind empty lines (RFC 9112, section 2.2).
    start: usize,
    /// What has been looked at.
    seen: usize,
    /// Whether the first line has ended.
    has_line: bool,
}

impl Scan {
    /// Looks for a head at the beginning of `bytes`, which have only grown since the last look. Returns it
    /// and the place behind it; `None` when more must come.
    ///
    /// # Errors
    /// Why the connection is to be closed.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> Result<Option<(Head, usize)>, BadHead> {
        while bytes[self.start..].starts_with(b"\r\n") && self.start < LONGEST {
            self.start += 2;
        }
        self.seen = self.seen.max(self.start);
        while let Some(&byte) = bytes.get(self.seen) {
            let before = &bytes[self.start..self.seen];
            let after_cr = before.last() == Some(&b'\r');
            match byte {
                0 => return Err(BadHead::Malformed("there is a NUL in it")),
                b'\n' if !after_cr => {
                    return Err(BadHead::Malformed("a line does not end with CR LF"));
                }
                b'\n' if before.ends_with(b"\r\n\r") => {
                    let end = self.seen + 1;
                    return Head::parse(&bytes[self.start..end]).map(|head| Some((head, end)));
                }
                b'\n' => self.has_line = true,
                _ if after_cr => return Err(BadHead::Malformed("there is a CR within a line")),
                b'\r' => {}
                _ => self.seen += ordinary(&bytes[self.seen + 1..]),
            }
            self.seen += 1;
            if !self.has_line && self.seen - self.start >= LONGEST_LINE {
                return Err(BadHead::LongLine);
            }
            if self.seen >= LONGEST {
                return Err(BadHead::TooLong);
            }
        }
        Ok(None)
    }
}

/// How many bytes there are before the first that means something to the scan: nearly all are such.
fn ordinary(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| matches!(byte, 0 | b'\n' | b'\r')).unwrap_or(bytes.len())
}

impl Head {
    /// Reads a head that ends with its empty line.
    fn parse(bytes: &[u8]) -> Result<Self, BadHead> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(Status::Complete(length)) if length == bytes.len() => {}
            Ok(_) => return Err(BadHead::Malformed("its head has no end")),
            Err(error) => return Err(reason(error, bytes)),
        }
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(BadHead::Malformed("its first line is incomplete"));
        };
        if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(BadHead::Malformed("its target has control characters in it"));
        }
        let place = |part: &[u8]| {
            // httparse gives parts of `bytes`.
            let start = part.as_ptr().addr().wrapping_sub(bytes.as_ptr().addr());
            start..start.saturating_add(part.len())
        };
        let fields = request
            .headers
            .iter()
            .map(|field| (place(field.name.as_bytes()), place(field.value)))
            .collect();
        let mut head = Self {
            method: place(method.as_bytes()),
            target: place(target.as_bytes()),
            minor,
            fields,
            body: Body::None,
            bytes: bytes.into(),
        };
        head.body = head.framing()?;
        head.check_host()?;
        Ok(head)
    }

    /// RFC 9112, section 6.
    fn framing(&self) -> Result<Body, BadHead> {
        let mut lengths = self.all("content-length");
        let length = lengths.next();
        if lengths.next().is_some() {
            return Err(BadHead::Malformed("it has more than one Content-Length"));
        }
        if self.field("transfer-encoding").is_some() {
            if length.is_some() {
                return Err(BadHead::Malformed("it has a Content-Length and a Transfer-Encoding"));
            }
            if self.minor == 0 {
                return Err(BadHead::Malformed("HTTP/1.0 has no Transfer-Encoding"));
            }
            // In whatever coding: no body is read here.
            return Ok(Body::Some);
        }
        match length {
            None => Ok(Body::None),
            Some(digits) if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) => {
                Err(BadHead::Malformed("its Content-Length is no number"))
            }
            Some(digits) if digits.iter().all(|digit| *digit == b'0') => Ok(Body::None),
            Some(_) => Ok(Body::Some),
        }
    }

    /// RFC 9112, section 3.2.
    fn check_host(&self) -> Result<(), BadHead> {
        let mut hosts = self.all("host");
        match (hosts.next(), hosts.next()) {
            (None, _) if self.minor == 0 => Ok(()),
            (None, _) => Err(BadHead::Malformed("it has no Host")),
            (Some(host), None) if host.iter().all(|byte| is_of_host(*byte)) => Ok(()),
            (Some(_), None) => Err(BadHead::Malformed("its Host is none")),
            (Some(_), Some(_)) => Err(BadHead::Malformed("it has more than one Host")),
        }
    }

    pub(crate) fn method(&self) -> &str {
        self.text(&self.method)
    }

    /// The target as it was written.
    pub(crate) fn target(&self) -> &str {
        self.text(&self.target)
    }

    /// The digit behind `HTTP/1.`.
    pub(crate) fn minor(&self) -> u8 {
        self.minor
    }

    /// The first line, for logs.
    pub(crate) fn line(&self) -> String {
        let version = if self.minor == 0 { "HTTP/1.0" } else { "HTTP/1.1" };
        [self.method(), self.target(), version].join(" ")
    }

    /// Whether something follows that is not the next head.
    pub(crate) fn has_body(&self) -> bool {
        self.body == Body::Some
    }

    /// Whether the client wants to go on with this connection (RFC 9112, section 9.3).
    pub(crate) fn wants_more(&self) -> bool {
        let mut options = self
            .all("connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii);
        if self.minor == 0 {
            return options.any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
        }
        !options.any(|option| option.eq_ignore_ascii_case(b"close"))
    }

    /// The host that is asked, without its port: that of an absolute target, else the Host field.
    pub(crate) fn host(&self) -> &[u8] {
        let authority = absolute(self.target().as_bytes())
            .or_else(|| self.all("host").next())
            .unwrap_or_default();
        match authority.iter().rposition(|byte| *byte == b':') {
            Some(colon) if authority[colon..].iter().all(|byte| *byte != b']') => {
                &authority[..colon]
            }
            _ => authority,
        }
    }

    /// The first field of this name, which is in lower case.
    pub(crate) fn field(&self, name: &'static str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// What a CGI would find in its environment under this name (RFC 3875, section 4.1).
    pub(crate) fn variable(&self, name: &str) -> Option<Vec<u8>> {
        match name {
            "REQUEST_METHOD" => Some(self.method().into()),
            "REQUEST_URI" => Some(self.target().into()),
            "CONTENT_LENGTH" => self.has_body().then(|| b"1".to_vec()),
            _ => {
                let name = name.strip_prefix("HTTP_")?;
                let mut values = self.fields.iter().filter_map(|(field, value)| {
                    let field = &self.bytes[field.clone()];
                    let same = field.len() == name.len()
                        && field.iter().zip(name.bytes()).all(|(byte, wanted)| match wanted {
                            // `If_Range` is another field.
                            b'_' => *byte == b'-',
                            _ => byte.eq_ignore_ascii_case(&wanted),
                        });
                    same.then(|| &self.bytes[value.clone()])
                });
                let mut joined = values.next()?.to_vec();
                for value in values {
                    joined.extend_from_slice(b", ");
                    joined.extend_from_slice(value);
                }
                Some(joined)
            }
        }
    }

    fn all<'a>(&'a self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(|(field, _)| self.bytes[field.clone()].eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| &self.bytes[value.clone()])
    }

    fn text(&self, place: &Range<usize>) -> &str {
        // httparse has made sure of it.
        std::str::from_utf8(&self.bytes[place.clone()]).unwrap_or_default()
    }
}

/// The authority of an absolute target.
fn absolute(target: &[u8]) -> Option<&[u8]> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        start.eq_ignore_ascii_case(scheme.as_bytes()).then(|| &rest[..end])
    })
}

/// Whether a byte can stand in `uri-host [ ":" port ]` (RFC 3986, section 3.2.2).
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

fn reason(error: Error, bytes: &[u8]) -> BadHead {
    let mut line =
        bytes.split(|byte| *byte == b'\r').next().unwrap_or_default().split(|b| *b == b' ');
    let protocol = line.nth(2).filter(|_| line.next().is_none());
    match error {
        Error::TooManyHeaders => BadHead::TooManyFields,
        Error::Version if protocol.is_some_and(|word| word.starts_with(b"HTTP/")) => {
            BadHead::Version
        }
        Error::HeaderName => BadHead::Malformed("a field's name is none"),
        Error::HeaderValue => BadHead::Malformed("a field's value has control characters in it"),
        Error::NewLine => BadHead::Malformed("a line does not end with CR LF"),
        Error::Status | Error::Token | Error::Version => {
            BadHead::Malformed("its first line is none of HTTP")
        }
    }
}

#[cfg(test)]
mod tests;
