//! Replies that need a thread: what the base sends past the cache can only be read by who waits for it.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::connection::{Connection, State};
use super::{Fate, Sender};
use crate::body::{Body, Cut};
use crate::daemon::Common;

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

impl Sender {
    /// Hands a reply to a thread, with `body` instead of what is left of its own.
    pub(super) fn carry(
        &mut self,
        connection: &mut Box<Connection>,
        number: u64,
        body: Option<Body<'static>>,
    ) -> Fate {
        let before = self.common.carriers.fetch_add(1, Ordering::AcqRel);
        let carrier = Carrier(Arc::clone(&self.common));
        let State::Sending(sending) = std::mem::replace(&mut connection.state, State::Reading)
        else {
            return Fate::Close;
        };
        self.forget(&sending, number);
        if before >= MOST {
            if body.is_some() {
                let _ = connection.socket.send(super::accept::BUSY, false);
                connection.state = State::Reading;
                self.common.note(&sending.visit, sending.site, 0, false, self.now);
                return self.end(connection);
            }
            self.common.note(&sending.visit, sending.site, sending.sent, false, self.now);
            return Fate::Close;
        }
        let (text, rest_of_body, rest) = sending.into_rest();
        let body = body.unwrap_or(rest_of_body);
        if let Some(paced) = &rest.paced {
            paced.begin();
        }
        let patience = rest.site.map_or(PATIENCE, |site| site.options().timeout.duration());
        let (socket, entered) = (Arc::clone(&connection.socket), connection.entered.take());
        let work = move || {
            let (mut sent, common) = (rest.sent, Arc::clone(&carrier.0));
            let result = socket.blocking(patience).map_err(Cut::Client).and_then(|mut out| {
                out.write_all(&text).map_err(Cut::Client)?;
                body.send(&mut out, &mut sent)
            });
            if let Err(Cut::Source(failure)) = &result {
                common.journal.tell(&format!(
                    "{}: cut off after {sent} bytes: {}",
                    rest.visit.line, failure.sentence
                ));
            }
            common.note(&rest.visit, rest.site, sent, result.is_ok(), Instant::now());
            if result.is_ok() {
                socket.end();
            }
            drop((rest, entered, socket, carrier));
        };
        let thread = thread::Builder::new().name("carrier".into()).stack_size(256 << 10);
        if let Err(error) = thread.spawn(work) {
            self.common.journal.tell(&format!("no thread to pass a file through: {error}"));
        }
        // The connection's record ends here; the thread has what it needs of it. It was let in.
        connection.entered = None;
        Fate::Gone
    }
}
