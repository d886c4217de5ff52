//! The cells of the leases: which one a take makes its own.

use super::layout::LINE;
use super::word::{Act, AtomicU64, Cell, State, Tally, exchange, load, store};
use super::{Ledger, Owner};

/// Cache lines of cells that a take looks through for a free one; at most half of all are in use.
const LINES_PROBED: usize = 16;

/// A free cell that a take has made its own.
pub(super) type Reserved<'a> = (usize, &'a AtomicU64, Cell);

impl<'a> Ledger<'a> {
    pub(super) fn cell(&self, index: usize) -> Option<&'a AtomicU64> {
        self.cells.get(index)
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
    pub(super) fn reserve(&self, owner: Owner, entry: usize, seed: u64) -> Option<Reserved<'a>> {
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
        let lines = self.cells.len() / LINE;
        let mixed = (seed ^ seed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = usize::try_from((mixed * lines as u64) >> 32).unwrap_or(0);
        let anywhere = (first..lines).chain(0..first).take(LINES_PROBED);
        let probed = std::iter::once(near).chain(anywhere).flat_map(|line| {
            (line * LINE..).take(LINE).filter_map(|index| Some((index, self.cell(index)?)))
        });
        let free = |(index, word)| reserve_cell(owner, entry, index, word);
        probed.clone().find_map(free).or_else(|| {
            probed.filter(|&(index, word)| self.free_parked(index, word)).find_map(free)
        })
    }

    /// Frees a cell in which a lease is parked.
    fn free_parked(&self, index: usize, word: &AtomicU64) -> bool {
        let cell = Cell(load(word));
        let Some(tally_word) = self.tally(cell.entry()).filter(|_| cell.is_parked()) else {
            return false;
        };
        let tally = Tally(load(tally_word));
        tally.last() == Some((Act::Take, index)) && !self.settle(tally_word, cell.entry(), tally)
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
