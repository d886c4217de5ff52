//! A crowd: downloads by the thousand, which one thread reads as fast as they come, or slowly, and of
//! which it notes when what came.
//!
//! [`Crowd`] says who asks for what; [`Crowd::open`] begins; [`Downloads`] are under way until they are
//! dropped. The thread lives in the network namespace of the thread that opened it.

mod line;
mod rate;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::eventually;
use line::{Line, Stage};
use rate::Gauge;

pub use line::tls_session;
pub use rate::Rates;

/// How long a connection without an answer keeps others from being opened.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the thread looks up from the connections at the least.
const TICK: Duration = Duration::from_millis(20);

/// Who asks for what.
#[derive(Clone, Debug)]
pub struct Crowd {
    server: SocketAddr,
    path: String,
    fields: String,
    from: Vec<Ipv4Addr>,
    tls: bool,
    unanswered: usize,
    reading: Option<u64>,
    ethernet: bool,
}

impl Crowd {
    /// Clients that GET this path over HTTP/1.1, each on a connection of its own which the server is
    /// asked to close.
    pub fn of(server: SocketAddr, path: &str) -> Self {
        let (path, fields) = (path.to_owned(), String::new());
        Self {
            server,
            path,
            fields,
            from: Vec::new(),
            tls: false,
            unanswered: 400,
            reading: None,
            ethernet: false,
        }
    }

    /// Sends this field too.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.fields += field;
        self.fields += "\r\n";
        self
    }

    /// Comes from this address; with several calls from one after the other.
    #[must_use]
    pub fn from(mut self, address: &str) -> Self {
        self.from.push(address.parse().expect("not an IPv4 address"));
        self
    }

    /// Speaks TLS and believes every certificate.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Opens no more while so many wait for an answer that were opened within the last second (400).
    #[must_use]
    pub fn unanswered(mut self, most: usize) -> Self {
        self.unanswered = most;
        self
    }

    /// Each reads no more bytes a second than this; what it does not read fills the kernel's buffers.
    #[must_use]
    pub fn reading(mut self, bytes_per_second: u64) -> Self {
        self.reading = Some(bytes_per_second);
        self
    }

    /// Takes segments that are as large as on Ethernet, of which the kernel leaves fewer bytes unpaced.
    #[must_use]
    pub fn ethernet(mut self) -> Self {
        self.ethernet = true;
        self
    }

    /// Begins to open so many, and returns at once.
    ///
    /// This process and the server need as many file descriptors: see [`raise_file_limit`].
    pub fn open(&self, count: usize) -> Downloads {
        let gauges = (0..count).map(|_| Gauge::default()).collect();
        let shared = Arc::new(Shared {
            gauges: Mutex::new(gauges),
            leaving: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let (crowd, seen) = (self.clone(), shared.clone());
        let thread = thread::spawn(move || Reader::new(crowd, seen).run(count));
        Downloads { shared, thread: Some(thread) }
    }
}

/// What became of one download so far.
#[derive(Clone, Debug, Default)]
pub struct Download {
    /// The status of the answer; 0 while there is none.
    pub status: u16,
    /// What came through the socket: the head and TLS's records count too.
    pub bytes: u64,
    /// The length that the head states.
    pub length: Option<u64>,
    /// From the attempt to connect until the first byte of the answer (of the handshake with TLS).
    pub first: Option<Duration>,
    /// From the attempt to connect until the end of the connection, whoever ended it.
    pub ended: Option<Duration>,
    /// Whether the connection ended after as much as the head states (never known with TLS).
    pub whole: bool,
    /// What went wrong, in the kernel's or TLS's words.
    pub failure: Option<String>,
}

/// Downloads under way. They end with this value.
#[derive(Debug)]
pub struct Downloads {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    gauges: Mutex<Vec<Gauge>>,
    leaving: Mutex<Vec<usize>>,
    over: AtomicBool,
}

impl Shared {
    fn gauges(&self) -> MutexGuard<'_, Vec<Gauge>> {
        self.gauges.lock().expect("the crowd's thread has panicked")
    }
}

impl Downloads {
    /// Each of them, in the order of opening.
    pub fn each(&self) -> Vec<Download> {
        self.shared.gauges().iter().map(Gauge::download).collect()
    }

    /// How many were answered with this status.
    pub fn answered(&self, status: u16) -> usize {
        self.count(|gauge| gauge.status == status)
    }

    /// How many have not ended.
    pub fn running(&self) -> usize {
        self.count(|gauge| gauge.ended.is_none())
    }

    /// What all of them have received.
    pub fn bytes(&self) -> u64 {
        self.shared.gauges().iter().map(|gauge| gauge.bytes).sum()
    }

    /// Waits until so many have got the head of an answer with status 200.
    pub fn eventually_started(&self, count: usize) {
        eventually(&format!("{count} downloads have begun"), || {
            (self.answered(200) >= count).then_some(())
        });
    }

    /// Waits until all have ended.
    pub fn eventually_ended(&self) {
        eventually("every download has ended", || (self.running() == 0).then_some(()));
    }

    /// The rates during this time, from now on. Not while it is called by another thread.
    pub fn measure(&self, window: Duration) -> Rates {
        self.begin();
        thread::sleep(window);
        self.end()
    }

    /// Begins to measure.
    pub fn begin(&self) {
        let now = Instant::now();
        self.shared.gauges().iter_mut().for_each(|gauge| gauge.begin(now));
    }

    /// The rates since [`begin`](Self::begin).
    pub fn end(&self) -> Rates {
        let now = Instant::now();
        Rates::of(self.shared.gauges().iter_mut().map(|gauge| gauge.end(now)).collect())
    }

    /// The client of this one, counted from 0, goes away without reading what is there.
    pub fn leave(&self, number: usize) {
        self.shared.leaving.lock().expect("the crowd's thread has panicked").push(number);
    }

    fn count(&self, wanted: impl Fn(&Gauge) -> bool) -> usize {
        self.shared.gauges().iter().filter(|gauge| wanted(gauge)).count()
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if matches!(ended, Some(Err(_))) && !thread::panicking() {
            panic!("the crowd's thread has panicked");
        }
    }
}

/// Raises the number of files that this process, and those that it starts, may have open, as far as the
/// system allows it; returns it.
pub fn raise_file_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    most
}

/// The thread that opens and reads.
struct Reader {
    crowd: Crowd,
    shared: Arc<Shared>,
    epoll: Epoll,
    lines: Vec<Option<Line>>,
    /// Those that wait for an answer and hold up others.
    young: Vec<usize>,
    buffer: Vec<u8>,
}

impl Reader {
    fn new(crowd: Crowd, shared: Arc<Shared>) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let buffer = vec![0; 1 << 20];
        Self { crowd, shared, epoll, lines: Vec::new(), young: Vec::new(), buffer }
    }

    fn run(mut self, count: usize) {
        let shared = self.shared.clone();
        let mut events = [EpollEvent::empty(); 256];
        let mut ticked = Instant::now();
        while !shared.over.load(Ordering::Relaxed) {
            let timeout = EpollTimeout::try_from(TICK).unwrap();
            let ready = match self.epoll.wait(&mut events, timeout) {
                Err(nix::errno::Errno::EINTR) => 0,
                ready => ready.unwrap(),
            };
            let mut gauges = shared.gauges();
            for event in &events[..ready] {
                self.advance(usize::try_from(event.data()).unwrap(), &mut gauges);
            }
            let now = Instant::now();
            if now - ticked >= TICK {
                ticked = now;
                self.tick(&mut gauges);
            }
            self.open_more(count, &mut gauges);
        }
    }

    /// Opens what may be opened now.
    fn open_more(&mut self, count: usize, gauges: &mut [Gauge]) {
        if self.lines.len() == count {
            return;
        }
        let now = Instant::now();
        self.young.retain(|&number| {
            let gauge = &gauges[number];
            let age = gauge.opened.map_or(Duration::ZERO, |opened| now - opened);
            gauge.status == 0 && gauge.ended.is_none() && age < PATIENCE
        });
        while self.lines.len() < count && self.young.len() < self.crowd.unanswered {
            let number = self.lines.len();
            gauges[number].opened = Some(Instant::now());
            let line = Line::connect(&self.crowd, number).and_then(|line| {
                let event = EpollEvent::new(EpollFlags::EPOLLOUT, u64::try_from(number).unwrap());
                self.epoll.add(line.as_fd(), event)?;
                Ok(line)
            });
            self.lines.push(None);
            match line {
                Ok(line) => self.lines[number] = Some(line),
                Err(error) => gauges[number].fail(&error),
            }
            self.young.push(number);
        }
    }

    /// Reads for those who read slowly, and lets those go who leave.
    fn tick(&mut self, gauges: &mut [Gauge]) {
        let leaving = std::mem::take(&mut *self.shared.leaving.lock().unwrap());
        for number in leaving {
            if let Some(line) = self.lines.get_mut(number)
                && line.take().is_some()
            {
                gauges[number].ended = Some(Instant::now());
            }
        }
        if self.crowd.reading.is_some() {
            for number in 0..self.lines.len() {
                if self.lines[number].as_ref().is_some_and(|line| line.stage == Stage::Body) {
                    self.advance(number, gauges);
                }
            }
        }
    }

    /// Does what can be done with this connection.
    fn advance(&mut self, number: usize, gauges: &mut [Gauge]) {
        let Some(Some(line)) = self.lines.get_mut(number) else { return };
        let (gauge, before) = (&mut gauges[number], line.stage);
        let open = line.advance(&self.crowd, gauge, &mut self.buffer);
        match open {
            Ok(true) if line.stage == before => return,
            Ok(true) => {
                let slow = line.stage == Stage::Body && self.crowd.reading.is_some();
                let flags = if slow { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
                let mut event = EpollEvent::new(flags, u64::try_from(number).unwrap());
                self.epoll.modify(line.as_fd(), &mut event).unwrap();
                return;
            }
            Ok(false) => gauge.end_of_connection(),
            Err(error) => gauge.fail(&error),
        }
        self.lines[number] = None;
    }
}
