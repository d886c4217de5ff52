//! How fast bytes came: a count that knows the pieces they came in.

use std::io;
use std::time::{Duration, Instant};

use super::Download;

/// What comes within this time of what came before is the same piece.
const PIECE: Duration = Duration::from_millis(1);

/// What is known of one download.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    pub(super) status: u16,
    pub(super) length: Option<u64>,
    /// The bytes of the answer's head; 0 when TLS hides it.
    pub(super) head: usize,
    pub(super) opened: Option<Instant>,
    pub(super) first: Option<Instant>,
    pub(super) ended: Option<Instant>,
    pub(super) failure: Option<String>,
    pub(super) bytes: u64,
    last: Option<Instant>,
    measured: Option<Window>,
}

/// What came since a moment.
#[derive(Debug)]
struct Window {
    begin: Instant,
    bytes: u64,
    pieces: Vec<Piece>,
}

/// What came without a pause.
#[derive(Clone, Copy, Debug)]
struct Piece {
    begin: Instant,
    /// How long nothing had come before.
    pause: Duration,
    /// The bytes that had come before.
    before: u64,
}

impl Gauge {
    /// So many bytes have come.
    pub(super) fn receive(&mut self, now: Instant, count: usize) {
        if count == 0 {
            return;
        }
        self.first.get_or_insert(now);
        let pause = self.last.map_or(PIECE, |last| now - last);
        if let Some(window) = &mut self.measured
            && pause >= PIECE
        {
            window.pieces.push(Piece { begin: now, pause, before: self.bytes });
        }
        self.bytes += u64::try_from(count).unwrap();
        self.last = Some(now);
    }

    pub(super) fn end_of_connection(&mut self) {
        self.ended = Some(Instant::now());
    }

    pub(super) fn fail(&mut self, error: &io::Error) {
        self.end_of_connection();
        self.failure = Some(error.to_string());
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.measured = Some(Window { begin: now, bytes: self.bytes, pieces: Vec::new() });
    }

    /// Bytes a second since the beginning.
    pub(super) fn end(&mut self, now: Instant) -> f64 {
        let Some(window) = self.measured.take() else { return 0.0 };
        between_pieces(&window.pieces, now - window.begin)
            .unwrap_or_else(|| per_second(self.bytes - window.bytes, now - window.begin))
    }

    pub(super) fn download(&self) -> Download {
        let since = |moment: Instant| self.opened.map(|opened| moment - opened);
        let body = self.bytes.checked_sub(u64::try_from(self.head).unwrap());
        Download {
            status: self.status,
            bytes: self.bytes,
            length: self.length,
            first: self.first.and_then(since),
            ended: self.ended.and_then(since),
            whole: self.head > 0
                && self.ended.is_some()
                && self.length.is_some()
                && body == self.length,
            failure: self.failure.clone(),
        }
    }
}

/// The rate from the beginning of one piece to the beginning of a later one.
///
/// A sender that sends a second's worth each second is neither fast nor slow; but a window of five
/// seconds that begins and ends anywhere may hold four or six of its pieces. So the time is counted from
/// the beginning of a piece to the beginning of another. A piece is what came after a pause at least half
/// as long as the longest. Where such pauses are rare they were no rhythm of the sender's, and any pause
/// will do.
fn between_pieces(pieces: &[Piece], window: Duration) -> Option<f64> {
    let longest = pieces.iter().map(|piece| piece.pause).max()?;
    let rate = |least: Duration| {
        let mut pieces = pieces.iter().filter(|piece| piece.pause >= least);
        let (first, last) = (pieces.next()?, pieces.next_back()?);
        let time = last.begin - first.begin;
        (time >= window / 2).then(|| per_second(last.before - first.before, time))
    };
    rate(longest / 2).or_else(|| rate(PIECE))
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}

/// The rates of downloads at the same time, in bytes a second.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Of each, in the order of opening; 0 when nothing came.
    pub each: Vec<f64>,
}

impl Rates {
    pub(super) fn of(each: Vec<f64>) -> Self {
        Self { each }
    }

    /// How many got anything.
    pub fn with_data(&self) -> usize {
        self.each.iter().filter(|rate| **rate > 0.0).count()
    }

    /// The mean of those that got anything; 0 when none did.
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    pub fn mean(&self) -> f64 {
        self.total() / self.with_data().max(1) as f64
    }

    /// The least, also when it is 0.
    pub fn least(&self) -> f64 {
        self.each.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0)
    }

    /// The greatest.
    pub fn greatest(&self) -> f64 {
        self.each.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0)
    }

    /// All together.
    pub fn total(&self) -> f64 {
        self.each.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    /// What a window of five seconds sees of a sender that sends `size` bytes in `parts` parts, two
    /// milliseconds apart, and this every `period` milliseconds, the first time after `offset` ones.
    fn seen(size: u64, parts: u64, period: u64, offset: u64) -> f64 {
        let begin = Instant::now();
        let mut gauge = Gauge::default();
        for time in 0..period + 5000 {
            if time == period {
                gauge.begin(begin + Duration::from_millis(time));
            }
            let since = (time + period - offset % period) % period;
            if since.is_multiple_of(2) && since / 2 < parts {
                let part = usize::try_from(size / parts).unwrap();
                gauge.receive(begin + Duration::from_millis(time), part);
            }
        }
        gauge.end(begin + Duration::from_millis(period) + WINDOW)
    }

    #[test]
    fn a_rate_does_not_depend_on_where_the_window_cuts_the_pieces() {
        for period in [4, 17, 145, 1000, 1450] {
            for parts in [1, 2, 20] {
                if parts * 2 > period {
                    continue;
                }
                for offset in (0..period).step_by(7) {
                    let size = 20 * 1448 * period / 100;
                    let size = size - size % parts;
                    let rate = seen(size, parts, period, offset);
                    let wanted = per_second(size, Duration::from_millis(period));
                    let off = 100.0 * (rate / wanted - 1.0);
                    assert!(off.abs() < 0.2, "{off} % with {period} ms, {parts} parts, +{offset}");
                }
            }
        }
    }

    #[test]
    fn one_long_pause_among_short_ones_is_no_rhythm() {
        let begin = Instant::now();
        let mut gauge = Gauge::default();
        gauge.begin(begin);
        for time in (0..5000).step_by(10).filter(|time| !(3000..3300).contains(time)) {
            let late = if time == 3300 { 31_000 } else { 1000 };
            gauge.receive(begin + Duration::from_millis(time), late);
        }
        let rate = gauge.end(begin + WINDOW);
        assert!((rate / 100_000.0 - 1.0).abs() < 0.01, "{rate}");
    }

    #[test]
    fn a_stream_without_pauses_is_counted_over_the_whole_window() {
        let begin = Instant::now();
        let mut gauge = Gauge::default();
        gauge.begin(begin);
        for step in 0..50_000_u32 {
            gauge.receive(begin + step * Duration::from_micros(100), 100);
        }
        assert!((gauge.end(begin + WINDOW) - 1_000_000.0).abs() < 1.0);
        assert!(gauge.end(begin + WINDOW).abs() < f64::EPSILON, "nothing was measured");
    }
}
