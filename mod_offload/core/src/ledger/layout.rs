//! Where everything lies: sizes, header, creating and opening.

use std::error::Error;
use std::fmt;

use super::table::{TABLE_WORDS, WAYS};
use super::word::{AtomicU64, Claim, Identity, exchange, load, store};
use super::{Ledger, Owner};

const MAGIC: u64 = u64::from_le_bytes(*b"offledgr");
const FORMAT: u64 = 2;
/// One cache line that is never written again, one with the totals.
const HEADER_WORDS: usize = 16;
const TOTALS_AT: usize = 8;
/// Refusals, overflows, dry refusals; the fourth keeps a scope inside one cache line.
pub(super) const SCOPE_WORDS: usize = 4;
/// The words of a cache line.
pub(super) const LINE: usize = 8;

/// How much fits, fixed for a ledger's life. Each number is held within what the words can express.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TableSize {
    entries: u32,
    leases: u32,
    owners: u32,
    scopes: u32,
}

impl TableSize {
    /// The most entries, and the most leases.
    pub const MAX: u32 = 4_000_000;

    /// `entries` keys that hold something at the same time (1 to [`Self::MAX`]); leases twice that, at
    /// least 16,384; 4,096 owners; 1,024 scopes. About 85 bytes an entry.
    pub fn new(entries: u32) -> Self {
        let entries = entries.clamp(1, Self::MAX);
        let leases = entries.saturating_mul(2).clamp(16_384, Self::MAX);
        Self { entries, leases, owners: 4096, scopes: 1024 }
    }

    /// Leases held at the same time: 1 to [`Self::MAX`]; 16 bytes each.
    #[must_use]
    pub fn with_leases(self, leases: u32) -> Self {
        Self { leases: leases.clamp(1, Self::MAX), ..self }
    }

    /// Processes that take leases at the same time: 1 to 65,535; 64 bytes each.
    #[must_use]
    pub fn with_owners(self, owners: u32) -> Self {
        Self { owners: owners.clamp(1, 65_535), ..self }
    }

    /// Scopes that have statistics: 1 to 65,535; 32 bytes each.
    #[must_use]
    pub fn with_scopes(self, scopes: u32) -> Self {
        Self { scopes: scopes.clamp(1, 65_535), ..self }
    }

    /// Keys that may hold something at the same time.
    pub fn entries(self) -> u32 {
        self.entries
    }

    fn regions(self) -> Regions {
        let line = |words: usize| words.next_multiple_of(LINE);
        // Twice the entries: with two buckets to choose from, none of the two is ever full of busy ways
        // (the test of the promised capacity counts it). Twice the leases: a free cell is next door.
        let buckets = (self.entries as usize * 2).div_ceil(WAYS);
        Regions {
            owners: self.owners as usize * LINE,
            scopes: line(self.scopes as usize * SCOPE_WORDS),
            locks: line(buckets),
            table: buckets * TABLE_WORDS,
            cells: line(self.leases as usize * 2),
        }
    }

    fn read(words: &[AtomicU64]) -> Option<Self> {
        let number = |at: usize| u32::try_from(load(words.get(at)?)).ok();
        let read = Self {
            entries: number(2)?,
            leases: number(3)?,
            owners: number(4)?,
            scopes: number(5)?,
        };
        let held_within = Self::new(read.entries)
            .with_leases(read.leases)
            .with_owners(read.owners)
            .with_scopes(read.scopes);
        (held_within == read).then_some(read)
    }
}

struct Regions {
    owners: usize,
    scopes: usize,
    locks: usize,
    table: usize,
    cells: usize,
}

/// Why memory is not a ledger.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LedgerError {
    /// It was to be zeroed, but something stands in it.
    InUse,
    /// It does not begin like a ledger, or nobody has finished creating it.
    Foreign,
    /// Another version of this program made it.
    Version(u64),
    /// Its sizes are none that a ledger can have.
    Damaged,
    /// It has fewer words than its size asks for.
    TooSmall {
        /// What there is.
        words: usize,
        /// What it takes.
        needed: usize,
    },
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("the shared memory is not empty"),
            Self::Foreign => f.write_str("the shared memory holds something else"),
            Self::Version(found) => {
                write!(f, "the shared memory has format {found}; this program uses {FORMAT}")
            }
            Self::Damaged => f.write_str("the shared memory's sizes are damaged"),
            Self::TooSmall { words, needed } => {
                write!(f, "the shared memory has {words} words of 8 bytes; {needed} are needed")
            }
        }
    }
}

impl Error for LedgerError {}

impl<'a> Ledger<'a> {
    /// Words of 8 bytes for a ledger of this size.
    pub fn words_needed(size: TableSize) -> usize {
        let regions = size.regions();
        HEADER_WORDS
            + regions.owners
            + regions.scopes
            + regions.locks
            + regions.table
            + regions.cells
    }

    /// Makes a ledger in zeroed words; `secret` is random and keys the hash.
    ///
    /// One process creates; the others open when it has done so.
    ///
    /// # Errors
    /// [`LedgerError::InUse`] if the header is not zero; [`LedgerError::TooSmall`].
    pub fn create(
        words: &'a [AtomicU64],
        size: TableSize,
        secret: (u64, u64),
    ) -> Result<Self, LedgerError> {
        let ledger = Self::over(words, size, secret)?;
        if words.iter().take(HEADER_WORDS).any(|word| load(word) != 0) {
            return Err(LedgerError::InUse);
        }
        let facts = [
            FORMAT,
            u64::from(size.entries),
            u64::from(size.leases),
            u64::from(size.owners),
            u64::from(size.scopes),
            secret.0,
            secret.1,
        ];
        for (word, fact) in words.iter().skip(1).zip(facts) {
            store(word, fact);
        }
        // Last, so that nobody opens a ledger that is half made.
        if let Some(word) = words.first() {
            store(word, MAGIC);
        }
        Ok(ledger)
    }

    /// The ledger that stands in `words` (more of them than needed is all right).
    ///
    /// # Errors
    /// [`LedgerError`] unless they hold a ledger of this format that fits into them.
    pub fn open(words: &'a [AtomicU64]) -> Result<Self, LedgerError> {
        let fact = |at: usize| words.get(at).map_or(0, load);
        if fact(0) != MAGIC {
            return Err(LedgerError::Foreign);
        }
        if fact(1) != FORMAT {
            return Err(LedgerError::Version(fact(1)));
        }
        let size = TableSize::read(words).ok_or(LedgerError::Damaged)?;
        Self::over(words, size, (fact(6), fact(7)))
    }

    fn over(
        words: &'a [AtomicU64],
        size: TableSize,
        secret: (u64, u64),
    ) -> Result<Self, LedgerError> {
        let needed = Self::words_needed(size);
        let too_small = LedgerError::TooSmall { words: words.len(), needed };
        let regions = size.regions();
        let mut rest = words;
        let mut cut = |length: usize| {
            let (region, after) = rest.split_at_checked(length).ok_or(too_small)?;
            rest = after;
            Ok(region)
        };
        Ok(Self {
            size,
            secret,
            totals: cut(HEADER_WORDS)?.get(TOTALS_AT..).ok_or(too_small)?,
            owners: cut(regions.owners)?.as_chunks().0,
            scopes: cut(regions.scopes)?
                .as_chunks()
                .0
                .get(..size.scopes as usize)
                .ok_or(too_small)?,
            locks: cut(regions.locks)?.get(..regions.table / TABLE_WORDS).ok_or(too_small)?,
            table: cut(regions.table)?.as_chunks().0.as_chunks().0,
            cells: cut(regions.cells)?,
        })
    }

    /// How much fits.
    pub fn size(&self) -> TableSize {
        self.size
    }

    /// Claims a slot for a process; `None` if all are taken, or if the process id is 0.
    pub fn enter(&self, identity: Identity) -> Option<Owner> {
        if identity.pid() == 0 {
            return None;
        }
        let owner = self.owners.iter().zip(0_u16..).find_map(|([word, ..], slot)| {
            let found = Claim(load(word));
            let claim = found.claimed(identity);
            (found.is_free() && exchange(word, found.0, claim.0)).then_some(Owner { slot, claim })
        })?;
        if let Some(hint) = self.hint(owner.slot) {
            // Each begins in a part of the cells of its own, with a line.
            let lines = (self.cells.len() / LINE) as u64;
            let first = lines * u64::from(owner.slot) / self.owners.len() as u64;
            store(hint, first * LINE as u64);
        }
        Some(owner)
    }

    /// Every claimed slot: ask of each whether its process still lives, and if not, reclaim it.
    pub fn owners(&self) -> impl Iterator<Item = Owner> + use<'a> {
        self.owners.iter().zip(0_u16..).filter_map(|([word, ..], slot)| {
            let claim = Claim(load(word));
            (!claim.is_free()).then_some(Owner { slot, claim })
        })
    }
}
