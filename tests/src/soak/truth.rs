//! What the clients know: which connections and requests there may be at a moment.
//!
//! An **item** is a connection or a request. It begins before the first byte of it is sent, and it ends
//! after the client has closed it or has read its last byte. The server may hold it a little longer:
//!
//! * [`NOTICE`], until it has noticed the end;
//! * [`UNHEARD`], when the client went without waiting for an answer: perhaps nobody has accepted yet;
//! * no time at all, when it was refused: what is refused holds nothing when the client hears of it;
//! * [`REAP`] after a kill that may have struck before that: the parent looks for dead children once a
//!   second, and not while it reads its configuration.
//!
//! So a count that is read between two moments is at most the number of items that began before the
//! second one and whose time was not over at the first one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::Scope;

const NOTICE: Duration = Duration::from_millis(500);
const UNHEARD: Duration = Duration::from_secs(2);
const REAP: Duration = Duration::from_secs(2);

/// The virtual hosts.
pub(super) const HOSTS: [&str; 2] = ["a.test", "b.test"];

/// What a client knew of the server when it ended something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// It had answered.
    Heard,
    /// It had not answered.
    Unheard,
    /// It had refused.
    Refused,
}

/// A connection, or a request on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) client: Ipv4Addr,
    pub(super) port: u16,
    pub(super) host: &'static str,
    /// What is requested; a connection has none.
    pub(super) path: Option<&'static str>,
    begin: Instant,
    end: Option<(Instant, Ending)>,
    admitted: bool,
}

impl Item {
    /// Whether it counts under this limit.
    fn counts(&self, directive: &str, place: &str) -> bool {
        let under = |prefixes: &[&str]| {
            self.path.is_some_and(|path| prefixes.iter().any(|prefix| path.starts_with(prefix)))
        };
        match directive {
            "MaxConnectionsPerIP" => self.path.is_none() && place.contains(self.host),
            "GlobalMaxConnectionsPerIP" => self.path.is_none(),
            "LoadLimitServer" => self.path.is_some(),
            "LoadLimit" => under(&["/small", "/disk"]),
            "LoadLimit1" => under(&["/page", "/images"]),
            "MaxConcurrentReqs" => under(&["/slow"]),
            other => panic!("an unknown limit: {other}"),
        }
    }
}

/// Whether each client has its own count.
pub(super) fn is_per_client(directive: &str) -> bool {
    directive.ends_with("PerIP")
}

/// How many there are by client; under "nobody" when all count together.
type Counts = HashMap<Ipv4Addr, u64>;

/// The clients' book.
#[derive(Debug, Default)]
pub(super) struct Truth(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    items: HashMap<u64, Item>,
    next: u64,
    kills: Vec<Instant>,
}

impl Truth {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(
        &self,
        client: Ipv4Addr,
        port: u16,
        host: &'static str,
        path: Option<&'static str>,
    ) -> u64 {
        let mut book = self.book();
        book.next += 1;
        let (number, begin) = (book.next, Instant::now());
        let item = Item { client, port, host, path, begin, end: None, admitted: false };
        book.items.insert(number, item);
        number
    }

    /// The port is known now.
    pub(super) fn connected(&self, number: u64, port: u16) {
        self.book().items.get_mut(&number).unwrap().port = port;
    }

    /// An answer came that was no refusal.
    pub(super) fn admitted(&self, number: u64) {
        self.book().items.get_mut(&number).unwrap().admitted = true;
    }

    /// It is over.
    pub(super) fn end(&self, number: u64, ending: Ending) {
        self.book().items.get_mut(&number).unwrap().end = Some((Instant::now(), ending));
    }

    /// A child is going to be killed.
    pub(super) fn kill(&self) {
        self.book().kills.push(Instant::now());
    }

    /// When a request began.
    pub(super) fn begun(&self, number: u64) -> Instant {
        self.book().items[&number].begin
    }

    /// The most that a limit can have counted between two moments; `but` are not looked at.
    pub(super) fn possible(
        &self,
        (directive, place): (&str, &str),
        (from, to): (Instant, Instant),
        but: &[u64],
    ) -> Counts {
        let book = self.book();
        let possible = book.items.iter().filter(|(number, item)| {
            item.counts(directive, place)
                && item.begin <= to
                && book.until(item).is_none_or(|until| until >= from)
                && !but.contains(number)
        });
        tally(directive, possible.map(|(_, item)| item))
    }

    /// How many there are when all clients stand still, for each limit: what was admitted, is not over,
    /// and has a process at the server's end.
    pub(super) fn standing(&self, row: &Scope, ends: &HashSet<(Ipv4Addr, u16)>) -> Counts {
        let book = self.book();
        let standing = book.items.values().filter(|item| {
            item.counts(&row.directive, &row.place)
                && item.end.is_none()
                && item.admitted
                && ends.contains(&(item.client, item.port))
        });
        tally(&row.directive, standing)
    }

    /// Forgets what no question can be about any more.
    pub(super) fn forget(&self) {
        let mut book = self.book();
        let open = book.items.values().filter(|item| item.end.is_none()).map(|item| item.begin);
        let horizon = open.min().unwrap_or_else(Instant::now).min(Instant::now());
        let old: Vec<u64> = book
            .items
            .iter()
            .filter(|(_, item)| book.until(item).is_some_and(|until| until < horizon))
            .map(|(&number, _)| number)
            .collect();
        for number in old {
            book.items.remove(&number);
        }
    }
}

impl Book {
    /// Until when the server may hold it; `None`: it is not over.
    fn until(&self, item: &Item) -> Option<Instant> {
        let (end, ending) = item.end?;
        let noticed = match ending {
            Ending::Refused => return Some(end),
            Ending::Heard => end + NOTICE,
            Ending::Unheard => end + UNHEARD,
        };
        let struck = self.kills.iter().rfind(|&&kill| kill <= noticed && kill >= item.begin);
        Some(struck.map_or(noticed, |&kill| noticed.max(kill + REAP)))
    }
}

fn tally<'a>(directive: &str, items: impl Iterator<Item = &'a Item>) -> Counts {
    let mut counts = Counts::new();
    for item in items {
        let whose = if is_per_client(directive) { item.client } else { Ipv4Addr::UNSPECIFIED };
        *counts.entry(whose).or_default() += 1;
    }
    counts
}

/// The clients of the connections whose server's end belongs to a process, as the kernel has them: also of
/// those that httpd has ended, for two seconds, unless the client ends them too.
pub(super) fn ends(server: SocketAddr) -> HashSet<(Ipv4Addr, u16)> {
    let address = |text: &str| {
        let (ip, port) = text.split_once(':')?;
        let ip = u32::from_str_radix(ip, 16).ok()?;
        Some((Ipv4Addr::from(ip.to_le_bytes()), u16::from_str_radix(port, 16).ok()?))
    };
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let end = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let here = address(fields.get(1)?)?;
        let ours = SocketAddr::from(here) == server && fields[9] != "0";
        ours.then(|| address(fields[2]))?
    };
    table.lines().skip(1).filter_map(end).collect()
}
