//! Who is downloading what: so that no client loads one file over many connections at a time.
//!
//! The table is the ledger of `offload-core` in a mapped file of the cache's folder: fixed in size, keyed
//! hashing, each step one exchange of a word. A process that is killed leaves its leases behind; who is
//! refused looks first whether those who hold them still live.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use offload_core::ledger::{
    Identity, Key, Lease, Ledger, LedgerError, Owner, Scope, TableSize, Taken,
};

use crate::client::prefix;
use crate::shared::{Shared, wait, wake};
use crate::store::open_lock;

/// The processes that may serve at the same time.
const OWNERS: u32 = 16_384;
/// The longest that one wait lasts: a holder that is killed does not say so.
const LOOK: Duration = Duration::from_millis(90);
/// The size of the page behind the ledger.
const BELL: usize = 4096;

/// The table of all downloads.
pub(crate) struct Downloads {
    ledger: Ledger<'static>,
    owner: Owner,
    /// A page behind the ledger: its first word says how often something was given back.
    bell: Shared,
}

/// A place in the table, given back when it is dropped.
pub(crate) struct Place<'a> {
    downloads: &'a Downloads,
    lease: Option<Lease>,
}

impl Downloads {
    /// Opens the table in the cache's folder for so many clients, and makes it when it is missing.
    ///
    /// # Errors
    /// When the disk does not take it, or it holds something else.
    pub(crate) fn open(folder: &Path, clients: u32) -> io::Result<Self> {
        let size = TableSize::new(clients).with_owners(OWNERS).with_scopes(1);
        let length = Ledger::words_needed(size) * 8;
        let file = open_lock(&folder.join(format!("downloads-{}", size.entries())))?;
        let whole = length.next_multiple_of(BELL) + BELL;
        // One that is longer is used as far as it is needed: others may be at work in it.
        let is_short = || io::Result::Ok(file.metadata()?.len() < whole as u64);
        if is_short()? {
            fs2::FileExt::lock_exclusive(&file)?;
            if is_short()? {
                // Written and not only made longer: what is mapped must have its place on the disk.
                file.write_all_at(&vec![0; whole], 0)?;
            }
            fs2::FileExt::unlock(&file)?;
        }
        let table = Shared::map(&file, 0, length)?.leak();
        let ledger = match Ledger::open(table) {
            Err(LedgerError::Foreign) => {
                fs2::FileExt::lock_exclusive(&file)?;
                let secret = || RandomState::new().hash_one(());
                match Ledger::open(table) {
                    Err(LedgerError::Foreign) => Ledger::create(table, size, (secret(), secret())),
                    opened => opened,
                }
            }
            opened => opened,
        };
        let ledger = ledger.map_err(io::Error::other)?;
        let identity = own_identity();
        let owner = ledger.enter(identity).or_else(|| {
            bury(&ledger);
            ledger.enter(identity)
        });
        let owner = owner.ok_or_else(|| io::Error::other("too many processes are at work"))?;
        let bell = Shared::map(&file, (whole - BELL) as u64, BELL)?;
        Ok(Self { ledger, owner, bell })
    }

    /// Takes a place for one more download of `source` by a client, unless it has `limit` already. `None`
    /// when it has; a table that is full counts nobody and lets everybody in.
    pub(crate) fn take(&self, client: IpAddr, source: &str, limit: u32) -> Option<Place<'_>> {
        let key = self.key(client, source);
        self.try_take(key, limit).or_else(|| {
            bury(&self.ledger);
            self.try_take(key, limit)
        })
    }

    /// The same, but waits for a place, at most for `patience`.
    pub(crate) fn wait_for(
        &self,
        client: IpAddr,
        source: &str,
        limit: u32,
        patience: Duration,
    ) -> Option<Place<'_>> {
        let begun = Instant::now();
        loop {
            let seen = self.word().map_or(0, |word| word.load(Ordering::Acquire));
            if let Some(place) = self.take(client, source, limit) {
                return Some(place);
            }
            let left = patience.checked_sub(begun.elapsed()).filter(|left| !left.is_zero())?;
            match self.word() {
                Some(word) => wait(word, seen, left.min(LOOK)),
                None => std::thread::sleep(left.min(LOOK)),
            }
        }
    }

    fn try_take(&self, key: Key, limit: u32) -> Option<Place<'_>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let lease = match self.ledger.take(self.owner, key, limit, now) {
            Taken::Held { lease, .. } => Some(lease),
            Taken::Uncounted => None,
            Taken::Refused { .. } => return None,
        };
        Some(Place { downloads: self, lease })
    }

    fn key(&self, client: IpAddr, source: &str) -> Key {
        self.ledger.key(Scope(0), &[&prefix(client), source.as_bytes()].concat())
    }

    /// What those who wait wait for.
    fn word(&self) -> Option<&AtomicU32> {
        self.bell.words().first()
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        // Every place borrows this value, so that none is held any more.
        self.ledger.leave(self.owner);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.downloads.ledger.release(lease);
        }
        if let Some(word) = self.downloads.word() {
            word.fetch_add(1, Ordering::AcqRel);
            wake(word);
        }
    }
}

/// Gives back what dead processes have held.
fn bury(ledger: &Ledger<'_>) {
    for owner in ledger.owners() {
        if is_dead(owner.identity()) {
            ledger.reclaim(owner);
        }
    }
}

/// This process. Where /proc is not to be seen, by its id alone.
fn own_identity() -> Identity {
    let pid = std::process::id();
    Identity::new(pid, start(pid).unwrap_or(0))
}

/// Whether a process has ended, for certain.
fn is_dead(identity: Identity) -> bool {
    let pid = identity.pid();
    let Ok(number) = i32::try_from(pid) else { return false };
    if kill(Pid::from_raw(number), None) == Err(Errno::ESRCH) {
        return true;
    }
    let Some((start, is_zombie)) = stat(pid) else { return false };
    // The id may belong to another process by now.
    is_zombie || (identity != Identity::new(pid, 0) && identity != Identity::new(pid, start))
}

/// When a process began, in ticks since the machine did.
fn start(pid: u32) -> Option<u64> {
    stat(pid).map(|(start, _)| start)
}

/// What proc(5) says of a process: when it began, and whether only its parent has not noticed its end.
fn stat(pid: u32) -> Option<(u64, bool)> {
    let mut text = [0; 1024];
    let length = fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
    let text = String::from_utf8_lossy(text.get(..length)?);
    // The second field is a name in brackets with anything in it; the state is the 3rd, the start the 22nd.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let is_zombie = fields.next()? == "Z";
    Some((fields.nth(18)?.parse().ok()?, is_zombie))
}
