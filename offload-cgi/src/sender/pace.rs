//! Who shares what speed: the rate of each connection is the kernel's work (`SO_MAX_PACING_RATE`), dividing a
//! common rate among connections is this file's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::socket::Socket;

/// What a download may take at most, in bytes a second.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Caps {
    /// For itself.
    pub(crate) own: Option<u64>,
    /// Together with all downloads of its client.
    pub(crate) client: Option<u64>,
    /// Together with all downloads of its client of the same file.
    pub(crate) file: Option<u64>,
}

impl Caps {
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Connections that share a rate.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Group {
    Client([u8; 8]),
    /// Of a client, the site's number and the path.
    File([u8; 8], usize, Box<str>),
}

/// All groups, of all senders.
#[derive(Debug, Default)]
pub(crate) struct Paces(Mutex<HashMap<Group, Vec<Arc<Pace>>>>);

/// The speed of one download.
#[derive(Debug)]
pub(crate) struct Pace {
    socket: Weak<Socket>,
    caps: Caps,
    /// Its parts of the common rates.
    of_client: AtomicU64,
    of_file: AtomicU64,
    /// Whether its burst is over.
    begun: AtomicBool,
}

/// A download's place in its groups, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Paced {
    pace: Arc<Pace>,
    groups: Vec<Group>,
    paces: Arc<Paces>,
}

impl Paces {
    /// Lets a download take part. Nothing is paced before `begin`.
    pub(crate) fn join(
        self: &Arc<Self>,
        socket: &Arc<Socket>,
        caps: Caps,
        client: [u8; 8],
        site: usize,
        path: &str,
    ) -> Paced {
        let pace = Arc::new(Pace {
            socket: Arc::downgrade(socket),
            caps,
            of_client: AtomicU64::new(u64::MAX),
            of_file: AtomicU64::new(u64::MAX),
            begun: AtomicBool::new(false),
        });
        let mut groups = Vec::new();
        if caps.client.is_some() {
            groups.push(Group::Client(client));
        }
        if caps.file.is_some() {
            groups.push(Group::File(client, site, path.into()));
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for group in &groups {
            let members = all.entry(group.clone()).or_default();
            members.push(Arc::clone(&pace));
            divide(group, members);
        }
        drop(all);
        Paced { pace, groups, paces: Arc::clone(self) }
    }
}

impl Paced {
    /// The burst is over: from now on the speed holds.
    pub(crate) fn begin(&self) {
        if !self.pace.begun.swap(true, Ordering::AcqRel) {
            self.pace.apply();
        }
    }

    /// Whether the speed holds.
    pub(crate) fn has_begun(&self) -> bool {
        self.pace.begun.load(Ordering::Acquire)
    }

    /// What this download may take now.
    pub(crate) fn rate(&self) -> u64 {
        self.pace.rate()
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        if !self.groups.is_empty() {
            let mut all = self.paces.0.lock().unwrap_or_else(PoisonError::into_inner);
            for group in &self.groups {
                if let Some(members) = all.get_mut(group) {
                    members.retain(|other| !Arc::ptr_eq(other, &self.pace));
                    divide(group, members);
                    if members.is_empty() {
                        all.remove(group);
                    }
                }
            }
        }
        // The socket keeps its speed: else what still waits in it, and so every small reply, would go out at once.
    }
}

impl Pace {
    fn rate(&self) -> u64 {
        let own = self.caps.own.unwrap_or(u64::MAX);
        let shared =
            self.of_client.load(Ordering::Acquire).min(self.of_file.load(Ordering::Acquire));
        own.min(shared)
    }

    fn apply(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.pace(Some(self.rate()));
        }
    }
}

/// Gives every member the same part of the least of their rates: after a reload they may have been told
/// different ones.
fn divide(group: &Group, members: &[Arc<Pace>]) {
    let total = members.iter().filter_map(|member| match group {
        Group::Client(_) => member.caps.client,
        Group::File(..) => member.caps.file,
    });
    let Some(total) = total.min() else { return };
    let part = (total / members.len().max(1) as u64).max(1);
    for member in members {
        let mine = match group {
            Group::Client(_) => &member.of_client,
            Group::File(..) => &member.of_file,
        };
        if mine.swap(part, Ordering::AcqRel) != part && member.begun.load(Ordering::Acquire) {
            member.apply();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_common_rate_is_divided_and_comes_back() {
        let socket = || Arc::new(Socket::unix(UnixStream::pair().unwrap().0).unwrap());
        let (paces, one, two, three) = (Arc::new(Paces::default()), socket(), socket(), socket());
        let caps = Caps { own: Some(900), client: Some(1000), file: None };
        let first = paces.join(&one, caps, [1; 8], 0, "/a");
        assert_eq!(first.rate(), 900, "its own rate is less than the common one");
        let second = paces.join(&two, caps, [1; 8], 0, "/b");
        let other = paces.join(&three, caps, [2; 8], 0, "/a");
        assert_eq!((first.rate(), second.rate(), other.rate()), (500, 500, 900));
        drop(first);
        assert_eq!(second.rate(), 900);
        drop((second, other));
        assert!(paces.0.lock().unwrap().is_empty());
    }

    #[test]
    fn connections_for_one_file_share_what_one_gets() {
        let socket = || Arc::new(Socket::unix(UnixStream::pair().unwrap().0).unwrap());
        let (paces, one, two, three) = (Arc::new(Paces::default()), socket(), socket(), socket());
        let caps = Caps { own: Some(1000), client: None, file: Some(1000) };
        let first = paces.join(&one, caps, [1; 8], 0, "/a");
        let second = paces.join(&two, caps, [1; 8], 0, "/a");
        let other = paces.join(&three, caps, [1; 8], 0, "/b");
        assert_eq!((first.rate(), second.rate(), other.rate()), (500, 500, 1000));
    }
}
