//! The counters that every process shares, and that no death can falsify.
//!
//! A ledger lives in a borrowed slice of [`AtomicU64`] (the mapping is made elsewhere). It counts, per
//! key, the **leases** that are held, and a process may be killed with SIGKILL at any instruction: what
//! it held, or was taking, or was giving back, is put right by [`Ledger::reclaim`].
//!
//! # What lies in the words
//!
//! * A *way* of the table: the tag of its key, its **tally** and the time of the last first lease.
//!   Tally = version | count | act (take or release) | cell of the lease that acted last.
//! * A lease **cell**: state (free, pending, held, releasing, parked) | sequence | way | owner.
//! * An **owner** slot: generation | process id | start time, so that a process claims it in one step;
//!   and a hint, a cell that is likely to be free, on which nothing depends.
//! * A **lock** for each bucket of eight ways: version | owner. Only who brings a new key takes one
//!   (both buckets of the key, lower first); who finds its key takes none.
//!
//! Every step is one compare-and-swap of one word:
//!
//! ```text
//! take      cell free -> pending                tally: count + 1, (take, cell)
//! release   cell pending -> parked
//! take      cell parked -> pending, of the taker
//! release   cell held -> releasing              tally: count - 1, (release, cell)   cell -> free
//! insert    lock both   tally: closed   tag, time   tally: open   unlock both
//! ```
//!
//! Whoever changes a tally first **settles** the act that it names: a pending cell becomes held, and a
//! releasing one that it names for a release becomes free. A take first tries the cell that the tally names
//! for a release: once it is seen free, the act is settled, and no cell need be searched.
//!
//! A lease of which nobody has taken note when it is given back is **parked**: it is nobody's and is not
//! held, but it is still in the tally. The next taker takes it over, in one step; so where takes and releases
//! take turns, neither touches the tally. How many are held is therefore the tally less the lease that is
//! parked, and the tally says which that is: it names the cell. There is never a second one, for whoever
//! wants to change the tally settles a parked lease too: cell parked -> releasing, then the count is lowered
//! and the cell freed, as in any release.
//!
//! # Why a death leaks nothing
//!
//! The one question after a death in mid-act is *whether the tally was already changed*. Two facts
//! answer it. (1) The changed tally names the cell and the act. (2) Nobody overwrites a tally before the
//! act that it names is settled: its cell moved on from pending to held, from releasing to free; and of a
//! parked cell, only to lower the count for it. So
//!
//! > *an act has happened if and only if the tally names it, or its cell is no longer in the act's state.*
//!
//! An older act of the same cell cannot be mistaken for this one: a cell comes from *free* to *pending* only
//! after the release of its last lease has overwritten the `(take, cell)`, and to *releasing* only after
//! its take has overwritten the `(release, cell)`; and pending asks for `take`, releasing for `release`.
//! From *parked* to *pending* it comes under the `(take, cell)` of the lease that was parked, which counts
//! for the new one: that take has happened in its first step.
//!
//! | killed | left behind | found by | put right by |
//! | --- | --- | --- | --- |
//! | before the first step | nothing | | |
//! | cell pending, tally not changed | a pending cell that the tally does not name | scan of cells | cell -> free |
//! | holding | a pending cell that the tally names, or held cells (settled by another) | scan | cell -> held, then a release |
//! | cell releasing, tally not changed | a releasing cell that the tally does not name | scan | the decrement, cell -> free |
//! | tally lowered, cell releasing | a releasing cell that the tally names (or free) | scan | cell -> free |
//! | settling a parked lease | a releasing cell, of an owner that may live | scan: every releasing cell, whosever | the same as in a release |
//! | inserting | one or two locks; perhaps one closed way (count 0) with the old or the new tag | scan of locks | tally -> open, whichever tag it bears, then unlock |
//! | entering, reclaiming | a claimed slot; the dead owner's work half done | [`Ledger::owners`] | reclaim again |
//!
//! A closed way may keep either tag: the old one is an idle entry that was there before, and the new one
//! was absent from both its buckets while both were locked, so that a key never stands twice.
//!
//! # Why helping and reclaiming race with nobody
//!
//! * To settle, one reads the tally, then the cell, then **the tally again**: unchanged, it named that
//!   cell in its present incarnation when the cell was read. To ask whether an act has happened, one
//!   reads the tally first and **then the cell** (or exchanges it): if the cell is still in the act, the
//!   tally that was read was not settled away, and so it tells the truth.
//! * A release may be ended by several at once: each lowers a tally that it has read before it saw the cell
//!   releasing, and such a tally can be lowered once. So whoever comes upon a release that is begun under the
//!   `(take, cell)` ends it, and a reclaimer ends every one that it sees.
//! * A parked cell is read first and **then the tally and the tag** (or the tally on both sides of the cell):
//!   while it is parked, in one incarnation, its tally names it and does not change, and so is above zero, so
//!   that its way is neither closed nor given away. The exchange parked -> pending confirms it all.
//! * Each tally change raises its version, each lease its cell's sequence, each claim its slot's
//!   generation, each unlocking its lock's version: a compare-and-swap by somebody who slept over a change
//!   fails. So any number of processes may settle, release or reclaim the same thing, and one does it.
//!   (The version has 20 bits. To be fooled, one must sleep between two neighbouring instructions through
//!   a multiple of 1,048,576 changes of one tally and find the same count and the same last cell; even then
//!   the count is right, and only a settling is missed. The sequence has 22 bits: 4,194,304 leases of one cell.)
//! * A reclaimer asks, after it has read a cell or a lock, whether the slot is still the dead owner's: the
//!   slot is freed last, so until then nothing under its number belongs to a living process.
//! * An eviction *closes* the tally (count 0) before it changes the tag, so that a taker who has read the
//!   old tag fails; a taker reads the tally first and **then the tag**, and a tag changes under a closed
//!   tally only.
//!
//! # Orderings
//!
//! Loads acquire, exchanges acquire and release (when they fail, acquire), stores release; statistics are relaxed.
//! Sequential consistency is not needed: no step writes one word and then reads another one for a decision that
//! hangs on the order of two writers. Each rule above reads *x* and then *y* and needs only this: if *x* was
//! written after *y* changed, the change is seen. That is release and acquire along the chain of exchanges,
//! whose links are all read-modify-writes. What a dead process did is ordered before its reclaiming by the
//! kernel, which reported the death.

mod cells;
mod layout;
mod lease;
mod recover;
mod snapshot;
mod table;
mod word;

#[cfg(test)]
#[cfg(loom)]
mod loom_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use layout::{LedgerError, TableSize};
pub use lease::{Lease, Taken, Trace};
pub use recover::Reclaimed;
pub use snapshot::{ScopeSnapshot, Snapshot};
pub use table::{Key, Scope, Who};
pub use word::{AtomicU64, Identity};

/// The words of a cache line: every region begins with one, if the mapping does.
type Line = [AtomicU64; 8];

/// Shared counters over borrowed memory; see the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Ledger<'a> {
    size: TableSize,
    secret: (u64, u64),
    totals: &'a [AtomicU64],
    owners: &'a [Line],
    scopes: &'a [[AtomicU64; layout::SCOPE_WORDS]],
    locks: &'a [AtomicU64],
    table: &'a [table::Bucket],
    cells: &'a [AtomicU64],
}

/// A process's claim to an owner slot; every lease belongs to one.
///
/// Copies name the same claim. Threads of a process share it: they die together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owner {
    slot: u16,
    claim: word::Claim,
}

impl Owner {
    /// The process that claimed the slot.
    pub fn identity(self) -> Identity {
        self.claim.identity()
    }
}
