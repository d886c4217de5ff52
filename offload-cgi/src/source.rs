//! Reading one generation, whole or growing: sees to it that somebody fills what is wanted, waits for
//! bytes, survives the end of whoever was sending them.

mod growth;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use self::growth::{Growth, Past};
use crate::failure::{Failure, Kind};
use crate::http::Part;
use crate::options::Options;
use crate::representation::Representation;
use crate::store::{Generation, Growing, Joined};

/// Who has read a whole body for longer looks whether it is an old one by now.
const MOMENT: Duration = Duration::from_millis(200);

/// An open body.
pub(crate) struct Source<'a> {
    pub(crate) record: Representation,
    file: File,
    growth: Option<Growth<'a>>,
    /// The generation of a whole body of the cache, and when it was opened.
    whole: Option<(Generation, Instant)>,
    /// Why no other body has taken the place of one that was given up: nothing more is read from that.
    lost: Option<Failure>,
}

/// What a look at a body finds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Look {
    /// So many bytes can be read from there on, at least one.
    Bytes(u64),
    /// None yet; somebody fetches them.
    Wait,
}

impl<'a> Source<'a> {
    /// Opens the generation that `found` describes to read `wanted` from it. Waits for nothing.
    ///
    /// # Errors
    /// `NoRoom`, when the cache cannot be written.
    pub(crate) fn open(
        options: &'a Options,
        generation: Generation,
        found: &Representation,
        path: &str,
        wanted: &[Part],
    ) -> Result<Self, Failure> {
        let known = generation.failure().map(|(stamp, _)| stamp);
        let described = generation.record_stamp();
        let joined = generation.join(found, wanted).map_err(of_cache)?;
        Ok(match joined {
            Joined::Whole(whole) => Self::whole(whole.file, whole.record).of(generation),
            Joined::Growing(Growing { file, record, progress }, locks) => {
                let growth = Growth {
                    options,
                    generation,
                    path: path.to_owned(),
                    wanted: wanted.to_vec(),
                    described,
                    progress,
                    locks,
                    past: Past::new(known),
                };
                growth.finish();
                Self { record, file, growth: Some(growth), whole: None, lost: None }
            }
        })
    }

    /// A whole body.
    pub(crate) fn whole(file: File, record: Representation) -> Self {
        Self { record, file, growth: None, whole: None, lost: None }
    }

    /// The same; it belongs to a generation of the cache.
    pub(crate) fn of(mut self, generation: Generation) -> Self {
        self.whole = Some((generation, Instant::now()));
        self
    }

    /// Whether this is the whole body in the same file, which another one has open.
    pub(crate) fn is_file_of(&self, other: &Self) -> bool {
        let place = |source: &Self| {
            let found = source.file.metadata().ok()?;
            Some((found.dev(), found.ino()))
        };
        self.is_whole()
            && other.is_whole()
            && place(self).is_some_and(|own| Some(own) == place(other))
    }

    /// Whether nothing more will come.
    pub(crate) fn is_whole(&self) -> bool {
        self.growth.is_none()
    }

    /// The file to read what is there from.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether this reader has started a fill.
    pub(crate) fn has_filled(&self) -> bool {
        self.growth.as_ref().is_some_and(|growth| growth.past.has_filled)
    }

    /// Whether all these parts can be read now.
    pub(crate) fn has(&self, parts: &[Part]) -> bool {
        self.growth.as_ref().is_none_or(|growth| growth.has(parts))
    }

    /// The file that is written to whenever there is news of a growing body, for inotify, and the number of
    /// bodies that were given up before: with another number it is another file.
    pub(crate) fn news(&self) -> Option<(&File, u32)> {
        let growth = self.growth.as_ref()?;
        Some((growth.progress.file(), growth.past.bodies))
    }

    /// How often the body has changed: to be asked before `look`, for a wait that follows it.
    pub(crate) fn changes(&self) -> u32 {
        self.growth.as_ref().map_or(0, |growth| growth.progress.changes())
    }

    /// How many bytes can be read from `offset` on, which lies in the file. When it is none, this sees
    /// to it that somebody fetches them. Never waits, but may start a process.
    ///
    /// # Errors
    /// Why they will not come.
    pub(crate) fn look(&mut self, offset: u64) -> Result<Look, Failure> {
        if let Some(failure) = &self.lost {
            return Err(failure.clone());
        }
        let Some(growth) = &mut self.growth else {
            return Ok(Look::Bytes(self.record.length.saturating_sub(offset)));
        };
        let intact = self.file.metadata().is_ok_and(|found| found.len() == self.record.length);
        if !intact || growth.is_torso(&self.record).map_err(of_cache)? {
            growth.progress.give_up();
        } else if let Some(look) = growth.there(offset) {
            return Ok(look);
        }
        if growth.progress.is_given_up() {
            // Who gives up has noted why before: that is this reader's failure, if it has waited for it.
            growth.take_note()?;
            if growth.past.begun && !self.record.validators.are_strong() {
                return Err(Kind::Down.says(
                    "the fill broke off, and its validator is too weak to go on with another",
                ));
            }
            self.reopen()?;
        } else if let Look::Bytes(count) = growth.see_to(offset, &self.record)? {
            return Ok(Look::Bytes(count));
        }
        if let Some(growth) = &mut self.growth {
            growth.lose_patience()?;
        }
        Ok(Look::Wait)
    }

    /// Waits until there are bytes at `offset`, and says how many.
    ///
    /// # Errors
    /// Why they will not come.
    pub(crate) fn wait_for(&mut self, offset: u64) -> Result<u64, Failure> {
        loop {
            let seen = self.changes();
            if let Look::Bytes(count) = self.look(offset)? {
                return Ok(count);
            }
            if let Some(growth) = &self.growth {
                growth.progress.wait(seen, growth.pause());
            }
        }
    }

    /// Says that the client has been sent something of this body: it must not be given another now.
    pub(crate) fn begin(&mut self) {
        if let Some(growth) = &mut self.growth {
            growth.past.begun = true;
        }
    }

    /// Takes note of what the base said when it sent the body, which rules over what it said before.
    pub(crate) fn refresh(&mut self) {
        if let Some(growth) = &self.growth
            // Read anew only if it was written anew: a thousand readers may be woken at the same time.
            && growth.generation.record_stamp() != growth.described
            && let Ok(Some(record)) = growth.generation.record()
        {
            self.record = record;
        }
    }

    /// Goes over to what has taken the place of a body that was given up, with all that this reader has
    /// been through: a new body is no progress.
    fn reopen(&mut self) -> Result<(), Failure> {
        let Some(old) = self.growth.take() else { return Ok(()) };
        let Growth { options, generation, path, wanted, past, locks, .. } = old;
        // Else this reader would keep himself from setting it up anew.
        drop(locks);
        *self = Self::open(options, generation, &self.record, &path, &wanted)
            .inspect_err(|failure| self.lost = Some(failure.clone()))?;
        if let Some(growth) = &mut self.growth {
            growth.inherit(past);
        }
        Ok(())
    }
}

/// Old versions go when nobody reads them any more.
impl Drop for Source<'_> {
    fn drop(&mut self) {
        if let Some(Growth { generation, locks, .. }) = self.growth.take() {
            drop(locks);
            generation.object().leave(&generation);
        }
        // In a moment nothing changes; and if it did, the next change clears it away.
        if let Some((generation, opened)) = self.whole.take()
            && opened.elapsed() > MOMENT
            && fs2::FileExt::unlock(&self.file).is_ok()
        {
            generation.object().leave(&generation);
        }
    }
}

fn of_cache(error: io::Error) -> Failure {
    Failure::of_cache("the cache cannot be used", &error)
}
