//! The mapping that all children share: made once by the parent, kept over graceful restarts.

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use offload_core::ledger::{Ledger, LedgerError, TableSize};
use offload_core::transfers::Transfers;

use super::pool::Pool;

/// How many turns are kept apart.
const SLOTS: usize = 512;

/// Counters of turns for `OffloadPolicy rotate`, one for each list of hosts, common to all children.
///
/// The mapping is never given back: it is there to outlive every configuration, and every copy of this
/// module that an upgrade may load into the process.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    first: NonNull<AtomicU64>,
}

// SAFETY: the counters are only ever used through atomics, which are address-free and so work between
// threads and processes.
unsafe impl Send for Turns {}
// SAFETY: as above.
unsafe impl Sync for Turns {}

impl Turns {
    /// Finds the counters that the process keeps, or makes them.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub(super) fn of_process(pool: Pool) -> io::Result<Self> {
        // The name says what is at the address: SLOTS counters of 64 bits. Another content, another name.
        let name = c"mod_offload:turns:512x64";
        let kept = match pool.kept(name) {
            Some(kept) => kept,
            None => {
                let made = map(SLOTS * size_of::<AtomicU64>())?;
                pool.keep(name, made);
                made
            }
        };
        Ok(Self { first: kept.cast() })
    }

    /// The next turn for the host list with this hash. Two lists may by chance share a counter.
    pub(crate) fn next(self, list: u64) -> u64 {
        let slot = usize::try_from(list % SLOTS as u64).unwrap_or(0);
        // SAFETY: `slot` is below SLOTS, the number of counters that the mapping has room for.
        let counter = unsafe { self.first.add(slot) };
        // SAFETY: the mapping is page-aligned, was zeroed by the kernel, and stays to the end of the
        // process.
        unsafe { counter.as_ref() }.fetch_add(1, Ordering::Relaxed)
    }
}

/// The ledger that counts for all children, and for those of the configurations before this one.
///
/// # Errors
/// A sentence: there is no memory, or what the process keeps is no ledger.
pub(super) fn ledger_of_process(pool: Pool, size: TableSize) -> Result<Ledger<'static>, String> {
    // The number is the ledger's format: an upgrade with another one begins a new ledger.
    let words = words_of_process(pool, c"mod_offload:ledger:2:pointer,count", || {
        Ledger::words_needed(size)
    })?;
    let secret = || RandomState::new().hash_one(());
    match Ledger::open(words) {
        Err(LedgerError::Foreign) => Ledger::create(words, size, (secret(), secret())),
        opened => opened,
    }
    .map_err(|error| error.to_string())
}

/// The table of the transfers of all children, and of those of the configurations before this one.
///
/// # Errors
/// A sentence: there is no memory, or what the process keeps is no such table.
pub(super) fn transfers_of_process(pool: Pool, rows: usize) -> Result<Transfers<'static>, String> {
    // The number is the table's format: an upgrade with another one begins a new table.
    let words = words_of_process(pool, c"mod_offload:transfers:1:pointer,count", || {
        Transfers::words_needed(rows)
    })?;
    Transfers::open(words)
        .ok_or_else(|| "what the process keeps is no table of transfers".to_owned())
}

/// The words that the process keeps under a name, or as many new ones as are needed.
fn words_of_process(
    pool: Pool,
    name: &'static CStr,
    needed: impl FnOnce() -> usize,
) -> Result<&'static [AtomicU64], String> {
    /// What the address leads to; another layout, another name.
    #[repr(C)]
    struct Kept {
        words: NonNull<c_void>,
        count: usize,
    }
    let kept = match pool.kept(name) {
        Some(kept) => kept.cast::<Kept>(),
        None => {
            let count = needed();
            let words = map(count * size_of::<AtomicU64>()).map_err(|error| error.to_string())?;
            let made = NonNull::new(pool.own(Kept { words, count })).ok_or("there is no memory")?;
            pool.keep(name, made.cast());
            made
        }
    };
    // SAFETY: only a Kept that the process pool owns is ever kept under this name.
    let Kept { words, count } = unsafe { kept.as_ref() };
    // SAFETY: `map` made that many bytes, page-aligned and zeroed, which stay to the end of the process
    // and are only ever used through atomics.
    Ok(unsafe { slice::from_raw_parts(words.as_ptr().cast(), *count) })
}

/// Zeroed memory that is shared with all children, to the end of the process.
fn map(size: usize) -> io::Result<NonNull<c_void>> {
    let file = File::from(memfd_create("mod_offload", MFdFlags::MFD_CLOEXEC)?);
    // An anonymous map would be private to each child; a mapped file is shared over fork.
    file.set_len(size as u64)?;
    let map: MmapRaw = MmapOptions::new().len(size).map_raw(&file)?;
    let address = NonNull::new(map.as_mut_ptr().cast()).ok_or(io::ErrorKind::OutOfMemory)?;
    std::mem::forget(map);
    Ok(address)
}
