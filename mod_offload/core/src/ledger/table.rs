//! Which way of the table belongs to a key.

use std::time::Duration;

use siphasher::sip128::SipHasher13;

use super::layout::SCOPE_WORDS;
use super::lease::Reading;
use super::word::{AtomicU64, Lock, Tally, exchange, load, store};
use super::{Ledger, Line, Owner};

/// Ways of a bucket.
pub(super) const WAYS: usize = 8;
/// Words of a bucket: a cache line of tags, one of tallies, one of times.
pub(super) const TABLE_WORDS: usize = 3 * WAYS;
pub(super) type Bucket = [Line; 3];
/// How often a lock is looked at before the processor is offered to its holder, how often after, and how
/// often then with a millisecond between: on a busy machine the holder may have to wait for a processor, and
/// who does not wait for him is not counted. A dead holder's lock costs that much until it is reclaimed.
const SPINS: u32 = if cfg!(loom) { 0 } else { 100 };
const YIELDS: u32 = if cfg!(loom) { 1 } else { 50 };
const NAPS: u32 = if cfg!(any(loom, test)) { 0 } else { 100 }; // in tests holders die by the thousand

/// Which limit counts: the row of its statistics.
///
/// A scope beyond [`TableSize::with_scopes`](super::TableSize::with_scopes) counts and refuses all the
/// same, but has no statistics.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Scope(pub u16);

/// A client, hashed once; good for as long as the ledger is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Who {
    name: u64,
    place: u64,
}

impl Who {
    /// The same somebody in a place of its own within a scope: what the caller counts apart.
    #[must_use]
    pub fn in_place(self, place: u64) -> Self {
        // Two odd constants: distinct places stay distinct, and both halves of the hash move.
        Self {
            name: self.name ^ place.wrapping_mul(0xff51_afd7_ed55_8ccd),
            place: self.place.wrapping_add(place.wrapping_mul(0xc4ce_b9fe_1a85_ec53)),
        }
    }

    /// The name alone, for what is counted elsewhere; never zero.
    pub fn number(self) -> u64 {
        self.name.max(1)
    }

    /// The key under which it is counted in `scope`.
    pub fn in_scope(self, scope: Scope) -> Key {
        let scope = u64::from(scope.0);
        // Zero is an empty way.
        let name = (self.name & ((1 << Key::SCOPE_AT) - 1)).max(1);
        // Neighbours in one scope are not to be neighbours in the next.
        let mixed = (self.place ^ scope).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Key { tag: scope << Key::SCOPE_AT | name, place: mixed ^ mixed >> 32 }
    }
}

/// Who is counted in which scope.
///
/// The tag is the scope and 48 bits of the hash; other 64 bits choose the buckets. Two clients of one
/// scope are taken for one if both agree: with a million of them, once in some ten million tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Key {
    tag: u64,
    pub(super) place: u64,
}

impl Key {
    const SCOPE_AT: u32 = 48;

    /// The scope that it counts in.
    pub fn scope(self) -> Scope {
        scope_of(self.tag)
    }
}

pub(super) fn scope_of(tag: u64) -> Scope {
    Scope(u16::try_from(tag >> Key::SCOPE_AT).unwrap_or_default())
}

/// One way of a bucket.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) tag: &'a AtomicU64,
    pub(super) tally: &'a AtomicU64,
    pub(super) time: &'a AtomicU64,
}

impl Way<'_> {
    /// Whether it bears this key's tag. True of the moment when its tally was read, if the tally was
    /// read first and is unchanged later.
    #[inline]
    pub(super) fn bears(self, key: Key) -> bool {
        load(self.tag) == key.tag
    }
}

impl<'a> Ledger<'a> {
    /// The key of `who` in `scope`.
    pub fn key(&self, scope: Scope, who: &[u8]) -> Key {
        self.who(who).in_scope(scope)
    }

    /// Hashes whoever is to be counted in one scope or in several: SipHash with the ledger's secret,
    /// so that nobody outside can aim at a bucket.
    pub fn who(&self, who: &[u8]) -> Who {
        let hash = SipHasher13::new_with_keys(self.secret.0, self.secret.1).hash(who);
        Who { name: hash.h1, place: hash.h2 }
    }

    pub(super) fn scope_words(&self, scope: Scope) -> Option<&'a [AtomicU64; SCOPE_WORDS]> {
        self.scopes.get(usize::from(scope.0))
    }

    /// Entry *n* is way *n* mod 8 of bucket *n* / 8.
    #[inline]
    pub(super) fn way(&self, entry: usize) -> Option<Way<'a>> {
        let [tags, tallies, times] = self.table.get(entry / WAYS)?;
        let way = entry % WAYS;
        Some(Way { tag: &tags[way], tally: &tallies[way], time: &times[way] })
    }

    #[inline]
    pub(super) fn tally(&self, entry: usize) -> Option<&'a AtomicU64> {
        self.way(entry).map(|way| way.tally)
    }

    /// The two buckets of a key; they differ if there are two.
    #[inline]
    fn buckets(&self, key: Key) -> (usize, usize) {
        let count = self.locks.len() as u64;
        let scale = |part: u64, range: u64| usize::try_from((part * range) >> 32).unwrap_or(0);
        let first = scale(key.place >> 32, count);
        let second = first + 1 + scale(key.place & 0xffff_ffff, count.saturating_sub(1));
        (first, if second < self.locks.len() { second } else { second - self.locks.len() })
    }

    #[inline]
    pub(super) fn find(&self, key: Key) -> Option<usize> {
        let (first, second) = self.buckets(key);
        self.find_in(first, key).or_else(|| self.find_in(second, key))
    }

    #[inline]
    fn find_in(&self, bucket: usize, key: Key) -> Option<usize> {
        let [tags, ..] = self.table.get(bucket)?;
        let way = tags.iter().position(|tag| load(tag) == key.tag)?;
        Some(bucket * WAYS + way)
    }

    /// The key's entry, made if it is absent; `None` if both buckets are full of busy entries, or if a
    /// lock is not to be had. Kept out of the way of those who find their key.
    #[cold]
    pub(super) fn insert(&self, owner: Owner, key: Key, now: u64) -> Option<usize> {
        let (first, second) = self.buckets(key);
        let lower = self.lock(first.min(second), owner)?;
        let upper = if first == second {
            None
        } else {
            match self.lock(first.max(second), owner) {
                Some(lock) => Some(lock),
                None => {
                    unlock(lower);
                    return None;
                }
            }
        };
        let entry = match self.find(key) {
            Some(entry) => self.reopen(entry),
            None => self.place(first, second, key, now),
        };
        upper.into_iter().for_each(unlock);
        unlock(lower);
        entry
    }

    fn lock(&self, bucket: usize, owner: Owner) -> Option<(&'a AtomicU64, Lock)> {
        let word = self.locks.get(bucket)?;
        for tried in 0..=SPINS + YIELDS + NAPS {
            let lock = Lock(load(word));
            if lock.is_free() {
                let mine = lock.locked(owner.slot);
                if exchange(word, lock.0, mine.0) {
                    return Some((word, mine));
                }
            }
            if tried < SPINS {
                std::hint::spin_loop();
            } else if tried < SPINS + YIELDS {
                yield_now();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        None
    }

    /// With its bucket locked, a way is closed by nobody else: if it is, the memory was tampered with.
    fn reopen(&self, entry: usize) -> Option<usize> {
        let word = self.tally(entry)?;
        let tally = Tally(load(word));
        (!tally.is_closed() || exchange(word, tally.0, tally.opened().0)).then_some(entry)
    }

    /// Gives a way to a key that is absent: in the bucket with fewer busy ways an empty one, else the
    /// one that has been idle longest. Both buckets are locked.
    fn place(&self, first: usize, second: usize, key: Key, now: u64) -> Option<usize> {
        // A chosen way may become busy before it is closed, but only as often as there are ways.
        // One whose last lease is parked takes two rounds: the first lowers its tally.
        for _ in 0..4 * WAYS {
            let (entry, tally) = self.weigh(first).min(self.weigh(second)).choice()?;
            let way = self.way(entry)?;
            let closed = tally.closed();
            let may_close = self.settle(way.tally, entry, tally) && tally.is_idle();
            if !may_close || !exchange(way.tally, tally.0, closed.0) {
                continue;
            }
            store(way.time, now);
            store(way.tag, key.tag);
            return exchange(way.tally, closed.0, closed.opened().0).then_some(entry);
        }
        None
    }

    fn weigh(&self, bucket: usize) -> Weighed {
        let mut weighed = Weighed { busy: 0, idle_since: u64::MAX, entry: None, tally: 0 };
        for entry in bucket * WAYS..(bucket + 1) * WAYS {
            let Some(way) = self.way(entry) else { continue };
            let Reading { tally, held, .. } = self.read(way.tally, entry);
            if held > 0 {
                weighed.busy += 1;
                continue;
            }
            let idle_since = if load(way.tag) == 0 { 0 } else { load(way.time).saturating_add(1) };
            if weighed.entry.is_none() || idle_since < weighed.idle_since {
                weighed = Weighed { idle_since, entry: Some(entry), tally: tally.0, ..weighed };
            }
        }
        weighed
    }
}

/// A bucket with its best way; the lesser is the better one to put a key into.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Weighed {
    busy: usize,
    idle_since: u64,
    entry: Option<usize>,
    tally: u64,
}

impl Weighed {
    fn choice(self) -> Option<(usize, Tally)> {
        self.entry.map(|entry| (entry, Tally(self.tally)))
    }
}

fn unlock((word, lock): (&AtomicU64, Lock)) {
    store(word, lock.unlocked().0);
}

fn yield_now() {
    #[cfg(all(test, loom))]
    loom::thread::yield_now();
    #[cfg(not(all(test, loom)))]
    std::thread::yield_now();
}
