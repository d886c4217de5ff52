//! Memory that all processes of an offload host share: mapped files, and waiting for a change of one word.
//!
//! Beside them, what the daemon needs of the kernel and no crate gives: socket options, descriptors that were
//! handed to this process. The only unsafe code of this program. What is mapped is never shortened by this program, so that no
//! access ends in SIGBUS unless the disk itself fails; and it is only ever used through atomics.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

/// A file in memory, shared with whoever maps it too.
#[derive(Debug)]
pub(crate) struct Shared(MmapRaw);

impl Shared {
    /// Maps so many bytes of a file, from an offset on that is the beginning of a page. The file is open for
    /// reading and writing.
    ///
    /// # Errors
    /// When the file is shorter, or the kernel does not map it.
    pub(crate) fn map(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        if file.metadata()?.len() < offset.saturating_add(length as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // memmap2 would make the beginning of a page of another offset, and the words would not be aligned.
        if !offset.is_multiple_of(4096) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        MmapOptions::new().offset(offset).len(length).map_raw(file).map(Self)
    }

    /// All of it, in words of 4 bytes.
    pub(crate) fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has so many bytes, begins at a multiple of 4096, and so is aligned, and lives as long
        // as `self`; atomics are address-free.
        unsafe { slice::from_raw_parts(self.0.as_mut_ptr().cast(), self.0.len() / 4) }
    }

    /// All of it, in words of 8 bytes.
    pub(crate) fn long_words(&self) -> &[AtomicU64] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts(self.0.as_mut_ptr().cast(), self.0.len() / 8) }
    }

    /// The same words for the rest of the process's life.
    pub(crate) fn leak(self) -> &'static [AtomicU64] {
        let (address, length) = (self.0.as_mut_ptr(), self.0.len());
        std::mem::forget(self);
        // SAFETY: as above, and nobody unmaps it any more.
        unsafe { slice::from_raw_parts(address.cast(), length / 8) }
    }
}

/// Waits until `word` is not `seen` any more and somebody says so with `wake`, at most for `limit`.
/// It may also end without a reason.
pub(crate) fn wait(word: &AtomicU32, seen: u32, limit: Duration) {
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    };
    let (address, limit) = (word.as_ptr(), &raw const limit);
    // SAFETY: both addresses are those of living values; the kernel only reads them.
    unsafe { libc::syscall(libc::SYS_futex, address, libc::FUTEX_WAIT, seen, limit) };
}

/// Wakes everybody, in all processes, who waits for `word`.
pub(crate) fn wake(word: &AtomicU32) {
    // SAFETY: the address is that of a living value, which the kernel does not touch.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Paces what leaves a TCP socket, in bytes a second (`SO_MAX_PACING_RATE`, socket(7)); `None`: not at all.
pub(crate) fn pace(socket: BorrowedFd<'_>, rate: Option<u64>) {
    // 0 would mean: as slowly as can be.
    let rate = rate.map_or(u64::MAX, |rate| rate.max(1));
    set(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &rate);
}

/// How much may wait in a TCP socket unsent (`TCP_NOTSENT_LOWAT`, tcp(7)).
pub(crate) fn limit_queue(socket: BorrowedFd<'_>, bytes: u32) {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &bytes);
}

/// An option that is a number. A kernel that does not know it sends as it always did.
fn set<T: Copy>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the kernel reads `length` bytes of a living value, and the descriptor is open while borrowed.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length);
    }
}

/// Has all threads share so many heaps (`M_ARENA_MAX`, mallopt(3)), where the allocator has any.
///
/// glibc gives each thread one of its own. What an exchange leaves to a download then keeps what lies around it, which
/// only that exchange's thread could use again: three quarters of the memory of downloads that the base was asked about.
pub(crate) fn share_heaps(most: usize) {
    #[cfg(target_env = "gnu")]
    {
        let most = libc::c_int::try_from(most).unwrap_or(libc::c_int::MAX);
        // SAFETY: it takes two numbers, and the allocator's own lock.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, most) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// How many bytes in a socket the other side has not acknowledged (`SIOCOUTQ`, tcp(7)).
pub(crate) fn queued(socket: BorrowedFd<'_>) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one int into a living one.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == 0 { u64::try_from(count).unwrap_or(0) } else { 0 }
}

/// Owns a descriptor that was handed to this process: by its parent in an agreed place, or in a message.
/// `None` when it is none.
///
/// Nobody else in this program may own it; each caller says why that is so.
pub(crate) fn adopt(descriptor: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only asks whether it is open.
    let open = descriptor >= 0 && unsafe { libc::fcntl(descriptor, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, and the callers see to it that it is owned once.
    open.then(|| unsafe { OwnedFd::from_raw_fd(descriptor) })
}
