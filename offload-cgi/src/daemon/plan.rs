//! What holds now: the settings of the daemon and its sites, replaced as a whole by a reload.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::journal::Format;
use super::site::{Site, client_of};

/// What the senders go by.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Time for a whole head, and between two requests.
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    /// Bytes a second that a client must take on average.
    pub(crate) min_rate: u64,
    /// Connections at a time, in all and of one client; 0 = any number.
    pub(crate) max_connections: usize,
    pub(crate) max_client_connections: u32,
    pub(crate) log_format: Format,
    pub(crate) sites: Vec<&'static Site>,
}

impl Plan {
    /// The site that a Host name means.
    pub(crate) fn site(&self, host: &[u8]) -> Option<&'static Site> {
        // A name may be written with the dot of the root.
        let host = host.strip_suffix(b".").unwrap_or(host);
        let named = |site: &&&Site| {
            site.settings.hosts.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(host))
        };
        let rest = |site: &&&Site| site.settings.hosts.is_empty();
        self.sites.iter().find(named).or_else(|| self.sites.iter().find(rest)).copied()
    }

    /// Whether somebody is a proxy that is believed about its clients.
    fn trusts(&self, peer: IpAddr) -> bool {
        self.sites.iter().any(|site| site.options().trust.has(peer))
    }
}

/// Who has come in.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    total: AtomicUsize,
    clients: Mutex<HashMap<[u8; 8], u32>>,
}

/// How many bodies are open, of which each connection has its own, and for how many there are descriptors.
#[derive(Debug)]
pub(crate) struct Bodies {
    open: AtomicUsize,
    descriptors: usize,
}

/// A body's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct OpenBody(Arc<Bodies>);

impl Bodies {
    /// The descriptors of a body that grows, beside its connection's.
    const EACH: usize = 3;

    pub(crate) fn new(descriptors: usize) -> Self {
        Self { open: AtomicUsize::new(0), descriptors }
    }

    /// Counts one more, if there are descriptors for it. Some stay free for everything else.
    pub(crate) fn open(self: &Arc<Self>, connections: usize) -> Option<OpenBody> {
        let open = self.open.fetch_add(1, Ordering::AcqRel) + 1;
        let body = OpenBody(Arc::clone(self));
        let needed = open.saturating_mul(Self::EACH).saturating_add(connections);
        (needed <= self.descriptors / 8 * 7).then_some(body)
    }
}

impl Drop for OpenBody {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    doors: Arc<Doors>,
    client: Option<[u8; 8]>,
}

impl Doors {
    /// Counts a connection in, if there is room for it.
    pub(crate) fn enter(self: &Arc<Self>, peer: Option<IpAddr>, plan: &Plan) -> Option<Entered> {
        let total = self.total.fetch_add(1, Ordering::AcqRel);
        // From here on the place is given back, however this ends.
        let mut entered = Entered { doors: Arc::clone(self), client: None };
        if plan.max_connections > 0 && total >= plan.max_connections {
            return None;
        }
        // A proxy is many clients.
        let Some(peer) = peer.filter(|peer| !plan.trusts(*peer)) else { return Some(entered) };
        let client = client_of(Some(peer));
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        let full = plan.max_client_connections > 0 && *count >= plan.max_client_connections;
        if !full {
            *count += 1;
            entered.client = Some(client);
        }
        drop(clients);
        (!full).then_some(entered)
    }

    /// How many are in.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Acquire)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.doors.total.fetch_sub(1, Ordering::AcqRel);
        if let Some(client) = self.client {
            let mut clients = self.doors.clients.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = clients.get_mut(&client) {
                *count -= 1;
                if *count == 0 {
                    clients.remove(&client);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_bodies_are_open_than_there_are_descriptors_for() {
        let bodies = Arc::new(Bodies::new(80));
        let open: Vec<_> = std::iter::from_fn(|| bodies.open(10)).collect();
        assert_eq!(open.len(), 20);
        assert!(bodies.open(10).is_none() && bodies.open(9).is_none());
        drop(open);
        assert!(bodies.open(67).is_some() && bodies.open(68).is_none());
        assert_eq!(bodies.open.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_place_comes_back_whoever_was_refused() {
        let plan = Plan {
            header_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            min_rate: 0,
            max_connections: 3,
            max_client_connections: 2,
            log_format: Format::Combined,
            sites: Vec::new(),
        };
        let doors = Arc::new(Doors::default());
        let (one, two) = (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 2].into()));
        let first = doors.enter(one, &plan).unwrap();
        let second = doors.enter(one, &plan).unwrap();
        assert!(doors.enter(one, &plan).is_none(), "the third of one client");
        let other = doors.enter(two, &plan).unwrap();
        assert!(doors.enter(None, &plan).is_none(), "the fourth of all");
        drop(first);
        let again = doors.enter(one, &plan).unwrap();
        drop((second, other, again));
        assert_eq!((doors.total(), doors.clients.lock().unwrap().len()), (0, 0));
    }
}
