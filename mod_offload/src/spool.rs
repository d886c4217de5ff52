//! A temporary file that has what a generator made, so that it can end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// A part is passed on when it is so long, or so old.
const PART: u64 = 256 << 10;
const AGE: Duration = Duration::from_millis(100);
/// Each part costs the request some memory: who flushes all the time gets no more of them.
const MOST_PARTS: u32 = 4096;

/// The file, which has no name and is gone with this value.
pub(crate) struct Spool {
    file: File,
    length: u64,
    /// So much of it has been passed on.
    passed: u64,
    since: Instant,
    parts: u32,
    is_over: bool,
}

impl Spool {
    /// Makes one where temporary files are made.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn create() -> io::Result<Self> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_EXCL;
        let file = open(&std::env::temp_dir(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Self {
            file: File::from(file),
            length: 0,
            passed: 0,
            since: Instant::now(),
            parts: 0,
            is_over: false,
        })
    }

    /// Whether there is no room for more, where there may be so many bytes.
    pub(crate) fn is_full(&self, most: u64) -> bool {
        self.is_over || self.length >= most || self.parts >= MOST_PARTS
    }

    /// Whether all that is in it has been passed on.
    pub(crate) fn is_passed_on(&self) -> bool {
        self.passed == self.length
    }

    /// Nothing more goes into it.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    /// Appends.
    ///
    /// # Errors
    /// What the kernel says: mostly that the disk is full.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // httpd may read meanwhile, and moves the descriptor's own place for that.
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Whether it is time to pass on what has not been.
    pub(crate) fn is_worth_a_part(&self) -> bool {
        self.length - self.passed >= PART
            || (self.length > self.passed && self.since.elapsed() >= AGE)
    }

    /// What has not been passed on, and is from now on: where it begins, and how long it is.
    pub(crate) fn take_part(&mut self) -> Option<(u64, u64)> {
        let (start, length) = (self.passed, self.length - self.passed);
        self.passed = self.length;
        self.since = Instant::now();
        self.parts += 1;
        (length > 0).then_some((start, length))
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
