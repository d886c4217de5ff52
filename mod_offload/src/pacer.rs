//! The throttled connections of this child, and the thread that adjusts their rates.
//!
//! A connection stands here from its first throttled response until it is closed. The rate of its socket
//! is set when a response's burst is over, lifted when the next response begins, and meanwhile adjusted by
//! the one thread, several times a second, where a rate is shared with other connections: all children see
//! each other's transfers in the shared table, and each of them divides the same way.
//!
//! The thread uses descriptors that belong to httpd. It does so only under the lock that
//! [`close`](Pacer::close) takes before httpd closes one, and only if the descriptor still is the socket
//! that it was: no rate ever reaches another connection.

mod line;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use offload_core::division::divide;
use offload_core::ledger::Identity;
use offload_core::rate::{Meter, Terms};
use offload_core::transfers::{Manner, Row, Shares, Transfers};
use offload_core::units::{Bytes, Rate};

use self::line::{GLANCE, Leaving, Line, News};
pub(crate) use self::line::{Phase, Summary};
use crate::ffi::socket::Socket;
use crate::process;

/// The transfers of all processes: one table for the whole life of this one.
pub(crate) static TRANSFERS: OnceLock<Transfers<'static>> = OnceLock::new();

/// This child's connections.
pub(crate) static PACER: Pacer = Pacer {
    lines: Mutex::new(BTreeMap::new()),
    telling: Mutex::new(()),
    count: AtomicUsize::new(0),
    wake: Condvar::new(),
    has_thread: AtomicBool::new(false),
    is_over: AtomicBool::new(false),
};

/// How often shared rates are divided anew.
const TICK: Duration = Duration::from_millis(200);
/// Two looks are no nearer than this, however often somebody wakes the thread.
const SPACE: Duration = Duration::from_millis(20);
/// Who sleeps writes this often.
const NAP: Duration = Duration::from_millis(100);
/// What a stream of HTTP/2 that has ended may have left in its connection's buffers.
const STREAM: u64 = 64 << 10;
/// So many sockets are asked before somebody else gets the lock.
const BATCH: usize = 32;

/// A response that begins to be sent.
pub(crate) struct Begin {
    pub(crate) client: Vec<u8>,
    pub(crate) path: Vec<u8>,
    pub(crate) terms: Terms,
    pub(crate) shares: Shares,
    pub(crate) manner: Manner,
    /// Whether other responses may be on the connection at the same time.
    pub(crate) is_stream: bool,
}

/// What a connection's socket is told when the data has come so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Switch {
    /// Another phase begins. The number is the socket's.
    To(Phase, u64),
    /// A place in the stream, and no more.
    Nothing,
}

impl Switch {
    /// Everything before it has been given to the kernel, or the connection is gone.
    pub(crate) fn throw(self) {
        match self {
            Self::To(phase, line) => PACER.set_phase(line, phase),
            Self::Nothing => {}
        }
    }
}

/// This child's throttled connections.
pub(crate) struct Pacer {
    lines: Mutex<BTreeMap<u64, Line>>,
    /// Held while the thread writes to a log.
    telling: Mutex<()>,
    count: AtomicUsize,
    wake: Condvar,
    has_thread: AtomicBool,
    is_over: AtomicBool,
}

impl Pacer {
    fn lines(&self) -> MutexGuard<'_, BTreeMap<u64, Line>> {
        // A panic under the lock leaves figures that are corrected at the next look.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no connection of this child is, or was, throttled.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Whether the kernel can pace; asked once, of a socket that is not throttled yet.
    pub(crate) fn can_pace(socket: Socket) -> bool {
        static ANSWER: OnceLock<bool> = OnceLock::new();
        *ANSWER.get_or_init(|| socket.set_rate(None))
    }

    /// Whether the connection was throttled before.
    pub(crate) fn knows(&self, socket: Socket) -> bool {
        !self.is_empty() && !self.is_over() && self.lines().contains_key(&socket.cookie())
    }

    /// A response begins. The burst, if it has one, goes at full speed; else it is throttled when the switch
    /// is thrown.
    pub(crate) fn begin(&'static self, socket: Socket, response: &Begin) {
        if self.is_over() {
            return;
        }
        let (now, mut news) = (now(), News::new());
        let mut lines = self.lines();
        let line = lines.entry(socket.cookie()).or_insert_with(|| Line::new(socket, response));
        if line.closed.is_some() {
            return;
        }
        if line.running == 0 {
            line.finish(now, &mut news);
            line.began = now;
            line.meter = Meter::default();
            line.own = None;
            if let Some(sample) = socket.sample(now) {
                line.acked_before = sample.acked;
                line.meter.take(sample, None);
            }
        }
        line.running += 1;
        line.is_stream = response.is_stream;
        line.manner = response.manner;
        // Streams of one connection may have been given different rates: the last one is right.
        line.own = response.terms.rate.or(line.own);
        line.shares = response.shares;
        // Until the division is made, as if three others were there.
        line.part = line.shares.iter().flatten().map(|shared| shared.rate).min();
        line.part = line.part.and_then(|rate| Rate::new(rate.per_second().div_ceil(4)));
        line.wants = u64::MAX;
        if let Some(table) = TRANSFERS.get() {
            match line.row {
                Some(row) => table.describe(row, &response.path, line.manner, line.running),
                None => {
                    line.row = table.claim(identity(), &response.client, &response.path);
                }
            }
            if let Some(row) = line.row {
                table.set_manner(row, line.manner);
                table.set_shares(row, line.shares);
            }
        }
        let is_shared = line.shares != Shares::default();
        let is_awaited = is_shared || lines.len() == 1;
        self.count.store(lines.len(), Ordering::Relaxed);
        drop(lines);
        tell(&news);
        self.start_thread();
        if is_awaited {
            self.wake.notify_one();
        }
    }

    fn set_phase(&self, line: u64, phase: Phase) {
        if self.is_over() {
            return;
        }
        if let Some(line) = self.lines().get_mut(&line).filter(|line| line.closed.is_none()) {
            line.phase = phase;
            line.apply();
        }
    }

    /// Throttling holds as many workers as it may: the connection goes as fast as it can.
    pub(crate) fn lift(&self, socket: Socket) {
        self.change_manner(socket, Manner::Unthrottled);
    }

    /// It is held in another way from here on.
    pub(crate) fn change_manner(&self, socket: Socket, manner: Manner) {
        if self.is_over() {
            return;
        }
        if let Some(line) = self.lines().get_mut(&socket.cookie()) {
            line.manner = manner;
            if manner == Manner::Unthrottled {
                line.shares = Shares::default();
            }
            if let (Some(row), Some(table)) = (line.row, TRANSFERS.get()) {
                table.set_manner(row, manner);
                table.set_shares(row, line.shares);
            }
            line.apply();
        }
    }

    /// How many bytes whoever paces the connection himself writes at a time; `None`: all, it is not throttled.
    pub(crate) fn slice(&self, socket: Socket) -> Option<u64> {
        if self.is_over() {
            return None;
        }
        let rate = self.lines().get(&socket.cookie()).and_then(Line::allowed)?;
        Some(rate.bytes_in(NAP).count().max(1))
    }

    /// So many bytes are about to be written on the connection: how long to wait before. Its streams have one
    /// clock.
    pub(crate) fn reserve(&self, socket: Socket, bytes: u64) -> Duration {
        if self.is_over() {
            return Duration::ZERO;
        }
        let mut lines = self.lines();
        let line = lines.get_mut(&socket.cookie());
        line.map_or(Duration::ZERO, |line| line.reserve(now(), bytes))
    }

    /// httpd has given the response's last byte to the kernel, or its client is gone.
    pub(crate) fn end(&self, socket: Socket, mut summary: Option<Summary>) {
        if self.is_over() {
            return;
        }
        let (now, mut news) = (now(), News::new());
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(&socket.cookie()) else { return };
        line.running = line.running.saturating_sub(1);
        if let (Some(summary), Some(closed)) = (&mut summary, line.closed) {
            // It was cut off by the end of its connection.
            summary.aborted = true;
            summary.manner = line.manner;
            summary.bytes = summary.bytes.min(closed.saturating_sub(line.acked_before));
        }
        if line.closed.is_some() || !socket.is_alive() {
            drop(lines);
            tell(&summary.into_iter().map(|summary| (summary, now)).collect());
            return;
        }
        let acked = socket.sample(now).map_or(0, |sample| sample.acked);
        let is_aborted = summary.as_mut().is_some_and(|summary| {
            summary.manner = line.manner;
            if summary.aborted && !line.is_stream {
                // What httpd has given to the kernel is not what the client has got.
                summary.bytes = summary.bytes.min(acked.saturating_sub(line.acked_before));
            }
            summary.aborted
        });
        let behind = if line.is_stream { STREAM } else { 0 };
        let queued = if is_aborted { 0 } else { socket.queued() + behind };
        if queued == 0 {
            news.extend(summary.map(|summary| (summary, now)));
        } else {
            let rate = line.given.or_else(|| Rate::new(line.meter.rate()));
            let time = rate.map_or(Duration::ZERO, |rate| rate.time_for(Bytes::new(queued)));
            let expected = now + u64::try_from(time.as_micros()).unwrap_or(0);
            line.leaving.push(Leaving {
                target: acked + queued,
                promised: expected,
                expected,
                summary,
            });
            self.wake.notify_one();
        }
        if let (Some(row), Some(table), true) = (line.row, TRANSFERS.get(), line.running > 0) {
            table.set_streams(row, line.running);
        }
        line.rest();
        drop(lines);
        tell(&news);
    }

    /// httpd is about to close the connection.
    pub(crate) fn close(&self, socket: Socket) {
        if self.is_empty() || self.is_over() {
            return;
        }
        let (now, mut news) = (now(), News::new());
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(&socket.cookie()) {
            line.finish(now, &mut news);
            line.close(now);
        }
        drop(lines);
        tell(&news);
    }

    /// The child ends: the thread is to touch nothing of httpd's any more.
    pub(crate) fn stop(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        // It works only under one of the locks. This may run in a signal's handler (prefork), on top of a
        // thread that has the lock itself: so there is no waiting without an end, and no locking from now on.
        for _ in 0..50 {
            if self.lines.try_lock().is_ok() && self.telling.try_lock().is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn start_thread(&'static self) {
        if self.has_thread.swap(true, Ordering::Relaxed) {
            return;
        }
        // Signals are for httpd's own threads.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let name = "offload-pacer".to_owned();
        let began = thread::Builder::new().name(name).stack_size(256 << 10).spawn(|| self.run());
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
        if began.is_err() {
            // The next response tries again; rates hold without it, but are not shared.
            self.has_thread.store(false, Ordering::Relaxed);
        }
    }

    fn run(&'static self) {
        let mut next = Instant::now();
        loop {
            thread::sleep(SPACE);
            let wait = next.saturating_duration_since(Instant::now());
            let lines = self.lines();
            let guard = if lines.is_empty() {
                self.wake.wait(lines)
            } else {
                self.wake
                    .wait_timeout(lines, wait)
                    .map(|(guard, _)| guard)
                    .map_err(|poisoned| PoisonError::new(poisoned.into_inner().0))
            };
            drop(guard);
            if self.is_over() {
                return;
            }
            // A bug here must not end the child; the next tick tries again.
            let pause = std::panic::catch_unwind(|| self.tick()).unwrap_or(GLANCE);
            next = Instant::now() + pause;
        }
    }

    /// Looks at every connection and divides what is shared; how long to wait for the next time.
    fn tick(&self) -> Duration {
        let now = now();
        let mut pause = GLANCE;
        let mut has_shares = false;
        let mut from = 0;
        loop {
            let mut news = News::new();
            let mut lines = self.lines();
            if self.is_over() {
                return pause;
            }
            let batch: Vec<u64> = lines.range(from..).take(BATCH).map(|(&at, _)| at).collect();
            for at in &batch {
                let Some(line) = lines.get_mut(at) else { continue };
                for leaving in &line.leaving {
                    // Who is later than expected is asked now and then.
                    let left = Duration::from_micros(leaving.expected.saturating_sub(now));
                    pause = pause.min(left.max(SPACE));
                }
                if !line.is_due(now) {
                    continue;
                }
                if !line.socket.is_alive() {
                    // Perhaps it was closed in a way that told nobody.
                    if let (Some(mut line), Some(table)) = (lines.remove(at), TRANSFERS.get()) {
                        line.finish(now, &mut news);
                        line.row.into_iter().for_each(|row| table.release(row));
                    }
                    continue;
                }
                line.look(now, &mut news);
                if line.shares != Shares::default() {
                    has_shares = true;
                    pause = pause.min(TICK);
                }
            }
            self.count.store(lines.len(), Ordering::Relaxed);
            drop(lines);
            if !news.is_empty() {
                let _telling = self.telling.lock();
                if !self.is_over() {
                    tell(&news);
                }
            }
            match batch.last() {
                Some(last) if batch.len() == BATCH => from = last + 1,
                _ => break,
            }
        }
        if has_shares && let Some(table) = TRANSFERS.get() {
            self.give(&divide(&table.claims()));
        }
        pause
    }

    /// Gives each connection its part of what is shared.
    fn give(&self, parts: &BTreeMap<Row, Rate>) {
        let mut from = 0;
        loop {
            let mut lines = self.lines();
            if self.is_over() {
                return;
            }
            let mut last = None;
            for (&at, line) in lines.range_mut(from..).take(BATCH) {
                last = Some(at);
                let part = line.row.and_then(|row| parts.get(&row)).copied();
                if line.shares != Shares::default() && part.is_some() && line.socket.is_alive() {
                    line.part = part;
                    line.apply();
                }
            }
            let Some(last) = last else { return };
            from = last + 1;
        }
    }
}

fn tell(news: &News) {
    news.iter().for_each(|(summary, ended)| summary.tell(*ended));
}

/// This process, as the table knows it.
fn identity() -> Identity {
    static OWN: OnceLock<Identity> = OnceLock::new();
    *OWN.get_or_init(process::own_identity)
}

/// Microseconds of a clock that does not go back.
pub(crate) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(u64::MAX)
}
