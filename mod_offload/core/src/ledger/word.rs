//! What the bits of each word mean, and the few ways in which a word is touched.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

#[cfg(all(test, loom))]
pub use loom::sync::atomic::AtomicU64;
#[cfg(not(all(test, loom)))]
pub use std::sync::atomic::AtomicU64;

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

fn field(word: u64, shift: u32, bits: u32) -> u64 {
    (word >> shift) & mask(bits)
}

/// A field as an index; what no slice can hold is out of every slice's bounds.
fn index(bits: u64) -> usize {
    usize::try_from(bits).unwrap_or(usize::MAX)
}

/// What a lease does to a tally.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    Take,
    Release,
}

/// version 20 | count 20 | act 1 | last cell + 1 23; zero is open, empty and unnamed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Tally(pub(super) u64);

impl Tally {
    const LAST: u32 = 23;
    const COUNT: u32 = 20;
    const COUNT_AT: u32 = Self::LAST + 1;
    const VERSION_AT: u32 = Self::COUNT_AT + Self::COUNT;
    /// The act bit without a cell: nobody may count here now.
    const CLOSED: u64 = 1 << Self::LAST;

    /// Above it nothing is counted.
    pub(super) const MAX_COUNT: u32 = (1 << Self::COUNT) - 1;

    pub(super) fn count(self) -> u32 {
        u32::try_from(field(self.0, Self::COUNT_AT, Self::COUNT)).unwrap_or(Self::MAX_COUNT)
    }

    pub(super) fn is_closed(self) -> bool {
        self.0 & mask(Self::COUNT_AT) == Self::CLOSED
    }

    pub(super) fn is_idle(self) -> bool {
        self.count() == 0
    }

    /// The act that made this tally, and the cell of its lease.
    pub(super) fn last(self) -> Option<(Act, usize)> {
        let act = if self.0 & Self::CLOSED == 0 { Act::Take } else { Act::Release };
        field(self.0, 0, Self::LAST).checked_sub(1).map(|cell| (act, index(cell)))
    }

    /// The next version, with nothing in it.
    fn next(self) -> u64 {
        self.0.wrapping_add(1 << Self::VERSION_AT) & !mask(Self::VERSION_AT)
    }

    fn acted(self, count: u32, act: Act, cell: usize) -> Self {
        let act = if act == Act::Take { 0 } else { Self::CLOSED };
        let last = (cell as u64 + 1) & mask(Self::LAST);
        Self(self.next() | u64::from(count) << Self::COUNT_AT | act | last)
    }

    /// One more; the caller has seen that the count is below [`Self::MAX_COUNT`].
    pub(super) fn taken(self, cell: usize) -> Self {
        self.acted(self.count().saturating_add(1), Act::Take, cell)
    }

    pub(super) fn released(self, cell: usize) -> Self {
        self.acted(self.count().saturating_sub(1), Act::Release, cell)
    }

    /// The cell of its lease, if the last act was a release.
    #[inline]
    pub(super) fn released_by(self) -> Option<usize> {
        let last = self.0 & mask(Self::COUNT_AT);
        last.checked_sub(Self::CLOSED + 1).map(index)
    }

    /// What `taken` makes for the cell that `released_by` names.
    #[inline]
    pub(super) fn retaken(self) -> Self {
        const STEP: u64 = (1 << Tally::VERSION_AT) + (1 << Tally::COUNT_AT) - Tally::CLOSED;
        Self(self.0.wrapping_add(STEP))
    }

    pub(super) fn closed(self) -> Self {
        Self(self.next() | Self::CLOSED)
    }

    pub(super) fn opened(self) -> Self {
        Self(self.next())
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    Free,
    Pending,
    Held,
    Releasing,
    Parked,
}

/// state 3 | sequence 22 | entry 23 | owner 16; zero is free.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Cell(pub(super) u64);

impl Cell {
    const OWNER: u32 = 16;
    const ENTRY: u32 = 23;
    const SEQUENCE_AT: u32 = Self::OWNER + Self::ENTRY;
    const STATE_AT: u32 = 61;
    const SEQUENCE: u64 = mask(Self::STATE_AT) & !mask(Self::SEQUENCE_AT);

    pub(super) fn state(self) -> State {
        match self.0 >> Self::STATE_AT {
            0 => State::Free,
            1 => State::Pending,
            2 => State::Held,
            3 => State::Releasing,
            _ => State::Parked,
        }
    }

    pub(super) fn entry(self) -> usize {
        index(field(self.0, Self::OWNER, Self::ENTRY))
    }

    pub(super) fn owner(self) -> u16 {
        u16::try_from(field(self.0, 0, Self::OWNER)).unwrap_or_default()
    }

    #[inline]
    pub(super) fn is_free(self) -> bool {
        self.0 >> Self::STATE_AT == 0
    }

    /// A parked cell is nobody's.
    pub(super) fn belongs_to(self, slot: u16) -> bool {
        !matches!(self.state(), State::Free | State::Parked) && self.owner() == slot
    }

    #[inline]
    pub(super) fn is_parked(self) -> bool {
        self.0 >> Self::STATE_AT == 4
    }

    fn moved(self, state: u64) -> Self {
        Self(self.0 & mask(Self::STATE_AT) | state << Self::STATE_AT)
    }

    /// The next lease of a free or parked cell: a new sequence, so that whoever knew the last one fails.
    #[inline]
    pub(super) fn pending(self, slot: u16, entry: usize) -> Self {
        self.next_sequence().with(slot, entry).moved(1)
    }

    pub(super) fn held(self) -> Self {
        self.moved(2)
    }

    pub(super) fn releasing(self) -> Self {
        self.moved(3)
    }

    /// The same sequence with another entry and owner.
    #[inline]
    pub(super) fn with(self, slot: u16, entry: usize) -> Self {
        let sequence = self.0 & Self::SEQUENCE;
        let entry = (entry as u64 & mask(Self::ENTRY)) << Self::OWNER;
        Self(sequence | entry | u64::from(slot))
    }

    /// Everything but the sequence.
    pub(super) fn without_sequence(self) -> u64 {
        self.0 & !Self::SEQUENCE
    }

    /// This sequence with everything else.
    #[inline]
    pub(super) fn sequence_with(self, rest: u64) -> Self {
        Self(self.0 & Self::SEQUENCE | rest)
    }

    #[inline]
    pub(super) fn next_sequence(self) -> Self {
        Self(self.0.wrapping_add(1 << Self::SEQUENCE_AT))
    }

    /// What is parked, pending.
    #[inline]
    pub(super) fn pended(self) -> Self {
        Self(self.0 ^ (4 ^ 1) << Self::STATE_AT)
    }

    /// What is pending, parked: given back, but still in the tally.
    #[inline]
    pub(super) fn parked(self) -> Self {
        Self(self.0 ^ (1 ^ 4) << Self::STATE_AT)
    }

    /// Free, but the sequence stays: the next lease raises it.
    pub(super) fn free(self) -> Self {
        self.moved(0)
    }
}

/// What tells a process from a later one with the same id.
///
/// It is kept in one word, so that a slot is claimed in one step: of the id 22 bits (Linux has no
/// more), of the start time (any unit that the host's processes agree on, such as the clock ticks of
/// `/proc/PID/stat`) the low 32. Two identities are equal if what is kept is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Identity(u64);

impl Identity {
    const START: u32 = 32;
    const PID: u32 = 22;

    /// The process `pid` that began at `start_time`.
    pub fn new(pid: u32, start_time: u64) -> Self {
        let pid = u64::from(pid) & mask(Self::PID);
        Self(pid << Self::START | start_time & mask(Self::START))
    }

    /// All of it, in one word; never zero, for no process has the id 0.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// What `number` returned.
    pub(crate) fn of_number(number: u64) -> Self {
        Self(number)
    }

    /// The process id.
    pub fn pid(self) -> u32 {
        u32::try_from(self.0 >> Self::START).unwrap_or_default()
    }
}

/// generation 10 | identity 54; a slot with process 0 is free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Claim(pub(super) u64);

impl Claim {
    const IDENTITY: u32 = Identity::START + Identity::PID;

    pub(super) fn identity(self) -> Identity {
        Identity(self.0 & mask(Self::IDENTITY))
    }

    pub(super) fn is_free(self) -> bool {
        self.identity().pid() == 0
    }

    /// The next generation of a free slot, with its process.
    pub(super) fn claimed(self, identity: Identity) -> Self {
        let generation = self.0.wrapping_add(1 << Self::IDENTITY) & !mask(Self::IDENTITY);
        Self(generation | identity.0)
    }

    pub(super) fn freed(self) -> Self {
        Self(self.0 & !mask(Self::IDENTITY))
    }
}

/// version 47 | owner slot + 1 17; without an owner it is free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Lock(pub(super) u64);

impl Lock {
    const OWNER: u32 = 17;

    pub(super) fn is_free(self) -> bool {
        field(self.0, 0, Self::OWNER) == 0
    }

    pub(super) fn belongs_to(self, slot: u16) -> bool {
        field(self.0, 0, Self::OWNER) == u64::from(slot) + 1
    }

    pub(super) fn locked(self, slot: u16) -> Self {
        Self(self.0 & !mask(Self::OWNER) | (u64::from(slot) + 1))
    }

    pub(super) fn unlocked(self) -> Self {
        Self(self.0.wrapping_add(1 << Self::OWNER) & !mask(Self::OWNER))
    }
}

// Why these orderings are enough is said at the head of the ledger. Each shared access is one step at
// which a test can interrupt or kill.

#[inline]
pub(super) fn load(word: &AtomicU64) -> u64 {
    step();
    word.load(Acquire)
}

#[inline]
pub(super) fn store(word: &AtomicU64, value: u64) {
    step();
    word.store(value, Release);
}

/// Whether `word` was `old`, and now is `new`.
#[inline]
pub(super) fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool {
    step();
    word.compare_exchange(old, new, AcqRel, Acquire).is_ok()
}

/// Statistics: nothing is decided by them.
#[inline]
pub(super) fn add_one(word: &AtomicU64) {
    step();
    word.fetch_add(1, Relaxed);
}

#[cfg(all(test, not(loom)))]
use super::tests::interrupt::step;

#[cfg(not(all(test, not(loom))))]
#[inline]
fn step() {}
