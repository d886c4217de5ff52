//! Giving back what a dead process held.

use super::table::WAYS;
use super::word::{Act, Cell, Lock, State, Tally, exchange, load};
use super::{Ledger, Owner};

/// What a reclaim has put right.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reclaimed {
    /// Leases that it has given back itself.
    pub leases: u64,
}

impl Ledger<'_> {
    /// Gives back everything that a dead owner held, and then frees its slot.
    ///
    /// The process must be dead, or have no thread any more that uses the owner (so a process may
    /// reclaim itself when it ends). Others may work meanwhile, or reclaim the same owner; to repeat it
    /// does nothing. It reads every lock and every lease cell: about a millisecond for a million.
    pub fn reclaim(&self, dead: Owner) -> Reclaimed {
        for (bucket, word) in self.locks.iter().enumerate() {
            let lock = Lock(load(word));
            if lock.belongs_to(dead.slot) {
                if !self.is_current(dead) {
                    return Reclaimed::default();
                }
                self.repair(bucket, lock);
            }
        }
        let mut leases = 0;
        for index in 0..self.cells.len() {
            leases += u64::from(self.give_back(index, dead));
        }
        if let Some([claim, ..]) = self.owners.get(usize::from(dead.slot)) {
            exchange(claim, dead.claim.0, dead.claim.freed().0);
        }
        Reclaimed { leases }
    }

    /// Frees the slot of a process that has given back every lease, in one step: it reads no cell. A lease
    /// that is still held stays counted for ever; who cannot be sure reclaims itself.
    pub fn leave(&self, owner: Owner) {
        if let Some([claim, ..]) = self.owners.get(usize::from(owner.slot)) {
            exchange(claim, owner.claim.0, owner.claim.freed().0);
        }
    }

    fn is_current(&self, owner: Owner) -> bool {
        self.owners
            .get(usize::from(owner.slot))
            .is_some_and(|[claim, ..]| load(claim) == owner.claim.0)
    }

    /// Opens the way that the dead holder of a lock had closed, and unlocks.
    fn repair(&self, bucket: usize, lock: Lock) {
        let Some(lock_word) = self.locks.get(bucket) else { return };
        for word in (bucket * WAYS..).take(WAYS).filter_map(|entry| self.tally(entry)) {
            let tally = Tally(load(word));
            if tally.is_closed() {
                // Read second: if the lock is still the dead one's, so is the closing.
                if load(lock_word) != lock.0 {
                    return;
                }
                exchange(word, tally.0, tally.opened().0);
            }
        }
        exchange(lock_word, lock.0, lock.unlocked().0);
    }

    /// Frees a cell if it is the dead owner's, or is being released; true if a count of the dead owner's was
    /// lowered for it.
    fn give_back(&self, index: usize, dead: Owner) -> bool {
        let Some(word) = self.cell(index) else { return false };
        loop {
            let cell = Cell(load(word));
            // The slot is asked second: if it is still the dead owner's, so was the cell.
            let is_the_deads = cell.belongs_to(dead.slot) && self.is_current(dead);
            match cell.state() {
                // Whoever settled a parked lease may have died over it, whosever it was before.
                State::Releasing => {
                    return self.finish_release(index, word, cell) && is_the_deads;
                }
                State::Free | State::Parked => return false,
                _ if !is_the_deads => return false,
                State::Pending => {
                    let tally = self.tally(cell.entry()).map(|tally| Tally(load(tally)));
                    let counted =
                        tally.is_some_and(|tally| tally.last() == Some((Act::Take, index)));
                    let next = if counted { cell.held() } else { cell.free() };
                    // Asks for the cell second: if it is still pending, the tally told the truth.
                    exchange(word, cell.0, next.0);
                }
                State::Held => {
                    let releasing = cell.releasing();
                    if exchange(word, cell.0, releasing.0) {
                        return self.finish_release(index, word, releasing);
                    }
                }
            }
        }
    }
}
