//! Taking and giving back.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::layout::LINE;
use super::table::{Key, Scope};
use super::word::{Act, AtomicU64, Cell, State, Tally, add_one, exchange, load, store};
use super::{Ledger, Owner};

/// Cache lines of cells that a take looks through for a free one; at most half of all are in use.
const LINES_PROBED: usize = 16;
/// How often a take brings its key back when others evict it at once.
const ATTEMPTS: u32 = 8;

/// One count that is held. Copies are the same lease: it is given back once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lease {
    index: usize,
    /// The cell and the tally as the take has left them; others may have changed both since.
    pending: Cell,
    tally: Tally,
}

/// Where a process found a key last, in its own memory: it looks there first. Whatever it says, the entry
/// is asked whose it is.
#[derive(Debug)]
pub struct Trace(AtomicUsize);

impl Default for Trace {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

/// How a take went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Taken {
    /// It is counted.
    Held {
        /// To be released.
        lease: Lease,
        /// How many are held now, this one included.
        held: u32,
    },
    /// The limit is reached.
    Refused {
        /// How many are held.
        held: u32,
    },
    /// There is no room to count: let it in.
    Uncounted,
}

/// A free cell that this take has made its own.
type Reserved<'a> = (usize, &'a AtomicU64, Cell);

impl<'a> Ledger<'a> {
    /// Takes one, unless `limit` are held already; [`u32::MAX`] never refuses.
    ///
    /// `now` is in milliseconds, of a clock that all processes share; it only orders the idle entries.
    pub fn take(&self, owner: Owner, key: Key, limit: u32, now: u64) -> Taken {
        let found = self.find(key);
        match found.and_then(|entry| self.retake_at(entry, owner, key, limit, now)) {
            Some((lease, held)) => Taken::Held { lease, held },
            None => self.look_and_take(found, owner, key, limit, now),
        }
    }

    /// Takes one of a key that has left a trace, if that is easily done: see `retake_at`.
    #[inline]
    pub fn retake(
        &self,
        owner: Owner,
        key: Key,
        limit: u32,
        now: u64,
        trace: &Trace,
    ) -> Option<Lease> {
        self.retake_at(trace.0.load(Ordering::Relaxed), owner, key, limit, now)
            .map(|(lease, _)| lease)
    }

    /// Takes one, and leaves a trace of it for [`retake`](Self::retake).
    pub fn take_and_trace(
        &self,
        owner: Owner,
        key: Key,
        limit: u32,
        now: u64,
        trace: &Trace,
    ) -> Taken {
        let taken = self.take(owner, key, limit, now);
        if let Taken::Held { lease, .. } = taken {
            trace.0.store(lease.pending.entry(), Ordering::Relaxed);
        }
        taken
    }

    /// Takes one where the last act in the entry was a release, with the cell of that: if it is free, there
    /// is nothing to search and nothing to settle. `None` if it is not so, or if `limit` are held already.
    #[inline]
    fn retake_at(
        &self,
        entry: usize,
        owner: Owner,
        key: Key,
        limit: u32,
        now: u64,
    ) -> Option<(Lease, u32)> {
        let way = self.way(entry)?;
        let tally = Tally(load(way.tally));
        let (index, held) = (tally.released_by()?, tally.count());
        let word = self.cell(index)?;
        // The tag and the cell are read second.
        if !way.bears(key) || held >= limit || held >= Tally::MAX_COUNT {
            return None;
        }
        let cell = Cell(load(word));
        let pending = cell.pending(owner.slot, entry);
        if !cell.is_free() || !exchange(word, cell.0, pending.0) {
            return None;
        }
        let retaken = tally.retaken();
        if !exchange(way.tally, tally.0, retaken.0) {
            exchange(word, pending.0, pending.free().0);
            return None;
        }
        if held == 0 {
            store(way.time, now);
        }
        Some((Lease { index, pending, tally: retaken }, held + 1))
    }

    /// Counts what did not go well.
    #[cold]
    fn note(&self, key: Key, taken: Taken) -> Taken {
        let scope = self.scope_words(key.scope());
        match (taken, scope) {
            (Taken::Refused { .. }, Some([refusals, ..])) => add_one(refusals),
            (Taken::Uncounted, scope) => {
                scope.map(|[_, overflows, ..]| overflows).into_iter().for_each(add_one);
                self.totals.first().into_iter().for_each(add_one);
            }
            _ => {}
        }
        taken
    }

    /// Notes that a dry run would have refused: the caller took without a limit and saw the count.
    pub fn note_dry_refusal(&self, scope: Scope) {
        if let Some([_, _, dry_refusals, _]) = self.scope_words(scope) {
            add_one(dry_refusals);
        }
    }

    /// Gives a lease back. False if that was done before, by a release or by a reclaim.
    #[inline]
    pub fn release(&self, lease: Lease) -> bool {
        let Some(word) = self.cell(lease.index) else { return false };
        let (pending, releasing) = (lease.pending, lease.pending.releasing());
        // Mostly nobody has taken note of it, and so both words are as the take has left them.
        if exchange(word, pending.0, releasing.0) {
            if let Some(tally) = self.tally(pending.entry())
                && exchange(tally, lease.tally.0, lease.tally.given_back().0)
            {
                exchange(word, releasing.0, releasing.free().0);
                return true;
            }
        } else if !exchange(word, pending.held().0, releasing.0) {
            return false;
        }
        self.release_noted(lease.index, word, releasing);
        true
    }

    #[inline(never)]
    fn release_noted(&self, index: usize, word: &AtomicU64, releasing: Cell) {
        self.finish_release(index, word, releasing);
        if let Some(hint) = self.hint(releasing.owner()) {
            store(hint, index as u64);
        }
    }

    /// Whether a lease that is held counts for this key: as long as it is, its entry has the key's tag.
    pub fn counts_for(&self, lease: Lease, key: Key) -> bool {
        self.way(lease.pending.entry()).is_some_and(|way| way.bears(key))
    }

    /// How many are held.
    pub fn held(&self, key: Key) -> u32 {
        loop {
            let Some(way) = self.find(key).and_then(|entry| self.way(entry)) else { return 0 };
            let count = Tally(load(way.tally)).count();
            // Read second: if it is another's by now, so may the count be.
            if way.bears(key) {
                return count;
            }
        }
    }

    fn look_and_take(
        &self,
        mut found: Option<usize>,
        owner: Owner,
        key: Key,
        limit: u32,
        now: u64,
    ) -> Taken {
        for _ in 0..ATTEMPTS {
            let Some(entry) = found.take().or_else(|| self.insert(owner, key, now)) else { break };
            match self.take_at(entry, owner, key, limit, now) {
                Some(taken @ Taken::Held { .. }) => return taken,
                Some(taken) => return self.note(key, taken),
                None => {}
            }
        }
        self.note(key, Taken::Uncounted)
    }

    /// `None` if the entry is not the key's any more.
    fn take_at(&self, entry: usize, owner: Owner, key: Key, limit: u32, now: u64) -> Option<Taken> {
        let way = self.way(entry)?;
        let mut reserved: Option<Reserved<'a>> = None;
        let outcome = loop {
            let tally = Tally(load(way.tally));
            if tally.is_closed() || !way.bears(key) {
                break None;
            }
            let held = tally.count();
            if held >= limit {
                break Some(Taken::Refused { held });
            }
            if held >= Tally::MAX_COUNT {
                break Some(Taken::Uncounted);
            }
            let seed = key.place ^ tally.0;
            let Some(cell) = reserved.or_else(|| self.reserve(owner, entry, seed)) else {
                break Some(Taken::Uncounted);
            };
            reserved = Some(cell);
            let (index, _, pending) = cell;
            let taken = tally.taken(index);
            if !self.settle(way.tally, entry, tally) || !exchange(way.tally, tally.0, taken.0) {
                continue;
            }
            if held == 0 {
                store(way.time, now);
            }
            let lease = Lease { index, pending, tally: taken };
            return Some(Taken::Held { lease, held: held + 1 });
        };
        if let Some((_, cell_word, pending)) = reserved {
            exchange(cell_word, pending.0, pending.free().0);
        }
        outcome
    }

    pub(super) fn cell(&self, index: usize) -> Option<&'a AtomicU64> {
        self.cells.get(index / LINE).map(|line| &line[index % LINE])
    }

    /// The cell that this owner freed last, or the one behind it that it took last: it is likely to be
    /// free, and in the cache. Only a hint, so nothing depends on it.
    #[inline]
    pub(super) fn hint(&self, slot: u16) -> Option<&'a AtomicU64> {
        self.owners.get(usize::from(slot)).map(|[_, hint, ..]| hint)
    }

    /// Makes a free cell pending: the one of the hint, or else one beside it, or else one found from a
    /// place that changes with each lease, so that it is found soon however many one key holds.
    #[inline]
    fn reserve(&self, owner: Owner, entry: usize, seed: u64) -> Option<Reserved<'a>> {
        let hint = self.hint(owner.slot)?;
        let index = usize::try_from(load(hint)).unwrap_or(usize::MAX);
        let hinted = self.cell(index).and_then(|word| reserve_cell(owner, entry, index, word));
        let reserved = match hinted {
            Some(reserved) => reserved,
            None => self.search_cell(owner, entry, index / LINE, seed)?,
        };
        // Who takes several gives them back in the opposite order: then it is a stack.
        store(hint, reserved.0 as u64 + 1);
        Some(reserved)
    }

    #[cold]
    fn search_cell(
        &self,
        owner: Owner,
        entry: usize,
        near: usize,
        seed: u64,
    ) -> Option<Reserved<'a>> {
        let lines = self.cells.len();
        let mixed = (seed ^ seed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = usize::try_from((mixed * lines as u64) >> 32).unwrap_or(0);
        let anywhere = (first..lines).chain(0..first).take(LINES_PROBED);
        std::iter::once(near).chain(anywhere).find_map(|line| {
            let mut words = self.cells.get(line)?.iter().enumerate();
            words.find_map(|(place, word)| reserve_cell(owner, entry, line * LINE + place, word))
        })
    }

    /// Sees to it that the act which `tally` names has left its mark in the cell, so that the tally may
    /// be overwritten. False if the tally has changed meanwhile.
    #[inline]
    pub(super) fn settle(&self, tally_word: &AtomicU64, entry: usize, tally: Tally) -> bool {
        let Some((act, index)) = tally.last() else { return true };
        let Some(word) = self.cell(index) else { return true };
        let cell = Cell(load(word));
        let (unsettled, settled) = match act {
            Act::Take => (State::Pending, cell.held()),
            Act::Release => (State::Releasing, cell.free()),
        };
        if cell.state() != unsettled || cell.entry() != entry {
            return true;
        }
        // The cell may have been used anew since the tally was read; not if the tally still stands.
        if load(tally_word) != tally.0 {
            return false;
        }
        exchange(word, cell.0, settled.0);
        true
    }

    /// Lowers the tally for a cell that was set to `releasing`, and frees it. Whoever finds such a cell
    /// may do it, several at once too; true for the one who lowered.
    #[inline]
    pub(super) fn finish_release(&self, index: usize, word: &AtomicU64, releasing: Cell) -> bool {
        let entry = releasing.entry();
        let lowered = self.tally(entry).is_some_and(|tally_word| {
            loop {
                let tally = Tally(load(tally_word));
                // Read second: if it is still releasing, the tally above says whether that is done.
                if load(word) != releasing.0 || tally.last() == Some((Act::Release, index)) {
                    return false;
                }
                // Nothing to lower: the memory was tampered with.
                if tally.is_idle() {
                    return false;
                }
                if self.settle(tally_word, entry, tally)
                    && exchange(tally_word, tally.0, tally.released(index).0)
                {
                    return true;
                }
            }
        });
        exchange(word, releasing.0, releasing.free().0);
        lowered
    }
}

#[inline]
fn reserve_cell<'a>(
    owner: Owner,
    entry: usize,
    index: usize,
    word: &'a AtomicU64,
) -> Option<Reserved<'a>> {
    let cell = Cell(load(word));
    let pending = cell.pending(owner.slot, entry);
    let reserved = cell.state() == State::Free && exchange(word, cell.0, pending.0);
    reserved.then_some((index, word, pending))
}
