//! Reading one generation, whole or growing: sees to it that somebody fills what is wanted, waits for
//! bytes, survives the end of whoever was sending them.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Kind};
use crate::fill::{self, Order, Stretches};
use crate::http::Part;
use crate::log;
use crate::options::Options;
use crate::representation::Representation;
use crate::store::{Generation, Growing, Joined, Locks, Progress, Stamp};

/// How often fills may end without a word and without a byte before a reader gives up.
const MOST_SILENT_ENDS: u32 = 3;

/// The longest one wait may last: a filler that is killed says nothing, and so it is looked for.
const LOOK: Duration = Duration::from_millis(90);

/// Who has read a whole body for longer looks whether it is an old one by now.
const MOMENT: Duration = Duration::from_millis(200);

/// The pause after the first failure of a fill; it doubles with each one in a row, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// An open body.
pub(crate) struct Source<'a> {
    pub(crate) record: Representation,
    file: File,
    growth: Option<Growth<'a>>,
    /// The generation of a whole body of the cache, and when it was opened.
    whole: Option<(Generation, Instant)>,
}

/// What a reader of a growing body must know.
struct Growth<'a> {
    options: &'a Options,
    generation: Generation,
    path: String,
    progress: Progress,
    /// Says which bytes this reader wants, as long as it is open.
    locks: Locks,
    wanted: Vec<Part>,
    /// Which record was read.
    described: Option<Stamp>,
    /// The failure note that was there before: not about a fill that this reader waits for.
    known: Option<Stamp>,
    /// Whether the client has been sent something: from then on it waits out what can be waited out.
    begun: bool,
    /// Fills that failed, or ended without a word, since a byte came last.
    failures: u32,
    silent_ends: u32,
    not_before: Option<Instant>,
    /// Whether this reader has started a fill.
    has_filled: bool,
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
                    progress,
                    locks,
                    wanted: wanted.to_vec(),
                    described,
                    known,
                    begun: false,
                    failures: 0,
                    silent_ends: 0,
                    not_before: None,
                    has_filled: false,
                };
                Self { record, file, growth: Some(growth), whole: None }
            }
        })
    }

    /// A whole body.
    pub(crate) fn whole(file: File, record: Representation) -> Self {
        Self { record, file, growth: None, whole: None }
    }

    /// The same; it belongs to a generation of the cache.
    pub(crate) fn of(mut self, generation: Generation) -> Self {
        self.whole = Some((generation, Instant::now()));
        self
    }

    /// The file to read what is there from.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether this reader has started a fill.
    pub(crate) fn has_filled(&self) -> bool {
        self.growth.as_ref().is_some_and(|growth| growth.has_filled)
    }

    /// Whether all these parts can be read now.
    pub(crate) fn has(&self, parts: &[Part]) -> bool {
        let Some(growth) = &self.growth else { return true };
        parts.iter().all(|part| {
            let mut first = part.first;
            while first < part.end() {
                match growth.progress.available(first) {
                    0 => return false,
                    count => first += count,
                }
            }
            true
        })
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
        let Some(growth) = &mut self.growth else {
            return Ok(Look::Bytes(self.record.length.saturating_sub(offset)));
        };
        if let Some(look) = growth.there(offset) {
            return Ok(look);
        }
        if growth.progress.is_given_up() {
            if growth.begun {
                return Err(Kind::Down.says(
                    "the fill broke off, and its validator is too weak to go on with another",
                ));
            }
            self.reopen()?;
            return Ok(Look::Wait);
        }
        growth.see_to(offset, &self.record)
    }

    /// Waits until there are bytes at `offset`, and says how many.
    ///
    /// # Errors
    /// Why they will not come.
    pub(crate) fn wait_for(&mut self, offset: u64) -> Result<u64, Failure> {
        let mut progress = Instant::now();
        let mut before = self.changes();
        loop {
            let seen = self.changes();
            if seen != before {
                (before, progress) = (seen, Instant::now());
            }
            if let Look::Bytes(count) = self.look(offset)? {
                return Ok(count);
            }
            let Some(growth) = &self.growth else { continue };
            if progress.elapsed() >= growth.options.timeout.duration() {
                let patience = growth.options.timeout;
                return Err(Kind::TimedOut.says(format!("nothing more has come for {patience}")));
            }
            growth.progress.wait(seen, growth.pause());
        }
    }

    /// Says that the client has been sent something of this body: it must not be given another now.
    pub(crate) fn begin(&mut self) {
        if let Some(growth) = &mut self.growth {
            growth.begun = true;
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

    fn reopen(&mut self) -> Result<(), Failure> {
        let Some(old) = self.growth.take() else { return Ok(()) };
        let Growth { options, generation, path, wanted, has_filled, locks, .. } = old;
        // Else this reader would keep himself from setting it up anew.
        drop(locks);
        *self = Self::open(options, generation, &self.record, &path, &wanted)?;
        if let Some(growth) = &mut self.growth {
            growth.has_filled = has_filled;
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

impl Growth<'_> {
    fn there(&mut self, offset: u64) -> Option<Look> {
        let count = self.progress.available(offset);
        if count == 0 {
            return None;
        }
        (self.failures, self.silent_ends, self.not_before) = (0, 0, None);
        Some(Look::Bytes(count))
    }

    /// Sees to it that somebody fetches the byte at `offset`.
    fn see_to(&mut self, offset: u64, record: &Representation) -> Result<Look, Failure> {
        let block = self.progress.blocks().of_offset(offset);
        if self.locks.is_filled_by_another(block).map_err(of_cache)? {
            return Ok(Look::Wait);
        }
        // Its filler may have finished between the two looks.
        if let Some(look) = self.there(offset) {
            return Ok(look);
        }
        self.take_note()?;
        if self.not_before.is_some_and(|moment| Instant::now() < moment) {
            return Ok(Look::Wait);
        }
        let locks = self.generation.locks().map_err(of_cache)?;
        let part = self.wanted.iter().find(|part| (part.first..part.end()).contains(&offset));
        let last = part.map_or(offset, |part| part.end() - 1);
        let wanted_end = self.progress.blocks().of_offset(last) + 1;
        let strong = record.validators.are_strong();
        let missing = self.progress.extents();
        let (from, to) = if strong {
            let stretch = Stretches::default().next(&missing, block, wanted_end);
            // Blocks that others fill are left to them.
            let others = locks.filled_by_another(block, stretch).map_err(of_cache)?;
            (block, others.map_or(stretch, |(first, _)| first))
        } else {
            (0, self.progress.blocks().count())
        };
        if to <= from
            || !locks.begin_fill().map_err(of_cache)?
            || !locks.fill(from, to).map_err(of_cache)?
        {
            return Ok(Look::Wait);
        }
        if !strong && self.progress.extents().total() > 0 {
            // Nobody fills it any more, and what a new fill would bring need not fit to what is there.
            self.progress.give_up();
            return Ok(Look::Wait);
        }
        // Somebody may have filled it, or failed to, before the lock was had.
        if let Some(look) = self.there(offset) {
            return Ok(look);
        }
        let failure = self.generation.failure().map(|(stamp, _)| stamp);
        if failure.is_some() && failure != self.known {
            return Ok(Look::Wait);
        }
        self.start(locks, from, to)?;
        Ok(Look::Wait)
    }

    fn start(&mut self, locks: Locks, from: u64, to: u64) -> Result<(), Failure> {
        if self.silent_ends == MOST_SILENT_ENDS {
            // Most likely the cache cannot be written any more, notes included.
            return Err(Kind::NoRoom.says("the process that fills the cache ended again and again"));
        }
        self.silent_ends += 1;
        self.has_filled = true;
        let order = Order {
            path: self.path.clone(),
            generation: self.generation.name().to_owned(),
            from,
            to,
        };
        fill::start(locks, &order, self.options).map_err(|error| {
            Failure::of_cache("no process can be started to fill the cache", &error)
        })
    }

    /// Takes note of the failure of a fill that this reader has waited for.
    fn take_note(&mut self) -> Result<(), Failure> {
        let Some((stamp, failure)) = self.generation.failure() else { return Ok(()) };
        if Some(stamp) == self.known {
            return Ok(());
        }
        self.known = Some(stamp);
        self.silent_ends = 0;
        if !self.begun || !matches!(failure.kind, Kind::Down | Kind::TimedOut) {
            return Err(failure);
        }
        log::line(&format!("{}: the fill is to go on: {}", self.path, failure.sentence));
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.not_before = Instant::now().checked_add(pause);
        Ok(())
    }

    /// How long to wait now.
    fn pause(&self) -> Duration {
        let pause = self.not_before.map(|moment| moment.saturating_duration_since(Instant::now()));
        pause.filter(|pause| !pause.is_zero()).map_or(LOOK, |pause| pause.min(LOOK))
    }
}

fn of_cache(error: io::Error) -> Failure {
    Failure::of_cache("the cache cannot be used", &error)
}
