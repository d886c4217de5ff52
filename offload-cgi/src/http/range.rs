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

    /// Where the byte behind the last one is.
    pub(crate) fn end(self) -> u64 {
        self.first.saturating_add(self.length)
    }

    /// The `Content-Range` of this part, which is not empty, of a file of `total` bytes.
    pub(crate) fn content_range(self, total: u64) -> String {
        let last = self.end().saturating_sub(1);
        format!("bytes {}-{last}/{total}", self.first)
    }
}

/// What a `Range` header selects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Selection {
    /// The header says nothing that this server acts on: the whole file.
    Whole,
    /// These bytes, at least one, all of them in the file.
    Part(Part),
    /// Several parts, none empty, no two of which touch; in the order in which they were asked for.
    Parts(Vec<Part>),
    /// A range, but none that the file has: 416.
    Unsatisfiable,
}

/// More ranges than these are not a client's wish but an attack (RFC 9110, section 14.2).
const MOST: usize = 32;
/// Parts with a smaller gap are sent as one: the head of a part would be longer (section 15.3.7.2).
const SMALL_GAP: u64 = 128;

/// Selects from a file of `length` bytes.
///
/// Malformed ranges are ignored, as RFC 9110 allows and as clients expect; so are sets of more ranges
/// than a client needs, or of more bytes than the file has; an empty file has no ranges.
pub(crate) fn select(header: &str, length: u64) -> Selection {
    let Some(set) = set(header) else { return Selection::Whole };
    let Some(end) = length.checked_sub(1) else { return Selection::Whole };
    let mut parts = Vec::new();
    for (count, range) in set.split(',').enumerate() {
        if count == MOST {
            return Selection::Whole;
        }
        match range.trim_matches([' ', '\t']) {
            // An empty element of a list is none (section 5.6.1).
            "" => {}
            range => match one(range, length, end) {
                Some(part) => parts.extend(part),
                None => return Selection::Whole,
            },
        }
    }
    if set.split(',').all(|range| range.trim_matches([' ', '\t']).is_empty()) {
        return Selection::Whole;
    }
    let total = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.length));
    if parts.len() > 1 && total > length {
        return Selection::Whole;
    }
    match coalesce(parts).as_slice() {
        [] => Selection::Unsatisfiable,
        [part] => Selection::Part(*part),
        parts => Selection::Parts(parts.to_vec()),
    }
}

/// One range: `None` when it makes no sense, nothing in it when the file has no such bytes.
fn one(range: &str, length: u64, end: u64) -> Option<Option<Part>> {
    let (first, last) = range.split_once('-')?;
    Some(match (position(first)?, position(last)?) {
        (None, None) => return None,
        (None, Some(0)) => None,
        (None, Some(suffix)) => {
            let wanted = suffix.min(length);
            Some(Part { first: length - wanted, length: wanted })
        }
        (Some(first), Some(last)) if last < first => return None,
        (Some(first), _) if first > end => None,
        (Some(first), last) => {
            let last = last.unwrap_or(end).min(end);
            Some(Part { first, length: last - first + 1 })
        }
    })
}

/// Makes one part of those that overlap or nearly touch; it stands where the first of them stood.
fn coalesce(parts: Vec<Part>) -> Vec<Part> {
    let mut merged: Vec<Part> = Vec::new();
    for part in parts {
        let mut part = part;
        let mut place = None;
        // To merge with one may bring it close to another.
        while let Some(at) = merged.iter().position(|other| touch(*other, part)) {
            let other = merged.remove(at);
            let first = part.first.min(other.first);
            part = Part { first, length: part.end().max(other.end()) - first };
            place = Some(place.map_or(at, |place: usize| place.min(at)));
        }
        merged.insert(place.unwrap_or(merged.len()), part);
    }
    merged
}

fn touch(one: Part, other: Part) -> bool {
    one.first <= other.end().saturating_add(SMALL_GAP)
        && other.first <= one.end().saturating_add(SMALL_GAP)
}

/// What follows `bytes=`.
fn set(header: &str) -> Option<&str> {
    let (unit, set) = header.split_once('=')?;
    unit.trim_matches([' ', '\t']).eq_ignore_ascii_case("bytes").then_some(set)
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
            ("bytes=0-1,3-4", 10, part(0, 5)),
            ("bytes=,0-1,", 10, part(0, 2)),
            ("bytes=0-1,x", 10, WHOLE),
            ("bytes=20-,0-1", 10, part(0, 2)),
            ("bytes=20-,-0", 10, NONE),
            ("bytes=0-,0-", 10, WHOLE),
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

    #[test]
    fn several_ranges_are_several_parts_unless_they_nearly_touch() {
        let parts = |list: &[(u64, u64)]| {
            let part = |&(first, length): &(u64, u64)| Part { first, length };
            Selection::Parts(list.iter().map(part).collect())
        };
        for (header, selection) in [
            ("bytes=0-9,5000-5009", parts(&[(0, 10), (5000, 10)])),
            ("bytes=5000-5009, 0-9", parts(&[(5000, 10), (0, 10)])),
            ("bytes=5000-5009,0-9,5010-5019", parts(&[(5000, 20), (0, 10)])),
            ("bytes=-10,0-0", parts(&[(9990, 10), (0, 1)])),
            ("bytes=0-9,138-139", part(0, 140)),
            ("bytes=0-9,139-140", parts(&[(0, 10), (139, 2)])),
            ("bytes=0-9,5-", WHOLE),
            ("bytes=0-9,100-109", part(0, 110)),
        ] {
            assert_eq!(select(header, 10_000), selection, "{header}");
        }
        let many = |count: u64| {
            let ranges: Vec<_> = (0..count).map(|at| format!("{0}-{0}", at * 1000)).collect();
            select(&format!("bytes={}", ranges.join(",")), 1_000_000)
        };
        assert!(matches!(many(32), Selection::Parts(parts) if parts.len() == 32));
        assert_eq!(many(33), WHOLE);
    }

    proptest! {
        #[test]
        fn parts_have_what_was_asked_for_and_small_gaps_and_nothing_twice(
            ranges in prop::collection::vec((0u64..3000, 0u64..400), 1..8),
            length in 1u64..3000,
        ) {
            let text: Vec<_> = ranges.iter().map(|(first, more)| format!("{first}-{}", first + more)).collect();
            let header = format!("bytes={}", text.join(", "));
            let asked = |position: u64| {
                ranges.iter().any(|&(first, more)| (first..=first + more).contains(&position))
            };
            let sum: u64 = ranges.iter().map(|&(first, more)| {
                (first..=first + more).filter(|position| *position < length).count() as u64
            }).sum();
            let in_file = ranges.iter().filter(|(first, _)| *first < length).count();
            let parts = match select(&header, length) {
                Selection::Whole => {
                    prop_assert!(in_file > 1 && sum > length);
                    return Ok(());
                }
                Selection::Unsatisfiable => vec![],
                Selection::Part(part) => vec![part],
                Selection::Parts(parts) => parts,
            };
            let mut times = vec![0; usize::try_from(length).unwrap()];
            for part in &parts {
                prop_assert!(part.length > 0 && part.end() <= length);
                for position in part.first..part.end() {
                    times[usize::try_from(position).unwrap()] += 1;
                }
                prop_assert!(asked(part.first) && asked(part.end() - 1));
            }
            let mut gap = 0;
            for (position, &times) in (0..).zip(&times) {
                prop_assert!(times <= 1 && (times == 1 || !asked(position)));
                gap = if times == 1 && !asked(position) { gap + 1 } else { 0 };
                prop_assert!(gap <= SMALL_GAP);
            }
        }

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
