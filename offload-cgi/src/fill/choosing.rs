//! What a filler fetches next, and when it stops.

use super::{Filler, of_cache};
use crate::failure::Failure;

impl Filler<'_> {
    /// Takes the locks of what is to be fetched next: of what is wanted, or, when most is there, of what is
    /// missing. `None` when there is nothing.
    pub(super) fn choose(&self) -> Result<Option<(u64, u64)>, Failure> {
        // Others wait for a slot: then those who want more of this file are to wait for one like everybody else.
        if self.slots.as_ref().is_some_and(|slots| slots.are_wanted().unwrap_or(false)) {
            return Ok(None);
        }
        let (from, to) = self.mine;
        let extents = self.growing.progress.extents();
        let missing = extents.missing();
        // First what follows the stretch that is being fetched, then what lies before it.
        let behind = missing.iter().map(|&(first, end)| (first.max(to), end));
        let before = missing.iter().map(|&(first, end)| (first, end.min(from)));
        let runs: Vec<(u64, u64)> =
            behind.chain(before).filter(|(first, end)| first < end).collect();
        for watched in [true, false] {
            if !watched && !self.is_worth_finishing() {
                return Ok(None);
            }
            for &(first, end) in &runs {
                let wanted = if watched {
                    self.locks.wanted_by_another(first, end).map_err(of_cache)?
                } else {
                    Some((first, end))
                };
                let Some((first, end)) = wanted else { continue };
                let to = self.stretches.next(&extents, first, end);
                let others = self.locks.filled_by_another(first, to).map_err(of_cache)?;
                let to = others.map_or(to, |(other, _)| other);
                if first < to && self.locks.fill(first, to).map_err(of_cache)? {
                    return Ok(Some((first, to)));
                }
            }
        }
        Ok(None)
    }

    /// Whether to go on with a stretch: somebody wants bytes of this file, or it is worth finishing, or
    /// the budget for the time after the last client is not used up by these `count` bytes. Not too many
    /// fills go on for nobody, and none while others wait.
    pub(super) fn may_go_on(&mut self, count: u64) -> Result<bool, Failure> {
        let Some(slots) = &self.slots else { return Ok(false) };
        if self.locks.wanted_by_another(0, self.blocks.count()).map_err(of_cache)?.is_some() {
            if std::mem::take(&mut self.is_unwatched) {
                slots.end_unwatched();
            }
            self.unwatched = 0;
            return Ok(true);
        }
        self.unwatched = self.unwatched.saturating_add(count);
        let is_within = self.unwatched <= self.options.fill_budget.count();
        if !(is_within || self.is_worth_finishing()) || slots.are_wanted().map_err(of_cache)? {
            return Ok(false);
        }
        self.is_unwatched = self.is_unwatched || slots.take_unwatched().map_err(of_cache)?;
        Ok(self.is_unwatched)
    }

    /// Whether more than half is there.
    pub(super) fn is_worth_finishing(&self) -> bool {
        self.growing.progress.extents().total() > self.blocks.length() / 2
    }
}
