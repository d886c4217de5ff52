//! A visitor who wants a small file on a connection of its own: how long he waits.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use offload_tests::crowd::tls_session;
use offload_tests::load::median;
use rustls::Stream;

use crate::peers::Server;

/// How long he waits at the most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// How long after one visitor the next comes.
const PERIOD: Duration = Duration::from_millis(20);

/// How long visitors waited, in milliseconds; those in vain count with their patience.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits {
    all: Vec<f64>,
    pub(crate) in_vain: usize,
}

impl Waits {
    /// Waits until the server has answered a few visitors in a row: it may still be busy with others, and the
    /// first one waits longer. After a while it is taken as it is.
    pub(crate) fn for_answers(server: &Server, tls: bool) {
        for _ in 0..20 {
            let waits = Self::of(server, tls, Duration::from_millis(200));
            if waits.in_vain == 0 {
                return;
            }
        }
    }

    /// Of visitors who come during this time, one after the other.
    pub(crate) fn of(server: &Server, tls: bool, time: Duration) -> Self {
        let (begin, mut waits) = (Instant::now(), Self::default());
        while begin.elapsed() < time {
            waits.add(visit(server.address(tls), tls, "/small"));
            thread::sleep(PERIOD);
        }
        waits
    }

    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.all.extend(&other.all);
        self.in_vain += other.in_vain;
        self
    }

    fn add(&mut self, visit: Result<(Duration, String), io::Error>) {
        self.in_vain += usize::from(visit.is_err());
        self.all.push(1e3 * visit.map_or(PATIENCE, |(time, _)| time).as_secs_f64());
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn median(&self) -> f64 {
        median(self.all.clone())
    }

    pub(crate) fn longest(&self) -> f64 {
        self.all.iter().copied().fold(0.0, f64::max)
    }
}

/// How many workers of an httpd are busy, as its mod_status says, if it says it in time.
pub(crate) fn busy_workers(server: &Server) -> Option<usize> {
    let (_, text) = visit(server.address(false), false, "/server-status?auto").ok()?;
    text.lines().find_map(|line| line.strip_prefix("BusyWorkers: "))?.parse().ok()
}

/// One visitor: how long he waited, and what he got.
fn visit(server: SocketAddr, tls: bool, path: &str) -> io::Result<(Duration, String)> {
    let begin = Instant::now();
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_nodelay(true)?;
    let mut stream = Patient { begin, stream: &mut stream };
    let request = format!("GET {path} HTTP/1.1\r\nHost: base.test\r\nConnection: close\r\n\r\n");
    let mut text = String::new();
    if tls {
        let mut session = tls_session();
        let mut stream = Stream::new(&mut session, &mut stream);
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut text)?;
    } else {
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut text)?;
    }
    let ok = text.starts_with("HTTP/1.1 200");
    ok.then(|| (begin.elapsed(), text)).ok_or_else(|| io::Error::other("no answer"))
}

/// A connection that is given up when the patience has ended.
struct Patient<'a> {
    begin: Instant,
    stream: &'a mut TcpStream,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = PATIENCE.saturating_sub(self.begin.elapsed()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
