//! Entity tags and dates, and when two of them are the same (RFC 9110, section 8.8).

use std::time::{Duration, SystemTime};

/// An `ETag` exactly as the base gave it; a weak one stays weak.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EntityTag(String);

impl EntityTag {
    /// Reads one tag: `"…"` or `W/"…"`. What is not one is no validator at all.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (tag, rest) = Self::split(text.trim_matches([' ', '\t']))?;
        rest.is_empty().then_some(tag)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_weak(&self) -> bool {
        self.0.starts_with('W')
    }

    /// The comparison for ranges and `If-Match`: only strong tags are ever the same.
    pub(crate) fn strongly_equals(&self, other: &Self) -> bool {
        !self.is_weak() && self.0 == other.0
    }

    /// The comparison for `If-None-Match`.
    pub(crate) fn weakly_equals(&self, other: &Self) -> bool {
        self.opaque() == other.opaque()
    }

    /// The tags of a list such as `"a", W/"b"`; it ends where it stops being one.
    pub(crate) fn list(text: &str) -> impl Iterator<Item = Self> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let (tag, after) = Self::split(rest.trim_start_matches([' ', '\t', ',']))?;
            rest = after;
            Some(tag)
        })
    }

    fn opaque(&self) -> &str {
        self.0.trim_start_matches("W/")
    }

    /// `entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE`, and what follows it. Bytes above ASCII, which the
    /// grammar allows, are not taken: no server sends them, and every other reader differs on them.
    fn split(text: &str) -> Option<(Self, &str)> {
        let body = text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?;
        let end = body.find('"')?;
        if !body[..end].bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let (tag, rest) = text.split_at(text.len() - body.len() + end + 1);
        Some((Self(tag.to_owned()), rest))
    }
}

/// A `Last-Modified` date: the moment, and the spelling that the base gave it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Modified {
    text: String,
    time: SystemTime,
}

impl Modified {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let time = parse_date(text)?;
        Some(Self { text: text.to_owned(), time })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn time(&self) -> SystemTime {
        self.time
    }

    /// Whether the date tells two versions apart: the answer that carried it was made at least a
    /// second later, so that the file cannot have changed again within the same second (RFC 9110,
    /// section 8.8.2.2).
    pub(crate) fn is_strong(&self, answered: Option<SystemTime>) -> bool {
        answered
            .and_then(|answered| answered.duration_since(self.time).ok())
            .is_some_and(|age| age >= Duration::from_secs(1))
    }
}

/// Reads an HTTP date in any of its three spellings.
pub(crate) fn parse_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim_matches([' ', '\t'])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> EntityTag {
        EntityTag::parse(text).unwrap()
    }

    #[test]
    fn a_tag_is_quoted_ascii_and_nothing_else() {
        for good in ["\"a\"", "W/\"a\"", "\"\"", "\"../../etc/passwd\"", "\"a,b\"", " \"a\" "] {
            assert!(EntityTag::parse(good).is_some(), "{good}");
        }
        for bad in ["", "a", "\"a", "a\"", "\"a\"b", "w/\"a\"", "W/a", "\"a b\"", "\"ü\"", "*"] {
            assert_eq!(EntityTag::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn weak_and_strong_comparison_are_those_of_rfc_9110_8_8_3_2() {
        for (one, two, strong, weak) in [
            ("W/\"1\"", "W/\"1\"", false, true),
            ("W/\"1\"", "W/\"2\"", false, false),
            ("W/\"1\"", "\"1\"", false, true),
            ("\"1\"", "\"1\"", true, true),
            ("\"1\"", "\"2\"", false, false),
        ] {
            assert_eq!(tag(one).strongly_equals(&tag(two)), strong, "{one} {two}");
            assert_eq!(tag(two).strongly_equals(&tag(one)), strong, "{two} {one}");
            assert_eq!(tag(one).weakly_equals(&tag(two)), weak, "{one} {two}");
        }
    }

    #[test]
    fn a_list_keeps_commas_inside_of_tags_and_ends_at_nonsense() {
        let tags = |text| EntityTag::list(text).map(|tag| tag.0).collect::<Vec<_>>();
        assert_eq!(tags("\"a\", W/\"b,c\",,\"d\""), ["\"a\"", "W/\"b,c\"", "\"d\""]);
        assert_eq!(tags("\"a\" nonsense \"b\""), ["\"a\""]);
        assert!(tags("*").is_empty());
    }

    #[test]
    fn a_date_is_strong_a_second_later() {
        let modified = Modified::parse("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (seconds, strong) in [(0, false), (1, true), (100, true)] {
            let answered = modified.time() + Duration::from_secs(seconds);
            assert_eq!(modified.is_strong(Some(answered)), strong, "{seconds}");
        }
        assert!(!modified.is_strong(None));
        assert!(!modified.is_strong(Some(SystemTime::UNIX_EPOCH)));
        assert_eq!(Modified::parse("yesterday"), None);
    }
}
