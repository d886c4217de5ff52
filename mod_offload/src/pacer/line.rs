//! One connection that is, or was, throttled.

use std::time::Duration;

use offload_core::rate::{BURST_END_QUEUE, BURST_QUEUE, Meter, Terms, queue_limit};
use offload_core::transfers::{Figures, Manner, Row, Shares};
use offload_core::units::{Bytes, Rate};

use super::{Begin, NAP, SPACE, TRANSFERS};
use crate::ffi::server::Journal;
use crate::ffi::socket::Socket;

/// Responses that have ended, with the time when they had. They are told when no lock is held.
pub(super) type News = Vec<(Summary, u64)>;

/// How often the figures of the status page are, where nothing is shared.
pub(super) const GLANCE: Duration = Duration::from_secs(1);

/// What is being written on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// What is not throttled.
    Free,
    /// A burst, up to its last bytes.
    Burst,
    /// The last bytes of a burst.
    BurstEnd,
    /// What is throttled.
    Throttled,
}

/// A connection.
pub(super) struct Line {
    pub(super) socket: Socket,
    pub(super) row: Option<Row>,
    pub(super) own: Option<Rate>,
    pub(super) shares: Shares,
    /// What is divided to it of its shares.
    pub(super) part: Option<Rate>,
    /// What the kernel was told: the rate, and how much may be unsent (0: its own measure).
    pub(super) given: Option<Rate>,
    pub(super) queue: u32,
    pub(super) phase: Phase,
    pub(super) manner: Manner,
    pub(super) is_stream: bool,
    /// Responses in progress.
    pub(super) running: u64,
    pub(super) meter: Meter,
    pub(super) wants: u64,
    /// When the next bytes may go, if whoever writes them sleeps.
    pub(super) next: u64,
    pub(super) looked: u64,
    pub(super) began: u64,
    pub(super) acked_before: u64,
    /// Of which the last bytes are on their way.
    pub(super) leaving: Vec<Leaving>,
    /// What the client had acknowledged when httpd was about to close the socket. From then on it is not
    /// touched: the descriptor may be another connection's at any time. The line stays until it is, for what
    /// ends later, and for streams that begin when it is too late.
    pub(super) closed: Option<u64>,
}

/// A response that httpd has done with, and the kernel has not.
pub(super) struct Leaving {
    /// So many bytes will the client have acknowledged when it has got the last one.
    pub(super) target: u64,
    /// When that will be, if the rate holds.
    pub(super) promised: u64,
    /// When to ask.
    pub(super) expected: u64,
    pub(super) summary: Option<Summary>,
}

/// What is told at the end.
pub(crate) struct Summary {
    pub(crate) journal: Journal,
    pub(crate) path: Vec<u8>,
    pub(crate) client: Vec<u8>,
    pub(crate) bytes: u64,
    pub(crate) began: u64,
    pub(crate) terms: Terms,
    pub(crate) manner: Manner,
    pub(crate) aborted: bool,
}

impl Summary {
    pub(super) fn tell(&self, now: u64) {
        let micros = now.saturating_sub(self.began).max(1);
        let rate = Rate::of(Bytes::new(self.bytes), Duration::from_micros(micros));
        self.journal.note(&format!(
            "mod_offload: sent {} to {}: {} bytes in {}.{:03} s, {} B/s of {}, burst {}, {}{}",
            String::from_utf8_lossy(&self.path),
            String::from_utf8_lossy(&self.client),
            self.bytes,
            micros / 1_000_000,
            micros / 1000 % 1000,
            rate.map_or(0, Rate::per_second),
            self.terms.rate.map_or(0, Rate::per_second),
            self.terms.burst.count(),
            self.manner.name(),
            if self.aborted { ", aborted" } else { "" },
        ));
    }
}

impl Line {
    /// A connection whose first throttled response begins.
    pub(super) fn new(socket: Socket, response: &Begin) -> Self {
        Self {
            socket,
            row: None,
            own: None,
            shares: Shares::default(),
            part: None,
            given: None,
            queue: 0,
            phase: Phase::Free,
            manner: response.manner,
            is_stream: response.is_stream,
            running: 0,
            meter: Meter::default(),
            wants: u64::MAX,
            next: 0,
            looked: 0,
            began: 0,
            acked_before: 0,
            leaving: Vec::new(),
            closed: None,
        }
    }

    /// The most that it may carry now.
    pub(super) fn allowed(&self) -> Option<Rate> {
        [self.own, self.part].into_iter().flatten().min()
    }

    /// Tells the kernel what holds, if that has changed by more than a hundredth.
    pub(super) fn apply(&mut self) {
        let is_paced = !matches!(self.manner, Manner::Slept | Manner::Unthrottled);
        let phase = if is_paced { self.phase } else { Phase::Free };
        let wanted = if phase == Phase::Throttled { self.allowed() } else { None };
        let is_near = match (self.given, wanted) {
            (None, None) => true,
            (Some(given), Some(wanted)) => {
                given.per_second().abs_diff(wanted.per_second()) <= wanted.per_second() / 100
            }
            _ => false,
        };
        if !is_near && self.socket.set_rate(wanted) {
            self.given = wanted;
        }
        let queue = match phase {
            Phase::Free => 0,
            Phase::Burst => BURST_QUEUE,
            Phase::BurstEnd => BURST_END_QUEUE,
            Phase::Throttled => self.given.map_or(0, queue_limit),
        };
        if queue != self.queue && self.socket.set_queue_limit(queue) {
            self.queue = queue;
        }
    }

    /// Asks the kernel how it goes, and writes that down for everybody.
    pub(super) fn look(&mut self, now: u64, news: &mut News) {
        self.looked = now;
        if self.closed.is_some() {
            return;
        }
        let Some(sample) = self.socket.sample(now) else { return };
        let allowed = self.allowed();
        let given = if self.phase == Phase::Throttled { allowed } else { None };
        let own = self.own.map_or(u64::MAX, Rate::per_second);
        self.wants = self.meter.take(sample, given);
        if let (Some(row), Some(table)) = (self.row, TRANSFERS.get()) {
            let set = if self.manner == Manner::Unthrottled { None } else { allowed };
            let figures = Figures {
                set: set.map_or(0, Rate::per_second),
                now: self.meter.rate(),
                bytes: sample.acked.saturating_sub(self.acked_before),
                wants: self.wants,
                most: own,
            };
            table.set_figures(row, figures);
        }
        // What a stream has left behind in its connection is not known exactly.
        let is_drained = self.is_stream && !self.leaving.is_empty() && self.socket.queued() == 0;
        let gone = |leaving: &mut Leaving| sample.acked >= leaving.target || is_drained;
        news.extend(
            self.leaving.extract_if(.., gone).filter_map(|gone| Some((gone.summary?, now))),
        );
        for late in &mut self.leaving {
            // Who is later than expected is asked less and less often.
            let wait = now.saturating_sub(late.promised).clamp(micros(SPACE), micros(GLANCE));
            late.expected = late.expected.max(now + wait);
        }
        self.rest();
    }

    /// So many bytes are about to be written: how long to wait before. Who is late makes up for it a little.
    pub(super) fn reserve(&mut self, now: u64, bytes: u64) -> Duration {
        let Some(rate) = self.allowed() else { return Duration::ZERO };
        let begin = self.next.max(now.saturating_sub(micros(NAP)));
        self.next = begin + micros(rate.time_for(Bytes::new(bytes)));
        Duration::from_micros(begin.saturating_sub(now))
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.shares != Shares::default()
            || self.leaving.iter().any(|leaving| leaving.expected <= now)
            || now.saturating_sub(self.looked) >= micros(GLANCE)
    }

    /// The connection may be idle now.
    pub(super) fn rest(&mut self) {
        if self.running > 0 || !self.leaving.is_empty() {
            return;
        }
        if let (Some(row), Some(table)) = (self.row.take(), TRANSFERS.get()) {
            table.release(row);
        }
        self.shares = Shares::default();
        self.part = None;
        if self.is_stream {
            // No throttled stream is left; the others are to go as fast as they can. A connection of
            // HTTP/1.1 is switched by what follows on it.
            self.phase = Phase::Free;
            self.apply();
        }
    }

    /// httpd is about to close the socket.
    pub(super) fn close(&mut self, now: u64) {
        let acked = self.socket.sample(now).map_or(0, |sample| sample.acked);
        self.closed = self.closed.or(Some(acked));
        self.shares = Shares::default();
        if let (Some(row), Some(table)) = (self.row.take(), TRANSFERS.get()) {
            table.release(row);
        }
    }

    /// Everything that is on its way is told as if the rate held to the end: nobody will ask any more.
    pub(super) fn finish(&mut self, now: u64, news: &mut News) {
        let all = self.leaving.drain(..);
        news.extend(all.filter_map(|leaving| Some((leaving.summary?, leaving.promised.max(now)))));
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
