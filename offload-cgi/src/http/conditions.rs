//! Conditional requests: what is to be sent, if anything (RFC 9110, section 13).

use std::time::SystemTime;

use super::{EntityTag, Modified, Part, Selection, parse_date, select};

/// The request's headers that a condition or a range may stand in, as the client wrote them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<String>,
    pub(crate) if_none_match: Option<String>,
    pub(crate) if_modified_since: Option<String>,
    pub(crate) if_unmodified_since: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) range: Option<String>,
}

impl Conditions {
    /// Whether a file that exists may be answered without its bytes.
    pub(crate) fn may_have_no_body(&self) -> bool {
        [&self.if_match, &self.if_none_match, &self.if_modified_since, &self.if_unmodified_since]
            .into_iter()
            .any(Option::is_some)
    }
}

/// What is known of the file that the conditions are held against.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Validators {
    pub(crate) etag: Option<EntityTag>,
    pub(crate) modified: Option<Modified>,
    /// When the base gave these validators: the `Date` of its answer.
    pub(crate) answered: Option<SystemTime>,
}

impl Validators {
    /// Whether bytes of two downloads with these validators fit together.
    pub(crate) fn are_strong(&self) -> bool {
        match (&self.etag, &self.modified) {
            (Some(etag), _) => !etag.is_weak(),
            (None, Some(modified)) => modified.is_strong(self.answered),
            (None, None) => false,
        }
    }
}

/// What a request for an existing file is to be answered with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// 200 and everything.
    Whole,
    /// 206 and these bytes.
    Part(Part),
    /// 206 and these parts as multipart/byteranges.
    Parts(Vec<Part>),
    /// 304.
    NotModified,
    /// 412.
    Failed,
    /// 416.
    Unsatisfiable,
}

impl Verdict {
    /// The bytes of a file of `length` bytes that it sends.
    pub(crate) fn parts(&self, length: u64) -> Vec<Part> {
        match self {
            Self::Whole => vec![Part::whole(length)],
            Self::Part(part) => vec![*part],
            Self::Parts(parts) => parts.clone(),
            Self::NotModified | Self::Failed | Self::Unsatisfiable => Vec::new(),
        }
    }

    /// Whether bytes of the file are sent.
    pub(crate) fn has_body(&self) -> bool {
        matches!(self, Self::Whole | Self::Part(_) | Self::Parts(_))
    }
}

/// Judges in the order of RFC 9110, section 13.2.2; `get` is false for HEAD, which has no ranges.
pub(crate) fn judge(
    conditions: &Conditions,
    validators: &Validators,
    length: u64,
    get: bool,
) -> Verdict {
    if let Some(wanted) = &conditions.if_match {
        let same = |tag: &EntityTag, other: &EntityTag| tag.strongly_equals(other);
        if !names(wanted, validators.etag.as_ref(), same) {
            return Verdict::Failed;
        }
    } else if let (Some(limit), Some(modified)) =
        (date(conditions.if_unmodified_since.as_deref()), &validators.modified)
        && modified.time() > limit
    {
        return Verdict::Failed;
    }

    if let Some(known) = &conditions.if_none_match {
        let same = |tag: &EntityTag, other: &EntityTag| tag.weakly_equals(other);
        if names(known, validators.etag.as_ref(), same) {
            return Verdict::NotModified;
        }
    } else if let (Some(known), Some(modified)) =
        (date(conditions.if_modified_since.as_deref()), &validators.modified)
        && modified.time() <= known
    {
        return Verdict::NotModified;
    }

    match &conditions.range {
        Some(range) if get && range_applies(conditions.if_range.as_deref(), validators) => {
            match select(range, length) {
                Selection::Whole => Verdict::Whole,
                Selection::Part(part) => Verdict::Part(part),
                Selection::Parts(parts) => Verdict::Parts(parts),
                Selection::Unsatisfiable => Verdict::Unsatisfiable,
            }
        }
        _ => Verdict::Whole,
    }
}

/// Whether a list of tags, or `*`, names the file's tag.
fn names(
    list: &str,
    etag: Option<&EntityTag>,
    same: impl Fn(&EntityTag, &EntityTag) -> bool,
) -> bool {
    if list.trim_matches([' ', '\t']) == "*" {
        return true;
    }
    etag.is_some_and(|etag| EntityTag::list(list).any(|tag| same(&tag, etag)))
}

/// Whether what the client has is surely the beginning of this very version.
fn range_applies(if_range: Option<&str>, validators: &Validators) -> bool {
    let Some(text) = if_range else { return true };
    if let Some(tag) = EntityTag::parse(text) {
        return validators.etag.as_ref().is_some_and(|etag| etag.strongly_equals(&tag));
    }
    match (parse_date(text), &validators.modified) {
        (Some(date), Some(modified)) => {
            date == modified.time() && modified.is_strong(validators.answered)
        }
        _ => false,
    }
}

fn date(text: Option<&str>) -> Option<SystemTime> {
    text.and_then(parse_date)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn file(etag: &str, modified: &str, answered: &str) -> Validators {
        Validators {
            etag: EntityTag::parse(etag),
            modified: Modified::parse(modified),
            answered: parse_date(answered),
        }
    }

    /// `Name: value` lines, as a request has them.
    fn request(lines: &[(&str, &str)]) -> Conditions {
        let mut conditions = Conditions::default();
        for &(name, value) in lines {
            let field = match name {
                "If-Match" => &mut conditions.if_match,
                "If-None-Match" => &mut conditions.if_none_match,
                "If-Modified-Since" => &mut conditions.if_modified_since,
                "If-Unmodified-Since" => &mut conditions.if_unmodified_since,
                "If-Range" => &mut conditions.if_range,
                "Range" => &mut conditions.range,
                _ => panic!("{name}"),
            };
            *field = Some(value.to_owned());
        }
        conditions
    }

    const HALF: Verdict = Verdict::Part(Part { first: 5, length: 5 });

    #[test]
    fn conditions_hold_as_rfc_9110_says() {
        let strong = file("\"v1\"", THEN, AFTER);
        let weak = file("W/\"v1\"", THEN, THEN);
        let dated = file("", THEN, AFTER);
        let just_now = file("", THEN, THEN);
        let range = ("Range", "bytes=5-");
        for (name, file, lines, verdict) in [
            ("nothing asked", &strong, vec![], Verdict::Whole),
            ("same tag", &strong, vec![("If-None-Match", "\"v1\"")], Verdict::NotModified),
            (
                "in a list",
                &strong,
                vec![("If-None-Match", "\"x\", W/\"v1\"")],
                Verdict::NotModified,
            ),
            ("any tag", &strong, vec![("If-None-Match", "*")], Verdict::NotModified),
            ("weak tag", &weak, vec![("If-None-Match", "\"v1\"")], Verdict::NotModified),
            ("other tag", &strong, vec![("If-None-Match", "\"v2\"")], Verdict::Whole),
            (
                "the tag goes before the date",
                &strong,
                vec![("If-None-Match", "\"v2\""), ("If-Modified-Since", AFTER)],
                Verdict::Whole,
            ),
            ("not since", &strong, vec![("If-Modified-Since", THEN)], Verdict::NotModified),
            ("since", &strong, vec![("If-Modified-Since", BEFORE)], Verdict::Whole),
            ("bad date", &strong, vec![("If-Modified-Since", "soon")], Verdict::Whole),
            ("match", &strong, vec![("If-Match", "\"v1\"")], Verdict::Whole),
            ("match any", &dated, vec![("If-Match", "*")], Verdict::Whole),
            ("no match", &strong, vec![("If-Match", "\"v2\"")], Verdict::Failed),
            ("weak never matches", &weak, vec![("If-Match", "W/\"v1\"")], Verdict::Failed),
            ("unmodified", &strong, vec![("If-Unmodified-Since", THEN)], Verdict::Whole),
            ("modified", &strong, vec![("If-Unmodified-Since", BEFORE)], Verdict::Failed),
            (
                "match goes before unmodified",
                &strong,
                vec![("If-Match", "\"v1\""), ("If-Unmodified-Since", BEFORE)],
                Verdict::Whole,
            ),
            (
                "failed goes before not modified",
                &strong,
                vec![("If-Match", "\"v2\""), ("If-None-Match", "\"v1\"")],
                Verdict::Failed,
            ),
            ("range", &strong, vec![range], HALF),
            ("range of nothing", &strong, vec![("Range", "bytes=10-")], Verdict::Unsatisfiable),
            (
                "304 goes before 416",
                &strong,
                vec![("If-None-Match", "\"v1\""), ("Range", "bytes=10-")],
                Verdict::NotModified,
            ),
            ("range if", &strong, vec![range, ("If-Range", "\"v1\"")], HALF),
            ("range if other", &strong, vec![range, ("If-Range", "\"v2\"")], Verdict::Whole),
            ("weak range", &weak, vec![range, ("If-Range", "W/\"v1\"")], Verdict::Whole),
            ("half weak range", &weak, vec![range, ("If-Range", "\"v1\"")], Verdict::Whole),
            ("range if date", &dated, vec![range, ("If-Range", THEN)], HALF),
            ("later date", &dated, vec![range, ("If-Range", AFTER)], Verdict::Whole),
            ("weak date", &just_now, vec![range, ("If-Range", THEN)], Verdict::Whole),
            ("nonsense", &strong, vec![range, ("If-Range", "v1")], Verdict::Whole),
            ("if-range alone", &strong, vec![("If-Range", "\"v1\"")], Verdict::Whole),
        ] {
            assert_eq!(judge(&request(&lines), file, 10, true), verdict, "{name}");
        }
    }

    #[test]
    fn head_has_no_ranges_but_has_conditions() {
        let file = file("\"v1\"", THEN, AFTER);
        let range = request(&[("Range", "bytes=99-")]);
        assert_eq!(judge(&range, &file, 10, false), Verdict::Whole);
        let known = request(&[("If-None-Match", "\"v1\"")]);
        assert_eq!(judge(&known, &file, 10, false), Verdict::NotModified);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(texts: [Option<String>; 6], length: u64, get: bool) {
            let [if_match, if_none_match, if_modified_since, if_unmodified_since, if_range, range] =
                texts;
            let conditions = Conditions {
                if_match, if_none_match, if_modified_since, if_unmodified_since, if_range, range,
            };
            judge(&conditions, &file("\"v1\"", THEN, AFTER), length, get);
        }

        #[test]
        fn a_weak_validator_never_yields_a_part_to_if_range(tag in "[!-~&&[^\"]]{0,8}", weak: bool) {
            let text = format!("{}\"{tag}\"", if weak { "W/" } else { "" });
            let file = file(&format!("W/\"{tag}\""), "", "");
            let conditions = request(&[("Range", "bytes=0-0"), ("If-Range", &text)]);
            prop_assert_eq!(judge(&conditions, &file, 10, true), Verdict::Whole);
        }
    }
}
