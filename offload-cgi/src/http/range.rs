//! Which bytes of a file a `Range` header asks for (RFC 9110, section 14).

/// Some bytes of a file: from `first` on, `length` of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Part {
    pub(crate) first: u64,
    pub(crate) length: u64,
}

impl Part {
    /// All of a file of `length` bytes.
    pub(crate) fn whole(length: u64) -> Self {
        Self { first: 0, length }
    }

    /// The `Content-Range` of this part, which is not empty, of a file of `total` bytes.
    pub(crate) fn content_range(self, total: u64) -> String {
        let last = self.first.saturating_add(self.length).saturating_sub(1);
        format!("bytes {}-{last}/{total}", self.first)
    }
}

/// What a `Range` header selects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Selection {
    /// The header says nothing that this server acts on: the whole file.
    Whole,
    /// These bytes, at least one, all of them in the file.
    Part(Part),
    /// A range, but none that the file has: 416.
    Unsatisfiable,
}

/// Selects from a file of `length` bytes.
///
/// Malformed ranges and sets of several are ignored, as RFC 9110 allows and as clients expect; an
/// empty file has no ranges.
pub(crate) fn select(header: &str, length: u64) -> Selection {
    let Some((first, last)) = split(header) else { return Selection::Whole };
    let Some(end) = length.checked_sub(1) else { return Selection::Whole };
    match (first, last) {
        (None, None) => Selection::Whole,
        (None, Some(0)) => Selection::Unsatisfiable,
        (None, Some(suffix)) => {
            let wanted = suffix.min(length);
            Selection::Part(Part { first: length - wanted, length: wanted })
        }
        (Some(first), Some(last)) if last < first => Selection::Whole,
        (Some(first), _) if first > end => Selection::Unsatisfiable,
        (Some(first), last) => {
            let last = last.unwrap_or(end).min(end);
            Selection::Part(Part { first, length: last - first + 1 })
        }
    }
}

/// The two numbers of the one range in `bytes=A-B`.
fn split(header: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, set) = header.split_once('=')?;
    if !unit.trim_matches([' ', '\t']).eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim_matches([' ', '\t']).split_once('-')?;
    Some((position(first)?, position(last)?))
}

/// A position, or nothing where none is written. One beyond 64 bits is beyond every file.
fn position(digits: &str) -> Option<Option<u64>> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: Selection = Selection::Whole;
    const NONE: Selection = Selection::Unsatisfiable;

    fn part(first: u64, length: u64) -> Selection {
        Selection::Part(Part { first, length })
    }

    #[test]
    fn one_range_is_read_and_the_rest_is_ignored() {
        for (header, length, selection) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=0-9", 10, part(0, 10)),
            ("bytes=2-", 10, part(2, 8)),
            ("bytes=0-", 10, part(0, 10)),
            ("bytes=9-", 10, part(9, 1)),
            ("bytes=10-", 10, NONE),
            ("bytes=5-100", 10, part(5, 5)),
            ("bytes=-3", 10, part(7, 3)),
            ("bytes=-500", 10, part(0, 10)),
            ("bytes=-0", 10, NONE),
            ("bytes=-0", 0, WHOLE),
            ("bytes=-5", 0, WHOLE),
            ("bytes=0-", 0, WHOLE),
            ("BYTES = 1-2", 10, part(1, 2)),
            ("bytes=5-4", 10, WHOLE),
            ("bytes=20-4", 10, WHOLE),
            ("bytes=0--1", 10, WHOLE),
            ("bytes=-", 10, WHOLE),
            ("bytes=", 10, WHOLE),
            ("bytes=a-b", 10, WHOLE),
            ("bytes=+1-2", 10, WHOLE),
            ("bytes=1 -2", 10, WHOLE),
            ("bytes=0-1,3-4", 10, WHOLE),
            ("lines=0-1", 10, WHOLE),
            ("0-1", 10, WHOLE),
            ("bytes=99999999999999999999999-", 10, NONE),
            ("bytes=3-99999999999999999999999", 10, part(3, 7)),
            ("bytes=-99999999999999999999999", 10, part(0, 10)),
            ("bytes=18446744073709551614-", u64::MAX, part(u64::MAX - 1, 1)),
        ] {
            assert_eq!(select(header, length), selection, "{header} of {length}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_what_a_list_of_positions_says(
            first in prop::option::of(0u64..40),
            last in prop::option::of(0u64..40),
            length in 0u64..32,
        ) {
            let text = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
            let header = format!("bytes={}-{}", text(first), text(last));
            let wanted: Vec<u64> = (0..length).filter(|&position| match (first, last) {
                (None, None) => false,
                (None, Some(suffix)) => position + suffix >= length,
                (Some(first), last) => position >= first && last.is_none_or(|last| position <= last),
            }).collect();
            let nonsense = matches!((first, last), (None, None))
                || matches!((first, last), (Some(first), Some(last)) if last < first);
            let expected = match (length, wanted.first()) {
                _ if nonsense => WHOLE,
                (0, _) => WHOLE,
                (_, None) => NONE,
                (_, Some(&first)) => part(first, wanted.len() as u64),
            };
            prop_assert_eq!(select(&header, length), expected);
        }

        #[test]
        fn a_part_lies_in_the_file(header in "(bytes=)?[-0-9, =a]{0,24}", length: u64) {
            if let Selection::Part(part) = select(&header, length) {
                prop_assert!(part.length > 0);
                prop_assert!(part.first.checked_add(part.length).is_some_and(|end| end <= length));
            }
        }

        #[test]
        fn no_text_makes_it_panic(header: String, length: u64) {
            let _ = select(&header, length);
        }
    }
}
