//! A circuit breaker: a base that has not answered several times in a row is left in peace for a while,
//! and nobody waits for it.
//!
//! What all processes know of a base is a small file in the cache: how often it has failed in a row,
//! until when it is not to be asked, and when it has answered anybody. When the moment has come, one process
//! asks; the others go on without. The file is written by rename and without a lock: at worst a failure is not
//! counted.
//!
//! No client can make a base look dead that is not: it counts that there is no connection, and that nothing was
//! said about a file that the base has had before, while it said nothing to anybody. An answer, however little
//! sense it makes, is one.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::failure::{Failure, Kind};
use crate::store::{Store, note, read_text};

/// So many failures in a row are not a matter of chance.
const MOST: u32 = 3;
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Answers are noted once in such a time.
const MOMENT: Duration = Duration::from_secs(1);

/// What is known of one base.
pub(crate) struct Breaker {
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct State {
    failures: u32,
    until: SystemTime,
    /// When the base has answered somebody.
    answered: SystemTime,
}

impl Breaker {
    /// The breaker of the base that is named so.
    pub(crate) fn of(store: &Store, base: &str) -> Self {
        Self { path: store.breaker(base) }
    }

    /// Whether the base may be asked at `now`, about a file that it is known to have or not.
    ///
    /// # Errors
    /// `Down`: it has failed too often, and not long ago.
    pub(crate) fn allow(
        &self,
        now: SystemTime,
        is_known: impl FnOnce() -> bool,
    ) -> Result<(), Failure> {
        let state = self.state();
        if state.failures < MOST {
            return Ok(());
        }
        // A moment that is further away than any pause was noted before somebody set the clock back.
        let left = state.until.duration_since(now).unwrap_or_default();
        let is_pause = !left.is_zero() && left <= LONGEST;
        // What is known to be there is tried first: the base would not answer about something else for ever.
        let since = now.duration_since(state.until).unwrap_or(FIRST);
        if is_pause || (since < FIRST && !is_known()) {
            return Err(Kind::Down.says(format!(
                "the base has not answered {} times in a row and is not asked for a while",
                state.failures
            )));
        }
        // This process tries; the others wait until it knows.
        self.write(State { until: pause_after(state.failures, now), ..state });
        Ok(())
    }

    /// The base has answered, at `now`.
    pub(crate) fn close(&self, now: SystemTime) {
        let state = self.state();
        let noted = now.duration_since(state.answered).is_ok_and(|age| age < MOMENT);
        if state.failures > 0 || !noted {
            self.write(State { answered: now, ..State::default() });
        }
    }

    /// There was no connection to the base, at `now`.
    pub(crate) fn count(&self, now: SystemTime) {
        let state = self.state();
        let failures = state.failures.saturating_add(1);
        self.write(State { failures, until: pause_after(failures, now), ..state });
    }

    /// The base was asked at `begun` about a file that it should have, and has not answered until `now`.
    pub(crate) fn count_silence(&self, begun: SystemTime, now: SystemTime) {
        // If it has answered somebody meanwhile, it is about this file.
        if self.state().answered < begun {
            self.count(now);
        }
    }

    fn state(&self) -> State {
        read_text(&self.path).and_then(|text| parse(&text)).unwrap_or_default()
    }

    fn write(&self, state: State) {
        let since = |moment: SystemTime| moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (until, answered) = (since(state.until), since(state.answered));
        let text = format!("{} {} {}\n", state.failures, until.as_millis(), answered.as_millis());
        let _ = note(&self.path, text.as_bytes());
    }
}

impl Default for State {
    fn default() -> Self {
        Self { failures: 0, until: UNIX_EPOCH, answered: UNIX_EPOCH }
    }
}

fn parse(text: &str) -> Option<State> {
    let mut words = text.strip_suffix('\n')?.split(' ');
    let failures = words.next()?.parse().ok()?;
    let mut moment = || UNIX_EPOCH.checked_add(Duration::from_millis(words.next()?.parse().ok()?));
    let (until, answered) = (moment()?, moment()?);
    words.next().is_none().then_some(State { failures, until, answered })
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
            assert!(breaker.allow(at(0), || true).is_ok());
            breaker.count(at(0));
        }
        assert_eq!(breaker.allow(at(999), || true).unwrap_err().kind, Kind::Down);
        assert!(breaker.allow(at(1000), || true).is_ok());
        assert!(breaker.allow(at(1001), || true).is_err(), "the second does not ask");
        breaker.count(at(1100));
        assert!(
            breaker.allow(at(3000), || true).is_err() && breaker.allow(at(3200), || true).is_ok()
        );
        breaker.close(at(3200));
        assert!(breaker.allow(at(3201), || true).is_ok());
    }

    #[test]
    fn a_base_that_answers_others_is_not_silent() {
        let folder = tempfile::tempdir().unwrap();
        let breaker = Breaker { path: folder.path().join("breaker") };
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds);
        breaker.close(at(50));
        (0..9).for_each(|_| breaker.count_silence(at(10), at(55)));
        assert!(breaker.allow(at(55), || false).is_ok());
        (0..3).for_each(|_| breaker.count_silence(at(51), at(96)));
        assert!(breaker.allow(at(96), || true).is_err());
    }

    #[test]
    fn of_who_may_ask_again_a_file_that_is_known_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let breaker = Breaker { path: folder.path().join("breaker") };
        let at = |milliseconds: u64| {
            UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + milliseconds)
        };
        (0..MOST).for_each(|_| breaker.count(at(0)));
        assert!(breaker.allow(at(1500), || false).is_err());
        assert!(breaker.allow(at(1500), || true).is_ok());
        assert!(breaker.allow(at(3400), || false).is_err());
        assert!(breaker.allow(at(3500), || false).is_ok(), "nobody else has come");
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nobody_from_asking() {
        let folder = tempfile::tempdir().unwrap();
        let breaker = Breaker { path: folder.path().join("breaker") };
        let day = Duration::from_secs(86_400);
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        (0..MOST).for_each(|_| breaker.count(now + day));
        assert!(breaker.allow(now + day, || true).is_err());
        assert!(breaker.allow(now, || true).is_ok());
        assert!(breaker.allow(now, || true).is_err(), "the second does not ask");
    }

    #[test]
    fn a_damaged_note_is_no_reason_not_to_ask() {
        for text in [
            "",
            "x",
            "3\n",
            "3 1\n",
            "3 1 x\n",
            "3 1 1 1\n",
            "99999999999 1 1\n",
            "3 99999999999999999999 1\n",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
