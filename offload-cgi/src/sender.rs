//! The loops that carry replies out: each has many connections and one thread, which never waits for one of them.
//!
//! A connection costs its socket and a record. Heads are read and hits answered here; what may have to wait
//! for the base is an exchange's (`daemon::pool`), whose reply comes back through the inbox. The
//! body goes from the page cache to the socket by sendfile, from a whole object or from one that still grows:
//! then inotify says when there is more.

mod accept;
mod care;
mod carry;
mod connection;
mod errand;
mod growth;
mod inbox;
mod pace;
mod pulse;
mod queue;
mod requests;
mod socket;
mod table;
mod turn;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::AsFd as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{InitFlags, Inotify, WatchDescriptor};

use self::carry::Carried;
use self::connection::{Bytes, Connection, State};
pub(crate) use self::errand::Errand;
use self::inbox::{Answered, Message};
pub(crate) use self::inbox::{Inbox, Transfer};
pub(crate) use self::pace::{Caps, Paces};
pub(crate) use self::socket::{Socket, prepare};
use self::table::Table;
use crate::daemon::{Common, Listener, Plan};
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
    watches: HashMap<WatchDescriptor, HashSet<u64>>,
    /// Those of them that are looked at now and then, whatever is said.
    waiting: VecDeque<u64>,
    /// What threads carry out.
    carried: Vec<Carried>,
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
            waiting: VecDeque::new(),
            carried: Vec::new(),
            queue: Vec::new(),
            refused: 0,
            draining: false,
            scratch: vec![0; crate::head::LONGEST],
            now: Instant::now(),
        };
        sender.listen(listeners)?;
        let thread = thread::Builder::new().name("sender".into()).stack_size(512 << 10).spawn(
            move || {
                let guarded = AssertUnwindSafe(|| sender.run());
                if std::panic::catch_unwind(guarded).is_err() {
                    // Its connections hang; a new process serves the next ones.
                    log::line(
                        "a sender failed in a way that nobody has thought of; please report it",
                    );
                    std::process::exit(1);
                }
            },
        )?;
        Ok((inbox, thread))
    }

    fn run(mut self) {
        let mut events = vec![EpollEvent::empty(); 512];
        let (mut round, mut look) = (Instant::now(), Instant::now());
        while !self.is_over() {
            self.inbox.set_load(self.table.len());
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
                self.look_at_waiting();
                self.ask_queue();
            }
            if self.now.saturating_duration_since(round) >= ROUND {
                round = self.now;
                self.look_after();
            }
        }
    }

    /// Whether nothing is left to be done, and nothing more can come.
    fn is_over(&self) -> bool {
        self.draining && self.table.len() == 0 && self.carried.is_empty() && self.inbox.close()
    }

    fn patience(&self) -> EpollTimeout {
        if !self.turns.is_empty() {
            EpollTimeout::ZERO
        } else if !self.waiting.is_empty() || !self.queue.is_empty() {
            EpollTimeout::try_from(LOOK).unwrap_or(EpollTimeout::ZERO)
        } else if self.table.len() == 0
            && self.carried.is_empty()
            && self.accept_again.is_none()
            && !self.plan.sites.iter().any(|site| site.has_kept())
        {
            EpollTimeout::NONE
        } else {
            EpollTimeout::try_from(ROUND).unwrap_or(EpollTimeout::ZERO)
        }
    }

    fn read_inbox(&mut self) {
        for message in self.inbox.take() {
            match message {
                Message::Answer(number, answered) => self.answer(number, *answered),
                Message::Await(number, awaiting) => self.step(number, |sender, connection| {
                    connection.state = State::Awaiting(awaiting);
                    sender.drive(connection, number)
                }),
                Message::Turn => self.ask_queue(),
                Message::Came(socket, entered) => self.let_in(socket, entered),
                Message::Report(to) => {
                    let _ = to.send(self.report());
                }
                Message::Listen(listeners) => {
                    if let Err(error) = self.listen(listeners) {
                        log::line(&format!("a listener cannot be used: {error}"));
                    }
                }
                Message::Drain => self.drain(),
                Message::CutOff => self.cut_off(),
            }
        }
    }

    fn answer(&mut self, number: u64, answered: Answered) {
        let Answered { ask, reply, place, body } = answered;
        let supply = body.map_or(Bytes::None, Bytes::Kept);
        self.step(number, |sender, connection| {
            sender
                .begin(connection, number, ask, reply, place, supply)
                .unwrap_or_else(|| sender.drive(connection, number))
        });
    }
}
