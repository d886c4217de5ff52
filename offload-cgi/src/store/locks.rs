//! The locks of a generation, all in one file: who fills which blocks, who wants which, who sets it up.
//!
//! They are locks of the open file (`F_OFD_SETLK`): a process that is started with the file goes on holding
//! them, threads exclude each other as processes do, and the kernel gives them back when the last holder
//! dies, however it dies. Which lock it is, is the place in the file:
//!
//! ```text
//! 0           set-up: making, publishing, removing; never held across the network
//! 16 - 23     one of the fills that may be in flight at the same time
//! 2^32 + n    exclusive: fills block n     shared by nobody
//! 2^52 + n    shared: wants block n        exclusive: nobody; who asks for it asks who wants it
//! ```

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::files;

const SET_UP: i64 = 0;
const FILLS: i64 = 16;
const FILL: i64 = 1 << 32;
const WANT: i64 = 1 << 52;
/// The end of each of the two regions, as a length.
const REGION: i64 = 1 << 51;

/// How many stretches of one body may be in flight at the same time.
pub(crate) const MOST_FILLS: i64 = 8;

/// An open lock file. Every one that is opened holds its own locks.
#[derive(Debug)]
pub(crate) struct Locks(File);

impl Locks {
    /// Opens the lock file, and makes it when it is missing. Holds nothing yet.
    ///
    /// # Errors
    /// When the file cannot be had.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        files::open_lock(path).map(Self)
    }

    /// Those that were handed to this process.
    pub(crate) fn from_file(file: File) -> Self {
        Self(file)
    }

    /// To hand them to a process that is to be started.
    pub(crate) fn into_file(self) -> File {
        self.0
    }

    /// Whether the file is still the one that others open under this name.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        files::is_there(&self.0, path)
    }

    /// Waits until nobody else sets this generation up.
    ///
    /// # Errors
    /// When the kernel has no locks left.
    pub(super) fn set_up(&self) -> io::Result<()> {
        let lock = lock(libc::F_WRLCK, SET_UP, 1);
        loop {
            match fcntl(&self.0, FcntlArg::F_OFD_SETLKW(&lock)) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop).map_err(Into::into),
            }
        }
    }

    /// Lets others set it up again.
    pub(super) fn end_set_up(&self) {
        self.give_back(SET_UP, 1);
    }

    /// Takes everything, unless anybody holds anything.
    ///
    /// # Errors
    /// When the kernel has no locks left.
    pub(super) fn take_all(&self) -> io::Result<bool> {
        self.take(libc::F_WRLCK, 0, i64::MAX)
    }

    /// Begins one of the fills that may be in flight, unless there are enough.
    ///
    /// # Errors
    /// When the kernel has no locks left.
    pub(crate) fn begin_fill(&self) -> io::Result<bool> {
        for fill in 0..MOST_FILLS {
            if self.take(libc::F_WRLCK, FILLS + fill, 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the right to fill these blocks, all or none; `to` is the one behind the last.
    ///
    /// # Errors
    /// When the kernel has no locks left.
    pub(crate) fn fill(&self, from: u64, to: u64) -> io::Result<bool> {
        let (start, length) = place(FILL, from, to);
        self.take(libc::F_WRLCK, start, length)
    }

    /// Lets others fill these blocks.
    pub(crate) fn end_fill(&self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (start, length) = place(FILL, from, to);
        self.give_back(start, length);
    }

    /// Whether somebody else fills this block.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn is_filled_by_another(&self, block: u64) -> io::Result<bool> {
        Ok(self.holder(FILL, block, block + 1)?.is_some())
    }

    /// Some of these blocks that somebody else fills: the first, and the one behind the last.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn filled_by_another(&self, from: u64, to: u64) -> io::Result<Option<(u64, u64)>> {
        self.holder(FILL, from, to)
    }

    /// Says that these blocks are wanted, as long as this is open.
    ///
    /// # Errors
    /// When the kernel has no locks left. `false` when the generation is being removed.
    pub(crate) fn want(&self, from: u64, to: u64) -> io::Result<bool> {
        let (start, length) = place(WANT, from, to);
        self.take(libc::F_RDLCK, start, length)
    }

    /// Some of these blocks that somebody else wants: the first, and the one behind the last.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn wanted_by_another(&self, from: u64, to: u64) -> io::Result<Option<(u64, u64)>> {
        self.holder(WANT, from, to)
    }

    pub(super) fn take(&self, kind: libc::c_int, start: i64, length: i64) -> io::Result<bool> {
        match fcntl(&self.0, FcntlArg::F_OFD_SETLK(&lock(kind, start, length))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn give_back(&self, start: i64, length: i64) {
        let _ = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK, start, length)));
    }

    /// Whether somebody else holds this byte.
    pub(super) fn is_held_by_another(&self, place: i64) -> io::Result<bool> {
        let mut asked = lock(libc::F_WRLCK, place, 1);
        fcntl(&self.0, FcntlArg::F_OFD_GETLK(&mut asked))?;
        Ok(i32::from(asked.l_type) != libc::F_UNLCK)
    }

    /// The part of `from..to` that some other holder has.
    fn holder(&self, region: i64, from: u64, to: u64) -> io::Result<Option<(u64, u64)>> {
        let (start, length) = place(region, from, to);
        let mut asked = lock(libc::F_WRLCK, start, length);
        fcntl(&self.0, FcntlArg::F_OFD_GETLK(&mut asked))?;
        if i32::from(asked.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        let block = |place: i64| u64::try_from(place.saturating_sub(region)).unwrap_or(0);
        let end =
            if asked.l_len == 0 { i64::MAX } else { asked.l_start.saturating_add(asked.l_len) };
        let found = (block(asked.l_start).max(from), block(end).min(to));
        Ok((found.0 < found.1).then_some(found))
    }
}

/// Where a run of blocks lies in the file: start and length. An empty run is as good as one block, for a
/// length of 0 would mean everything behind it.
fn place(region: i64, from: u64, to: u64) -> (i64, i64) {
    let place = |block: u64| i64::try_from(block).unwrap_or(REGION).min(REGION);
    (region + place(from), (place(to) - place(from)).max(1))
}

/// A lock as the kernel wants it described.
pub(super) fn lock(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    // These constants are small in every C library; a lock of a kind that does not fit is none.
    let kind = libc::c_short::try_from(kind).unwrap_or(-1);
    libc::flock { l_type: kind, l_whence: 0, l_start: start, l_len: length, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (tempfile::TempDir, Locks, Locks) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (one, two) = (Locks::open(&path).unwrap(), Locks::open(&path).unwrap());
        (folder, one, two)
    }

    #[test]
    fn a_block_is_filled_by_one() {
        let (_folder, one, two) = two();
        assert!(one.fill(3, 6).unwrap() && !two.fill(5, 9).unwrap() && two.fill(6, 9).unwrap());
        assert!(two.is_filled_by_another(5).unwrap() && !two.is_filled_by_another(6).unwrap());
        assert_eq!(two.filled_by_another(0, 100).unwrap(), Some((3, 6)));
        one.end_fill(3, 5);
        assert_eq!(two.filled_by_another(0, 100).unwrap(), Some((5, 6)));
        one.end_fill(5, 5);
        assert_eq!(two.filled_by_another(0, 100).unwrap(), Some((5, 6)));
        drop(one);
        assert_eq!(two.filled_by_another(0, 100).unwrap(), None);
    }

    #[test]
    fn many_may_want_the_same_and_who_fills_sees_it() {
        let (_folder, one, two) = two();
        assert!(one.want(2, 8).unwrap() && two.want(4, 5).unwrap());
        assert_eq!(two.wanted_by_another(0, 3).unwrap(), Some((2, 3)));
        assert_eq!(two.wanted_by_another(8, 10).unwrap(), None);
        assert_eq!(one.wanted_by_another(0, 100).unwrap(), Some((4, 5)));
    }

    #[test]
    fn so_many_fills_and_no_more() {
        let (folder, one, _two) = two();
        let all: Vec<_> = (0..MOST_FILLS)
            .map(|_| Locks::open(&folder.path().join("lock")).unwrap())
            .inspect(|locks| assert!(locks.begin_fill().unwrap()))
            .collect();
        assert!(!one.begin_fill().unwrap());
        drop(all);
        assert!(one.begin_fill().unwrap());
    }

    #[test]
    fn what_anybody_holds_is_not_taken() {
        let (_folder, one, two) = two();
        assert!(one.want(0, 1).unwrap() && !two.take_all().unwrap());
        drop(one);
        assert!(two.take_all().unwrap());
    }
}
