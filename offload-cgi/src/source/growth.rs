//! How the reader of a growing body sees to it that the body grows, and when it stops to wait for that.

use std::io;
use std::time::{Duration, Instant};

use super::{Look, of_cache};
use crate::failure::{Failure, Kind};
use crate::fill::{self, Order, Stretches};
use crate::http::Part;
use crate::log;
use crate::options::Options;
use crate::representation::Representation;
use crate::store::{Generation, Locks, Progress, Slots, Stamp};

/// How often fills may end without a word and without a byte before a reader gives up.
const MOST_SILENT_ENDS: u32 = 3;

/// The longest one wait may last: a filler that is killed says nothing, and so it is looked for.
const LOOK: Duration = Duration::from_millis(90);

/// The pause after the first failure of a fill; it doubles with each one in a row, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What a reader of a growing body must know.
pub(super) struct Growth<'a> {
    pub(super) options: &'a Options,
    pub(super) generation: Generation,
    pub(super) path: String,
    pub(super) wanted: Vec<Part>,
    /// Which record was read.
    pub(super) described: Option<Stamp>,
    pub(super) progress: Progress,
    /// Says which bytes this reader wants, as long as it is open.
    pub(super) locks: Locks,
    pub(super) past: Past,
}

/// What a reader has been through. It stays when the body that it reads is replaced by another.
#[derive(Default)]
pub(super) struct Past {
    /// The failure note that was there before: not about a fill that this reader waits for.
    known: Option<Stamp>,
    /// Whether the client has been sent something: from then on it waits out what can be waited out.
    pub(super) begun: bool,
    /// Whether this reader has started a fill.
    pub(super) has_filled: bool,
    /// Fills that failed, or ended without a word, since a byte came last.
    failures: u32,
    silent_ends: u32,
    not_before: Option<Instant>,
    /// The stretch that is to be filled when there is a slot for it.
    queued: Option<Queued>,
    /// How many bodies were given up under it.
    pub(super) bodies: u32,
    /// Since when nothing has come while the client waited, and how often bytes had come by then.
    waiting: Option<(Instant, u32)>,
}

/// A stretch whose locks are held, so that the other readers wait, and the wait for a slot.
struct Queued {
    locks: Locks,
    slots: Slots,
    from: u64,
    to: u64,
}

impl Past {
    /// Of a reader who has just come, and found this failure note.
    pub(super) fn new(known: Option<Stamp>) -> Self {
        Self { known, ..Self::default() }
    }
}

impl Growth<'_> {
    /// Whether all these parts are there.
    pub(super) fn has(&self, parts: &[Part]) -> bool {
        parts.iter().all(|part| {
            let mut first = part.first;
            while first < part.end() {
                match self.progress.available(first) {
                    0 => return false,
                    count => first += count,
                }
            }
            true
        })
    }

    /// Whether this is what a dead filler has left of a body that nobody can go on with: whoever was served
    /// from it would be cut off at its end.
    pub(super) fn is_torso(&self, record: &Representation) -> io::Result<bool> {
        if self.past.begun || record.validators.are_strong() || self.progress.landed(0) == 0 {
            return Ok(false);
        }
        if self.locks.is_filled_by_another(0)? {
            return Ok(false);
        }
        let locks = self.generation.locks()?;
        let is_idle = locks.begin_fill()? && locks.fill(0, self.progress.blocks().count())?;
        Ok(is_idle && !self.has(&self.wanted))
    }

    /// How many bytes there are at `offset`, if there are any.
    pub(super) fn there(&mut self, offset: u64) -> Option<Look> {
        let count = self.progress.available(offset);
        if count == 0 {
            return None;
        }
        let Past { known, begun, has_filled, bodies, .. } = self.past;
        // What was queued is not any more: somebody else has fetched it.
        self.past = Past { begun, has_filled, bodies, ..Past::new(known) };
        Some(Look::Bytes(count))
    }

    /// Sees to it that somebody fetches the byte at `offset`.
    pub(super) fn see_to(&mut self, offset: u64, record: &Representation) -> Result<Look, Failure> {
        if let Some(queued) = self.past.queued.take() {
            self.queue(queued)?;
            return Ok(Look::Wait);
        }
        let block = self.progress.blocks().of_offset(offset);
        if self.locks.is_filled_by_another(block).map_err(of_cache)? {
            return Ok(Look::Wait);
        }
        // Its filler may have finished between the two looks.
        if let Some(look) = self.there(offset) {
            return Ok(look);
        }
        self.take_note()?;
        if self.past.not_before.is_some_and(|moment| Instant::now() < moment) {
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
        // Somebody may have filled it, failed to, or given it up, before the lock was had.
        if let Some(look) = self.there(offset) {
            return Ok(look);
        }
        let failure = self.generation.failure().map(|(stamp, _)| stamp);
        if self.progress.is_given_up() || failure.is_some() && failure != self.past.known {
            return Ok(Look::Wait);
        }
        let slots = self.generation.object().slots(&self.options.base).map_err(of_cache)?;
        self.queue(Queued { locks, slots, from, to })?;
        Ok(Look::Wait)
    }

    /// Starts a fill as soon as there is a slot for it.
    fn queue(&mut self, queued: Queued) -> Result<(), Failure> {
        if !queued.slots.take(self.options.max_fills).map_err(of_cache)? {
            self.past.queued = Some(queued);
            return Ok(());
        }
        self.start(queued)
    }

    /// Has a body published that is whole: the filler that fetched the last bytes has died before it could.
    /// That can wait, should it not succeed.
    pub(super) fn finish(&self) {
        if !self.progress.is_whole() {
            return;
        }
        let count = self.progress.blocks().count();
        let Ok(locks) = self.generation.locks() else { return };
        if locks.begin_fill().is_ok_and(|begun| begun)
            && locks.fill(0, count).is_ok_and(|mine| mine)
            // A filler that was still at it when the map was opened has published meanwhile.
            && matches!(self.generation.open_growing(), Ok(Some(_)))
        {
            // It needs no slot, for it asks the base for nothing.
            if let Ok(slots) = self.generation.object().slots(&self.options.base) {
                let _ = fill::start(locks, slots, &self.order(0, count), self.options);
            }
        }
    }

    fn order(&self, from: u64, to: u64) -> Order {
        let (path, generation) = (self.path.clone(), self.generation.name().to_owned());
        Order { path, generation, from, to }
    }

    fn start(&mut self, queued: Queued) -> Result<(), Failure> {
        if self.past.silent_ends == MOST_SILENT_ENDS {
            // Most likely the cache cannot be written any more, notes included.
            return Err(Kind::NoRoom.says("the process that fills the cache ended again and again"));
        }
        self.past.silent_ends += 1;
        self.past.has_filled = true;
        let Queued { locks, slots, from, to } = queued;
        fill::start(locks, slots, &self.order(from, to), self.options).map_err(|error| {
            Failure::of_cache("no process can be started to fill the cache", &error)
        })
    }

    /// Takes note of the failure of a fill that this reader has waited for.
    pub(super) fn take_note(&mut self) -> Result<(), Failure> {
        let Some((stamp, failure)) = self.generation.failure() else { return Ok(()) };
        if Some(stamp) == self.past.known {
            return Ok(());
        }
        self.past.known = Some(stamp);
        self.past.silent_ends = 0;
        if !self.past.begun || !matches!(failure.kind, Kind::Down | Kind::TimedOut) {
            return Err(failure);
        }
        log::line(&format!("{}: the fill is to go on: {}", self.path, failure.sentence));
        let pause = FIRST_PAUSE.saturating_mul(1 << self.past.failures.min(10)).min(LONGEST_PAUSE);
        self.past.failures += 1;
        self.past.not_before = Instant::now().checked_add(pause);
        Ok(())
    }

    /// Counts how long nothing has come. A failed fill, and the next attempt, are no progress: only bytes are.
    ///
    /// # Errors
    /// `TimedOut`.
    pub(super) fn lose_patience(&mut self) -> Result<(), Failure> {
        let patience = self.options.timeout;
        let arrivals = self.progress.arrivals();
        match self.past.waiting {
            Some((since, seen)) if seen == arrivals => {
                if since.elapsed() < patience.duration() {
                    return Ok(());
                }
                Err(Kind::TimedOut.says(format!("nothing more has come for {patience}")))
            }
            _ => {
                self.past.waiting = Some((Instant::now(), arrivals));
                Ok(())
            }
        }
    }

    /// Goes on where another reader, whose body was given up, has got to.
    pub(super) fn inherit(&mut self, past: Past) {
        let waiting = past.waiting.map(|(since, _)| (since, self.progress.arrivals()));
        self.past = Past { waiting, bodies: past.bodies.saturating_add(1), ..past };
    }

    /// How long to wait now.
    pub(super) fn pause(&self) -> Duration {
        let pause =
            self.past.not_before.map(|moment| moment.saturating_duration_since(Instant::now()));
        pause.filter(|pause| !pause.is_zero()).map_or(LOOK, |pause| pause.min(LOOK))
    }
}
