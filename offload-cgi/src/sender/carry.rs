//! Replies that need a thread: what the base sends past the cache can only be read by who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::{Connection, State};
use super::inbox::Transfer;
use super::pulse::{Least, Pulse};
use super::socket::Socket;
use super::{Fate, Sender};
use crate::body::Cut;
use crate::daemon::{Common, Visit};

/// The most of them at a time: it is for files that may not be stored, or for a disk that is full.
const MOST: usize = 64;
/// A client that takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(45);

/// A carrier's place, given back when it ends.
struct Carrier(Arc<Common>);

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.carriers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the sender that has handed a reply over keeps of it: it looks after its client all the same.
pub(super) struct Carried {
    socket: Arc<Socket>,
    visit: Visit,
    sent: Arc<AtomicU64>,
    pulse: Pulse,
    patience: Duration,
}

impl Carried {
    /// Whether the thread has ended, which has the bytes' counter too.
    pub(super) fn is_over(&self) -> bool {
        Arc::strong_count(&self.sent) == 1
    }

    /// Ends it when its client takes less than `rate` bytes a second. Whether that has happened.
    pub(super) fn look_after(&mut self, rate: u64, now: Instant) -> bool {
        let (sent, queued) = (self.sent.load(Ordering::Relaxed), self.socket.queued());
        self.pulse.measure(sent, now);
        if queued == 0 {
            // All has arrived: the base is slow, not the client.
            self.pulse.excuse(sent, 0, now);
            return false;
        }
        let least = Least { rate, patience: self.patience };
        let late = self.pulse.is_too_slow(sent, || queued, least, now);
        if late {
            self.abort();
        }
        late
    }

    pub(super) fn abort(&self) {
        self.socket.abort();
    }

    pub(super) fn report(&self) -> Transfer {
        Transfer {
            visit: self.visit.clone(),
            sent: self.sent.load(Ordering::Relaxed),
            rate: self.pulse.rate,
        }
    }
}

impl Sender {
    /// Hands a reply to a thread.
    pub(super) fn carry(&mut self, connection: &mut Box<Connection>, number: u64) -> Fate {
        let before = self.common.carriers.fetch_add(1, Ordering::AcqRel);
        let carrier = Carrier(Arc::clone(&self.common));
        let State::Sending(sending) = std::mem::replace(&mut connection.state, State::Reading)
        else {
            return Fate::Close;
        };
        self.forget(sending.watch, number);
        if before >= MOST {
            self.common.note(&sending.visit, sending.site, sending.sent, false, self.now);
            if sending.in_head && sending.text_sent == 0 {
                let _ = connection.socket.send(super::accept::BUSY, false);
                return self.end(connection);
            }
            return Fate::Close;
        }
        let (text, body, rest) = sending.into_rest();
        if let Some(paced) = &rest.paced {
            paced.begin();
        }
        let patience = rest.site.map_or(PATIENCE, |site| site.options().timeout.duration());
        let (socket, entered) = (Arc::clone(&connection.socket), connection.entered.take());
        let sent = Arc::new(AtomicU64::new(rest.sent));
        let carried = Carried {
            socket: Arc::clone(&socket),
            visit: (*rest.visit).clone(),
            sent: Arc::clone(&sent),
            pulse: rest.pulse,
            patience,
        };
        let (visit, site, held) =
            (rest.visit, rest.site, (rest.place, rest.body, rest.paced, entered));
        let work = move || {
            let common = Arc::clone(&carrier.0);
            let result = socket
                .blocking(patience)
                .map_err(Cut::Client)
                .and_then(|mut out| body.send(text, &mut out, &sent));
            let sent = sent.load(Ordering::Relaxed);
            if let Err(Cut::Source(failure)) = &result {
                common.journal.tell(&format!(
                    "{}: cut off after {sent} bytes: {}",
                    visit.line, failure.sentence
                ));
            }
            common.note(&visit, site, sent, result.is_ok(), Instant::now());
            if result.is_ok() {
                socket.end();
            }
            drop((held, socket, carrier));
        };
        let thread = thread::Builder::new().name("carrier".into()).stack_size(256 << 10);
        match thread.spawn(work) {
            Ok(_) => self.carried.push(carried),
            Err(error) => {
                self.common.journal.tell(&format!("no thread to pass a file through: {error}"));
            }
        }
        Fate::Gone
    }
}
