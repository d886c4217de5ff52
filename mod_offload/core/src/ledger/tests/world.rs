//! A tiny ledger, the processes that use it, and a naive model of what they hold.

use std::cell::RefCell;
use std::rc::Rc;

use crate::ledger::word::{AtomicU64, Lock, Tally, load};
use crate::ledger::{Identity, Key, Lease, Ledger, Owner, Scope, TableSize, Taken};

pub(super) const KEYS: usize = 11;
const SECRET: (u64, u64) = (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);

pub(super) fn memory(size: TableSize) -> Vec<AtomicU64> {
    (0..Ledger::words_needed(size)).map(|_| AtomicU64::new(0)).collect()
}

pub(super) fn created(words: &[AtomicU64], size: TableSize) -> Ledger<'_> {
    Ledger::create(words, size, SECRET).expect("zeroed words")
}

/// Repeatable chance (splitmix64).
#[derive(Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ mixed >> 31) % sides as u64).unwrap()
    }
}

/// A process, with what it knows to hold.
#[derive(Clone)]
pub(super) struct Player {
    pub(super) owner: Owner,
    pub(super) leases: Vec<(usize, Lease)>,
    given_back: Option<Lease>,
    /// In the middle of something.
    pub(super) died: bool,
}

/// What is half done, so that the model cannot say exactly what is counted.
#[derive(Clone, Copy)]
pub(super) enum Doubt {
    Nothing,
    /// Of this key there may be one more.
    Key(usize),
    /// That, and what this player held may have been given back.
    Reclaiming(usize, usize),
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) words: Rc<Vec<AtomicU64>>,
    pub(super) players: Rc<RefCell<Vec<Player>>>,
}

impl World {
    /// Eight ways for eleven keys, so that they evict each other.
    pub(super) fn new(players: usize) -> Self {
        let size = TableSize::new(4).with_leases(40).with_owners(6).with_scopes(3);
        let words = Rc::new(memory(size));
        created(&words, size);
        let world = Self { words, players: Rc::default() };
        (0..players).for_each(|_| world.join());
        world
    }

    pub(super) fn join(&self) {
        let mut players = self.players.borrow_mut();
        let pid = u32::try_from(players.len()).unwrap() + 100;
        let owner = self.ledger().enter(Identity::new(pid, 7)).expect("a free slot");
        players.push(Player { owner, leases: Vec::new(), given_back: None, died: false });
    }

    /// The same state in other memory.
    pub(super) fn copy(&self) -> Self {
        let words = self.words.iter().map(|word| AtomicU64::new(load(word))).collect();
        let players = self.players.borrow().clone();
        Self { words: Rc::new(words), players: Rc::new(RefCell::new(players)) }
    }

    pub(super) fn ledger(&self) -> Ledger<'_> {
        Ledger::open(&self.words).expect("a ledger")
    }

    pub(super) fn owner(&self, player: usize) -> Owner {
        self.players.borrow()[player].owner
    }

    fn truth(&self, key: usize) -> u32 {
        (0..self.players.borrow().len()).map(|player| self.truth_of(player, key)).sum()
    }

    fn truth_of(&self, player: usize, key: usize) -> u32 {
        let held = self.players.borrow()[player].leases.iter().filter(|(of, _)| *of == key).count();
        u32::try_from(held).unwrap()
    }

    /// The least and the most that may be counted.
    fn bounds(&self, key: usize, doubt: Doubt) -> (u32, u32) {
        let truth = self.truth(key);
        match doubt {
            Doubt::Nothing => (truth, truth),
            Doubt::Key(of) => (truth, truth + u32::from(of == key)),
            Doubt::Reclaiming(player, of) => {
                (truth - self.truth_of(player, key), truth + u32::from(of == key))
            }
        }
    }

    /// Something random, compared with the model.
    pub(super) fn act(&self, player: usize, dice: &mut Dice, doubt: Doubt) {
        let holds = self.players.borrow()[player].leases.len();
        match dice.below(10) {
            0..5 => {
                self.take(player, dice.below(KEYS), [0, 1, 2, 3, u32::MAX][dice.below(5)], doubt)
            }
            5..9 if holds > 0 => self.release(player, dice.below(holds)),
            _ => {
                let stale = self.players.borrow()[player].given_back;
                assert!(stale.is_none_or(|lease| !self.ledger().release(lease)), "released twice");
            }
        }
    }

    pub(super) fn take(&self, player: usize, key: usize, limit: u32, doubt: Doubt) {
        let busy = (0..KEYS).filter(|key| self.truth(*key) > 0).count();
        let (least, most) = self.bounds(key, doubt);
        let now = self.players.borrow().iter().map(|player| player.leases.len() as u64).sum();
        match self.ledger().take(self.owner(player), key_of(&self.ledger(), key), limit, now) {
            Taken::Held { lease, held } => {
                assert!((least + 1..=most + 1).contains(&held), "{held} held, {most} are true");
                assert!(held <= limit);
                self.players.borrow_mut()[player].leases.push((key, lease));
            }
            Taken::Refused { held } => {
                assert!((least..=most).contains(&held), "{held} held, {most} are true");
                assert!(held >= limit);
            }
            Taken::Uncounted => assert!(busy >= 8 || !matches!(doubt, Doubt::Nothing)),
        }
    }

    fn release(&self, player: usize, which: usize) {
        let (_, lease) = self.players.borrow_mut()[player].leases.swap_remove(which);
        assert!(self.ledger().release(lease));
        self.players.borrow_mut()[player].given_back = Some(lease);
    }

    /// The player is dead and was reclaimed.
    pub(super) fn forget(&self, player: usize) {
        self.players.borrow_mut()[player].leases.clear();
    }

    /// No count is beyond its bounds.
    pub(super) fn check_bounds(&self, doubt: Doubt) {
        for key in 0..KEYS {
            let held = self.ledger().held(key_of(&self.ledger(), key));
            let (least, most) = self.bounds(key, doubt);
            assert!((least..=most).contains(&held), "key {key}: {held}, not {least} to {most}");
        }
    }

    /// Nothing is half done: every number is what the model says.
    pub(super) fn check_exact(&self) {
        self.check_bounds(Doubt::Nothing);
        let ledger = self.ledger();
        let snapshot = ledger.snapshot();
        let truths: Vec<u32> = (0..KEYS).map(|key| self.truth(key)).collect();
        let sum: u64 = truths.iter().copied().map(u64::from).sum();
        assert_eq!(snapshot.leases, sum);
        assert_eq!(snapshot.busy, truths.iter().filter(|truth| **truth > 0).count() as u64);
        assert_eq!(snapshot.scopes.iter().map(|scope| scope.held).sum::<u64>(), sum);
        let greatest = snapshot.scopes.iter().map(|scope| scope.greatest).max();
        assert_eq!(greatest, truths.iter().max().copied());
        assert!(ledger.locks.iter().all(|lock| Lock(load(lock)).is_free()), "a lock is left");
        for entry in 0..8 {
            assert!(!Tally(load(ledger.tally(entry).unwrap())).is_closed(), "a way is left closed");
        }
        let mut tags: Vec<u64> = (0..8).map(|entry| load(ledger.way(entry).unwrap().tag)).collect();
        tags.retain(|tag| *tag != 0);
        tags.sort_unstable();
        assert!(tags.windows(2).all(|pair| pair[0] != pair[1]), "a key stands twice");
    }
}

pub(super) fn key_of(ledger: &Ledger<'_>, key: usize) -> Key {
    ledger.key(Scope(u16::try_from(key % 3).unwrap()), &key.to_le_bytes())
}
