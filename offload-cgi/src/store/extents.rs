//! Which bytes of a body are there: blocks, each of which grows from its beginning; as a text that
//! survives the machine.

use sha2::{Digest as _, Sha256};

use crate::representation::hex;

/// log2 of the smallest block: 1 MiB. A byte that is asked for pulls no more than its block.
const SHIFT: u32 = 20;
/// At most so many blocks: a larger body has larger ones.
const MOST_BLOCKS: u64 = 1 << 20;
/// The longest text that `Extents::print` writes, roughly: a line for each block, each with large numbers.
pub(super) const LONGEST_EXTENTS: u64 = MOST_BLOCKS * 32;
const FIRST_LINE: &str = "offload-extents 2";

/// How a body is cut into blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Blocks {
    length: u64,
    shift: u32,
}

impl Blocks {
    /// The blocks of a body of `length` bytes.
    pub(crate) fn of(length: u64) -> Self {
        let mut shift = SHIFT;
        while length >> shift >= MOST_BLOCKS {
            shift += 1;
        }
        Self { length, shift }
    }

    pub(crate) fn shift(self) -> u32 {
        self.shift
    }

    pub(crate) fn length(self) -> u64 {
        self.length
    }

    /// How many there are; an empty body has none.
    pub(crate) fn count(self) -> u64 {
        self.of_offset(self.length.saturating_add((1 << self.shift) - 1))
    }

    /// The block in which a byte lies.
    pub(crate) fn of_offset(self, offset: u64) -> u64 {
        offset >> self.shift
    }

    /// Where a block begins.
    pub(crate) fn start(self, block: u64) -> u64 {
        block.saturating_mul(1 << self.shift).min(self.length)
    }

    /// How many bytes a block has: the last one may be shorter.
    pub(crate) fn size(self, block: u64) -> u32 {
        let size = self.start(block.saturating_add(1)) - self.start(block);
        u32::try_from(size).unwrap_or(u32::MAX)
    }
}

/// Which body extents are those of. A generation may have had several, one after the other: the number of
/// the file tells them apart, and a copy from the original.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExtentsOf<'a> {
    pub(super) generation: &'a str,
    pub(super) inode: u64,
    pub(super) length: u64,
}

impl ExtentsOf<'_> {
    fn head(self) -> String {
        let Self { generation, inode, length } = self;
        format!("{FIRST_LINE}\ngeneration {generation}\nfile {inode}\nlength {length}\n")
    }
}

/// How many bytes of each block are there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Extents {
    blocks: Blocks,
    /// Runs of blocks with equally many bytes, those with none left out: first block, count, bytes.
    runs: Vec<(u64, u64, u32)>,
}

impl Extents {
    /// Nothing is there.
    pub(crate) fn none(length: u64) -> Self {
        Self { blocks: Blocks::of(length), runs: Vec::new() }
    }

    /// As many bytes of each block as `landed` says, from the first block on.
    pub(crate) fn new(blocks: Blocks, landed: impl Iterator<Item = u32>) -> Self {
        let mut runs: Vec<(u64, u64, u32)> = Vec::new();
        for (block, landed) in (0..blocks.count()).zip(landed) {
            let bytes = landed.min(blocks.size(block));
            match runs.last_mut() {
                Some((first, count, same)) if *same == bytes && *first + *count == block => {
                    *count += 1;
                }
                _ if bytes > 0 => runs.push((block, 1, bytes)),
                _ => {}
            }
        }
        Self { blocks, runs }
    }

    /// How the body is cut.
    pub(crate) fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// How many bytes of a block are there.
    pub(crate) fn landed(&self, block: u64) -> u32 {
        let at = self.runs.partition_point(|(first, ..)| *first <= block);
        match at.checked_sub(1).and_then(|at| self.runs.get(at)) {
            Some((first, count, bytes)) if block - first < *count => *bytes,
            _ => 0,
        }
    }

    /// How many bytes there are in all.
    pub(crate) fn total(&self) -> u64 {
        self.runs.iter().map(|(_, count, bytes)| count.saturating_mul(u64::from(*bytes))).sum()
    }

    /// Runs of blocks that lack something, in order: first block, and the block behind the last.
    pub(crate) fn missing(&self) -> Vec<(u64, u64)> {
        let mut missing: Vec<(u64, u64)> = Vec::new();
        let mut next = 0;
        let mut lacks = |from: u64, to: u64| match missing.last_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ if from < to => missing.push((from, to)),
            _ => {}
        };
        for &(first, count, bytes) in &self.runs {
            let end = first.saturating_add(count);
            lacks(next, first);
            if bytes < self.blocks.size(first) {
                // The last block of all may be whole with as many bytes as others have of theirs.
                lacks(first, if bytes == self.blocks.size(end - 1) { end - 1 } else { end });
            }
            next = end;
        }
        lacks(next, self.blocks.count());
        missing
    }

    /// Spells what is there of a body.
    pub(super) fn print(&self, of: ExtentsOf<'_>) -> String {
        let mut text = of.head();
        for (first, count, bytes) in &self.runs {
            text += &format!("run {first} {count} {bytes}\n");
        }
        let sum = hex(&Sha256::digest(&text));
        format!("{text}sum {sum}\n")
    }

    /// Reads what `print` wrote about a body.
    ///
    /// # Errors
    /// What is wrong with it: it is damaged, or another body's.
    pub(super) fn parse(text: &str, of: ExtentsOf<'_>) -> Result<Self, &'static str> {
        let (lines, end) = text.rsplit_once("sum ").ok_or("it has no checksum")?;
        if end.strip_suffix('\n') != Some(&hex(&Sha256::digest(lines))) {
            return Err("its checksum is wrong");
        }
        let lines = lines.strip_prefix(&of.head()).ok_or("it is another body's")?;
        let blocks = Blocks::of(of.length);
        let (mut runs, mut next) = (Vec::new(), 0);
        for line in lines.lines() {
            let numbers = line.strip_prefix("run ").ok_or("a line is unknown")?;
            let mut numbers = numbers.split(' ').map(str::parse::<u64>);
            let (Some(Ok(first)), Some(Ok(count)), Some(Ok(bytes)), None) =
                (numbers.next(), numbers.next(), numbers.next(), numbers.next())
            else {
                return Err("a run makes no sense");
            };
            let end = first.checked_add(count).ok_or("a run makes no sense")?;
            let bytes = u32::try_from(bytes).map_err(|_| "a run makes no sense")?;
            let fits = first >= next && count > 0 && end <= blocks.count() && bytes > 0;
            if !fits || bytes > blocks.size(end - 1) || bytes > blocks.size(first) {
                return Err("a run makes no sense");
            }
            runs.push((first, count, bytes));
            next = end;
        }
        Ok(Self { blocks, runs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn of(length: u64) -> ExtentsOf<'static> {
        ExtentsOf { generation: "0123456789abcdef0123456789abcdef", inode: 7, length }
    }

    #[test]
    fn blocks_cover_a_body_and_nothing_else() {
        for (length, count, last) in [
            (0, 0, 0),
            (1, 1, 1),
            (MIB, 1, 1 << 20),
            (MIB + 1, 2, 1),
            (5 * MIB - 1, 5, (1 << 20) - 1),
        ] {
            let blocks = Blocks::of(length);
            assert_eq!(blocks.count(), count, "{length}");
            if count > 0 {
                assert_eq!(blocks.size(count - 1), last, "{length}");
            }
        }
        for length in [u64::MAX >> 1, 1 << 50, (1 << 40) + 1] {
            let blocks = Blocks::of(length);
            assert!(
                blocks.count() <= MOST_BLOCKS && blocks.count() > MOST_BLOCKS / 2 - 1,
                "{length}"
            );
            assert_eq!(blocks.start(blocks.count()), length);
        }
    }

    /// A body of up to 12 blocks, and how much of each is there, with a liking for nothing and all.
    fn bodies() -> impl Strategy<Value = (u64, Vec<u32>)> {
        (0..12 * MIB).prop_flat_map(|length| {
            let blocks = Blocks::of(length);
            let sizes: Vec<u32> = (0..blocks.count()).map(|block| blocks.size(block)).collect();
            let landed: Vec<_> = sizes
                .into_iter()
                .map(|size| prop_oneof![Just(0), Just(size), Just(size), 0..=size])
                .collect();
            (Just(length), landed)
        })
    }

    proptest! {
        #[test]
        fn extents_say_of_each_block_what_a_plain_list_says((length, landed) in bodies()) {
            let blocks = Blocks::of(length);
            let extents = Extents::new(blocks, landed.iter().copied());
            for (block, &landed) in (0..).zip(&landed) {
                prop_assert_eq!(extents.landed(block), landed);
            }
            prop_assert_eq!(extents.landed(blocks.count()), 0);
            prop_assert_eq!(extents.total(), landed.iter().copied().map(u64::from).sum::<u64>());
            let lacking: Vec<u64> = extents.missing().iter().flat_map(|&(from, to)| from..to).collect();
            let expected: Vec<u64> = (0..)
                .zip(&landed)
                .filter(|&(block, &landed)| landed < blocks.size(block))
                .map(|(block, _)| block)
                .collect();
            prop_assert_eq!(lacking, expected);
        }

        #[test]
        fn extents_are_read_back_as_they_were_written((length, landed) in bodies()) {
            let extents = Extents::new(Blocks::of(length), landed.into_iter());
            let of = of(length);
            let text = extents.print(of);
            prop_assert_eq!(Extents::parse(&text, of), Ok(extents));
            for other in [
                ExtentsOf { generation: "another", ..of },
                ExtentsOf { inode: 8, ..of },
                ExtentsOf { length: length + 1, ..of },
            ] {
                prop_assert!(Extents::parse(&text, other).is_err());
            }
        }

        #[test]
        fn damaged_extents_are_noticed((length, landed) in bodies(), at: usize, bit in 0u8..7) {
            let mut bytes = Extents::new(Blocks::of(length), landed.into_iter()).print(of(length)).into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert!(Extents::parse(&text, of(length)).is_err());
        }

        #[test]
        fn no_runs_make_it_promise_what_a_block_has_not(
            runs in prop::collection::vec((0u64..5, 0u64..5, 0u64..1 << 21), 0..4),
            length in 0..4 * MIB,
        ) {
            let mut text = of(length).head();
            for (first, count, bytes) in runs {
                text += &format!("run {first} {count} {bytes}\n");
            }
            let text = format!("{text}sum {}\n", hex(&Sha256::digest(&text)));
            if let Ok(extents) = Extents::parse(&text, of(length)) {
                prop_assert!(extents.total() <= length);
                let blocks = Blocks::of(length);
                for block in 0..blocks.count() {
                    prop_assert!(extents.landed(block) <= blocks.size(block));
                }
            }
        }
    }
}
