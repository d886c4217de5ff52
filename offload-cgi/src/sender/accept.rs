//! Letting connections in, or telling them that there are too many.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::connection::{Connection, State};
use super::inbox::Message;
use super::socket::Socket;
use super::{LISTENERS, ROUND, Sender};
use crate::daemon::{Entered, Listener};

/// So many connections more than others a sender may have.
const UNEVEN: usize = 1;
/// Connections that are accepted in one go.
const AT_ONCE: usize = 64;
/// Refused connections that are ended politely at a time.
const MOST_REFUSED: usize = 1000;

pub(super) const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 66\r\n\
    Retry-After: 10\r\nConnection: close\r\n\r\n\
    There are too many connections now; please try again in a moment.\n";

impl Sender {
    pub(super) fn listen(&mut self, listeners: Vec<Arc<Listener>>) -> io::Result<()> {
        for listener in &self.listeners {
            let _ = self.epoll.delete(listener.as_fd());
        }
        self.listeners = listeners;
        for (index, listener) in self.listeners.iter().enumerate() {
            // A connection that comes wakes one loop, not all.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            self.epoll.add(listener.as_fd(), EpollEvent::new(flags, LISTENERS + index as u64))?;
        }
        Ok(())
    }

    pub(super) fn accept(&mut self, index: u64) {
        let Some(listener) = usize::try_from(index).ok().and_then(|at| self.listeners.get(at))
        else {
            return;
        };
        let listener = Arc::clone(listener);
        for _ in 0..AT_ONCE {
            let socket = match listener.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(error) => {
                    // Descriptors or memory are used up: what waits is not lost, but must not be
                    // asked about all the time.
                    self.common.journal.tell(&format!("no connection can be accepted: {error}"));
                    let _ = self.epoll.delete(listener.as_fd());
                    self.accept_again = Some(self.now + ROUND);
                    return;
                }
            };
            self.common.counters.connections.add(1);
            let entered = self.common.doors.enter(socket.peer(), &self.plan);
            if let Some((socket, entered)) = self.hand_over(socket, entered) {
                self.let_in(socket, entered);
            }
        }
        // There may be more: level-triggered, so the next round tells.
    }

    /// Gives a connection to the sender that has the fewest, if this one has many more: the kernel wakes whom it
    /// likes, and a crowd that comes at once would stay with one of them.
    fn hand_over(
        &self,
        socket: Socket,
        entered: Option<Entered>,
    ) -> Option<(Socket, Option<Entered>)> {
        let senders = self.common.senders();
        let Some(other) = senders.iter().min_by_key(|other| other.load()) else {
            return Some((socket, entered));
        };
        let (least, mine) = (other.load(), self.table.len());
        if mine <= least + UNEVEN + least / 8 || Arc::ptr_eq(other, &self.inbox) {
            return Some((socket, entered));
        }
        other.set_load(least + 1);
        match other.put(Message::Came(socket, entered)) {
            Err(Message::Came(socket, entered)) => Some((socket, entered)),
            _ => None,
        }
    }

    /// Begins with a connection; tells one that was not counted in that there are too many.
    pub(super) fn let_in(&mut self, socket: Socket, entered: Option<Entered>) {
        let state = if entered.is_some() {
            State::Reading
        } else {
            self.common.counters.refused_connections.add(1);
            let _ = socket.send(BUSY, false);
            socket.end();
            if self.refused >= MOST_REFUSED {
                return;
            }
            self.refused += 1;
            State::Lingering
        };
        let connection = Box::new(Connection::new(socket, entered, state, self.now));
        let number = self.table.reserve();
        // Edge-triggered: one call a connection, whatever it does later.
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, number);
        if self.epoll.add(connection.socket.as_fd(), event).is_ok() {
            self.table.put(number, connection);
        } else {
            self.close(connection, number);
        }
    }
}
