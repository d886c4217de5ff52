//! The loops that carry replies out: each has many connections and one thread, which never waits for one of them.
//!
//! A connection costs its socket and a record. Heads are read and hits answered here; what may have to wait
//! for the base is an exchange's (`daemon::pool`), whose reply comes back through the inbox. The
//! body goes from the page cache to the socket by sendfile, from a whole object or from one that still grows:
//! then inotify says when there is more.

mod carry;
mod connection;
mod inbox;
mod pace;
mod requests;
mod socket;
mod table;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use self::connection::{Connection, Sending, Sent, State};
use self::inbox::{Answered, Message};
pub(crate) use self::inbox::{Inbox, Transfer};
pub(crate) use self::pace::{Caps, Paces};
pub(crate) use self::socket::{Socket, prepare};
use self::table::Table;
use crate::daemon::{Common, Listener, Plan};
use crate::head::Scan;
use crate::log;

/// Numbers with the top bit are no connections.
const SPECIAL: u64 = 1 << 63;
const INBOX: u64 = SPECIAL;
const NEWS: u64 = SPECIAL | 1;
const LISTENERS: u64 = SPECIAL | 2;

/// How often everybody is looked after: time-outs are no more exact than that.
const ROUND: Duration = Duration::from_millis(500);
/// How often a growing body is looked at although nobody has said anything: a filler that is killed is silent.
const LOOK: Duration = Duration::from_millis(60);
/// How long a connection that has ended may go on sending what nobody reads.
const LINGER: Duration = Duration::from_secs(5);
/// Connections that are accepted in one go.
const AT_ONCE: usize = 64;
/// Refused connections that are ended politely at a time.
const MOST_REFUSED: usize = 1000;

/// One loop.
pub(crate) struct Sender {
    common: Arc<Common>,
    plan: Arc<Plan>,
    version: u64,
    inbox: Arc<Inbox>,
    epoll: Epoll,
    news: Inotify,
    listeners: Vec<Arc<Listener>>,
    /// When to accept again, after the process had no descriptor left.
    accept_again: Option<Instant>,
    table: Table<Box<Connection>>,
    /// Who may go on at once.
    turns: VecDeque<u64>,
    /// Who waits for what of which growing body.
    watches: HashMap<WatchDescriptor, Vec<u64>>,
    waiting: Vec<u64>,
    /// Whose turn to download has not come.
    queue: Vec<u64>,
    refused: usize,
    draining: bool,
    scratch: Vec<u8>,
    now: Instant,
}

/// What becomes of a connection after its turn.
enum Fate {
    Keep,
    Close,
    /// It belongs to somebody else now.
    Gone,
}

impl Sender {
    /// Starts a loop that accepts from these listeners.
    ///
    /// # Errors
    /// When the kernel has no more threads or descriptors.
    pub(crate) fn start(
        common: &Arc<Common>,
        listeners: Vec<Arc<Listener>>,
    ) -> io::Result<(Arc<Inbox>, JoinHandle<()>)> {
        let inbox = Arc::new(Inbox::new()?);
        let (plan, version) = common.plan();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(inbox.bell(), EpollEvent::new(EpollFlags::EPOLLIN, INBOX))?;
        let news = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        epoll.add(news.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, NEWS))?;
        let mut sender = Self {
            common: Arc::clone(common),
            plan,
            version,
            inbox: Arc::clone(&inbox),
            epoll,
            news,
            listeners: Vec::new(),
            accept_again: None,
            table: Table::default(),
            turns: VecDeque::new(),
            watches: HashMap::new(),
            waiting: Vec::new(),
            queue: Vec::new(),
            refused: 0,
            draining: false,
            scratch: vec![0; crate::head::LONGEST],
            now: Instant::now(),
        };
        sender.listen(listeners)?;
        let thread = thread::Builder::new()
            .name("sender".into())
            .stack_size(512 << 10)
            .spawn(move || sender.run())?;
        Ok((inbox, thread))
    }

    fn listen(&mut self, listeners: Vec<Arc<Listener>>) -> io::Result<()> {
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

    fn run(mut self) {
        let mut events = vec![EpollEvent::empty(); 512];
        let (mut round, mut look) = (Instant::now(), Instant::now());
        while !(self.draining && self.table.len() == 0) {
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => {
                    log::line(&format!("a sender cannot go on: {error}"));
                    std::process::exit(1);
                }
            };
            self.now = Instant::now();
            let (plan, version) = self.common.plan_after(self.version);
            if let Some(plan) = plan {
                (self.plan, self.version) = (plan, version);
            }
            let turns = self.turns.len();
            for event in &events[..count] {
                match event.data() {
                    INBOX => self.read_inbox(),
                    NEWS => self.hear(),
                    number @ LISTENERS.. => self.accept(number - LISTENERS),
                    number => self.ready(number, event.events()),
                }
            }
            for _ in 0..turns {
                if let Some(number) = self.turns.pop_front() {
                    self.turn(number);
                }
            }
            if self.now.saturating_duration_since(look) >= LOOK {
                look = self.now;
                std::mem::take(&mut self.waiting).into_iter().for_each(|number| self.turn(number));
                self.ask_queue();
            }
            if self.now.saturating_duration_since(round) >= ROUND {
                round = self.now;
                self.look_after();
            }
        }
    }

    fn patience(&self) -> EpollTimeout {
        if !self.turns.is_empty() {
            EpollTimeout::ZERO
        } else if !self.waiting.is_empty() || !self.queue.is_empty() {
            EpollTimeout::try_from(LOOK).unwrap_or(EpollTimeout::ZERO)
        } else if self.table.len() == 0
            && self.accept_again.is_none()
            && !self.plan.sites.iter().any(|site| site.has_kept())
        {
            EpollTimeout::NONE
        } else {
            EpollTimeout::try_from(ROUND).unwrap_or(EpollTimeout::ZERO)
        }
    }

    fn accept(&mut self, index: u64) {
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
            let state = if entered.is_some() {
                State::Reading
            } else {
                self.common.counters.refused_connections.add(1);
                let _ = socket.send(BUSY, false);
                socket.end();
                if self.refused >= MOST_REFUSED {
                    continue;
                }
                self.refused += 1;
                State::Lingering
            };
            let connection = Box::new(Connection {
                socket: Arc::new(socket),
                buffer: Vec::new(),
                scan: Scan::default(),
                state,
                readable: false,
                writable: true,
                ended: false,
                queued: false,
                served: 0,
                since: self.now,
                entered,
            });
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
                self.table.release(number);
            }
        }
        // There may be more: level-triggered, so the next round tells.
    }

    fn ready(&mut self, number: u64, events: EpollFlags) {
        let Some(connection) = self.table.get_mut(number) else { return };
        let broken = events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        connection.ended |= events.contains(EpollFlags::EPOLLRDHUP) || broken;
        connection.readable |= events.contains(EpollFlags::EPOLLIN) || connection.ended;
        connection.writable |= events.contains(EpollFlags::EPOLLOUT) || broken;
        self.turn(number);
    }

    /// Lets a connection do what it can do now.
    fn turn(&mut self, number: u64) {
        let Some(mut connection) = self.table.take(number) else { return };
        connection.queued = false;
        match self.drive(&mut connection, number) {
            Fate::Keep => self.table.put(number, connection),
            Fate::Close => self.close(connection, number),
            Fate::Gone => {
                let _ = self.epoll.delete(connection.socket.as_fd());
                self.table.release(number);
            }
        }
    }

    fn drive(&mut self, connection: &mut Box<Connection>, number: u64) -> Fate {
        // A client that pipelines has its turns, too.
        for _ in 0..16 {
            let fate = match &mut connection.state {
                State::Reading => self.read(connection, number),
                State::Asked | State::Waiting(_) => return Fate::Keep,
                State::Lingering => return self.linger(connection),
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

    /// Gives a connection another turn, after all that are due.
    fn again(&mut self, connection: &mut Connection, number: u64) {
        if !connection.queued {
            connection.queued = true;
            self.turns.push_back(number);
        }
    }

    /// What follows from how far a reply has got; `None`: the connection goes on at once.
    fn after(&mut self, connection: &mut Box<Connection>, number: u64, sent: Sent) -> Option<Fate> {
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
                self.waiting.push(number);
                if sending.watch.is_none() {
                    sending.watch = watch(&self.news, sending);
                    if let Some(watch) = sending.watch {
                        self.watches.entry(watch).or_default().push(number);
                        // What came before the watch was there.
                        self.turns.push_back(number);
                    }
                }
                let (patience, quiet) = (
                    sending.site.map_or(ROUND, |site| site.options().timeout.duration()),
                    self.now.saturating_duration_since(sending.changed),
                );
                if quiet < patience {
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
            Sent::Carry => Some(self.carry(connection, number, None)),
        }
    }

    /// A reply is over: notes it, and gives back what it held.
    fn finish(&mut self, connection: &mut Connection, number: u64, whole: bool) -> Fate {
        if let State::Sending(sending) = std::mem::replace(&mut connection.state, State::Reading) {
            self.forget(&sending, number);
            self.common.note(&sending.visit, sending.site, sending.sent, whole, self.now);
            let counted = sending.place.is_some();
            drop(sending);
            if counted && !self.queue.is_empty() {
                self.ask_queue();
            }
        }
        Fate::Close
    }

    /// Ends a connection on which all is said.
    fn end(&mut self, connection: &mut Connection) -> Fate {
        connection.socket.end();
        connection.state = State::Lingering;
        connection.since = self.now;
        connection.buffer = Vec::new();
        self.linger(connection)
    }

    fn linger(&mut self, connection: &mut Connection) -> Fate {
        // Bounded: who sends on and on is cut off by time.
        for _ in 0..16 {
            match connection.socket.receive(&mut self.scratch) {
                Ok(socket::Moved::Bytes(1..)) => {}
                Ok(socket::Moved::Full) => return Fate::Keep,
                Ok(socket::Moved::Bytes(0)) | Err(_) => return Fate::Close,
            }
        }
        Fate::Keep
    }

    fn close(&mut self, connection: Box<Connection>, number: u64) {
        if connection.entered.is_none() {
            self.refused = self.refused.saturating_sub(1);
        }
        self.table.release(number);
        drop(connection);
    }

    /// A reply is not waited for any more.
    fn forget(&mut self, sending: &Sending, number: u64) {
        let Some(watch) = sending.watch else { return };
        if let Some(numbers) = self.watches.get_mut(&watch) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.watches.remove(&watch);
                let _ = self.news.rm_watch(watch);
            }
        }
    }

    /// There is news of growing bodies.
    fn hear(&mut self) {
        let mut numbers: Vec<u64> = Vec::new();
        while let Ok(events) = self.news.read_events() {
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    numbers.extend(self.watches.values().flatten());
                } else if let Some(waiting) = self.watches.get(&event.wd) {
                    numbers.extend(waiting);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let is_waiting = self.table.get(number).is_some_and(
                |connection| matches!(&connection.state, State::Sending(sending) if sending.is_waiting),
            );
            if is_waiting {
                self.turn(number);
            }
        }
    }

    fn read_inbox(&mut self) {
        for message in self.inbox.take() {
            match message {
                Message::Answer(number, answered) => self.answer(number, *answered),
                Message::Report(to) => {
                    let _ = to.send(self.report());
                }
                Message::Listen(listeners) => {
                    if let Err(error) = self.listen(listeners) {
                        log::line(&format!("a listener cannot be used: {error}"));
                    }
                }
                Message::Drain => self.drain(),
            }
        }
    }

    fn answer(&mut self, number: u64, answered: Answered) {
        let Some(mut connection) = self.table.take(number) else { return };
        let Answered { ask, reply, place } = answered;
        let fate = self.begin(&mut connection, number, ask, reply, place, connection::Bytes::None);
        self.table.put(number, connection);
        match fate {
            Some(Fate::Close) => {
                if let Some(connection) = self.table.take(number) {
                    self.close(connection, number);
                }
            }
            Some(Fate::Gone) => {
                if let Some(connection) = self.table.take(number) {
                    let _ = self.epoll.delete(connection.socket.as_fd());
                }
                self.table.release(number);
            }
            Some(Fate::Keep) => {}
            None => self.turn(number),
        }
    }

    /// No new connections; those that do nothing end, the others after their reply.
    fn drain(&mut self) {
        self.draining = true;
        let _ = self.listen(Vec::new());
        for number in self.table.numbers() {
            let idle = self.table.get(number).is_some_and(|connection| {
                // Who has just come in has a request on its way.
                matches!(connection.state, State::Reading)
                    && connection.served > 0
                    && connection.buffer.is_empty()
            });
            if idle && let Some(mut connection) = self.table.take(number) {
                match self.end(&mut connection) {
                    Fate::Keep => self.table.put(number, connection),
                    _ => self.close(connection, number),
                }
            }
        }
    }

    /// Time-outs.
    fn look_after(&mut self) {
        if self.accept_again.is_some_and(|moment| self.now >= moment) {
            self.accept_again = None;
            let listeners = std::mem::take(&mut self.listeners);
            if let Err(error) = self.listen(listeners) {
                log::line(&format!("a listener cannot be used: {error}"));
            }
        }
        let wall = std::time::SystemTime::now();
        self.plan.sites.iter().for_each(|site| site.tidy(wall));
        for number in self.table.numbers() {
            let Some(connection) = self.table.get_mut(number) else { continue };
            let quiet = self.now.saturating_duration_since(connection.since);
            let late = match &mut connection.state {
                State::Reading if connection.buffer.is_empty() && connection.served > 0 => {
                    quiet >= self.plan.idle_timeout
                }
                State::Reading => quiet >= self.plan.header_timeout,
                State::Lingering => quiet >= LINGER,
                State::Asked | State::Waiting(_) => false,
                State::Sending(sending) => {
                    sending.measure(self.now);
                    let patience = sending
                        .site
                        .map_or(self.plan.header_timeout, |site| site.options().timeout.duration());
                    let rate = self.plan.min_rate;
                    sending.is_stuck(&connection.socket, rate, patience, self.now)
                }
            };
            if late && let Some(connection) = self.table.take(number) {
                self.too_late(connection, number);
            }
        }
    }

    fn too_late(&mut self, mut connection: Box<Connection>, number: u64) {
        match connection.state {
            State::Sending(_) => {
                self.common.counters.timeouts.add(1);
                self.finish(&mut connection, number, false);
            }
            State::Reading if connection.served == 0 || !connection.buffer.is_empty() => {
                self.common.counters.timeouts.add(1);
                // One that is told (RFC 9110, section 15.5.9) has at least begun.
                if !connection.buffer.is_empty() {
                    let _ = connection.socket.send(TIMED_OUT, false);
                    let fate = self.end(&mut connection);
                    if matches!(fate, Fate::Keep) {
                        self.table.put(number, connection);
                        return;
                    }
                }
            }
            _ => {}
        }
        self.close(connection, number);
    }

    fn report(&self) -> Vec<Transfer> {
        let running = self.table.numbers().into_iter().filter_map(|number| {
            let State::Sending(sending) = &self.table.get(number)?.state else { return None };
            Some(Transfer {
                visit: (*sending.visit).clone(),
                sent: sending.sent,
                rate: sending.rate,
            })
        });
        running.collect()
    }
}

/// Watches what a growing body says.
fn watch(news: &Inotify, sending: &Sending) -> Option<WatchDescriptor> {
    let connection::Bytes::Stored { source, .. } = &sending.supply else { return None };
    let file = source.news()?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
    // Without a watch it is looked at often enough.
    news.add_watch(path.as_str(), flags).ok()
}

const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 66\r\n\
    Retry-After: 10\r\nConnection: close\r\n\r\n\
    There are too many connections now; please try again in a moment.\n";

const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 27\r\n\
    Connection: close\r\n\r\n\
    The request took too long.\n";
