//! A connection: what it is doing, and what is still to go out on it.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use nix::sys::inotify::WatchDescriptor;
use offload_core::rate::{BURST_END, BURST_END_QUEUE, BURST_QUEUE};

use super::pace::Paced;
use super::pulse::{Least, Pulse};
use super::socket::{Moved, Socket};
use crate::body::{Body, Piece, Supply};
use crate::daemon::{Entered, OpenBody, Visit};
use crate::downloads::Place;
use crate::exchange::{Awaited, Request};
use crate::failure::{Failure, Kind};
use crate::head::Scan;
use crate::http::Part;
use crate::options::Options;
use crate::origin::{Incoming, Origin};
use crate::source::{Look, Source};

/// After so many bytes at a time others have their turn.
const TURN: u64 = 2 << 20;
/// The most that one call moves of a paced connection, so that its speed holds soon.
const STEP: u64 = 64 << 10;

/// A connection and its record.
pub(super) struct Connection {
    pub(super) socket: Arc<Socket>,
    /// What has come and was not read yet. Without memory while nothing is there.
    pub(super) buffer: Vec<u8>,
    pub(super) scan: Scan,
    pub(super) state: State,
    /// Whether there may be something to receive, and room to send.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Whether the other side has said that it will send no more, or has gone altogether.
    pub(super) ended: bool,
    pub(super) broken: bool,
    /// Whether it waits for its next turn already, and whether it is looked at now and then.
    pub(super) queued: bool,
    pub(super) listed: bool,
    /// Whether the kernel paces it, and the bytes of bodies that went out on it before this reply.
    pub(super) is_paced: bool,
    pub(super) sent_before: u64,
    /// Requests so far.
    pub(super) served: u64,
    /// Since when it does what it does.
    pub(super) since: Instant,
    pub(super) entered: Option<Entered>,
}

impl State {
    /// What more of a growing body is waited for.
    pub(super) fn news(&self) -> Option<(&File, u32)> {
        match self {
            Self::Awaiting(awaiting) => awaiting.awaited.news(),
            Self::Sending(sending) => match &sending.supply {
                Bytes::Stored { source, .. } if sending.is_waiting => source.news(),
                _ => None,
            },
            _ => None,
        }
    }

    /// What wakes it then.
    pub(super) fn watch(&mut self) -> Option<&mut Option<Watch>> {
        match self {
            Self::Awaiting(awaiting) => Some(&mut awaiting.watch),
            Self::Sending(sending) => Some(&mut sending.watch),
            _ => None,
        }
    }

    /// Whether more of a growing body is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        match self {
            Self::Awaiting(_) => true,
            Self::Sending(sending) => sending.is_waiting,
            _ => false,
        }
    }
}

impl Connection {
    pub(super) fn new(
        socket: Socket,
        entered: Option<Entered>,
        state: State,
        now: Instant,
    ) -> Self {
        Self {
            socket: Arc::new(socket),
            buffer: Vec::new(),
            scan: Scan::default(),
            state,
            readable: false,
            writable: true,
            ended: false,
            broken: false,
            queued: false,
            listed: false,
            is_paced: false,
            sent_before: 0,
            served: 0,
            since: now,
            entered,
        }
    }
}

/// What a connection is doing.
pub(super) enum State {
    /// A head is to come.
    Reading,
    /// An exchange is at work.
    Asked,
    /// A growing body has the reply's first byte when that has come.
    Awaiting(Box<Awaiting>),
    /// It waits until another download of the same client and file has ended.
    Waiting(Box<Waiting>),
    Sending(Box<Sending>),
    /// All is sent; what still comes is thrown away, for if it were left unread the client might lose the reply.
    Lingering,
}

/// A request whose turn has not come.
pub(super) struct Waiting {
    pub(super) ask: Ask,
    pub(super) until: Instant,
}

/// A request whose first byte is still to come.
pub(super) struct Awaiting {
    pub(super) ask: Ask,
    pub(super) place: Option<Place<'static>>,
    pub(super) awaited: Box<Awaited<'static>>,
    /// How often the base had another version than it said.
    pub(super) changes: u32,
    pub(super) watch: Option<Watch>,
}

/// What wakes those who wait for a growing body, and how many bodies were given up before this one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Watch {
    pub(super) descriptor: WatchDescriptor,
    pub(super) bodies: u32,
}

/// A request for a file of a site.
pub(super) struct Ask {
    pub(super) site: &'static crate::daemon::Site,
    pub(super) request: Arc<Request>,
    pub(super) visit: Box<Visit>,
    pub(super) minor: u8,
    pub(super) keep: bool,
    /// The place of the body that an exchange opens.
    pub(super) body: Option<OpenBody>,
}

/// A reply on its way out.
pub(super) struct Sending {
    /// The head, then the text between parts; so much of it is sent.
    pub(super) text: Vec<u8>,
    pub(super) text_sent: usize,
    pub(super) in_head: bool,
    pub(super) part: Option<Part>,
    pub(super) pieces: IntoIter<Piece>,
    pub(super) supply: Bytes,
    pub(super) keep: bool,
    pub(super) visit: Box<Visit>,
    pub(super) site: Option<&'static crate::daemon::Site>,
    /// Bytes of the body that are sent.
    pub(super) sent: u64,
    pub(super) place: Option<Place<'static>>,
    pub(super) body: Option<OpenBody>,
    pub(super) paced: Option<Paced>,
    /// So many bytes go out before the speed holds.
    pub(super) burst: u64,
    /// How many may wait unsent during the burst; 0: nobody has said.
    pub(super) queue: u32,
    /// For who waits for a growing body: what wakes it, what it has seen, and when that changed last.
    pub(super) watch: Option<Watch>,
    pub(super) changes: u32,
    pub(super) changed: Instant,
    pub(super) is_waiting: bool,
    pub(super) pulse: Pulse,
}

/// Where the parts of a body are.
pub(super) enum Bytes {
    None,
    Kept(Arc<Source<'static>>),
    Stored {
        source: Box<Source<'static>>,
        origin: &'static Origin,
        path: String,
        options: &'static Options,
    },
    /// The base: only a thread can read from it.
    Passing(Box<Incoming>),
}

/// How far a reply has got.
#[derive(Debug)]
pub(super) enum Sent {
    /// The socket is full.
    Full,
    /// Others have their turn.
    Turn,
    /// The body's next bytes are not there yet.
    Wait,
    All,
    /// The client has gone.
    Gone,
    /// The body's bytes do not come.
    Cut(Failure),
    /// The rest can only be had past the cache, by a thread.
    Carry,
}

impl Sending {
    /// Sends what can be sent now.
    pub(super) fn advance(&mut self, socket: &Socket, now: Instant) -> Sent {
        let mut turn = TURN;
        loop {
            if self.text_sent < self.text.len() {
                let more = self.part.is_some() || !self.pieces.as_slice().is_empty();
                match socket.send(&self.text[self.text_sent..], more) {
                    Ok(Moved::Bytes(count)) => {
                        self.text_sent += count;
                        if !self.in_head {
                            self.sent += count as u64;
                        }
                    }
                    Ok(Moved::Full) => return Sent::Full,
                    Err(_) => return Sent::Gone,
                }
                continue;
            }
            if !self.text.is_empty() {
                (self.text, self.text_sent, self.in_head) = (Vec::new(), 0, false);
            }
            let Some(part) = self.part.filter(|part| part.length > 0) else {
                match self.pieces.next() {
                    None => return Sent::All,
                    Some(Piece::Text(text)) => self.text = text.into_bytes(),
                    Some(Piece::Part(part)) => self.part = Some(part),
                }
                continue;
            };
            if turn == 0 {
                return Sent::Turn;
            }
            let most = self.may_send(socket).min(turn).min(part.length);
            match self.move_bytes(socket, part, most, now) {
                Ok(count) => {
                    turn = turn.saturating_sub(count);
                    self.sent += count;
                    let left = part.length - count;
                    self.part = Some(Part { first: part.first + count, length: left });
                }
                Err(sent) => return sent,
            }
        }
    }

    /// How many bytes may go out in one step, at least one; begins to pace when the burst is over. Nothing of a burst
    /// may wait unsent then, for it would be paced.
    fn may_send(&mut self, socket: &Socket) -> u64 {
        let Some(paced) = &self.paced else { return u64::MAX };
        if paced.has_begun() {
            return STEP;
        }
        let left = self.burst.saturating_sub(self.sent);
        if left == 0 {
            paced.begin();
            return STEP;
        }
        let (queue, most) = match left.checked_sub(BURST_END) {
            None | Some(0) => (BURST_END_QUEUE, left),
            Some(before) => (BURST_QUEUE, before),
        };
        if queue != std::mem::replace(&mut self.queue, queue) {
            socket.limit_queue(queue);
        }
        most.min(STEP)
    }

    fn move_bytes(
        &mut self,
        socket: &Socket,
        part: Part,
        most: u64,
        now: Instant,
    ) -> Result<u64, Sent> {
        let moved = match &mut self.supply {
            Bytes::None => {
                return Err(Sent::Cut(Kind::NoRoom.says("there is a part and no file")));
            }
            Bytes::Passing(_) => return Err(Sent::Carry),
            Bytes::Kept(source) => socket.send_file(source.file(), part.first, most),
            Bytes::Stored { source, .. } => {
                source.begin();
                let changes = source.changes();
                match source.look(part.first) {
                    Ok(Look::Bytes(there)) => {
                        self.is_waiting = false;
                        self.changed = now;
                        socket.send_file(source.file(), part.first, most.min(there))
                    }
                    Ok(Look::Wait) => {
                        if changes != self.changes || !self.is_waiting {
                            (self.changes, self.changed) = (changes, now);
                        }
                        self.is_waiting = true;
                        return Err(Sent::Wait);
                    }
                    Err(failure)
                        if failure.kind.is_of_cache()
                            && (part.first == 0 || source.record.validators.are_strong()) =>
                    {
                        return Err(Sent::Carry);
                    }
                    Err(failure) => return Err(Sent::Cut(failure)),
                }
            }
        };
        match moved {
            Ok(Moved::Bytes(0)) => {
                Err(Sent::Cut(Kind::NoRoom.says("the cached file is shorter than it was")))
            }
            Ok(Moved::Bytes(count)) => Ok(count as u64),
            Ok(Moved::Full) => Err(Sent::Full),
            Err(_) => Err(Sent::Gone),
        }
    }

    /// The rest as a body for a thread that may wait, and what else belongs to the reply.
    pub(super) fn into_rest(self) -> (Vec<u8>, Body<'static>, Rest) {
        let text = self.text.get(self.text_sent..).unwrap_or_default().to_vec();
        let part = self.part.filter(|part| part.length > 0).map(Piece::Part);
        let pieces = part.into_iter().chain(self.pieces).collect();
        let supply = match self.supply {
            Bytes::Stored { source, origin, path, options } => {
                Supply::Stored { source, origin, path, options }
            }
            Bytes::Passing(incoming) => Supply::Passing(incoming),
            Bytes::None | Bytes::Kept(_) => Supply::None,
        };
        let rest = Rest {
            visit: self.visit,
            site: self.site,
            sent: self.sent,
            place: self.place,
            body: self.body,
            paced: self.paced,
            pulse: self.pulse,
        };
        (text, Body { pieces, supply }, rest)
    }

    /// Whether the client is too slow: less than `min_rate` bytes a second, of which not more can be asked than it
    /// is given, over a whole `patience`.
    pub(super) fn is_stuck(
        &mut self,
        socket: &Socket,
        min_rate: u64,
        patience: Duration,
        now: Instant,
    ) -> bool {
        if self.is_waiting {
            // The base is slow, not the client.
            self.pulse.excuse(self.sent, socket.queued(), now);
            return false;
        }
        let given = self.paced.as_ref().map_or(u64::MAX, |paced| paced.rate() / 2);
        let least = Least { rate: min_rate.min(given), patience };
        self.pulse.is_too_slow(self.sent, || socket.queued(), least, now)
    }
}

/// What belongs to a reply besides its bytes.
pub(super) struct Rest {
    pub(super) visit: Box<Visit>,
    pub(super) site: Option<&'static crate::daemon::Site>,
    pub(super) sent: u64,
    pub(super) place: Option<Place<'static>>,
    pub(super) body: Option<OpenBody>,
    pub(super) paced: Option<Paced>,
    pub(super) pulse: Pulse,
}
