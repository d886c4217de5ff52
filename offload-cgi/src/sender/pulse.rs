//! How fast a client takes what it is sent, and when that is too slow.

use std::time::{Duration, Instant};

/// A download's progress, in bytes of its body.
#[derive(Debug)]
pub(super) struct Pulse {
    /// Bytes of other replies that were still on their way when this one began.
    before: u64,
    /// When what had arrived was looked at last, and how much that was.
    window: (Instant, u64),
    /// When the speed was measured last, and what was sent by then.
    last: (Instant, u64),
    /// Bytes a second lately.
    pub(super) rate: u64,
}

/// What a client is to take at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Least {
    /// Bytes a second; a client that takes nothing at all is always too slow.
    pub(super) rate: u64,
    /// Over a time as long as this.
    pub(super) patience: Duration,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self::behind(0, now)
    }

    /// One whose first bytes wait behind so many others.
    pub(super) fn behind(before: u64, now: Instant) -> Self {
        Self { before, window: (now, 0), last: (now, 0), rate: 0 }
    }

    fn arrived(&self, sent: u64, queued: u64) -> u64 {
        self.before.saturating_add(sent).saturating_sub(queued)
    }

    /// Measures the speed, for who looks at it.
    pub(super) fn measure(&mut self, sent: u64, now: Instant) {
        let time = now.saturating_duration_since(self.last.0).as_millis();
        let count = u128::from(sent.saturating_sub(self.last.1));
        let rate = u64::try_from(count * 1000 / time.max(1)).unwrap_or(u64::MAX);
        self.rate = if self.rate == 0 { rate } else { self.rate / 4 * 3 + rate / 4 };
        self.last = (now, sent);
    }

    /// Whether the client is too slow: it is looked at again and again, `queued` says how many of the bytes that were
    /// `sent` have not arrived.
    pub(super) fn is_too_slow(
        &mut self,
        sent: u64,
        queued: impl FnOnce() -> u64,
        least: Least,
        now: Instant,
    ) -> bool {
        let time = now.saturating_duration_since(self.window.0);
        if time < least.patience {
            return false;
        }
        let arrived = self.arrived(sent, queued());
        let progress = arrived.saturating_sub(self.window.1);
        self.window = (now, arrived);
        progress < least.rate.saturating_mul(time.as_secs()).max(1)
    }

    /// It is not the client who is slow now: its time begins anew.
    pub(super) fn excuse(&mut self, sent: u64, queued: u64, now: Instant) {
        self.window = (now, self.arrived(sent, queued));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_too_slow_over_a_whole_window_only() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let least = Least { rate: 100, patience: Duration::from_secs(10) };
        let mut pulse = Pulse::new(begin);
        assert!(!pulse.is_too_slow(0, || 0, least, at(9)));
        assert!(!pulse.is_too_slow(1500, || 500, least, at(10)), "1000 bytes in 10 s have arrived");
        assert!(!pulse.is_too_slow(1500, || 500, least, at(19)));
        assert!(pulse.is_too_slow(2499, || 500, least, at(20)), "999 more");
        let mut pulse = Pulse::new(begin);
        pulse.excuse(0, 0, at(9));
        assert!(!pulse.is_too_slow(0, || 0, least, at(18)));
        let mut pulse = Pulse::behind(2000, begin);
        assert!(!pulse.is_too_slow(0, || 1000, least, at(10)), "those before it are on their way");
        assert!(pulse.is_too_slow(0, || 1000, least, at(20)));
        let mut pulse = Pulse::new(begin);
        pulse.excuse(0, 0, at(9));
        let any = Least { rate: 0, ..least };
        assert!(pulse.is_too_slow(5, || 5, any, at(19)), "nothing at all");
    }

    #[test]
    fn the_speed_follows_the_bytes() {
        let begin = Instant::now();
        let mut pulse = Pulse::new(begin);
        for second in 1..40 {
            pulse.measure(second * 1000, begin + Duration::from_secs(second));
        }
        assert!((900..=1000).contains(&pulse.rate), "{}", pulse.rate);
    }
}
