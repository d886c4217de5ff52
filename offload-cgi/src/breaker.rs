//! A circuit breaker: a base that has not answered several times in a row is left in peace for a while,
//! and nobody waits for it.
//!
//! What all processes know of a base is a small file in the cache: how often it has failed in a row, and
//! until when it is not to be asked. When that moment has come, one process asks; the others go on
//! without. The file is written by rename and without a lock: at worst a failure is not counted.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::failure::{Failure, Kind};
use crate::store::{Store, note, read_text, remove};

/// So many failures in a row are not a matter of chance.
const MOST: u32 = 3;
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// What is known of one base.
pub(crate) struct Breaker {
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct State {
    failures: u32,
    until: SystemTime,
}

impl Breaker {
    /// The breaker of the base that is named so.
    pub(crate) fn of(store: &Store, base: &str) -> Self {
        Self { path: store.breaker(base) }
    }

    /// Whether the base may be asked at `now`.
    ///
    /// # Errors
    /// `Down`: it has failed too often, and not long ago.
    pub(crate) fn allow(&self, now: SystemTime) -> Result<(), Failure> {
        let Some(state) = self.state() else { return Ok(()) };
        if state.failures < MOST {
            return Ok(());
        }
        // A moment that is further away than any pause was noted before somebody set the clock back.
        let left = state.until.duration_since(now).unwrap_or_default();
        if !left.is_zero() && left <= LONGEST {
            return Err(Kind::Down.says(format!(
                "the base has not answered {} times in a row and is not asked for a while",
                state.failures
            )));
        }
        // This process tries; the others wait until it knows.
        self.write(State { until: pause_after(state.failures, now), ..state });
        Ok(())
    }

    /// The base has answered.
    pub(crate) fn close(&self) {
        if self.state().is_some() {
            let _ = remove(&self.path);
        }
    }

    /// The base has not answered, at `now`.
    pub(crate) fn count(&self, now: SystemTime) {
        let failures = self.state().map_or(0, |state| state.failures).saturating_add(1);
        self.write(State { failures, until: pause_after(failures, now) });
    }

    fn state(&self) -> Option<State> {
        parse(&read_text(&self.path)?)
    }

    fn write(&self, state: State) {
        let since = state.until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = format!("{} {}\n", state.failures, since.as_millis());
        let _ = note(&self.path, text.as_bytes());
    }
}

fn parse(text: &str) -> Option<State> {
    let (failures, until) = text.strip_suffix('\n')?.split_once(' ')?;
    let until = UNIX_EPOCH.checked_add(Duration::from_millis(until.parse().ok()?))?;
    Some(State { failures: failures.parse().ok()?, until })
}

/// Until when to leave the base in peace.
fn pause_after(failures: u32, now: SystemTime) -> SystemTime {
    let doubled = FIRST.saturating_mul(1 << failures.saturating_sub(MOST).min(10));
    now.checked_add(doubled.min(LONGEST)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_three_failures_in_a_row_one_asks_and_the_others_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let breaker = Breaker { path: folder.path().join("breaker") };
        let at = |milliseconds: u64| {
            UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + milliseconds)
        };
        for _ in 0..MOST {
            assert!(breaker.allow(at(0)).is_ok());
            breaker.count(at(0));
        }
        assert_eq!(breaker.allow(at(999)).unwrap_err().kind, Kind::Down);
        assert!(breaker.allow(at(1000)).is_ok());
        assert!(breaker.allow(at(1001)).is_err(), "the second does not ask");
        breaker.count(at(1100));
        assert!(breaker.allow(at(3000)).is_err() && breaker.allow(at(3200)).is_ok());
        breaker.close();
        assert!(breaker.allow(at(3201)).is_ok());
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nobody_from_asking() {
        let folder = tempfile::tempdir().unwrap();
        let breaker = Breaker { path: folder.path().join("breaker") };
        let day = Duration::from_secs(86_400);
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        (0..MOST).for_each(|_| breaker.count(now + day));
        assert!(breaker.allow(now + day).is_err());
        assert!(breaker.allow(now).is_ok());
        assert!(breaker.allow(now).is_err(), "the second does not ask");
    }

    #[test]
    fn a_damaged_note_is_no_reason_not_to_ask() {
        for text in ["", "x", "3\n", "3 x\n", "99999999999 1\n", "3 99999999999999999999\n"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
