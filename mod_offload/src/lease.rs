//! What a request or a connection holds of the ledger, given back by Drop.

use std::cell::Cell;
use std::sync::OnceLock;

use offload_core::admission::SEATS;
use offload_core::ledger::{Key, Lease as Count, Ledger};

/// The ledger of this process: one for its whole life, whatever is configured meanwhile.
pub(crate) static LEDGER: OnceLock<Ledger<'static>> = OnceLock::new();

/// One count that is held.
pub(crate) struct Lease {
    key: Key,
    count: Count,
}

impl Lease {
    /// What was taken from `LEDGER`.
    pub(crate) fn new(key: Key, count: Count) -> Self {
        Self { key, count }
    }

    /// Whether it counts there.
    pub(crate) fn counts_in(&self, key: Key) -> bool {
        self.key == key
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(ledger) = LEDGER.get() {
            ledger.release(self.count);
        }
    }
}

/// What a request holds: a few, in place; more, if ever, on the heap.
#[derive(Default)]
pub(crate) struct Leases {
    few: [Option<Lease>; 4],
    more: Vec<Lease>,
}

impl Leases {
    /// Whether one of them counts there.
    pub(crate) fn count_in(&self, key: Key) -> bool {
        self.few.iter().flatten().chain(&self.more).any(|lease| lease.counts_in(key))
    }

    /// Keeps one more.
    pub(crate) fn keep(&mut self, lease: Lease) {
        match self.few.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(lease),
            None => self.more.push(lease),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.few.iter().flatten().count() + self.more.len()
    }

    /// Gives back what was kept after there were so many.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.more.truncate(count.saturating_sub(self.few.len()));
        self.few.iter_mut().skip(count).for_each(|place| *place = None);
    }
}

/// What a connection holds: one lease of each kind at the most.
#[derive(Default)]
pub(crate) struct Seats {
    pub(crate) held: [Option<Lease>; SEATS],
    /// The client that the connection had last, and its hash.
    pub(crate) client: Cell<Option<([u8; 17], offload_core::ledger::Who)>>,
}
