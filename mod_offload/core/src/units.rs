//! Bytes, rates and spans of time: text to value and back, in checked arithmetic.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

/// A number of bytes.
///
/// Written as a whole number with an optional suffix, 1024-based, in either case, with an optional
/// trailing `b`: `5120`, `5K`, `5kb`, `2M`, `1G`, `1T`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Bytes(u64);

impl Bytes {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn count(self) -> u64 {
        self.0
    }

    /// Reads a size such as `5120`, `5K` or `2mb`.
    ///
    /// # Errors
    /// A sentence that names the word and what would have been accepted.
    pub fn parse(word: &str) -> Result<Self, String> {
        let (number, unit) = split_number(word);
        let scale: u64 = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 1,
            "K" | "KB" => 1 << 10,
            "M" | "MB" => 1 << 20,
            "G" | "GB" => 1 << 30,
            "T" | "TB" => 1 << 40,
            _ => {
                return Err(format!(
                    "'{word}' is not a size; use a whole number of bytes, or one with K, M, G or T"
                ));
            }
        };
        if number.is_empty() {
            return Err(format!(
                "'{word}' is not a size; use a whole number of bytes, or one with K, M, G or T"
            ));
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(scale))
            .map(Self)
            .ok_or_else(|| format!("'{word}' is too large for a size"))
    }
}

/// The shortest exact spelling that `parse` reads back.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        for (shift, unit) in units {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Bytes a second; never zero.
///
/// Written as [`Bytes`] are.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// So many bytes a second; `None` for zero, which means that there is no limit.
    pub fn new(bytes: u64) -> Option<Self> {
        NonZeroU64::new(bytes).map(Self)
    }

    /// The bytes of a second.
    pub const fn per_second(self) -> u64 {
        self.0.get()
    }

    /// How long so many bytes take.
    pub fn time_for(self, bytes: Bytes) -> Duration {
        let (whole, rest) = (bytes.0 / self.0, bytes.0 % self.0);
        let nanos = u128::from(rest) * 1_000_000_000 / u128::from(self.0.get());
        Duration::from_secs(whole)
            .saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How many bytes fit into a time.
    pub fn bytes_in(self, time: Duration) -> Bytes {
        let bytes = u128::from(self.0.get()) * time.as_nanos() / 1_000_000_000;
        Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// What moved in a time; `None` if it was nothing or no time.
    pub fn of(bytes: Bytes, time: Duration) -> Option<Self> {
        let nanos = time.as_nanos();
        let rate = (u128::from(bytes.0) * 1_000_000_000).checked_div(nanos)?;
        Self::new(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.0.get()).fmt(f)
    }
}

/// A length of time, exact to the millisecond.
///
/// Written as a whole number with an optional unit: `45` and `45s` are seconds, then `500ms`, `5m`,
/// `2h`, `1d`, `1w`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Span(Duration);

impl Span {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The same as the standard library's type.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Reads a span such as `45`, `45s`, `500ms` or `1d`.
    ///
    /// # Errors
    /// A sentence that names the word and what would have been accepted.
    pub fn parse(word: &str) -> Result<Self, String> {
        let (number, unit) = split_number(word);
        let milliseconds: u64 = match unit.to_ascii_lowercase().as_str() {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => {
                return Err(format!(
                    "'{word}' is not a time; use a whole number of seconds, or one with ms, s, m, h, d or w"
                ));
            }
        };
        if number.is_empty() {
            return Err(format!(
                "'{word}' is not a time; use a whole number of seconds, or one with ms, s, m, h, d or w"
            ));
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(milliseconds))
            .map(|total| Self(Duration::from_millis(total)))
            .ok_or_else(|| format!("'{word}' is too long for a time"))
    }
}

/// The shortest exact spelling that `parse` reads back.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let units =
            [(604_800_000, "w"), (86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        for (scale, unit) in units {
            if milliseconds >= scale && milliseconds.is_multiple_of(scale) {
                return write!(f, "{}{unit}", milliseconds / scale);
            }
        }
        if milliseconds == 0 { f.write_str("0s") } else { write!(f, "{milliseconds}ms") }
    }
}

/// The digits that a word begins with, and what follows them.
fn split_number(word: &str) -> (&str, &str) {
    let end = word.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(word.len());
    word.split_at(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_take_a_1024_based_suffix_in_either_case() {
        for (word, bytes) in [
            ("0", 0),
            ("5120", 5120),
            ("5K", 5120),
            ("5k", 5120),
            ("5Kb", 5120),
            ("5kB", 5120),
            ("7b", 7),
            ("2M", 2 << 20),
            ("3g", 3 << 30),
            ("1T", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(Bytes::parse(word), Ok(Bytes::new(bytes)), "{word}");
        }
    }

    #[test]
    fn a_bad_size_is_named_with_what_would_be_accepted() {
        for word in ["", "K", "-1", "5 K", "5X", "0x10", "1.5M", "5KK", "ü"] {
            let error = Bytes::parse(word).unwrap_err();
            assert!(
                error.contains(&format!("'{word}'")) && error.contains("K, M, G or T"),
                "{error}"
            );
        }
        for word in ["18446744073709551616", "18446744073709551615K", "99999999999T"] {
            assert!(Bytes::parse(word).unwrap_err().contains("too large"), "{word}");
        }
    }

    #[test]
    fn times_take_a_unit_and_default_to_seconds() {
        for (word, milliseconds) in [
            ("45", 45_000),
            ("45s", 45_000),
            ("500ms", 500),
            ("5m", 300_000),
            ("2H", 7_200_000),
            ("1d", 86_400_000),
            ("0", 0),
        ] {
            assert_eq!(
                Span::parse(word).unwrap().duration(),
                Duration::from_millis(milliseconds),
                "{word}"
            );
        }
        for word in ["", "s", "-1", "1.5s", "5y"] {
            assert!(Span::parse(word).unwrap_err().contains("ms, s, m, h, d or w"), "{word}");
        }
        assert!(Span::parse("18446744073709551615w").unwrap_err().contains("too long"));
    }

    proptest! {
        #[test]
        fn a_size_is_read_back_as_it_was_printed(bytes: u64) {
            prop_assert_eq!(Bytes::parse(&Bytes::new(bytes).to_string()), Ok(Bytes::new(bytes)));
        }

        #[test]
        fn a_round_size_is_read_back_as_it_was_printed(number in 0u64..1 << 20, shift in 0u32..44) {
            let size = Bytes::new(number << shift);
            prop_assert_eq!(Bytes::parse(&size.to_string()), Ok(size));
        }

        #[test]
        fn a_time_is_read_back_as_it_was_printed(milliseconds in 0u64..1 << 50) {
            let span = Span(Duration::from_millis(milliseconds));
            prop_assert_eq!(Span::parse(&span.to_string()), Ok(span));
        }

        #[test]
        fn a_rate_takes_the_time_in_which_it_moves_as_much(bytes in 0u64..1 << 50, rate in 1u64..1 << 50) {
            let rate = Rate::new(rate).unwrap();
            let moved = rate.bytes_in(rate.time_for(Bytes::new(bytes))).count();
            // A nanosecond is rounded away.
            prop_assert!(moved <= bytes && bytes - moved <= rate.per_second() / 1_000_000_000 + 1);
        }

        #[test]
        fn no_text_makes_a_parser_panic(word: String) {
            let _ = Bytes::parse(&word);
            let _ = Span::parse(&word);
        }
    }
}
