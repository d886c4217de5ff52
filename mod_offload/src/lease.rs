//! What a request or a connection holds of the ledger, given back by Drop.

use std::cell::Cell;
use std::sync::OnceLock;

use offload_core::admission::SEATS;
use offload_core::ledger::{Key, Lease as Count, Ledger};
use offload_core::limit::Client;

/// The ledger of this process: one for its whole life, whatever is configured meanwhile.
pub(crate) static LEDGER: OnceLock<Ledger<'static>> = OnceLock::new();

/// One count that is held.
pub(crate) struct Lease(Count);

impl Lease {
    /// What was taken from `LEDGER`.
    pub(crate) fn new(count: Count) -> Self {
        Self(count)
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
    few: [Count; 6],
    more: Vec<Count>,
    count: usize,
}

impl Leases {
    /// Whether one of them counts there.
    pub(crate) fn count_in(&self, key: Key) -> bool {
        self.few.iter().take(self.count).chain(&self.more).any(|&lease| counts_for(lease, key))
    }

    /// Keeps one more, which was taken from `LEDGER`.
    #[inline]
    pub(crate) fn keep(&mut self, count: Count) {
        match self.few.get_mut(self.count) {
            Some(place) => *place = count,
            None => self.keep_more(count),
        }
        self.count = self.count.wrapping_add(1);
    }

    #[cold]
    #[inline(never)]
    fn keep_more(&mut self, count: Count) {
        self.more.push(count);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Gives back what was kept after there were so many.
    #[cold]
    pub(crate) fn truncate(&mut self, count: usize) {
        let Some(ledger) = LEDGER.get() else { return };
        let few = self.few.len();
        let kept = self.few.iter().take(self.count).chain(&self.more);
        for &lease in kept.skip(count) {
            ledger.release(lease);
        }
        self.more.truncate(count.saturating_sub(few));
        self.count = self.count.min(count);
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        let Some(ledger) = LEDGER.get() else { return };
        for (at, &lease) in self.few.iter().enumerate() {
            if at >= self.count {
                return;
            }
            if !ledger.park(lease) {
                self.truncate(at);
                return;
            }
        }
        self.truncate(self.few.len());
    }
}

/// One lease of each kind that a connection keeps, at the most.
#[derive(Default)]
pub(crate) struct Set([Count; SEATS]);

impl Set {
    /// Whether the seat has a lease that counts there.
    pub(crate) fn counts_in(&self, seat: usize, key: Key) -> bool {
        self.0.get(seat).is_some_and(|&lease| lease.is_some() && counts_for(lease, key))
    }

    /// Puts a lease that was taken from `LEDGER` on a free seat.
    pub(crate) fn put(&mut self, seat: usize, lease: Count) {
        if let Some(place) = self.0.get_mut(seat) {
            *place = lease;
        }
    }

    /// Changes what sits on each seat that is not to be kept.
    pub(crate) fn swap(&mut self, other: &mut Self, is_kept: [bool; SEATS]) {
        for ((own, other), kept) in self.0.iter_mut().zip(&mut other.0).zip(is_kept) {
            if !kept {
                std::mem::swap(own, other);
            }
        }
    }
}

impl Set {
    /// Gives all back.
    fn clear(&mut self) {
        for lease in &mut self.0 {
            if lease.is_some()
                && let Some(ledger) = LEDGER.get()
            {
                ledger.release(std::mem::take(lease));
            }
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What a connection holds.
#[derive(Default)]
pub(crate) struct Seats {
    pub(crate) held: Set,
    /// The client that the connection had last, and its hash.
    pub(crate) client: Cell<Option<(Client, offload_core::ledger::Who)>>,
    /// The virtual host (by its number) in which a request of the client's, as long as it has no user,
    /// asks for what is held and nothing else.
    pub(crate) settled: Option<u32>,
    /// When the request began for which it was made at once.
    pub(crate) born: u64,
    /// The client's last request, by its number.
    pub(crate) latest: usize,
}

impl Seats {
    /// Nobody sits there any more. Who the client was is still known.
    pub(crate) fn leave(&mut self) {
        self.held.clear();
        self.settled = None;
    }
}
