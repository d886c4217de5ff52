//! Throttling: how fast may a response go.
//!
//! The kernel does the pacing (`SO_MAX_PACING_RATE`, socket(7)): a transfer holds no thread. What is
//! decided here is the rate that a socket is given, and how much may wait in its queue.

use crate::directive::Layer;
use crate::limit::Variable;
use crate::units::{Bytes, Rate};

/// What holds for one response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Terms {
    /// The most that its connection may carry; `None`: as fast as it goes.
    pub rate: Option<Rate>,
    /// The first bytes, which go at full speed.
    pub burst: Bytes,
}

/// The variables that mod_ratelimit reads; their values are KiB.
const RATE_LIMIT: &str = "rate-limit";
const RATE_INITIAL_BURST: &str = "rate-initial-burst";

impl Terms {
    /// What the section and the environment of a request say. `complain` is told the name of a variable
    /// whose value is none, and a sentence about it.
    pub fn of<'v>(
        section: &Layer,
        variable: impl Fn(&str) -> Option<&'v [u8]>,
        mut complain: impl FnMut(&str, String),
    ) -> Self {
        let mut read = |name: &str, unit: u64| {
            let value = variable(name)?;
            let parsed = match std::str::from_utf8(value) {
                Ok(word) => Bytes::parse(word.trim()),
                Err(_) => Err(format!("'{}' is not a size", value.escape_ascii())),
            };
            match parsed.map(|bytes| bytes.count().checked_mul(unit)) {
                Ok(Some(bytes)) => Some(Bytes::new(bytes)),
                Ok(None) => {
                    complain(name, format!("{name}={} is too large", value.escape_ascii()));
                    None
                }
                Err(sentence) => {
                    complain(name, format!("{name}: {sentence}"));
                    None
                }
            }
        };
        let mut choose = |own: Option<&Variable>, common: &str, said: Bytes| {
            own.and_then(|variable| read(&variable.0, 1))
                .or_else(|| read(common, 1024))
                .unwrap_or(said)
        };
        let rate = choose(section.choke_rate_env(), RATE_LIMIT, section.choke_rate());
        let burst = choose(section.choke_burst_env(), RATE_INITIAL_BURST, section.choke_burst());
        Self { rate: Rate::new(rate.count()), burst }
    }
}

/// How many bytes may wait in a socket's queue unsent (`TCP_NOTSENT_LOWAT`, tcp(7)) at a rate: what is
/// in the queue counts as sent for httpd, so it is little; but not so little that the queue runs dry.
pub fn queue_limit(rate: Rate) -> u32 {
    u32::try_from((rate.per_second() / 4).clamp(16 << 10, 1 << 20)).unwrap_or(1 << 20)
}

/// The most that httpd or the kernel takes in one step; at low rates it is more than [`queue_limit`].
const STEP: u64 = 64 << 10;

/// The same during a burst: so much that the queue of a fast client does not run dry.
pub const BURST_QUEUE: u32 = 64 << 10;

/// The last bytes of a burst have a smaller queue: what is unsent at the burst's end is paced. They are so many
/// that what the kernel takes in spite of the limit does not reach that end: a step that had been begun,
/// and what finds room in the last segment of the queue.
pub const BURST_END: u64 = 2 * STEP;

/// The queue for [`BURST_END`]: nothing is taken while anything is unsent. Then it is one step.
pub const BURST_END_QUEUE: u32 = 1;

/// The shortest `Timeout` with which a download at this rate lives: httpd gives up when nothing could be
/// written for so long, and between two writes the queue has to drain.
pub fn least_timeout(rate: Rate) -> std::time::Duration {
    rate.time_for(Bytes::new(2 * STEP.max(u64::from(queue_limit(rate)))))
}

/// What the kernel says of a connection at one moment (`TCP_INFO`, tcp(7)).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sample {
    /// When, in microseconds of any clock that does not go back.
    pub at: u64,
    /// Bytes that the client has acknowledged, since the connection began.
    pub acked: u64,
    /// For how many microseconds there was something to send, since the connection began.
    pub busy: u64,
    /// For how many of them the client's window was full.
    pub stalled: u64,
    /// What the kernel sends at: the rate that it was given, unless the network is slower.
    pub pacing: u64,
}

/// What a transfer has been doing; the last second or two weigh most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Meter {
    last: Option<Sample>,
    /// Bytes a second.
    rate: f64,
    /// Which part of the time there was nothing to send.
    idle: f64,
    /// Which part of the time the client's window was full.
    stalled: f64,
    /// How often it was slower than what was given, whatever the reason.
    slowed: f64,
}

/// How long a meter remembers, in microseconds: at low rates longer, for the kernel sends in steps.
fn memory(given: Option<Rate>) -> f64 {
    let steps = given.map_or(0.0, |given| as_float(2 * STEP) * 1e6 / as_float(given.per_second()));
    steps.clamp(1e6, 1e7)
}

impl Meter {
    /// Takes a sample; what the transfer wants now, of the rate `given`: [`u64::MAX`] if it takes all that
    /// it is given, else somewhat more than it takes.
    pub fn take(&mut self, sample: Sample, given: Option<Rate>) -> u64 {
        let Some(before) = self.last.replace(sample) else { return u64::MAX };
        let time = sample.at.saturating_sub(before.at);
        if time == 0 {
            self.last = Some(before);
            return u64::MAX;
        }
        let [time, moved, busy, stalled] = [
            time,
            sample.acked.saturating_sub(before.acked),
            sample.busy.saturating_sub(before.busy),
            sample.stalled.saturating_sub(before.stalled),
        ]
        .map(as_float);
        if self.rate == 0.0 {
            // There is nothing to remember.
            self.rate = moved * 1e6 / time;
        }
        // A network that is slower, a window of zero, a client that has gone to sleep.
        let is_slowed = given
            .map(|given| as_float(given.per_second()))
            .is_some_and(|given| as_float(sample.pacing) < 0.9 * given || self.rate < 0.5 * given);
        let weight = 1.0 - (-time / memory(given)).exp();
        for (mean, now) in [
            (&mut self.rate, moved * 1e6 / time),
            (&mut self.idle, 1.0 - (busy / time).min(1.0)),
            (&mut self.stalled, (stalled / time).min(1.0)),
            (&mut self.slowed, f64::from(u8::from(is_slowed))),
        ] {
            *mean += (now - *mean) * weight;
        }
        if self.stalled > 0.3 || self.idle > 0.3 {
            as_bytes(self.rate * 1.25)
        } else if self.slowed > 0.5 {
            // Less certain: congestion control needs a while to believe that more is possible.
            as_bytes(self.rate * 2.0)
        } else {
            u64::MAX
        }
    }

    /// Bytes a second.
    pub fn rate(&self) -> u64 {
        as_bytes(self.rate)
    }
}

#[allow(clippy::cast_precision_loss)] // an estimate
fn as_float(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // `as` saturates
fn as_bytes(number: f64) -> u64 {
    number.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::directive::{HostLayer, rows};
    use crate::setting::tests::context;

    fn terms(statements: &[&str], variables: &[(&str, &str)]) -> (Terms, Vec<String>) {
        let mut layer = Layer::default();
        for statement in statements {
            let (name, words) = statement.split_once(' ').unwrap();
            let words: Vec<&str> = words.split_whitespace().collect();
            let row = rows().find(|row| row.name.to_str() == Ok(name)).unwrap();
            row.say(&mut layer, &mut HostLayer::default(), &words, &context()).unwrap();
        }
        let mut complaints = Vec::new();
        let terms = Terms::of(
            &layer,
            |name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes())
            },
            |_, complaint| complaints.push(complaint),
        );
        (terms, complaints)
    }

    fn rate(bytes: u64) -> Option<Rate> {
        Rate::new(bytes)
    }

    #[test]
    fn a_variable_wins_over_the_section_and_ours_over_mod_ratelimits() {
        let said = ["ChokeRate 10k", "ChokeBurst 50k", "ChokeRateEnv R", "ChokeBurstEnv B"];
        let of = |variables: &[(&str, &str)]| {
            let (terms, complaints) = terms(&said, variables);
            assert!(complaints.is_empty(), "{complaints:?}");
            (terms.rate, terms.burst.count())
        };
        assert_eq!(of(&[]), (rate(10 << 10), 50 << 10));
        assert_eq!(of(&[("R", "1M"), ("B", "7")]), (rate(1 << 20), 7));
        assert_eq!(of(&[("rate-limit", "400")]), (rate(400 << 10), 50 << 10));
        assert_eq!(
            of(&[("rate-initial-burst", "512"), ("rate-limit", "1"), ("R", "2")]),
            (rate(2), 512 << 10)
        );
        assert_eq!(of(&[("R", "0")]), (None, 50 << 10), "0 lifts the rate");
    }

    #[test]
    fn a_bad_variable_is_complained_of_and_ignored() {
        let said = ["ChokeRate 10k", "ChokeRateEnv R"];
        for value in ["fast", "-1", "", "1.5", "99999999999T"] {
            let (terms, complaints) = terms(&said, &[("R", value)]);
            assert_eq!(terms.rate, rate(10 << 10), "{value}");
            assert!(complaints.len() == 1 && complaints[0].starts_with("R: "), "{complaints:?}");
        }
        let (_, complaints) = terms(&said, &[("rate-limit", "18446744073709551615")]);
        assert!(complaints[0].contains("too large"), "{complaints:?}");
    }

    #[test]
    fn the_queue_holds_a_quarter_of_a_second_within_bounds() {
        for (bytes, limit) in [(1, 16 << 10), (100 << 10, 25 << 10), (1 << 40, 1 << 20)] {
            assert_eq!(queue_limit(rate(bytes).unwrap()), limit);
        }
        assert_eq!(least_timeout(rate(10_000).unwrap()).as_secs(), 13, "twice 64 KB at 10 KB/s");
    }

    fn sample(seconds: u64, acked: u64, stalled: u64) -> Sample {
        Sample {
            at: seconds * 1_000_000,
            acked,
            busy: seconds * 1_000_000,
            stalled,
            pacing: 100_000,
        }
    }

    #[test]
    fn a_slow_reader_wants_little_more_than_it_reads() {
        let mut meter = Meter::default();
        let given = rate(100_000);
        assert_eq!(meter.take(sample(0, 0, 0), given), u64::MAX, "nothing is known yet");
        for second in 1..10 {
            let wanted = meter.take(sample(second, second * 100_000, 0), given);
            assert_eq!(wanted, u64::MAX, "it takes all, at {second}");
        }
        for second in 10..30 {
            let read = 900_000 + (second - 9) * 10_000;
            let wanted = meter.take(sample(second, read, (second - 9) * 900_000), given);
            assert!(second < 18 || (12_000..=13_000).contains(&wanted), "{wanted} at {second}");
        }
    }

    #[test]
    fn a_slow_network_and_a_slow_source_are_seen() {
        let mut meter = Meter::default();
        meter.take(sample(0, 0, 0), rate(1000));
        // The network is given 100 KB/s and carries 40.
        let given = rate(100_000);
        let slow = |seconds| Sample { pacing: 50_000, ..sample(seconds, seconds * 40_000, 0) };
        let wanted = (1..10).map(|second| meter.take(slow(second), given)).last();
        assert!((70_000..=81_000).contains(&wanted.unwrap()), "{wanted:?}");
        meter = Meter::default();
        meter.take(sample(0, 0, 0), given);
        let idle = Sample { busy: 100_000, ..sample(1, 10_000, 0) };
        assert!(meter.take(idle, given) < 100_000);
    }

    #[test]
    fn a_time_for_no_bytes_is_none() {
        assert_eq!(rate(5).unwrap().time_for(Bytes::new(0)), Duration::ZERO);
        assert_eq!(Rate::of(Bytes::new(10), Duration::ZERO), None);
    }
}
