//! What the base says about a file: validators, length, the headers that travel with it.

use std::fmt;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use ureq::http::HeaderMap;

use crate::freshness::{Defaults, Freshness, seconds};
use crate::http::{EntityTag, Modified, Validators, parse_date};

/// One version of a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Representation {
    pub(crate) validators: Validators,
    pub(crate) length: u64,
    /// Those of `HEADERS` that the base sent.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// Why it must not be stored, if so.
    pub(crate) unstorable: Option<Unstorable>,
    /// For how long another cache has had it already (RFC 9111, section 5.1).
    pub(crate) age: Duration,
}

/// When the base gave the answer; kept, but every reply has its own.
pub(crate) const DATE: &str = "Date";

/// The base's headers that are stored with a file and passed on, besides the validators.
pub(crate) const HEADERS: [&str; 14] = [
    "Access-Control-Allow-Origin",
    "Cache-Control",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Language",
    "Content-MD5",
    "Content-Security-Policy",
    "Content-Type",
    DATE,
    "Digest",
    "Expires",
    "Repr-Digest",
    "Vary",
    "X-Content-Type-Options",
];

/// Why a file is not one that an offload host may serve. Every one of them is a 403.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unfit {
    Authentication,
    NoLength,
    NoValidator,
}

/// Why a file is passed through and not stored: what the base answers the next time may be another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unstorable {
    Cookie,
    Private,
    Varies,
}

impl Unstorable {
    /// For `Cache-Status`, and for whoever reads the log.
    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::Cookie => "set-cookie",
            Self::Private => "private",
            Self::Varies => "varies",
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authentication => "the base wants authentication for it",
            Self::NoLength => "the base does not say how long it is (Content-Length)",
            Self::NoValidator => "the base gives it neither ETag nor Last-Modified",
        })
    }
}

impl Representation {
    /// Reads the headers of a 200, or of a 206 of a file of `total` bytes, that came at `now`.
    ///
    /// # Errors
    /// `Unfit`, when the file must not be served from here.
    pub(crate) fn read(
        headers: &HeaderMap,
        total: Option<u64>,
        now: SystemTime,
    ) -> Result<Self, Unfit> {
        if headers.contains_key("www-authenticate") {
            return Err(Unfit::Authentication);
        }
        let validators = Validators {
            etag: text(headers, "etag").and_then(EntityTag::parse),
            modified: text(headers, "last-modified").and_then(Modified::parse),
            answered: text(headers, "date").and_then(parse_date),
        };
        if validators.etag.is_none() && validators.modified.is_none() {
            return Err(Unfit::NoValidator);
        }
        let length = total.or_else(|| content_length(headers)).ok_or(Unfit::NoLength)?;
        let unstorable = unstorable(headers);
        let age = text(headers, "age").map_or(Duration::ZERO, seconds);
        let expires = joined(headers, "expires").is_some();
        // An answer without a date is of when it came (RFC 9110, section 6.6.1).
        let date = || match validators.answered {
            Some(_) => joined(headers, DATE),
            None => Some(httpdate::fmt_http_date(now)),
        };
        let headers = HEADERS
            .iter()
            // A date is only of use to whom `Expires` is told, which changes as often.
            .filter(|name| **name != DATE || expires)
            .filter_map(|&name| {
                Some((name, if name == DATE { date() } else { joined(headers, name) }?))
            })
            .collect();
        Ok(Self { validators, length, headers, unstorable, age })
    }

    /// Looks whether this may be stored at those of its headers that travel with it: it has been stored.
    pub(crate) fn reconsider(&mut self) {
        let has = |name, wanted| self.header(name).is_some_and(|list| has_word(list, wanted));
        self.unstorable = if has("Cache-Control", is_private) {
            Some(Unstorable::Private)
        } else {
            has("Vary", varies).then_some(Unstorable::Varies)
        };
    }

    /// Takes over from `known` what this part of the same version does not say: an answer to If-Range need
    /// not repeat it (RFC 9110, section 15.3.7; RFC 9111, section 3.4).
    pub(crate) fn complete(&mut self, known: &Self) {
        let said = std::mem::take(&mut self.headers);
        let value = |headers: &[(&'static str, String)], wanted| {
            headers.iter().find(|(name, _)| *name == wanted).cloned()
        };
        self.headers = HEADERS
            .iter()
            .filter_map(|name| value(&said, *name).or_else(|| value(&known.headers, *name)))
            .collect();
    }

    /// How long this is good.
    pub(crate) fn freshness(&self, defaults: Defaults) -> Freshness {
        let date = self.header(DATE).and_then(parse_date);
        Freshness::of(self.header("Cache-Control"), self.header("Expires"), date, defaults)
    }

    /// One of the headers that travel with it.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The name of this version: the same for what has the same validators and length.
    ///
    /// A date alone, from an answer of the same second, may be that of two versions: what has it is another
    /// version than what has the same date from a later answer.
    pub(crate) fn generation(&self) -> String {
        let etag = self.validators.etag.as_ref().map_or("", EntityTag::as_str);
        let modified = self.validators.modified.as_ref().map_or("", Modified::as_str);
        let is_vague = self.validators.etag.is_none() && !self.validators.are_strong();
        let vague = if is_vague { "\0vague" } else { "" };
        let digest = Sha256::digest(format!("{etag}\0{modified}\0{}{vague}", self.length));
        hex(&digest[..16])
    }

    /// Whether this answer is about the version that `wanted` describes, of which more may be known by now.
    pub(crate) fn is_of(&self, wanted: &Self) -> bool {
        let mut same = Self { length: self.length, ..Self::default() };
        same.validators.clone_from(&self.validators);
        if same.validators.answered.is_none() || !wanted.validators.are_strong() {
            // It came later than the answer that it must fit to, and that stays as vague as it was.
            same.validators.answered = wanted.validators.answered;
        }
        same.generation() == wanted.generation()
    }
}

/// The bytes in lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why an answer with these headers must not be stored (RFC 9111, section 3).
fn unstorable(headers: &HeaderMap) -> Option<Unstorable> {
    if headers.contains_key("set-cookie") {
        return Some(Unstorable::Cookie);
    }
    if lists(headers, "cache-control", is_private) {
        return Some(Unstorable::Private);
    }
    lists(headers, "vary", varies).then_some(Unstorable::Varies)
}

fn is_private(directive: &str) -> bool {
    matches!(directive, "private" | "no-store")
}

/// The base is always asked for the identity encoding.
fn varies(field: &str) -> bool {
    !matches!(field, "" | "accept-encoding")
}

/// The one `Content-Length`; none when the base sent several, or a coding that makes it void.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key("transfer-encoding")
        || headers.get_all("content-length").iter().count() != 1
    {
        return None;
    }
    let digits = text(headers, "content-length")?;
    // A sign in front is taken for a number by Rust, and for nonsense by others.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    // Files are addressed with signed offsets.
    let length = is_number.then(|| digits.parse().ok()).flatten();
    length.filter(|length| *length <= i64::MAX.unsigned_abs())
}

/// The value of a header that is printable ASCII; every other one is as good as not sent.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// All values of a header as one list.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Option<Vec<&str>> =
        headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.join(", "))
}

/// Whether a list header has such a word.
fn lists(headers: &HeaderMap, name: &str, wanted: fn(&str) -> bool) -> bool {
    let mut values = headers.get_all(name).iter();
    values.any(|value| has_word(&String::from_utf8_lossy(value.as_bytes()), wanted))
}

/// Whether a list has such a word, with or without an argument; words are given in lower case.
fn has_word(list: &str, wanted: fn(&str) -> bool) -> bool {
    list.split(',').any(|item| {
        let word = item.split('=').next().unwrap_or("").trim();
        wanted(&word.to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use ureq::http::{HeaderName, HeaderValue};

    use super::*;

    fn read(lines: &[(&str, &str)]) -> Result<Representation, Unfit> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        Representation::read(&headers, None, SystemTime::UNIX_EPOCH)
    }

    const LENGTH: (&str, &str) = ("Content-Length", "5");
    const ETAG: (&str, &str) = ("ETag", "\"v1\"");
    const DATE: (&str, &str) = ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT");

    #[test]
    fn what_is_not_for_everybody_is_not_stored() {
        let unstorable = |line| read(&[LENGTH, ETAG, line]).map(|found| found.unstorable);
        for (line, why) in [
            (("Set-Cookie", "a=b"), Unstorable::Cookie),
            (("Cache-Control", "max-age=1, Private"), Unstorable::Private),
            (("Cache-Control", "private=\"x\""), Unstorable::Private),
            (("Cache-Control", "no-store"), Unstorable::Private),
            (("Vary", "Accept-Encoding, cookie"), Unstorable::Varies),
            (("Vary", "User-Agent"), Unstorable::Varies),
            (("Vary", "*"), Unstorable::Varies),
        ] {
            assert_eq!(unstorable(line), Ok(Some(why)), "{line:?}");
        }
        for line in [("Cache-Control", "no-cache, max-age=0"), ("Vary", "Accept-Encoding")] {
            assert_eq!(unstorable(line), Ok(None), "{line:?}");
        }
        assert_eq!(unstorable(("WWW-Authenticate", "Basic")), Err(Unfit::Authentication));
    }

    #[test]
    fn a_validator_and_one_length_are_required() {
        assert!(read(&[LENGTH, ETAG]).is_ok() && read(&[LENGTH, DATE]).is_ok());
        assert_eq!(read(&[LENGTH]), Err(Unfit::NoValidator));
        assert_eq!(read(&[LENGTH, ("ETag", "v1")]), Err(Unfit::NoValidator));
        assert_eq!(read(&[ETAG]), Err(Unfit::NoLength));
        assert_eq!(read(&[ETAG, LENGTH, ("Content-Length", "6")]), Err(Unfit::NoLength));
        assert_eq!(read(&[ETAG, LENGTH, ("Transfer-Encoding", "chunked")]), Err(Unfit::NoLength));
        for length in ["18446744073709551615", "+5", "-5", "5,5", ""] {
            assert_eq!(read(&[ETAG, ("Content-Length", length)]), Err(Unfit::NoLength), "{length}");
        }
    }

    #[test]
    fn an_age_that_is_too_large_is_very_old_and_nonsense_is_none() {
        for (text, age) in [("5", 5), ("99999999999", 1 << 31), ("-1", 0), ("+5", 0), ("x", 0)] {
            let found = read(&[LENGTH, ETAG, ("Age", text)]).unwrap();
            assert_eq!(found.age.as_secs(), age, "{text}");
        }
    }

    #[test]
    fn what_expires_and_has_no_date_is_of_when_it_came() {
        let defaults = Defaults { fresh: Duration::ZERO, stale_if_error: Duration::ZERO };
        let expires = ("Expires", "Thu, 01 Jan 1970 00:01:00 GMT");
        for (date, lifetime) in
            [(None, 60), (Some("yesterday"), 60), (Some("Thu, 01 Jan 1970 00:00:50 GMT"), 10)]
        {
            let mut lines = vec![LENGTH, ETAG, expires];
            lines.extend(date.map(|date| ("Date", date)));
            let freshness = read(&lines).unwrap().freshness(defaults);
            assert_eq!(freshness.lifetime.as_secs(), lifetime, "{date:?}");
        }
    }

    #[test]
    fn only_printable_headers_of_the_list_travel() {
        let lines = [LENGTH, ETAG, ("Content-Type", "a/b"), ("Server", "x"), ("Expires", "\u{fc}")];
        assert_eq!(read(&lines).unwrap().headers, [("Content-Type", "a/b".to_owned())]);
    }

    #[test]
    fn a_date_of_the_same_second_names_another_version_than_one_of_later() {
        let dated = |date: &str| read(&[LENGTH, DATE, ("Date", date)]).unwrap();
        let at_once = dated("Sun, 06 Nov 1994 08:49:37 GMT");
        let later = dated("Sun, 06 Nov 1994 08:49:38 GMT");
        let undated = read(&[LENGTH, DATE]).unwrap();
        assert_eq!(later.generation(), dated("Mon, 07 Nov 1994 08:49:38 GMT").generation());
        assert_ne!(later.generation(), at_once.generation());
        assert_eq!(undated.generation(), at_once.generation());
        // What is asked for at once may come a second later, but nothing vague is taken for the later one.
        for (answer, wanted, fits) in [
            (&later, &at_once, true),
            (&at_once, &at_once, true),
            (&at_once, &later, false),
            (&undated, &later, true),
            (&later, &undated, true),
        ] {
            assert_eq!(answer.is_of(wanted), fits, "{answer:?} {wanted:?}");
        }
        let tagged = |date: &str| read(&[LENGTH, ETAG, DATE, ("Date", date)]).unwrap().generation();
        assert_eq!(
            tagged("Sun, 06 Nov 1994 08:49:37 GMT"),
            tagged("Sun, 06 Nov 1994 08:49:38 GMT"),
            "an ETag needs no date"
        );
    }

    #[test]
    fn each_validator_and_the_length_make_a_generation() {
        let versions = [
            read(&[LENGTH, ETAG]),
            read(&[LENGTH, ("ETag", "W/\"v1\"")]),
            read(&[LENGTH, DATE]),
            read(&[LENGTH, ETAG, DATE]),
            read(&[("Content-Length", "6"), ETAG]),
        ];
        let mut names: Vec<_> =
            versions.iter().map(|one| one.as_ref().unwrap().generation()).collect();
        assert!(names.iter().all(|name| name.len() == 32));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), versions.len());
    }
}
