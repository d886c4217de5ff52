//! Reading one generation, whole or growing: finds or starts the fill, waits for bytes, survives its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Kind};
use crate::fill::{self, Order};
use crate::log;
use crate::options::Options;
use crate::representation::Representation;
use crate::store::{Generation, Stamp, Store, Watch};

/// How often one reader sets up a fill before it gives up.
const MOST_FILLS: u32 = 3;

/// A reader of one generation.
pub(crate) struct Follower<'a> {
    store: &'a Store,
    options: &'a Options,
    generation: Generation,
    order: Order,
    watch: Watch,
    /// The failure note that was there before: not about a fill that this reader waits for.
    known: Option<Stamp>,
    /// The fills that this reader has started.
    fills: u32,
    /// The fills whose end this reader has survived.
    survived: u32,
    /// Whether one of these has noted why.
    noted: bool,
}

/// An open body of the generation.
pub(crate) struct Source<'a> {
    pub(crate) record: Representation,
    /// Whether the body is whole, so that nothing needs to be waited for.
    pub(crate) whole: bool,
    file: File,
    follower: Option<Follower<'a>>,
}

impl<'a> Follower<'a> {
    /// Begins to watch the generation that `order` names.
    ///
    /// # Errors
    /// `NoRoom`, when the cache cannot be written.
    pub(crate) fn new(
        store: &'a Store,
        options: &'a Options,
        generation: Generation,
        order: Order,
    ) -> Result<Self, Failure> {
        let prepared = generation.object().prepare();
        prepared.map_err(|error| Failure::of_cache("the cache cannot be written", &error))?;
        let watch = generation.watch();
        let known = generation.failure().map(|(stamp, _)| stamp);
        Ok(Self {
            store,
            options,
            generation,
            order,
            watch,
            known,
            fills: 0,
            survived: 0,
            noted: false,
        })
    }

    /// Whether this reader is the one that started the fill.
    pub(crate) fn has_filled(&self) -> bool {
        self.fills > 0
    }

    /// Waits until there is a body to read from, and sees to it that somebody writes it.
    ///
    /// # Errors
    /// Why there will be none.
    pub(crate) fn attach(mut self) -> Result<Source<'a>, Failure> {
        let (file, record, whole) = self.open()?;
        Ok(Source { record, whole, file, follower: Some(self) })
    }

    /// The order of the looks is what makes this right: the watch was set before, so that whatever
    /// changes after a look ends the wait that follows it.
    fn open(&mut self) -> Result<(File, Representation, bool), Failure> {
        let begun = Instant::now();
        loop {
            if let Ok(Some(whole)) = self.generation.open_whole() {
                return Ok((whole.file, whole.record, true));
            }
            let lock = self.generation.try_lock();
            let lock = lock.map_err(|error| Failure::of_cache("the lock cannot be had", &error))?;
            if let Some(lock) = lock {
                // Nobody fills it now. Somebody may have, since the look before.
                match self.generation.open_whole() {
                    Ok(Some(whole)) => return Ok((whole.file, whole.record, true)),
                    Ok(None) => {}
                    Err(damage) => self.generation.put_aside(&damage),
                }
                if let Some(failure) = self.news() {
                    return Err(failure);
                }
                self.fill(lock)?;
            } else if let Some(growing) = self.generation.open_growing() {
                return Ok((growing.file, growing.record, false));
            } else if let Some(failure) = self.news() {
                return Err(failure);
            }
            let patience = self.patience_left(begun, "the base sends nothing")?;
            self.watch.wait(patience);
        }
    }

    /// Starts a fill, if there is room for the file; takes the lock along.
    fn fill(&mut self, lock: File) -> Result<(), Failure> {
        if self.fills == MOST_FILLS {
            // Without a note why: most likely the cache cannot be written any more, notes included.
            let kind = if self.noted { Kind::Down } else { Kind::NoRoom };
            return Err(kind.says("the process that fills the cache ended again and again"));
        }
        let length = self.order.wanted.length;
        match self.store.has_room(length) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Kind::NoRoom.says(format!(
                    "there is no room for {length} bytes in the cache (OFFLOAD_KEEP_FREE)"
                )));
            }
            Err(error) => {
                return Err(Failure::of_cache("the cache's disk cannot be asked", &error));
            }
        }
        self.fills += 1;
        fill::start(lock, &self.order, self.options).map_err(|error| {
            Failure::of_cache("no process can be started to fill the cache", &error)
        })
    }

    /// The failure of a fill that this reader has waited for.
    fn news(&self) -> Option<Failure> {
        let (stamp, failure) = self.generation.failure()?;
        (Some(stamp) != self.known).then_some(failure)
    }

    fn patience_left(&self, since: Instant, what: &str) -> Result<Duration, Failure> {
        let patience = self.options.timeout.duration();
        patience
            .checked_sub(since.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or_else(|| Kind::TimedOut.says(format!("{what} for {}", self.options.timeout)))
    }
}

impl<'a> Source<'a> {
    /// A whole body.
    pub(crate) fn whole(file: File, record: Representation) -> Self {
        Self { record, whole: true, file, follower: None }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether this reader is the one that started the fill.
    pub(crate) fn has_filled(&self) -> bool {
        self.follower.as_ref().is_some_and(Follower::has_filled)
    }

    /// Reads at least one byte at `offset`, which lies in the file, and waits for it if need be.
    ///
    /// # Errors
    /// Why the byte will not come.
    pub(crate) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize, Failure> {
        let mut progress = Instant::now();
        let mut seen = 0;
        loop {
            let of_cache = |error: io::Error| Failure::of_cache("the cache cannot be read", &error);
            match self.file.read_at(buffer, offset) {
                Ok(0) => {}
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(of_cache(error)),
            }
            let found = self.file.metadata().map_err(of_cache)?;
            if found.len() > offset {
                continue;
            }
            if found.len() > seen {
                seen = found.len();
                progress = Instant::now();
            }
            let Some(follower) = &mut self.follower else {
                return Err(Kind::Down.says("the cached file is shorter than it was"));
            };
            if found.nlink() > 0 && !is_free(&follower.generation)? {
                let patience = follower.patience_left(progress, "the base sends nothing more")?;
                follower.watch.wait(patience);
                continue;
            }
            // This body will not grow: its writer is dead, or has been replaced by one with a new body.
            if self.file.metadata().map_err(of_cache)?.len() > offset {
                continue;
            }
            if offset > 0 && !self.record.validators.are_strong() {
                let why = follower.news().map_or(String::new(), |failure| failure.sentence);
                return Err(Kind::Down.says(format!(
                    "the fill broke off, and its validator is too weak to go on with another: {why}"
                )));
            }
            follower.forgive()?;
            let (file, record, whole) = follower.open()?;
            (self.file, self.record, self.whole) = (file, record, whole);
            (seen, progress) = (0, Instant::now());
        }
    }
}

impl Follower<'_> {
    /// Takes note of the end of a fill, if another one can make it good.
    fn forgive(&mut self) -> Result<(), Failure> {
        if self.survived == MOST_FILLS {
            return Err(Kind::Down.says("the fill broke off again and again"));
        }
        self.survived += 1;
        let Some((stamp, failure)) = self.generation.failure() else { return Ok(()) };
        if Some(stamp) == self.known {
            return Ok(());
        }
        if matches!(failure.kind, Kind::Down | Kind::TimedOut) {
            log::line(&format!("{}: the fill begins anew: {}", self.order.path, failure.sentence));
            self.known = Some(stamp);
            self.noted = true;
            return Ok(());
        }
        Err(failure)
    }
}

/// Whether nobody fills the generation. Lets go of the lock at once.
fn is_free(generation: &Generation) -> Result<bool, Failure> {
    let lock = generation.try_lock();
    Ok(lock.map_err(|error| Failure::of_cache("the lock cannot be had", &error))?.is_some())
}
