//! Taking and giving back.

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
    cell: Cell,
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
        let taken = self.try_take(owner, key, limit, now);
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
    pub fn release(&self, lease: Lease) -> bool {
        let Some(word) = self.cell(lease.index) else { return false };
        let releasing = lease.cell.releasing();
        if !exchange(word, lease.cell.0, releasing.0) {
            return false;
        }
        self.finish_release(lease.index, word, releasing);
        let index = lease.index as u64;
        if let Some(hint) = self.hint(releasing.owner())
            && load(hint) != index
        {
            store(hint, index);
        }
        true
    }

    /// How many are held.
    pub fn held(&self, key: Key) -> u32 {
        loop {
            let Some(entry) = self.find(key) else { return 0 };
            let Some(tally) = self.tally(entry) else { return 0 };
            let count = Tally(load(tally)).count();
            // Read second: if it is another's by now, so may the count be.
            if self.bears(entry, key) {
                return count;
            }
        }
    }

    fn try_take(&self, owner: Owner, key: Key, limit: u32, now: u64) -> Taken {
        let mut found = self.find(key);
        for _ in 0..ATTEMPTS {
            let Some(entry) = found.take().or_else(|| self.insert(owner, key, now)) else {
                return Taken::Uncounted;
            };
            if let Some(taken) = self.take_at(entry, owner, key, limit, now) {
                return taken;
            }
        }
        Taken::Uncounted
    }

    /// `None` if the entry is not the key's any more.
    fn take_at(&self, entry: usize, owner: Owner, key: Key, limit: u32, now: u64) -> Option<Taken> {
        let word = self.tally(entry)?;
        let mut reserved: Option<Reserved<'a>> = None;
        let outcome = loop {
            let tally = Tally(load(word));
            if tally.is_closed() || !self.bears(entry, key) {
                break None;
            }
            let held = tally.count();
            if held >= limit.min(Tally::MAX_COUNT) {
                break Some(if held >= limit { Taken::Refused { held } } else { Taken::Uncounted });
            }
            let seed = key.place ^ tally.0;
            let Some(cell) = reserved.or_else(|| self.reserve(owner, entry, seed)) else {
                break Some(Taken::Uncounted);
            };
            reserved = Some(cell);
            let (index, cell_word, pending) = cell;
            if !self.settle(entry, tally) || !exchange(word, tally.0, tally.taken(index).0) {
                continue;
            }
            // If it fails, somebody has settled it.
            exchange(cell_word, pending.0, pending.held().0);
            if let (0, Some(time)) = (held, self.time(entry)) {
                store(time, now);
            }
            let lease = Lease { index, cell: pending.held() };
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

    /// The cell that this owner freed last: it is likely to be free still, and in the cache. Only a
    /// hint, so nothing depends on it.
    fn hint(&self, slot: u16) -> Option<&'a AtomicU64> {
        self.owners.get(usize::from(slot)).map(|[_, hint, ..]| hint)
    }

    /// Makes a free cell pending: the one of the hint, or else one found from a place that changes with
    /// each lease, so that it is found soon however many one key holds.
    fn reserve(&self, owner: Owner, entry: usize, seed: u64) -> Option<Reserved<'a>> {
        let hinted = self.hint(owner.slot).and_then(|hint| usize::try_from(load(hint)).ok());
        hinted
            .and_then(|index| reserve_cell(owner, entry, index, self.cell(index)?))
            .or_else(|| self.search_cell(owner, entry, seed))
    }

    #[cold]
    fn search_cell(&self, owner: Owner, entry: usize, seed: u64) -> Option<Reserved<'a>> {
        let lines = self.cells.len();
        let mixed = (seed ^ seed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = usize::try_from((mixed * lines as u64) >> 32).unwrap_or(0);
        (first..lines).chain(0..first).take(LINES_PROBED).find_map(|line| {
            let mut words = self.cells.get(line)?.iter().enumerate();
            words.find_map(|(place, word)| reserve_cell(owner, entry, line * LINE + place, word))
        })
    }

    /// Sees to it that the act which `tally` names has left its mark in the cell, so that the tally may
    /// be overwritten. False if the tally has changed meanwhile.
    pub(super) fn settle(&self, entry: usize, tally: Tally) -> bool {
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
        if self.tally(entry).is_none_or(|word| load(word) != tally.0) {
            return false;
        }
        exchange(word, cell.0, settled.0);
        true
    }

    /// Lowers the tally for a cell that was set to `releasing`, and frees it. Whoever finds such a cell
    /// may do it, several at once too; true for the one who lowered.
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
                if self.settle(entry, tally)
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
