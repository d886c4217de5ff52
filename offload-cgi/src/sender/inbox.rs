//! What others have to say to a sender: it is put down, and the bell wakes the loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::{Ask, Awaiting};
use super::socket::Socket;
use crate::daemon::{Entered, Listener, Visit};
use crate::downloads::Place;
use crate::reply::Reply;
use crate::source::Source;

/// Messages for one sender.
pub(crate) struct Inbox {
    /// None when nobody reads them any more.
    messages: Mutex<Option<Vec<Message>>>,
    bell: EventFd,
    /// How many connections it has, about.
    load: AtomicUsize,
    /// Whether some of them wait for their turn to download.
    has_queue: AtomicBool,
}

pub(super) enum Message {
    /// An exchange has the reply for the connection of this number.
    Answer(u64, Box<Answered>),
    /// There is one for this connection as soon as there are bytes.
    Await(u64, Box<Awaiting>),
    /// A place for a download has come back.
    Turn,
    /// Another sender has accepted this connection, and has too many.
    Came(Socket, Option<Entered>),
    /// Somebody wants to know what is running.
    Report(SyncSender<Vec<Transfer>>),
    /// Connections come from here from now on.
    Listen(Vec<Arc<Listener>>),
    Drain,
    CutOff,
}

/// A reply, and what it is for.
pub(super) struct Answered {
    pub(super) ask: Ask,
    pub(super) reply: Reply<'static>,
    pub(super) place: Option<Place<'static>>,
    /// The whole body that its parts are of.
    pub(super) body: Option<Arc<Source<'static>>>,
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
        Ok(Self {
            messages: Mutex::new(Some(Vec::new())),
            bell,
            load: AtomicUsize::new(0),
            has_queue: AtomicBool::new(false),
        })
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Puts a message down; gives it back when nobody would read it.
    pub(super) fn put(&self, message: Message) -> Result<(), Message> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        match messages.as_mut() {
            Some(messages) => messages.push(message),
            None => return Err(message),
        }
        drop(messages);
        // It can only fail when the bell rings already.
        let _ = self.bell.write(1);
        Ok(())
    }

    pub(super) fn take(&self) -> Vec<Message> {
        let _ = self.bell.read();
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes no more messages, unless there are some that nobody has read.
    pub(super) fn close(&self) -> bool {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.as_ref().is_some_and(Vec::is_empty) {
            *messages = None;
        }
        messages.is_none()
    }

    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    pub(super) fn set_load(&self, load: usize) {
        self.load.store(load, Ordering::Relaxed);
    }

    /// Says whether some of its connections wait for their turn. Whoever gives a place back after that sees it.
    pub(super) fn set_queue(&self, has_queue: bool) {
        self.has_queue.store(has_queue, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// A download's place has been given back: somebody's turn may have come.
    pub(super) fn tell_queue(&self) {
        fence(Ordering::SeqCst);
        if self.has_queue.load(Ordering::SeqCst) {
            let _ = self.put(Message::Turn);
        }
    }

    /// Has the running downloads sent to somebody.
    pub(crate) fn ask_report(&self, to: SyncSender<Vec<Transfer>>) {
        let _ = self.put(Message::Report(to));
    }

    /// Connections come from these listeners from now on.
    pub(crate) fn listen(&self, listeners: Vec<Arc<Listener>>) {
        let _ = self.put(Message::Listen(listeners));
    }

    /// No new connections, and an end when the running ones have ended.
    pub(crate) fn drain(&self) {
        let _ = self.put(Message::Drain);
    }

    /// An end now, whatever is running.
    pub(crate) fn cut_off(&self) {
        let _ = self.put(Message::CutOff);
    }
}
