//! Everything at a glance, for the status pages.

use super::Ledger;
use super::table::{Scope, WAYS, scope_of};
use super::word::{Cell, State, load};

/// What one scope holds and has done since the ledger was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ScopeSnapshot {
    /// Leases held, by all keys together.
    pub held: u64,
    /// Keys that hold any.
    pub keys: u64,
    /// The most that one key holds.
    pub greatest: u32,
    /// Takes that were refused.
    pub refusals: u64,
    /// Takes that found no room and were not counted.
    pub overflows: u64,
    /// Refusals that a dry run has noted.
    pub dry_refusals: u64,
}

/// A ledger at one moment. Processes go on while it is read: each number is true, their sums nearly.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// By scope number.
    pub scopes: Vec<ScopeSnapshot>,
    /// Keys in the table, idle ones included.
    pub entries: u64,
    /// Keys that hold something.
    pub busy: u64,
    /// Lease cells in use.
    pub leases: u64,
    /// Owner slots in use.
    pub owners: u64,
    /// Takes of all scopes that found no room.
    pub overflows: u64,
}

impl Snapshot {
    /// One scope; all zero if it has no statistics.
    pub fn scope(&self, scope: Scope) -> ScopeSnapshot {
        self.scopes.get(usize::from(scope.0)).copied().unwrap_or_default()
    }
}

impl Ledger<'_> {
    /// Counts everything; reads the whole table.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot =
            Snapshot {
                scopes: self
                    .scopes
                    .iter()
                    .map(|[refusals, overflows, dry_refusals, _]| ScopeSnapshot {
                        refusals: load(refusals),
                        overflows: load(overflows),
                        dry_refusals: load(dry_refusals),
                        ..ScopeSnapshot::default()
                    })
                    .collect(),
                leases: count(self.cells.iter().filter(|word| {
                    !matches!(Cell(load(word)).state(), State::Free | State::Parked)
                })),
                owners: count(self.owners()),
                overflows: self.totals.first().map_or(0, load),
                ..Snapshot::default()
            };
        for entry in 0..self.table.len() * WAYS {
            self.add(entry, &mut snapshot);
        }
        snapshot
    }

    fn add(&self, entry: usize, snapshot: &mut Snapshot) {
        let Some(way) = self.way(entry) else { return };
        let tag = load(way.tag);
        if tag == 0 {
            return;
        }
        let held = self.read(way.tally, entry).held;
        snapshot.entries += 1;
        // Another key's by now: it held nothing when it was evicted.
        if held == 0 || load(way.tag) != tag {
            return;
        }
        snapshot.busy += 1;
        if let Some(scope) = snapshot.scopes.get_mut(usize::from(scope_of(tag).0)) {
            scope.held += u64::from(held);
            scope.keys += 1;
            scope.greatest = scope.greatest.max(held);
        }
    }
}

fn count(items: impl Iterator) -> u64 {
    items.count() as u64
}
