//! How much to ask the base for at a time.
//!
//! Many bytes a request are good for speed, few are good for those who want other bytes of the same file:
//! a stretch that is being fetched is fetched to its end, for no byte is to be sent twice. A file of up to
//! 128 MiB is one stretch. A larger one begins with little and goes on with what takes about two seconds.

use std::time::Duration;

use crate::store::Extents;

/// A file of this length is fetched in one go.
const IN_ONE_GO: u64 = 128 << 20;
const FIRST: u64 = 16 << 20;
const LONGEST: u64 = 1 << 30;
/// A stretch that took less time is followed by one twice as long, one that took more than twice this
/// by one half as long.
const PACE: Duration = Duration::from_secs(1);

/// The length of the stretches of one filler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretches {
    bytes: u64,
}

impl Default for Stretches {
    fn default() -> Self {
        Self { bytes: FIRST }
    }
}

impl Stretches {
    /// The block behind the stretch that begins with the block `from`, which is missing, and ends
    /// before `end`: blocks that lack something, without a gap, and not too many.
    pub(crate) fn next(self, extents: &Extents, from: u64, end: u64) -> u64 {
        let missing = extents.missing();
        let Some(&(_, run_end)) =
            missing.iter().find(|(first, end)| (*first..*end).contains(&from))
        else {
            return from;
        };
        let blocks = extents.blocks();
        let most = if blocks.length() <= IN_ONE_GO {
            blocks.count()
        } else {
            (self.bytes >> blocks.shift()).max(1)
        };
        let mut to = run_end.min(end).min(from.saturating_add(most));
        // A request fetches from one byte to another: behind its first block none may be begun.
        if let Some(begun) = (from + 1..to).find(|block| extents.landed(*block) > 0) {
            to = begun;
        }
        to.max(from)
    }

    /// The last stretch took so long.
    pub(crate) fn took(&mut self, time: Duration) {
        if time < PACE {
            self.bytes = self.bytes.saturating_mul(2).min(LONGEST);
        } else if time > PACE * 4 {
            self.bytes = (self.bytes / 2).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Blocks;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_small_file_is_one_stretch_and_a_large_one_begins_with_little() {
        let stretches = Stretches::default();
        assert_eq!(stretches.next(&Extents::none(100 * MIB), 0, 100), 100);
        assert_eq!(stretches.next(&Extents::none(100 * MIB), 99, 100), 100);
        assert_eq!(stretches.next(&Extents::none(100 * MIB), 5, 6), 6);
        assert_eq!(stretches.next(&Extents::none(1000 * MIB), 0, 1000), 16);
        assert_eq!(stretches.next(&Extents::none(1000 * MIB), 990, 1000), 1000);
    }

    #[test]
    fn the_length_follows_the_pace() {
        let mut stretches = Stretches::default();
        stretches.took(Duration::from_millis(10));
        assert_eq!(stretches.next(&Extents::none(1000 * MIB), 0, 1000), 32);
        stretches.took(Duration::from_secs(60));
        assert_eq!(stretches.next(&Extents::none(1000 * MIB), 0, 1000), 16);
        for _ in 0..100 {
            stretches.took(Duration::from_secs(60));
        }
        assert_eq!(stretches.next(&Extents::none(1000 * MIB), 0, 1000), 1);
    }

    proptest! {
        #[test]
        fn a_stretch_has_only_what_is_missing(
            landed in prop::collection::vec(prop_oneof![Just(0u32), Just(1 << 20), 1..1u32 << 20], 1..20),
            from in 0u64..20,
            end in 0u64..25,
        ) {
            let blocks = Blocks::of(landed.len() as u64 * MIB);
            let extents = Extents::new(blocks, landed.iter().copied());
            let to = Stretches::default().next(&extents, from, end);
            prop_assert!(to >= from);
            for block in from..to {
                prop_assert!(block < end && extents.landed(block) < blocks.size(block));
                prop_assert!(block == from || extents.landed(block) == 0);
            }
            let is_missing = from < blocks.count() && extents.landed(from) < blocks.size(from);
            prop_assert_eq!(to > from, is_missing && from < end);
        }
    }
}
