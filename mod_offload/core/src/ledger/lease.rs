//! Taking and giving back.

use std::sync::atomic::{AtomicU64 as OwnWord, Ordering};

use super::cells::Reserved;
use super::table::{Key, Scope};
use super::word::{Act, AtomicU64, Cell, State, Tally, add_one, exchange, load, store};
use super::{Ledger, Owner};

/// How often a take brings its key back when others evict it at once.
const ATTEMPTS: u32 = 8;

/// One count that is held; the default one is none. Copies are the same lease: it is given back once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lease {
    /// The cell's number and one; zero: none, so that an array of none is all zero.
    number: usize,
    /// The cell as the take has left it; others may have settled it since.
    pending: Cell,
}

impl Lease {
    /// Whether it is one.
    #[inline]
    pub fn is_some(self) -> bool {
        self.number != 0
    }

    #[inline]
    fn new(index: usize, pending: Cell) -> Self {
        Self { number: index.wrapping_add(1), pending }
    }

    #[inline]
    fn index(self) -> usize {
        self.number.wrapping_sub(1)
    }
}

/// Where a process has counted for a key last, in its own memory.
///
/// While that lease is pending or parked, nobody has changed its tally: how many are held and whose the entry
/// is are known without a look. So the whole trace is compared in one exchange of the cell.
#[derive(Debug)]
pub struct Trace {
    /// The sequence, with the cell and how many were held, at the places of the entry and of the owner: one
    /// word, so that all is of one lease.
    last: OwnWord,
    /// The rest of the cell when the lease is parked: another lease's is not found there.
    rest: OwnWord,
    /// The period in which the entry's time was set.
    renewed: OwnWord,
}

/// The time of an entry that is found by its trace is renewed once in so many microseconds, about a second;
/// the power of two.
pub(super) const RENEWAL: u32 = 20;

impl Default for Trace {
    fn default() -> Self {
        let nowhere = || OwnWord::new(u64::MAX);
        Self { last: nowhere(), rest: nowhere(), renewed: nowhere() }
    }
}

/// What a tally says, and what its named cell adds to that.
pub(super) struct Reading {
    pub(super) tally: Tally,
    /// How many leases are held: a parked one is still in the tally, but is not held.
    pub(super) held: u32,
    /// The cell of the parked one.
    parked: Option<usize>,
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

impl<'a> Ledger<'a> {
    /// Takes one, unless `limit` are held already; [`u32::MAX`] never refuses.
    ///
    /// `now` is in microseconds, of a clock that all processes share; it only orders the idle entries.
    pub fn take(&self, owner: Owner, key: Key, limit: u32, now: u64) -> Taken {
        let found = self.find(key);
        match found.and_then(|entry| self.retake_at(entry, owner, key, limit, now)) {
            Some((lease, held)) => Taken::Held { lease, held },
            None => self.look_and_take(found, owner, key, limit, now),
        }
    }

    /// Takes one of a key that is known, where the last lease was given back: see `retake_at`. None (the
    /// default lease) if it is not so, or if `limit` are held already; no statistics tell.
    pub fn take_again(&self, owner: Owner, key: Key, limit: u32, now: u64) -> Lease {
        let taken = self.find(key).and_then(|entry| self.retake_at(entry, owner, key, limit, now));
        taken.map_or(Lease::default(), |(lease, _)| lease)
    }

    /// Takes over the lease that has left a trace, if it is parked since: the tally has it already. None (the
    /// default lease) if it is not, or if `limit` are held besides.
    ///
    /// It becomes the owner's that left the trace: the process's own.
    #[inline]
    pub fn retake(&self, limit: u32, now: u64, trace: &Trace) -> Lease {
        let last = Cell(trace.last.load(Ordering::Relaxed));
        let (index, held) = (last.entry(), u32::from(last.owner()));
        let Some(word) = self.cell(index) else { return Lease::default() };
        let rest = trace.rest.load(Ordering::Relaxed);
        let next = last.next_sequence();
        let (parked, pending) = (last.sequence_with(rest), next.sequence_with(rest).pended());
        if held > limit
            || now >> RENEWAL != trace.renewed.load(Ordering::Relaxed)
            || !exchange(word, parked.0, pending.0)
        {
            return Lease::default();
        }
        trace.last.store(next.0, Ordering::Relaxed);
        Lease::new(index, pending)
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
        let entry = Cell(trace.rest.load(Ordering::Relaxed)).entry();
        let taken = match self.retake_at(entry, owner, key, limit, now) {
            Some((lease, held)) => Taken::Held { lease, held },
            None => self.take(owner, key, limit, now),
        };
        if let Taken::Held { lease, held } = taken
            && let Ok(held) = u16::try_from(held)
        {
            let pending = lease.pending;
            trace.rest.store(pending.parked().without_sequence(), Ordering::Relaxed);
            trace.last.store(pending.with(held, lease.index()).0, Ordering::Relaxed);
            trace.renewed.store(now >> RENEWAL, Ordering::Relaxed);
        }
        taken
    }

    /// Takes the lease that is parked in a cell, if it counts for the key: the tally has it already. `None` if
    /// there is none, or if `limit` are held besides.
    #[inline]
    fn take_over(
        &self,
        index: usize,
        owner: Owner,
        key: Key,
        limit: u32,
        now: u64,
    ) -> Option<(Lease, u32)> {
        let word = self.cell(index)?;
        let parked = Cell(load(word));
        if !parked.is_parked() {
            return None;
        }
        // As long as it is parked, its entry is not given to another key, and the tally stays.
        let entry = parked.entry();
        let way = self.way(entry)?;
        let tally = Tally(load(way.tally));
        let held = tally.count().wrapping_sub(1);
        let pending = parked.pending(owner.slot, entry);
        if held >= limit || !way.bears(key) || !exchange(word, parked.0, pending.0) {
            return None;
        }
        if held == 0 {
            store(way.time, now);
        }
        Some((Lease::new(index, pending), held + 1))
    }

    /// Takes one where the last lease in the entry was given back, with the cell of that: if it is parked or
    /// free, there is nothing to search and nothing to settle. `None` if it is not so, or if `limit` are held
    /// already.
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
        match tally.released_by() {
            Some(index) => self.take_free(entry, owner, key, limit, now, (tally, index)),
            None => self.take_over(tally.last()?.1, owner, key, limit, now),
        }
    }

    /// Takes one with the free cell of the last release, which is settled.
    #[inline(never)]
    fn take_free(
        &self,
        entry: usize,
        owner: Owner,
        key: Key,
        limit: u32,
        now: u64,
        (tally, index): (Tally, usize),
    ) -> Option<(Lease, u32)> {
        let way = self.way(entry)?;
        let held = tally.count();
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
        Some((Lease::new(index, pending), held + 1))
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
    ///
    /// If nobody has taken note of it, it is parked: the next one who wants it finds it counted.
    #[inline]
    pub fn release(&self, lease: Lease) -> bool {
        self.park(lease) || self.release_noted(lease)
    }

    /// The first half of [`release`](Self::release), which mostly is all of it: false if it was not done,
    /// because somebody has taken note of the lease, or because it is given back already.
    #[inline]
    pub fn park(&self, lease: Lease) -> bool {
        self.cell(lease.index())
            .is_some_and(|word| exchange(word, lease.pending.0, lease.pending.parked().0))
    }

    /// Somebody has settled it, or it is given back already.
    #[inline(never)]
    fn release_noted(&self, lease: Lease) -> bool {
        let Some(word) = self.cell(lease.index()) else { return false };
        let releasing = lease.pending.releasing();
        if !exchange(word, lease.pending.held().0, releasing.0) {
            return false;
        }
        self.finish_release(lease.index(), word, releasing);
        if let Some(hint) = self.hint(releasing.owner()) {
            store(hint, lease.index() as u64);
        }
        true
    }

    /// Whether a lease that is held counts for this key: as long as it is, its entry has the key's tag.
    pub fn counts_for(&self, lease: Lease, key: Key) -> bool {
        self.way(lease.pending.entry()).is_some_and(|way| way.bears(key))
    }

    /// How many are held.
    pub fn held(&self, key: Key) -> u32 {
        loop {
            let Some(entry) = self.find(key) else { return 0 };
            let Some(way) = self.way(entry) else { return 0 };
            let held = self.read(way.tally, entry).held;
            // Read second: if it is another's by now, so may the count be.
            if way.bears(key) {
                return held;
            }
        }
    }

    #[inline(never)]
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
            let Reading { tally, held, parked } = self.read(way.tally, entry);
            if tally.is_closed() || !way.bears(key) {
                break None;
            }
            if held >= limit {
                break Some(Taken::Refused { held });
            }
            if let Some(index) = parked {
                match self.take_over(index, owner, key, limit, now) {
                    Some((lease, held)) => break Some(Taken::Held { lease, held }),
                    None => continue,
                }
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
            let lease = Lease::new(index, pending);
            return Some(Taken::Held { lease, held: held + 1 });
        };
        if let Some((_, cell_word, pending)) = reserved {
            exchange(cell_word, pending.0, pending.free().0);
        }
        outcome
    }

    /// A tally with its named cell, both as they were at one moment.
    #[inline]
    pub(super) fn read(&self, tally_word: &AtomicU64, entry: usize) -> Reading {
        loop {
            let tally = Tally(load(tally_word));
            let named = match tally.last() {
                Some((Act::Take, index)) => self.cell(index).map(|word| (index, Cell(load(word)))),
                _ => None,
            };
            let Some((index, cell)) = named else {
                return Reading { tally, held: tally.count(), parked: None };
            };
            // The cell may have been used anew since the tally was read; not if the tally still stands.
            if load(tally_word) == tally.0 {
                let given_back = cell.entry() == entry
                    && matches!(cell.state(), State::Parked | State::Releasing);
                let held = tally.count().saturating_sub(given_back.into());
                let parked = (given_back && cell.is_parked()).then_some(index);
                return Reading { tally, held, parked };
            }
        }
    }

    /// Sees to it that the act which `tally` names has left its mark in the cell, so that the tally may
    /// be overwritten. False if the tally has changed meanwhile, or by this: the count of a lease that is
    /// parked, or is being released, is lowered.
    #[inline]
    pub(super) fn settle(&self, tally_word: &AtomicU64, entry: usize, tally: Tally) -> bool {
        let Some((act, index)) = tally.last() else { return true };
        let Some(word) = self.cell(index) else { return true };
        let cell = Cell(load(word));
        if cell.entry() != entry {
            return true;
        }
        let state = cell.state();
        let is_settled = match act {
            Act::Take => matches!(state, State::Held | State::Free),
            Act::Release => state != State::Releasing,
        };
        if is_settled {
            return true;
        }
        // The cell may have been used anew since the tally was read; not if the tally still stands.
        if load(tally_word) != tally.0 {
            return false;
        }
        match (act, state) {
            // If somebody else has freed it, that is as well.
            (Act::Release, _) => {
                exchange(word, cell.0, cell.free().0);
                true
            }
            // Its owner may park it at this moment.
            (Act::Take, State::Pending) => exchange(word, cell.0, cell.held().0),
            (Act::Take, _) => {
                let releasing = cell.releasing();
                // Whoever else lowers the count, it is done once: the tally that was read is lowered.
                if (state == State::Releasing || exchange(word, cell.0, releasing.0))
                    && exchange(tally_word, tally.0, tally.released(index).0)
                {
                    exchange(word, releasing.0, releasing.free().0);
                }
                false
            }
        }
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
                // Of its own take nothing is left to settle.
                let is_own = tally.last() == Some((Act::Take, index));
                if (is_own || self.settle(tally_word, entry, tally))
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
