//! The throttled transfers of all processes: who is served what, how fast, and how it is held.
//!
//! A table over shared memory, beside the [ledger](crate::ledger): a row for each connection with a
//! throttled response. Only the process that owns a row writes into it, one thread at a time; everybody
//! reads. A row says in its first word whose it is; what a dead process left is given back by whoever
//! finds out ([`Transfers::reclaim`]).
//!
//! Texts are read without a lock: a version is odd while its owner writes, and who finds it changed reads
//! again (a sequence lock: Boehm, Can Seqlocks Get Along With Programming Language Memory Models?, 2012).
//! Nothing is decided by a text. The figures are single words.
//!
//! Each row has a bit that says that it is taken. It is only a hint, so that a free one is found fast: who
//! finds a bit wrong puts it right.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use crate::ledger::Identity;
use crate::units::Rate;

/// Words of a row.
const ROW: usize = 64;
/// Words at the beginning: what it is, how many rows, the last ever used + 1. A bit for each row follows,
/// then the rows.
const HEAD: usize = 8;
/// What a table begins with: `transfr` and the number of the layout.
const MAGIC: u64 = u64::from_be_bytes(*b"transfr\x03");

const CAPACITY: usize = 1;
const USED: usize = 2;
/// Rows of a word of bits.
const BITS: usize = 64;

const OWNER: usize = 0;
const VERSION: usize = 1;
const SET: usize = 2;
const NOW: usize = 3;
const BYTES: usize = 4;
const MANNER: usize = 5;
const STREAMS: usize = 6;
const WANTS: usize = 7;
const MOST: usize = 8;
/// A name and a rate for each kind.
const SHARES: usize = 9;
const TEXTS: usize = SHARES + 2 * KINDS;
/// Words of a text are preceded by one with its length.
const CLIENT_WORDS: usize = 6;
const CLIENT: usize = TEXTS;
const PATH: usize = CLIENT + 1 + CLIENT_WORDS;
const PATH_WORDS: usize = ROW - PATH - 1;

/// How many kinds of common rates there are.
pub const KINDS: usize = 3;

/// The most bytes of a path that are kept.
pub const PATH_BYTES: usize = PATH_WORDS * 8;

/// How a response is held.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Manner {
    /// The kernel paces the socket, and httpd writes when there is room.
    #[default]
    Paced,
    /// The same with TLS: encrypted as the kernel takes it.
    Pulled,
    /// A worker writes and sleeps.
    Slept,
    /// What a generator made lies in a file, which is paced.
    Spooled,
    /// It goes as fast as it can: throttling holds as many workers as it may.
    Unthrottled,
}

impl Manner {
    const ALL: [Self; 5] =
        [Self::Paced, Self::Pulled, Self::Slept, Self::Spooled, Self::Unthrottled];

    /// As the status page and the log print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paced => "paced",
            Self::Pulled => "pulled",
            Self::Slept => "slept",
            Self::Spooled => "spooled",
            Self::Unthrottled => "unthrottled",
        }
    }

    fn of_number(number: u64) -> Self {
        usize::try_from(number).ok().and_then(|at| Self::ALL.get(at)).copied().unwrap_or_default()
    }
}

/// The table over borrowed memory; see the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Transfers<'a> {
    words: &'a [AtomicU64],
    rows: usize,
}

/// A row that its process owns.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Row(usize);

/// A common rate that a transfer takes part in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shared {
    /// Its name; never zero.
    pub name: u64,
    /// The rate of all together.
    pub rate: Rate,
}

/// One of each kind at the most.
pub type Shares = [Option<Shared>; KINDS];

/// What changes while a transfer runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// The rate that it is given, in bytes a second; 0: none.
    pub set: u64,
    /// The rate that it has, in bytes a second.
    pub now: u64,
    /// Bytes that the client has acknowledged.
    pub bytes: u64,
    /// What it would take, in bytes a second; `u64::MAX`: as much as it is given.
    pub wants: u64,
    /// What it may have by its own rate, in bytes a second; `u64::MAX`: it has none.
    pub most: u64,
}

/// A transfer as the status page shows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Transfer {
    /// The client's address.
    pub client: String,
    /// The URL's path; a long one is cut off.
    pub path: String,
    /// What changes.
    pub figures: Figures,
    /// How many throttled responses are in progress on the connection.
    pub streams: u64,
    /// How it is held.
    pub manner: Manner,
}

/// What takes part in the division of a common rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Claim {
    /// Whose it is.
    pub row: Row,
    /// The common rates that it takes part in.
    pub shares: Shares,
    /// What it would take.
    pub wants: u64,
    /// What it may have by its own rate.
    pub most: u64,
}

#[cfg(test)]
impl Row {
    /// Any row.
    pub(crate) fn at(at: usize) -> Self {
        Self(at)
    }
}

impl<'a> Transfers<'a> {
    /// How many words a table of so many rows needs.
    pub fn words_needed(rows: usize) -> usize {
        HEAD + rows.div_ceil(BITS) + rows * ROW
    }

    /// A table over words that are zero, or that have been one. `None` if they are something else.
    pub fn open(words: &'a [AtomicU64]) -> Option<Self> {
        let rows = words.len().checked_sub(HEAD)? * BITS / (BITS * ROW + 1);
        if words[0].load(Acquire) == 0 {
            words[CAPACITY].store(rows as u64, Relaxed);
            words[0].store(MAGIC, Release);
        }
        let is_ours =
            words[0].load(Acquire) == MAGIC && words[CAPACITY].load(Relaxed) == rows as u64;
        is_ours.then_some(Self { words, rows })
    }

    fn row(&self, row: usize) -> Option<&'a [AtomicU64]> {
        let start = HEAD + self.rows.div_ceil(BITS) + row.checked_mul(ROW)?;
        self.words.get(start..start + ROW)
    }

    /// The bits of the rows from `64 * word` on.
    fn bits(&self, word: usize) -> Option<&'a AtomicU64> {
        self.words.get(HEAD + word).filter(|_| word < self.rows.div_ceil(BITS))
    }

    fn set_bit(&self, row: usize, taken: bool) {
        let bit = 1 << (row % BITS);
        if let Some(bits) = self.bits(row / BITS) {
            let _ = if taken { bits.fetch_or(bit, Relaxed) } else { bits.fetch_and(!bit, Relaxed) };
        }
    }

    /// The rows whose bits say that they are free, the lowest first.
    fn free(&self) -> impl Iterator<Item = usize> + use<'a> {
        let table = *self;
        let words = (0..self.rows.div_ceil(BITS)).filter_map(move |word| {
            let free = !table.bits(word)?.load(Relaxed);
            (free != 0).then_some((word, free))
        });
        let rows = words.flat_map(|(word, free)| {
            (0..BITS).filter(move |bit| free >> bit & 1 == 1).map(move |bit| word * BITS + bit)
        });
        rows.take_while(move |&row| row < table.rows)
    }

    /// The rows that have ever been used.
    fn used(&self) -> impl Iterator<Item = (Row, &'a [AtomicU64])> + use<'a> {
        let table = *self;
        let used = usize::try_from(self.words[USED].load(Acquire)).unwrap_or(0);
        (0..used).map_while(move |at| Some((Row(at), table.row(at)?)))
    }

    /// Claims a row for the process; `None` if the table is full.
    pub fn claim(&self, owner: Identity, client: &[u8], path: &[u8]) -> Option<Row> {
        for at in self.free() {
            let Some(row) = self.row(at) else { continue };
            let is_free = row[OWNER].load(Relaxed) == 0
                && row[OWNER].compare_exchange(0, owner.number(), AcqRel, Relaxed).is_ok();
            self.set_bit(at, true);
            if !is_free {
                continue;
            }
            self.write(Row(at), |row| {
                row[SET..TEXTS].iter().for_each(|word| word.store(0, Relaxed));
                row[STREAMS].store(1, Relaxed);
                row[WANTS].store(u64::MAX, Relaxed);
                row[MOST].store(u64::MAX, Relaxed);
                write_text(&row[CLIENT..PATH], client);
                write_text(&row[PATH..], path);
            });
            // From now on others look at it.
            self.words[USED].fetch_max(at as u64 + 1, Release);
            return Some(Row(at));
        }
        None
    }

    /// Another response on the connection, or another number of them.
    pub fn describe(&self, row: Row, path: &[u8], manner: Manner, streams: u64) {
        self.write(row, |row| {
            write_text(&row[PATH..], path);
            row[MANNER].store(manner as u64, Relaxed);
            row[STREAMS].store(streams, Relaxed);
        });
    }

    fn write(&self, Row(at): Row, change: impl FnOnce(&[AtomicU64])) {
        let Some(row) = self.row(at) else { return };
        let version = row[VERSION].load(Relaxed) | 1;
        row[VERSION].store(version, Relaxed);
        fence(Release);
        change(row);
        row[VERSION].store(version.wrapping_add(1), Release);
    }

    /// How it is held from now on.
    pub fn set_manner(&self, Row(at): Row, manner: Manner) {
        if let Some(row) = self.row(at) {
            row[MANNER].store(manner as u64, Relaxed);
        }
    }

    /// How many responses are in progress on the connection.
    pub fn set_streams(&self, Row(at): Row, streams: u64) {
        if let Some(row) = self.row(at) {
            row[STREAMS].store(streams, Relaxed);
        }
    }

    /// The common rates that it takes part in.
    pub fn set_shares(&self, Row(at): Row, shares: Shares) {
        let Some(row) = self.row(at) else { return };
        for (words, shared) in row[SHARES..TEXTS].chunks(2).zip(shares) {
            words[1].store(shared.map_or(0, |shared| shared.rate.per_second()), Relaxed);
            words[0].store(shared.map_or(0, |shared| shared.name), Relaxed);
        }
    }

    /// What it does now.
    pub fn set_figures(&self, Row(at): Row, figures: Figures) {
        let Some(row) = self.row(at) else { return };
        let Figures { set, now, bytes, wants, most } = figures;
        for (at, value) in [(SET, set), (NOW, now), (BYTES, bytes), (WANTS, wants), (MOST, most)] {
            row[at].store(value, Relaxed);
        }
    }

    /// Gives a row back.
    pub fn release(&self, Row(at): Row) {
        let Some(row) = self.row(at) else { return };
        row[SHARES..TEXTS].iter().for_each(|word| word.store(0, Relaxed));
        row[OWNER].store(0, Release);
        self.set_bit(at, false);
    }

    /// Gives back the rows of those who are dead; how many there were. Each owner is asked about once.
    pub fn reclaim(&self, is_dead: impl Fn(Identity) -> bool) -> u64 {
        let mut rows = 0;
        let mut known: Vec<(u64, bool)> = Vec::new();
        for (Row(at), row) in self.used() {
            let owner = row[OWNER].load(Acquire);
            if owner == 0 {
                // Somebody may have died between the two steps of a release.
                self.set_bit(at, false);
                continue;
            }
            let answer = known.iter().find(|(known, _)| *known == owner).map(|&(_, answer)| answer);
            let is_dead = answer.unwrap_or_else(|| {
                let answer = is_dead(Identity::of_number(owner));
                known.push((owner, answer));
                answer
            });
            if is_dead && row[OWNER].compare_exchange(owner, 0, AcqRel, Relaxed).is_ok() {
                self.set_bit(at, false);
                rows += 1;
            }
        }
        rows
    }

    /// Everything that takes part in a common rate.
    pub fn claims(&self) -> Vec<Claim> {
        let claims =
            self.used().filter(|(_, row)| row[OWNER].load(Acquire) != 0).map(|(at, row)| {
                let mut shares = Shares::default();
                for (shared, words) in shares.iter_mut().zip(row[SHARES..TEXTS].chunks(2)) {
                    let name = words[0].load(Relaxed);
                    let rate = Rate::new(words[1].load(Relaxed)).filter(|_| name != 0);
                    *shared = rate.map(|rate| Shared { name, rate });
                }
                let [wants, most] = [WANTS, MOST].map(|at| row[at].load(Relaxed));
                Claim { row: at, shares, wants, most }
            });
        claims.filter(|claim| claim.shares != Shares::default()).collect()
    }

    /// Everything, for the status page.
    pub fn list(&self) -> Vec<Transfer> {
        self.used().filter_map(|(_, row)| read(row)).collect()
    }
}

fn read(row: &[AtomicU64]) -> Option<Transfer> {
    // Who writes all the time is not waited for.
    for _ in 0..16 {
        let version = row[VERSION].load(Acquire);
        if row[OWNER].load(Acquire) == 0 {
            return None;
        }
        let word = |at: usize| row[at].load(Relaxed);
        let transfer = Transfer {
            client: read_text(&row[CLIENT..PATH]),
            path: read_text(&row[PATH..]),
            figures: Figures {
                set: word(SET),
                now: word(NOW),
                bytes: word(BYTES),
                wants: word(WANTS),
                most: word(MOST),
            },
            streams: word(STREAMS),
            manner: Manner::of_number(word(MANNER)),
        };
        fence(Acquire);
        if version.is_multiple_of(2) && row[VERSION].load(Relaxed) == version {
            return Some(transfer);
        }
        std::thread::yield_now();
    }
    None
}

/// Writes a length and as much of the bytes as there is room for.
fn write_text(words: &[AtomicU64], text: &[u8]) {
    let Some((length, words)) = words.split_first() else { return };
    let text = &text[..text.len().min(words.len() * 8)];
    length.store(text.len() as u64, Relaxed);
    for (word, bytes) in words.iter().zip(text.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_ne_bytes(whole), Relaxed);
    }
}

fn read_text(words: &[AtomicU64]) -> String {
    let Some((length, words)) = words.split_first() else { return String::new() };
    let mut bytes: Vec<u8> =
        words.iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
    bytes.truncate(usize::try_from(length.load(Relaxed)).unwrap_or(0));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn words(rows: usize) -> Vec<AtomicU64> {
        (0..Transfers::words_needed(rows)).map(|_| AtomicU64::new(0)).collect()
    }

    fn process(pid: u32) -> Identity {
        Identity::new(pid, 7)
    }

    #[test]
    fn a_row_says_what_was_written_and_is_gone_when_given_back() {
        let words = words(4);
        let table = Transfers::open(&words).unwrap();
        let row = table.claim(process(1), b"192.0.2.1", b"/a/b").unwrap();
        table.describe(row, b"/other", Manner::Pulled, 2);
        let figures = Figures { set: 10, now: 9, bytes: 1000, wants: u64::MAX, most: 12 };
        table.set_figures(row, figures);
        let (client, path) = ("192.0.2.1".to_owned(), "/other".to_owned());
        let manner = Manner::Pulled;
        assert_eq!(table.list(), [Transfer { client, path, figures, streams: 2, manner }]);
        table.release(row);
        assert!(table.list().is_empty());
    }

    #[test]
    fn the_lowest_free_row_is_taken_and_a_full_table_says_so() {
        let words = words(3);
        let table = Transfers::open(&words).unwrap();
        let rows: Vec<Row> = (0..3).map(|_| table.claim(process(1), b"", b"").unwrap()).collect();
        assert_eq!(rows, [Row(0), Row(1), Row(2)]);
        assert_eq!(table.claim(process(1), b"", b""), None);
        table.release(rows[1]);
        assert_eq!(table.claim(process(1), b"", b""), Some(Row(1)));
        assert_eq!(table.claim(process(1), b"", b""), None);
    }

    #[test]
    fn the_rows_of_the_dead_are_given_back() {
        let words = words(8);
        let table = Transfers::open(&words).unwrap();
        for pid in [1, 2, 1, 2, 2] {
            table.claim(process(pid), b"", b"").unwrap();
        }
        assert_eq!(table.reclaim(|owner| owner == process(2)), 3);
        assert_eq!(table.list().len(), 2);
        assert_eq!(table.claim(process(3), b"", b""), Some(Row(1)));
    }

    #[test]
    fn a_wrong_bit_is_put_right() {
        let words = words(70);
        let table = Transfers::open(&words).unwrap();
        for at in 0..70 {
            assert_eq!(table.claim(process(1), b"", b""), Some(Row(at)));
        }
        // A process died after it had taken a row, and another one after it had given one back.
        table.set_bit(3, false);
        assert_eq!(table.claim(process(1), b"", b""), None);
        table.row(65).unwrap()[OWNER].store(0, Relaxed);
        assert_eq!(table.claim(process(1), b"", b""), None);
        table.reclaim(|_| false);
        assert_eq!(table.claim(process(1), b"", b""), Some(Row(65)));
    }

    #[test]
    fn long_texts_are_cut_off_and_rows_forget_their_predecessors() {
        let words = words(1);
        let table = Transfers::open(&words).unwrap();
        let row = table.claim(process(1), &[b'1'; 100], &[b'p'; 1000]).unwrap();
        let shared = |name| Rate::new(100).map(|rate| Shared { name, rate });
        table.set_shares(row, [shared(1), None, shared(3)]);
        assert_eq!(table.claims()[0].shares, [shared(1), None, shared(3)]);
        assert_eq!(table.list()[0].client.len(), CLIENT_WORDS * 8);
        assert_eq!(table.list()[0].path.len(), PATH_BYTES);
        table.release(row);
        table.claim(process(1), b"c", b"p").unwrap();
        assert!(table.claims().is_empty());
        assert_eq!(table.list()[0].path, "p");
    }

    #[test]
    fn foreign_words_are_no_table() {
        let words = words(1);
        words[0].store(5, Relaxed);
        assert!(Transfers::open(&words).is_none());
        assert!(Transfers::open(&[]).is_none());
    }

    #[test]
    fn readers_never_see_a_mixture_of_two_texts() {
        let words = words(1);
        let table = Transfers::open(&words).unwrap();
        let row = table.claim(process(1), b"", b"aaaaaaaaaaaaaaaaaaaaaaaa").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..20_000 {
                    let letter = if round % 2 == 0 { b'b' } else { b'c' };
                    table.describe(row, &[letter; 200], Manner::Paced, 1);
                }
            });
            for _ in 0..20_000 {
                for transfer in table.list() {
                    let first = transfer.path.chars().next().unwrap();
                    assert!(transfer.path.chars().all(|char| char == first), "{}", transfer.path);
                }
            }
        });
    }

    #[test]
    fn threads_never_share_a_row() {
        let words = words(64);
        let table = Transfers::open(&words).unwrap();
        thread::scope(|scope| {
            for pid in 1..=4 {
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let rows: Vec<Row> =
                            (0..12).map(|_| table.claim(process(pid), b"", b"").unwrap()).collect();
                        for &Row(at) in &rows {
                            let owner = table.row(at).unwrap()[OWNER].load(Acquire);
                            assert_eq!(owner, process(pid).number());
                        }
                        rows.into_iter().for_each(|row| table.release(row));
                    }
                });
            }
        });
        assert!(table.list().is_empty());
    }
}
