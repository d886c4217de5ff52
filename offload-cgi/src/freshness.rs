//! How long what the base said is good, and what may be served afterwards (RFC 9111, sections 4.2 and 5.2;
//! RFC 5861).

use std::time::{Duration, SystemTime};

use crate::http::parse_date;

/// What follows from `Cache-Control` and `Expires` of a stored answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Freshness {
    /// So long after a check the base need not be asked again.
    pub(crate) lifetime: Duration,
    /// So much longer the copy may be served while the base is being asked.
    pub(crate) stale_while_revalidate: Duration,
    /// So much longer the copy may be served when the base cannot be asked, unless it forbids that.
    pub(crate) stale_if_error: Duration,
}

/// The settings that hold where the base says nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) fresh: Duration,
    pub(crate) stale_if_error: Duration,
}

impl Freshness {
    /// Reads the headers of an answer; `date` is when the base gave it.
    pub(crate) fn of(
        cache_control: Option<&str>,
        expires: Option<&str>,
        date: Option<SystemTime>,
        defaults: Defaults,
    ) -> Self {
        let directives = Directives::read(cache_control.unwrap_or_default());
        let expires = expires.map(|expires| {
            // What is no date, such as `0`, is in the past (section 5.3).
            parse_date(expires)
                .zip(date)
                .and_then(|(expires, date)| expires.duration_since(date).ok())
                .unwrap_or_default()
        });
        let stated = directives.shared_age.or(directives.age).or(expires);
        let lifetime =
            if directives.no_cache { Duration::ZERO } else { stated.unwrap_or(defaults.fresh) };
        if directives.must_revalidate || directives.no_cache {
            // Not even when the base is down (sections 5.2.2.2, 5.2.2.4 and 5.2.2.8).
            return Self {
                lifetime,
                stale_while_revalidate: Duration::ZERO,
                stale_if_error: Duration::ZERO,
            };
        }
        Self {
            lifetime,
            stale_while_revalidate: directives.while_revalidate.unwrap_or_default(),
            stale_if_error: directives.if_error.unwrap_or(defaults.stale_if_error),
        }
    }
}

#[derive(Default)]
struct Directives {
    no_cache: bool,
    must_revalidate: bool,
    shared_age: Option<Duration>,
    age: Option<Duration>,
    while_revalidate: Option<Duration>,
    if_error: Option<Duration>,
}

impl Directives {
    fn read(text: &str) -> Self {
        let mut directives = Self::default();
        for item in split(text) {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            let seconds = || seconds(value.trim());
            let field = match name.trim().to_ascii_lowercase().as_str() {
                // With field names it is about these only, but nothing here keeps fields apart.
                "no-cache" => {
                    directives.no_cache = true;
                    continue;
                }
                "must-revalidate" | "proxy-revalidate" => {
                    directives.must_revalidate = true;
                    continue;
                }
                "s-maxage" => {
                    // It implies proxy-revalidate (section 5.2.2.10).
                    directives.must_revalidate = true;
                    &mut directives.shared_age
                }
                "max-age" => &mut directives.age,
                "stale-while-revalidate" => &mut directives.while_revalidate,
                "stale-if-error" => &mut directives.if_error,
                _ => continue,
            };
            // Said twice, the shorter time holds (section 4.2.1).
            *field = Some(field.map_or(seconds(), |known| known.min(seconds())));
        }
        directives
    }
}

/// The items of a list, whose quoted strings may have commas in them.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    })
}

/// Delta-seconds (section 1.2.2): what is too large is very long, what is no number is no time at all.
pub(crate) fn seconds(text: &str) -> Duration {
    let digits = text.trim_matches('"');
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Duration::ZERO;
    }
    Duration::from_secs(digits.parse().unwrap_or(u64::MAX).min(1 << 31))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULTS: Defaults =
        Defaults { fresh: Duration::from_secs(1), stale_if_error: Duration::from_secs(86_400) };

    fn of(cache_control: &str) -> (u64, u64, u64) {
        let found = Freshness::of(Some(cache_control), None, None, DEFAULTS);
        (
            found.lifetime.as_secs(),
            found.stale_while_revalidate.as_secs(),
            found.stale_if_error.as_secs(),
        )
    }

    #[test]
    fn cache_control_means_what_rfc_9111_and_rfc_5861_say() {
        for (text, lifetime, while_revalidate, if_error) in [
            ("", 1, 0, 86_400),
            ("public", 1, 0, 86_400),
            ("max-age=60", 60, 0, 86_400),
            ("Max-Age=\"60\"", 60, 0, 86_400),
            ("max-age=60, s-maxage=5", 5, 0, 0),
            ("max-age=0", 0, 0, 86_400),
            ("no-cache", 0, 0, 0),
            ("no-cache, max-age=60", 0, 0, 0),
            ("max-age=60, must-revalidate, stale-if-error=9", 60, 0, 0),
            ("max-age=60, proxy-revalidate", 60, 0, 0),
            ("max-age=60, stale-while-revalidate=7, stale-if-error=9", 60, 7, 9),
            ("max-age=60, max-age=5", 5, 0, 86_400),
            ("max-age=soon", 0, 0, 86_400),
            ("max-age=-1", 0, 0, 86_400),
            ("max-age=99999999999999999999", 1 << 31, 0, 86_400),
            ("x=\"a, no-cache\", max-age=3", 3, 0, 86_400),
        ] {
            assert_eq!(of(text), (lifetime, while_revalidate, if_error), "{text}");
        }
    }

    #[test]
    fn expires_counts_from_the_date_of_the_answer() {
        let date = parse_date("Sun, 06 Nov 1994 08:49:37 GMT");
        for (expires, control, lifetime) in [
            ("Sun, 06 Nov 1994 08:50:37 GMT", None, 60),
            ("Sun, 06 Nov 1994 08:48:37 GMT", None, 0),
            ("0", None, 0),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some("max-age=5"), 5),
        ] {
            let found = Freshness::of(control, Some(expires), date, DEFAULTS);
            assert_eq!(found.lifetime.as_secs(), lifetime, "{expires} {control:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, expires: String) {
            Freshness::of(Some(&text), Some(&expires), None, DEFAULTS);
        }
    }
}
