//! How many fills of a base may be in flight at the same time, whatever files they are of: whoever asks for
//! many files and hangs up at once is not to keep as many processes, and connections to the base, at work.
//!
//! Locks of an open file as those of a generation (see `locks`), in one file for each base:
//!
//! ```text
//! 0           shared: waits for a slot
//! 16 - 31     one of the fills whose bytes nobody wants any more
//! 2^16 + n    one of the fills
//! ```

use std::fs::File;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::locks::Locks;
use crate::representation::hex;

const WAITING: i64 = 0;
const UNWATCHED: i64 = 16;
const FILLS: i64 = 1 << 16;

/// So many fills may use up their budget although nobody wants their bytes; the others end at once.
const MOST_UNWATCHED: i64 = 16;

/// The fills of one base. Every one that is opened holds its own locks.
#[derive(Debug)]
pub(crate) struct Slots(Locks);

impl Slots {
    /// Opens the file of a base in a cache's folder, and makes it when it is missing. Holds nothing yet.
    ///
    /// # Errors
    /// When the file cannot be had.
    pub(super) fn open(root: &Path, base: &str) -> io::Result<Self> {
        let name = format!("fills-{}", &hex(&Sha256::digest(base))[..16]);
        Locks::open(&root.join(name)).map(Self)
    }

    /// Those that were handed to this process.
    pub(crate) fn from_file(file: File) -> Self {
        Self(Locks::from_file(file))
    }

    /// To hand them to a process that is to be started.
    pub(crate) fn into_file(self) -> File {
        self.0.into_file()
    }

    /// Takes one of `most` slots. Where none is free this counts as waiting for one until it is dropped.
    ///
    /// # Errors
    /// When the kernel has no locks left.
    pub(crate) fn take(&self, most: u32) -> io::Result<bool> {
        for slot in 0..i64::from(most) {
            if self.0.take(libc::F_WRLCK, FILLS + slot, 1)? {
                self.0.give_back(WAITING, 1);
                return Ok(true);
            }
        }
        self.0.take(libc::F_RDLCK, WAITING, 1)?;
        Ok(false)
    }

    /// Whether somebody else waits for a slot.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn are_wanted(&self) -> io::Result<bool> {
        self.0.is_held_by_another(WAITING)
    }

    /// Takes one of the places of fills that nobody watches.
    ///
    /// # Errors
    /// When the kernel has no locks left.
    pub(crate) fn take_unwatched(&self) -> io::Result<bool> {
        for slot in 0..MOST_UNWATCHED {
            if self.0.take(libc::F_WRLCK, UNWATCHED + slot, 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Somebody watches again.
    pub(crate) fn end_unwatched(&self) {
        self.0.give_back(UNWATCHED, MOST_UNWATCHED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_fills_of_a_base_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let open = |base| Slots::open(folder.path(), base).unwrap();
        let [one, two, three] = [open("a"), open("a"), open("a")];
        assert!(one.take(2).unwrap() && two.take(2).unwrap());
        assert!(!one.are_wanted().unwrap());
        assert!(!three.take(2).unwrap() && one.are_wanted().unwrap());
        assert!(open("b").take(1).unwrap(), "another base has its own");
        drop(two);
        assert!(three.take(2).unwrap() && !one.are_wanted().unwrap());
    }

    #[test]
    fn whoever_waits_and_ends_waits_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Slots::open(folder.path(), "a").unwrap();
        let (one, two) = (open(), open());
        assert!(one.take(1).unwrap() && !two.take(1).unwrap());
        drop(two);
        assert!(!one.are_wanted().unwrap());
    }

    #[test]
    fn few_fills_go_on_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<_> = (0..MOST_UNWATCHED)
            .map(|_| Slots::open(folder.path(), "a").unwrap())
            .inspect(|slots| assert!(slots.take_unwatched().unwrap()))
            .collect();
        let one = Slots::open(folder.path(), "a").unwrap();
        assert!(!one.take_unwatched().unwrap());
        all[3].end_unwatched();
        assert!(one.take_unwatched().unwrap());
    }
}
