//! A connection's turn: it does what it can do now, and makes room for the next one.

use std::os::fd::AsFd as _;
use std::panic::AssertUnwindSafe;

use nix::sys::epoll::EpollFlags;

use super::connection::{Connection, Sent, State};
use super::socket::Moved;
use super::{Fate, ROUND, Sender};

impl Sender {
    pub(super) fn ready(&mut self, number: u64, events: EpollFlags) {
        let Some(connection) = self.table.get_mut(number) else { return };
        let broken = events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        connection.broken |= broken;
        connection.ended |= events.contains(EpollFlags::EPOLLRDHUP) || broken;
        connection.readable |= events.contains(EpollFlags::EPOLLIN) || connection.ended;
        connection.writable |= events.contains(EpollFlags::EPOLLOUT) || broken;
        self.turn(number);
    }

    /// Lets a connection do what it can do now.
    pub(super) fn turn(&mut self, number: u64) {
        self.step(number, |sender, connection| {
            connection.queued = false;
            sender.drive(connection, number)
        });
    }

    /// What a connection does, as far as it can without waiting.
    pub(super) fn drive(&mut self, connection: &mut Box<Connection>, number: u64) -> Fate {
        // A client that pipelines has its turns, too.
        for _ in 0..16 {
            let fate = match &mut connection.state {
                State::Reading => self.read(connection, number),
                State::Asked | State::Waiting(_) if connection.broken => return Fate::Close,
                State::Asked | State::Waiting(_) => return Fate::Keep,
                State::Awaiting(_) if connection.broken => {
                    return self.finish(connection, number, false);
                }
                State::Awaiting(_) => self.see(connection, number),
                State::Lingering => return self.linger(connection),
                State::Sending(_) if connection.broken => {
                    return self.finish(connection, number, false);
                }
                State::Sending(sending) => {
                    if !connection.writable {
                        return Fate::Keep;
                    }
                    let sent = sending.advance(&connection.socket, self.now);
                    self.after(connection, number, sent)
                }
            };
            if let Some(fate) = fate {
                return fate;
            }
        }
        self.again(connection, number);
        Fate::Keep
    }

    /// Lets a connection go on with `step`, then does with it what that says. A panic ends this connection and
    /// no other one.
    pub(super) fn step(
        &mut self,
        number: u64,
        step: impl FnOnce(&mut Self, &mut Box<Connection>) -> Fate,
    ) {
        let Some(mut connection) = self.table.take(number) else { return };
        let guarded = AssertUnwindSafe(|| step(self, &mut connection));
        let fate = std::panic::catch_unwind(guarded).unwrap_or_else(|_| {
            self.common
                .journal
                .tell("a connection failed in a way that nobody has thought of; please report it");
            self.finish(&mut connection, number, false)
        });
        match fate {
            Fate::Keep => self.table.put(number, connection),
            Fate::Close => self.close(connection, number),
            Fate::Gone => {
                let _ = self.epoll.delete(connection.socket.as_fd());
                self.table.release(number);
            }
        }
    }

    /// Gives a connection another turn, after all that are due.
    pub(super) fn again(&mut self, connection: &mut Connection, number: u64) {
        if !connection.queued {
            connection.queued = true;
            self.turns.push_back(number);
        }
    }

    /// What follows from how far a reply has got; `None`: the connection goes on at once.
    pub(super) fn after(
        &mut self,
        connection: &mut Box<Connection>,
        number: u64,
        sent: Sent,
    ) -> Option<Fate> {
        let State::Sending(sending) = &mut connection.state else { return Some(Fate::Keep) };
        match sent {
            Sent::Full => {
                connection.writable = false;
                Some(Fate::Keep)
            }
            Sent::Turn => {
                self.again(connection, number);
                Some(Fate::Keep)
            }
            Sent::Wait => {
                let (patience, quiet) = (
                    sending.site.map_or(ROUND, |site| site.options().timeout.duration()),
                    self.now.saturating_duration_since(sending.changed),
                );
                if quiet < patience {
                    self.wait(connection, number);
                    return Some(Fate::Keep);
                }
                self.common.journal.tell(&format!(
                    "{}: cut off after {} bytes: nothing more has come",
                    sending.visit.line, sending.sent
                ));
                Some(self.finish(connection, number, false))
            }
            Sent::All => {
                let keep = sending.keep && !self.draining;
                self.finish(connection, number, true);
                if !keep {
                    return Some(self.end(connection));
                }
                connection.state = State::Reading;
                connection.since = self.now;
                None
            }
            Sent::Gone => Some(self.finish(connection, number, false)),
            Sent::Cut(failure) => {
                self.common.journal.tell(&format!(
                    "{}: cut off after {} bytes: {}",
                    sending.visit.line, sending.sent, failure.sentence
                ));
                Some(self.finish(connection, number, false))
            }
            Sent::Carry => Some(self.carry(connection, number)),
        }
    }

    /// A reply is over: notes it, and gives back what it held.
    pub(super) fn finish(&mut self, connection: &mut Connection, number: u64, whole: bool) -> Fate {
        let (watch, counted) = match std::mem::replace(&mut connection.state, State::Reading) {
            State::Sending(sending) => {
                self.common.note(&sending.visit, sending.site, sending.sent, whole, self.now);
                connection.sent_before = connection.sent_before.saturating_add(sending.sent);
                (sending.watch, sending.place.is_some())
            }
            State::Awaiting(awaiting) => (awaiting.watch, awaiting.place.is_some()),
            _ => return Fate::Close,
        };
        self.forget(watch, number);
        if counted {
            self.common.senders().iter().for_each(|sender| sender.tell_queue());
        }
        Fate::Close
    }

    /// Ends a connection on which all is said.
    pub(super) fn end(&mut self, connection: &mut Connection) -> Fate {
        connection.socket.end();
        connection.state = State::Lingering;
        connection.since = self.now;
        connection.buffer = Vec::new();
        self.linger(connection)
    }

    pub(super) fn linger(&mut self, connection: &mut Connection) -> Fate {
        // Bounded: who sends on and on is cut off by time.
        for _ in 0..16 {
            match connection.socket.receive(&mut self.scratch) {
                Ok(Moved::Bytes(1..)) => {}
                Ok(Moved::Full) => return Fate::Keep,
                Ok(Moved::Bytes(0)) | Err(_) => return Fate::Close,
            }
        }
        Fate::Keep
    }

    pub(super) fn close(&mut self, connection: Box<Connection>, number: u64) {
        if connection.entered.is_none() {
            self.refused = self.refused.saturating_sub(1);
        }
        self.table.release(number);
        drop(connection);
    }
}
