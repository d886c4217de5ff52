//! What fuzzers call: each takes any bytes, and panics when something that must hold does not.

use offload_core::path::CanonicalPath;
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use crate::cgi;
use crate::client::Trust;
use crate::freshness::{Defaults, Freshness};
use crate::head::{BadHead, Head, Scan};
use crate::http::{Conditions, EntityTag, Modified, Part, Selection, Validators, judge, select};
use crate::representation::Representation;
use crate::store::fuzzing as store;

/// Fields between zero bytes.
fn fields(data: &[u8]) -> Vec<&[u8]> {
    data.split(|byte| *byte == 0).collect()
}

fn text(bytes: Option<&&[u8]>) -> Option<String> {
    bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
}

/// A request's head as a CGI gets it, and the head of a base's answer.
pub fn head(data: &[u8]) {
    let fields = fields(data);
    let names = [
        "REQUEST_METHOD",
        "REQUEST_URI",
        "HTTP_RANGE",
        "HTTP_IF_RANGE",
        "HTTP_IF_MATCH",
        "HTTP_IF_NONE_MATCH",
        "HTTP_IF_MODIFIED_SINCE",
        "HTTP_IF_UNMODIFIED_SINCE",
        "CONTENT_LENGTH",
        "REDIRECT_REQUEST_METHOD",
    ];
    let find = |name: &str| {
        let at = names.iter().position(|other| *other == name)?;
        fields.get(at).map(|bytes| bytes.to_vec())
    };
    if let Ok(request) = cgi::request(find) {
        let validators = Validators {
            etag: EntityTag::parse("\"v1\""),
            modified: Modified::parse("Sun, 06 Nov 1994 08:49:37 GMT"),
            answered: None,
        };
        let verdict = judge(&request.conditions, &validators, 1000, request.get);
        assert!(verdict.parts(1000).iter().all(|part| part.end() <= 1000));
    }
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(halves.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(halves.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    if let Ok(found) = Representation::read(&headers, None, std::time::UNIX_EPOCH) {
        for (_, value) in &found.headers {
            assert!(value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)));
        }
        store::record_is_read_back(&found);
    }
    let proxies = Trust::parse(&String::from_utf8_lossy(data)).unwrap_or_default();
    proxies.client([127, 0, 0, 1].into(), text(fields.first()).as_deref());
    let defaults = Defaults { fresh: Default::default(), stale_if_error: Default::default() };
    let (control, expires) = (text(fields.first()), text(fields.get(1)));
    Freshness::of(control.as_deref(), expires.as_deref(), None, defaults);
}

/// A `Range` of a file of any length: held against a naive reading.
pub fn range(data: &[u8]) {
    let Some((length, header)) = data.split_first_chunk::<8>() else { return };
    let Ok(header) = std::str::from_utf8(header) else { return };
    let length = u64::from_le_bytes(*length);
    let parts = match select(header, length) {
        Selection::Whole => return,
        Selection::Unsatisfiable => {
            assert!(length > 0);
            return;
        }
        Selection::Part(part) => vec![part],
        Selection::Parts(parts) => {
            assert!(parts.len() > 1 && parts.len() <= 32);
            parts
        }
    };
    for (at, part) in parts.iter().enumerate() {
        assert!(
            part.length > 0 && part.first.checked_add(part.length).is_some_and(|end| end <= length)
        );
        assert!(asked(header, length, part.first) && asked(header, length, part.end() - 1));
        let apart = |other: &Part| other.first > part.end() || part.first > other.end();
        assert!(parts.iter().skip(at + 1).all(apart));
    }
    let conditions = Conditions { range: Some(header.to_owned()), ..Conditions::default() };
    judge(&conditions, &Validators::default(), length, true);
}

/// Whether one of the ranges, read one by one, has this position.
fn asked(header: &str, length: u64, position: u64) -> bool {
    let set = header.split_once('=').map_or("", |(_, set)| set);
    set.split(',').any(|range| {
        let Some((first, last)) = range.trim_matches([' ', '\t']).split_once('-') else {
            return false;
        };
        // What has too many digits is beyond every file.
        let number = |text: &str| text.parse::<u128>().unwrap_or(u128::MAX);
        let (length, position) = (u128::from(length), u128::from(position));
        match (first, last) {
            ("", suffix) => position + number(suffix).min(length) >= length,
            (first, "") => position >= number(first),
            (first, last) => position >= number(first) && position <= number(last),
        }
    })
}

/// A request's path: one spelling, which is its own, and safe in a header.
pub fn path(data: &[u8]) {
    let Ok(path) = CanonicalPath::parse(data) else { return };
    let text = path.as_str();
    assert!(text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!text.split('/').any(|segment| matches!(segment, "." | "..")));
    assert!(!text.contains("//") && !text.contains('\\'));
    let upper = text.to_ascii_uppercase();
    assert!(!["%2F", "%5C", "%00", "%0A", "%0D"].iter().any(|bad| upper.contains(bad)));
    assert_eq!(
        CanonicalPath::parse(text.as_bytes()).map(|again| again.to_string()),
        Ok(text.to_owned())
    );
}

/// What a client of the daemon sends: in pieces it is the same as in one, and no head reaches over another's end.
pub fn request(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    assert_eq!(heads(bytes, usize::MAX), heads(bytes, usize::from(*size).max(1)));
}

fn heads(mut bytes: &[u8], size: usize) -> (Vec<Head>, Option<BadHead>) {
    let (mut buffer, mut scan, mut found) = (Vec::new(), Scan::default(), Vec::new());
    loop {
        match scan.find(&buffer) {
            Ok(Some((head, end))) => {
                assert!(buffer[..end].ends_with(b"\r\n\r\n"));
                let start = buffer.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(0);
                let inside = &buffer[start..end - 1];
                assert!(!inside.windows(4).any(|window| window == b"\r\n\r\n"));
                head.variable("HTTP_RANGE");
                head.host();
                buffer.drain(..end);
                scan = Scan::default();
                found.push(head);
            }
            Ok(None) if bytes.is_empty() => return (found, None),
            Ok(None) => {
                let (piece, rest) = bytes.split_at(size.min(bytes.len()));
                buffer.extend_from_slice(piece);
                bytes = rest;
            }
            Err(error) => return (found, Some(error)),
        }
    }
}

/// What stands in the files of a cache.
pub fn metadata(data: &[u8]) {
    store::files_are_read(&String::from_utf8_lossy(data));
}
