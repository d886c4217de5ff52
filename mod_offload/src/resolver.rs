//! The addresses of the offload hosts: who fetches a file for an offload host must not be redirected.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{PoisonError, RwLock};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// How long an answer of the name service is taken for good.
const GOOD_FOR: Duration = Duration::from_secs(300);
/// How soon a name that had no answer is looked up again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// More names than any configuration has; beyond it, .htaccess files are playing games.
const MOST_NAMES: usize = 1_000;

struct Entry {
    /// None until the first look-up has ended.
    addresses: Option<Vec<IpAddr>>,
    until: Instant,
}

impl Entry {
    /// While nobody knows yet, it may be the host: a redirect to itself would be worse than none.
    fn may_be(&self, client: IpAddr) -> bool {
        self.addresses.as_ref().is_none_or(|addresses| addresses.contains(&client))
    }
}

/// A memory of names and their addresses; each child has its own and begins with the parent's.
pub(crate) struct Resolver {
    entries: RwLock<HashMap<String, Entry>>,
}

impl Resolver {
    /// Looks up all names at once, and says which ones have no address, and why.
    pub(crate) fn start(names: &BTreeSet<String>, now: Instant) -> (Self, Vec<(String, String)>) {
        let names: Vec<&String> = names.iter().collect();

        // A name service that does not answer takes seconds for each name.
        let answers: Vec<Result<Vec<IpAddr>, String>> = thread::scope(|scope| {
            let lookups: Vec<_> = names
                .iter()
                .map(|name| thread::Builder::new().spawn_scoped(scope, || look_up(name)))
                .collect();
            let answer = |lookup: io::Result<ScopedJoinHandle<'_, _>>| {
                let lookup = lookup.map_err(|error| error.to_string())?;
                lookup.join().map_err(|_| "the look-up failed".to_owned())?
            };
            lookups.into_iter().map(answer).collect()
        });
        let mut entries = HashMap::new();
        let mut failures = Vec::new();
        for (name, answer) in names.into_iter().zip(answers) {
            let (addresses, good_for) = match answer {
                Ok(addresses) => (addresses, GOOD_FOR),
                Err(why) => {
                    failures.push((name.clone(), why));
                    (Vec::new(), AGAIN_AFTER)
                }
            };
            entries
                .insert(name.clone(), Entry { addresses: Some(addresses), until: now + good_for });
        }
        (Self { entries: RwLock::new(entries) }, failures)
    }

    /// Whether the client's address is one of the name's. A name that is not known yet, or was looked up
    /// too long ago, is looked up now, by one thread; the others go on with what is known.
    pub(crate) fn has_address(&self, name: &str, client: IpAddr) -> bool {
        let now = Instant::now();
        {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = entries.get(name).filter(|entry| now < entry.until) {
                return entry.may_be(client);
            }
        }
        if !self.claim(name, now) {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            return entries.get(name).is_some_and(|entry| entry.may_be(client));
        }
        let answer = look_up(name);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.get_mut(name) else { return false };
        match answer {
            Ok(addresses) => *entry = Entry { addresses: Some(addresses), until: now + GOOD_FOR },
            Err(_) => {
                entry.addresses.get_or_insert_default();
            }
        }
        entry.may_be(client)
    }

    /// Whether it is up to this thread to look the name up: the first one to ask takes it on.
    fn claim(&self, name: &str, now: Instant) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MOST_NAMES && !entries.contains_key(name) {
            entries.retain(|_, entry| now < entry.until);
            if entries.len() >= MOST_NAMES {
                return false;
            }
        }
        let entry = entries.entry(name.to_owned()).or_insert(Entry { addresses: None, until: now });
        if now < entry.until {
            return false;
        }
        entry.until = now + AGAIN_AFTER;
        true
    }
}

/// All addresses of a name, IPv4 and IPv6.
fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let answer = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let addresses: Vec<IpAddr> = answer.map(|address| address.ip().to_canonical()).collect();
    if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
}
