//! How a filler fetches a stretch: room for it, a GET, and its bytes into the blocks that are its own.

use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Filler, of_cache};
use crate::breaker::Breaker;
use crate::failure::{Contact, Failure, Kind};
use crate::http::Part;
use crate::origin::body_failure;

/// After such a time it is asked again whether somebody wants the bytes, though a block is not full yet.
const MOMENT: Duration = Duration::from_secs(1);

/// What a base must send within OFFLOAD_TIMEOUT. One that sends a byte now and then makes no time-out of a
/// read, and another connection may be faster.
const LEAST: u64 = 4 << 10;

/// How fast the bytes of a stretch come.
struct Pace {
    patience: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(patience: Duration) -> Self {
        Self { patience, since: Instant::now(), bytes: 0 }
    }

    /// So many bytes have come.
    ///
    /// # Errors
    /// `TimedOut`.
    fn count(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.since.elapsed() < self.patience {
            return Ok(());
        }
        if self.bytes < LEAST {
            let text = format!("the base has sent {} bytes in {:?}", self.bytes, self.patience);
            return Err(Kind::TimedOut.says(text));
        }
        *self = Self::new(self.patience);
        Ok(())
    }
}

impl Filler<'_> {
    /// Fetches the stretch whose locks are held. False when it was given up, since nobody wants it.
    pub(super) fn pull(&mut self) -> Result<bool, Failure> {
        let Some(part) = self.narrow() else { return Ok(true) };
        let begun = Instant::now();
        self.reserve(part)?;
        // A base that is down is left in peace by fills as well, however many files have readers who wait.
        let breaker = Breaker::of(self.store, &self.options.base.to_string());
        breaker.allow(SystemTime::now(), || true)?;
        let answer = self.origin.get(&self.order.path, &self.growing.record, part);
        match answer.as_ref().map_or_else(|failure| failure.contact, |_| Contact::Made) {
            Contact::Made => breaker.close(SystemTime::now()),
            Contact::Missing => breaker.count(SystemTime::now()),
            // HEAD says whether that is the file's fault.
            Contact::Mute => {}
        }
        let mut incoming = answer?;
        if let Some(why) = incoming.representation.unstorable {
            // Its own headers rule, whatever HEAD has said.
            return Err(Kind::Unstorable.says(format!("the base sends it as {}", why.detail())));
        }
        self.generation.describe(&incoming.representation).map_err(of_cache)?;
        let mut offset = incoming.first;
        // A base that knows no ranges sends everything: then everything that is missing is taken.
        let end = if offset == part.first { part.end() } else { self.blocks.length() };
        let mut buffer = vec![0; 1 << 20];
        let mut pace = Pace::new(self.options.timeout.duration());
        let (mut asked, mut looked) = (offset, Instant::now());
        while offset < end {
            let count = match incoming.read(&mut buffer) {
                Ok(0) => {
                    return Err(Kind::Down.says(format!(
                        "the base promised the bytes up to {end} and sent those up to {offset}"
                    )));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(body_failure(error)),
            };
            if offset.saturating_add(count as u64) >= end {
                // Before anybody sees the last byte: who needs the next one then would start another filler.
                self.stretches.took(begun.elapsed());
                self.next = self.choose()?;
            }
            if self.is_spoilt() {
                return Ok(false);
            }
            self.store(offset, &buffer[..count], end)?;
            offset = offset.saturating_add(count as u64);
            self.growing.progress.announce();
            if offset < end {
                pace.count(count)?;
            }
            if self.strong {
                self.keeper.checkpoint(&self.growing.progress);
            }
            if self.cramped && offset >= part.end() {
                break;
            }
            let is_next = self.blocks.of_offset(offset) != self.blocks.of_offset(asked);
            if offset < end && (is_next || looked.elapsed() > MOMENT) {
                if !self.may_go_on(offset - asked)? {
                    return Ok(false);
                }
                (asked, looked) = (offset, Instant::now());
            }
        }
        Ok(true)
    }

    /// Whether the body was given up: it was put aside, and its successor waits for these locks. So is one that
    /// somebody has shortened, for writing would make it long again, with a hole.
    pub(super) fn is_spoilt(&self) -> bool {
        let found = self.growing.file.metadata();
        if !found.is_ok_and(|found| found.len() == self.blocks.length()) {
            self.growing.progress.give_up();
        }
        self.growing.progress.is_given_up()
    }

    /// The bytes to ask for: the first of what is missing in the blocks whose locks are held, as far as one
    /// request goes. Who took the locks saw what was missing before that; from then on nobody else fills
    /// them. The locks of the rest are let go.
    fn narrow(&mut self) -> Option<Part> {
        let (from, to) = self.mine;
        let extents = self.growing.progress.extents();
        let run = extents.missing().into_iter().find(|(first, end)| *first < to && *end > from)?;
        let (from, to) = if self.strong {
            let first = run.0.max(from);
            (first, self.stretches.next(&extents, first, to))
        } else {
            (0, self.blocks.count())
        };
        self.locks.end_fill(0, from);
        self.locks.end_fill(to, u64::MAX);
        self.mine = (from, to);
        let landed = u64::from(self.growing.progress.landed(from));
        let first = self.blocks.start(from).saturating_add(landed);
        let length = self.blocks.start(to).checked_sub(first)?;
        Some(Part { first, length })
    }

    /// Writes what has come for `offset` into the blocks that are this filler's, or that it can get.
    fn store(&mut self, mut offset: u64, mut bytes: &[u8], end: u64) -> Result<(), Failure> {
        while !bytes.is_empty() && offset < end {
            let block = self.blocks.of_offset(offset);
            let start = self.blocks.start(block);
            let room = self.blocks.start(block + 1) - offset;
            let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (piece, rest) = bytes.split_at(count);
            bytes = rest;
            if self.news(block, offset, piece).is_some() && self.owns(block)? {
                // Once more: until the lock was had, another filler may have got on with it.
                if let Some((at, news)) = self.news(block, offset, piece) {
                    self.growing.file.write_all_at(news, at).map_err(of_cache)?;
                    let landed = u32::try_from(at - start + news.len() as u64).unwrap_or(0);
                    self.growing.progress.set_landed(block, landed);
                }
            }
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Where the block, which has bytes from its beginning on, goes on in the bytes that have come for
    /// `offset`, and how. A block that another filler has left behind may go on with what has gone by.
    fn news<'a>(&self, block: u64, offset: u64, piece: &'a [u8]) -> Option<(u64, &'a [u8])> {
        let at = self.rest_of(block).first;
        let known = usize::try_from(at.checked_sub(offset)?).ok()?;
        let news = piece.get(known..).filter(|news| !news.is_empty())?;
        Some((at, news))
    }

    /// Whether the lock of this block is held, or can be had and there is room for the block.
    fn owns(&mut self, block: u64) -> Result<bool, Failure> {
        if (self.mine.0..self.mine.1).contains(&block) || self.extra == Some(block) {
            return Ok(true);
        }
        if self.cramped || !self.locks.fill(block, block + 1).map_err(of_cache)? {
            return Ok(false);
        }
        if self.reserve(self.rest_of(block)).is_err() {
            self.cramped = true;
            self.locks.end_fill(block, block + 1);
            return Ok(false);
        }
        if let Some(before) = self.extra.replace(block) {
            self.locks.end_fill(before, before + 1);
        }
        Ok(true)
    }

    /// What a block lacks.
    fn rest_of(&self, block: u64) -> Part {
        let landed = u64::from(self.growing.progress.landed(block));
        let first = self.blocks.start(block).saturating_add(landed);
        Part { first, length: self.blocks.start(block + 1).saturating_sub(first) }
    }

    /// Takes the disk space now.
    fn reserve(&self, part: Part) -> Result<(), Failure> {
        let take = || match self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, part) {
            // Not every file system can; then the writes will tell.
            Err(Errno::ENOSPC) => Err(Errno::ENOSPC.into()),
            _ => Ok(()),
        };
        let object = self.generation.object();
        if self.store.reserve(object, part.length, take).map_err(of_cache)? {
            return Ok(());
        }
        Err(Kind::NoRoom.says(format!(
            "there is no room for {} bytes in the cache (OFFLOAD_CACHE_MAX, OFFLOAD_KEEP_FREE)",
            part.length
        )))
    }

    fn allocate(&self, how: FallocateFlags, part: Part) -> nix::Result<()> {
        match (i64::try_from(part.first), i64::try_from(part.length)) {
            (Ok(first), Ok(length @ 1..)) => fallocate(&self.growing.file, how, first, length),
            _ => Ok(()),
        }
    }

    /// Gives back the disk space that was taken and not used.
    pub(super) fn give_back(&self) {
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for block in (self.mine.0..self.mine.1).chain(self.extra) {
            let _ = self.allocate(how, self.rest_of(block));
        }
    }
}
