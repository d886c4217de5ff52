//! What a request or a connection holds of the ledger, given back by Drop.

use std::cell::Cell;
use std::sync::OnceLock;

use offload_core::admission::SEATS;
use offload_core::ledger::{Key, Lease as Count, Ledger};

/// The ledger of this process: one for its whole life, whatever is configured meanwhile.
pub(crate) static LEDGER: OnceLock<Ledger<'static>> = OnceLock::new();

/// One count that is held.
pub(crate) struct Lease(Count);

impl Lease {
    /// What was taken from `LEDGER`.
    pub(crate) fn new(count: Count) -> Self {
        Self(count)
    }

    /// Whether it counts there.
    pub(crate) fn counts_in(&self, key: Key) -> bool {
        counts_for(self.0, key)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(ledger) = LEDGER.get() {
            ledger.release(self.0);
        }
    }
}

fn counts_for(count: Count, key: Key) -> bool {
    LEDGER.get().is_some_and(|ledger| ledger.counts_for(count, key))
}

/// What a request holds: a few, in place; more, if ever, on the heap.
#[derive(Default)]
pub(crate) struct Leases {
    few: [Option<Count>; 6],
    more: Vec<Count>,
    count: usize,
}

impl Leases {
    /// Whether one of them counts there.
    pub(crate) fn count_in(&self, key: Key) -> bool {
        self.few.iter().flatten().chain(&self.more).any(|&lease| counts_for(lease, key))
    }

    /// Keeps one more, which was taken from `LEDGER`.
    pub(crate) fn keep(&mut self, count: Count) {
        match self.few.get_mut(self.count) {
            Some(place) => *place = Some(count),
            None => self.more.push(count),
        }
        self.count += 1;
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Gives back what was kept after there were so many, the last one first.
    pub(crate) fn truncate(&mut self, count: usize) {
        let Some(ledger) = LEDGER.get() else { return };
        while self.count > count {
            self.count -= 1;
            let last = match self.few.get_mut(self.count) {
                Some(place) => place.take(),
                None => self.more.pop(),
            };
            if let Some(lease) = last {
                ledger.release(lease);
            }
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

/// What a connection holds: one lease of each kind at the most.
#[derive(Default)]
pub(crate) struct Seats {
    pub(crate) held: [Option<Lease>; SEATS],
    /// The client that the connection had last, and its hash.
    pub(crate) client: Cell<Option<([u8; 17], offload_core::ledger::Who)>>,
    /// The virtual host (by its number) in which a request of the client's, as long as it has no user,
    /// asks for what is held and nothing else.
    pub(crate) settled: Option<u32>,
}
