//! What others have to say to a sender: it is put down, and the bell wakes the loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::Ask;
use crate::daemon::{Listener, Visit};
use crate::downloads::Place;
use crate::reply::Reply;

/// Messages for one sender.
pub(crate) struct Inbox {
    messages: Mutex<Vec<Message>>,
    bell: EventFd,
}

pub(super) enum Message {
    /// An exchange has the reply for the connection of this number.
    Answer(u64, Box<Answered>),
    /// Somebody wants to know what is running.
    Report(SyncSender<Vec<Transfer>>),
    /// Connections come from here from now on.
    Listen(Vec<Arc<Listener>>),
    Drain,
}

/// A reply, and what it is for.
pub(super) struct Answered {
    pub(super) ask: Ask,
    pub(super) reply: Reply<'static>,
    pub(super) place: Option<Place<'static>>,
}

/// A running download, as it is shown.
pub(crate) struct Transfer {
    pub(crate) visit: Visit,
    pub(crate) sent: u64,
    /// Bytes a second.
    pub(crate) rate: u64,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { messages: Mutex::default(), bell })
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(super) fn put(&self, message: Message) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        // It can only fail when the bell rings already.
        let _ = self.bell.write(1);
    }

    pub(super) fn take(&self) -> Vec<Message> {
        let _ = self.bell.read();
        std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the running downloads sent to somebody.
    pub(crate) fn ask_report(&self, to: SyncSender<Vec<Transfer>>) {
        self.put(Message::Report(to));
    }

    /// Connections come from these listeners from now on.
    pub(crate) fn listen(&self, listeners: Vec<Arc<Listener>>) {
        self.put(Message::Listen(listeners));
    }

    /// No new connections, and an end when the running ones have ended.
    pub(crate) fn drain(&self) {
        self.put(Message::Drain);
    }
}
