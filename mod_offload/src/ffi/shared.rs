//! The mapping that all children share: made once by the parent, kept over graceful restarts.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

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
