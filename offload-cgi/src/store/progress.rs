//! How much of a growing body is there: a mapped file beside it, written by those who fill it, seen by
//! all who read it the moment it changes.
//!
//! The body is cut into blocks, and each block grows from its beginning: a word for each says how many of
//! its bytes are there. A word is raised after the bytes have been written, by the holder of the block's
//! lock only. What it says is true until the machine goes down; what survives that is in `extents`.
//!
//! ```text
//! words 0-3    magic, format, log2 of the block size, the bell: written for inotify
//! words 4-7    the boot that it belongs to
//! words 8-9    the body's length
//! words 10-13  the generation
//! word  14     how often it changed: what readers wait for
//! word  15     1 when this body will not be continued
//! word  16     how often bytes have come
//! words 17-18  the number (inode) of the body's file: it may be replaced by another of the same generation
//! words 19-23  unused
//! words 24-    a word for each block
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::extents::{Blocks, Extents};
use crate::shared::{Shared, wait, wake};

const MAGIC: u32 = u32::from_le_bytes(*b"offp");
const FORMAT: u32 = 3;
const HEADER: usize = 24;
const CHANGES: usize = 14;
const DEAD: usize = 15;
const ARRIVALS: usize = 16;
const INODE: usize = 17;
/// The words that identify a body.
const SAME: [usize; 15] = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, INODE, INODE + 1];
/// A byte in the header that nobody reads.
const BELL: u64 = 12;

/// The progress of one body.
#[derive(Debug)]
pub(crate) struct Progress {
    map: Shared,
    file: File,
    blocks: Blocks,
}

/// What identifies the body that a progress file belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity<'a> {
    /// The generation's name: 32 hexadecimal digits.
    pub(super) generation: &'a str,
    pub(super) length: u64,
    /// The number of the body's file.
    pub(super) inode: u64,
    /// This boot of the machine.
    pub(super) boot: [u32; 4],
}

impl Identity<'_> {
    fn header(self, blocks: Blocks) -> [u32; HEADER] {
        let mut header = [0; HEADER];
        header[..3].copy_from_slice(&[MAGIC, FORMAT, blocks.shift()]);
        header[4..8].copy_from_slice(&self.boot);
        header[8..10].copy_from_slice(&halves(self.length));
        header[INODE..INODE + 2].copy_from_slice(&halves(self.inode));
        for (word, digits) in header[10..14].iter_mut().zip(self.generation.as_bytes().chunks(8)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *word = u32::from_str_radix(digits, 16).unwrap_or_default();
        }
        header
    }
}

/// The low and the high half.
fn halves(number: u64) -> [u32; 2] {
    let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or_default();
    [half(number), half(number >> 32)]
}

impl Progress {
    /// The bytes of the file that says what `extents` says.
    pub(super) fn print(identity: Identity<'_>, extents: &Extents) -> Vec<u8> {
        let blocks = Blocks::of(identity.length);
        let header = identity.header(blocks);
        let landed = (0..blocks.count()).map(|block| extents.landed(block));
        header.into_iter().chain(landed).flat_map(u32::to_ne_bytes).collect()
    }

    /// Opens what `print` made for this very body on this very boot; `None` when it is anything else.
    ///
    /// # Errors
    /// When the file cannot be mapped.
    pub(super) fn open(file: File, identity: Identity<'_>) -> io::Result<Option<Self>> {
        let blocks = Blocks::of(identity.length);
        let words = blocks.count().saturating_add(HEADER as u64);
        let Ok(length) = usize::try_from(words.saturating_mul(4)) else { return Ok(None) };
        if file.metadata()?.len() != length as u64 {
            return Ok(None);
        }
        let map = Shared::map(&file, 0, length)?;
        let header = identity.header(blocks);
        let same = SAME.into_iter().all(|at| {
            let found = map.words().get(at).map(|word| word.load(Ordering::Relaxed));
            found.is_some() && found == header.get(at).copied()
        });
        Ok(same.then_some(Self { map, file, blocks }))
    }

    /// The file itself, for those who watch it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// How the body is cut.
    pub(crate) fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// How many bytes of a block are there, counted from its beginning.
    pub(crate) fn landed(&self, block: u64) -> u32 {
        // A file that somebody tampered with must not promise bytes beyond the block.
        self.entry(block)
            .map_or(0, |word| word.load(Ordering::Acquire))
            .min(self.blocks.size(block))
    }

    /// How many bytes are there from `offset` on without a gap, as far as one look at the next
    /// `LOOK` blocks tells.
    pub(crate) fn available(&self, offset: u64) -> u64 {
        const LOOK: u64 = 64;
        let first = self.blocks.of_offset(offset);
        let mut end = offset;
        for block in first..self.blocks.count().min(first.saturating_add(LOOK)) {
            let landed = self.landed(block);
            let reached = self.blocks.start(block).saturating_add(u64::from(landed));
            end = end.max(reached);
            if landed < self.blocks.size(block) {
                break;
            }
        }
        end.saturating_sub(offset)
    }

    /// Whether every byte is there.
    pub(crate) fn is_whole(&self) -> bool {
        (0..self.blocks.count()).all(|block| self.landed(block) == self.blocks.size(block))
    }

    /// What is there now.
    pub(crate) fn extents(&self) -> Extents {
        Extents::new(self.blocks, (0..self.blocks.count()).map(|block| self.landed(block)))
    }

    /// Says that `landed` bytes of a block are there. The caller has written them and holds the
    /// block's lock.
    pub(crate) fn set_landed(&self, block: u64, landed: u32) {
        if let Some(word) = self.entry(block) {
            word.store(landed, Ordering::Release);
        }
        if let Some(arrivals) = self.map.words().get(ARRIVALS) {
            arrivals.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How often bytes have come: what is progress for those who wait.
    pub(crate) fn arrivals(&self) -> u32 {
        self.map.words().get(ARRIVALS).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Tells everybody who waits that something has changed.
    pub(crate) fn announce(&self) {
        announce(&self.map, &self.file);
    }

    /// Says that this body will not be continued.
    pub(crate) fn give_up(&self) {
        give_up(&self.map, &self.file);
    }

    /// The same of whatever body this file belongs to, if it belongs to one.
    ///
    /// # Errors
    /// When the file cannot be mapped.
    pub(super) fn give_up_file(file: &File) -> io::Result<()> {
        const BYTES: usize = HEADER * 4;
        if file.metadata()?.len() >= BYTES as u64 {
            let map = Shared::map(file, 0, BYTES)?;
            if map.words().first().is_some_and(|word| word.load(Ordering::Relaxed) == MAGIC) {
                give_up(&map, file);
            }
        }
        Ok(())
    }

    /// Whether this body will not be continued.
    pub(crate) fn is_given_up(&self) -> bool {
        self.map.words().get(DEAD).is_none_or(|dead| dead.load(Ordering::Acquire) != 0)
    }

    /// How often it has changed: to be asked before one looks, and given to `wait`.
    pub(crate) fn changes(&self) -> u32 {
        self.map.words().get(CHANGES).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Waits until it has changed more often than `seen`, at most for `limit`.
    pub(crate) fn wait(&self, seen: u32, limit: Duration) {
        match self.map.words().get(CHANGES) {
            Some(word) => wait(word, seen, limit),
            None => std::thread::sleep(limit),
        }
    }

    fn entry(&self, block: u64) -> Option<&AtomicU32> {
        self.map.words().get(usize::try_from(block).ok()?.checked_add(HEADER)?)
    }
}

fn give_up(map: &Shared, file: &File) {
    if let Some(dead) = map.words().get(DEAD) {
        dead.store(1, Ordering::Release);
    }
    announce(map, file);
}

fn announce(map: &Shared, file: &File) {
    if let Some(changes) = map.words().get(CHANGES) {
        changes.fetch_add(1, Ordering::AcqRel);
        wake(changes);
    }
    // For those who watch the file with inotify, which does not see what is written to memory.
    let _ = file.write_at(&[0], BELL);
}
