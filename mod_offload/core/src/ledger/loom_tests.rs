//! Two and three processes in every order of their steps, and with every value that a load may return:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p offload-core --lib ledger`

use loom::sync::Arc;
use loom::thread;

use super::word::{AtomicU64, Cell, load, store};
use super::{Identity, Key, Lease, Ledger, Owner, Scope, TableSize, Taken};

/// One bucket, sixteen cells.
struct Shared(Vec<AtomicU64>);

impl Shared {
    fn new() -> Self {
        let size = TableSize::new(1).with_leases(8).with_owners(3).with_scopes(1);
        let words: Vec<AtomicU64> =
            (0..Ledger::words_needed(size)).map(|_| AtomicU64::new(0)).collect();
        Ledger::create(&words, size, (1, 2)).expect("zeroed words");
        Self(words)
    }

    fn ledger(&self) -> Ledger<'_> {
        Ledger::open(&self.0).expect("a ledger")
    }

    fn enter(&self, pid: u32) -> Owner {
        self.ledger().enter(Identity::new(pid, 1)).expect("a free slot")
    }

    fn key(&self, who: u8) -> Key {
        self.ledger().key(Scope(0), &[who])
    }

    fn take(&self, owner: Owner, who: u8, limit: u32) -> Option<Lease> {
        match self.ledger().take(owner, self.key(who), limit, 1) {
            Taken::Held { lease, .. } => Some(lease),
            _ => None,
        }
    }

    /// The key has an entry, and nothing is held.
    fn prepare(&self, owner: Owner, who: u8) {
        let lease = self.take(owner, who, 1).expect("room");
        assert!(self.ledger().release(lease));
    }

    /// The owner's lease, set back to where its process died.
    fn die(&self, owner: Owner, state: impl Fn(Cell) -> Cell) {
        let cells = self.ledger().cells;
        let held = cells.iter().find(|word| Cell(load(word)).belongs_to(owner.slot));
        let word = held.expect("a lease");
        store(word, state(Cell(load(word))).0);
    }

    fn check(&self, held: &[(u8, u32)]) {
        for (who, count) in held {
            assert_eq!(self.ledger().held(self.key(*who)), *count);
        }
        let leases: u64 = held.iter().map(|(_, count)| u64::from(*count)).sum();
        assert_eq!(self.ledger().snapshot().leases, leases);
    }
}

/// A thread may be stopped in favour of another this often.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 100_000;
    builder.check(test);
}

#[test]
fn of_two_takes_at_limit_1_one_is_held() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (first, second) = (shared.enter(1), shared.enter(2));
        shared.prepare(first, 1);
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || other.take(second, 1, 1));
        let mine = shared.take(first, 1, 1);
        let theirs = thread.join().unwrap();
        assert!(mine.is_some() != theirs.is_some());
        shared.check(&[(1, 1)]);
    });
}

#[test]
fn a_key_is_inserted_once() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (first, second) = (shared.enter(1), shared.enter(2));
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || other.take(second, 1, 2));
        let mine = shared.take(first, 1, 2);
        let theirs = thread.join().unwrap();
        // Who does not get the lock is let in uncounted.
        assert!(mine.is_some() || theirs.is_some());
        let held = u32::from(mine.is_some()) + u32::from(theirs.is_some());
        shared.check(&[(1, held)]);
    });
}

#[test]
fn a_take_and_an_eviction_of_its_key() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (first, second) = (shared.enter(1), shared.enter(2));
        shared.prepare(first, 0);
        for busy in 1..8 {
            // So that one way is left.
            shared.take(first, busy, 1).expect("room");
        }
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || other.take(second, 8, 1));
        let mine = shared.take(first, 0, 1);
        let theirs = thread.join().unwrap();
        assert!(mine.is_none() || theirs.is_none(), "one way, two keys");
        let mut held: Vec<(u8, u32)> = (1..8).map(|busy| (busy, 1)).collect();
        held.push((0, mine.is_some().into()));
        held.push((8, theirs.is_some().into()));
        shared.check(&held);
    });
}

#[test]
fn a_release_that_others_settle() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (first, second) = (shared.enter(1), shared.enter(2));
        let lease = shared.take(first, 1, 1).expect("room");
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let lease = other.take(second, 1, 2).expect("room");
            assert!(other.ledger().release(lease));
        });
        assert!(shared.ledger().release(lease));
        assert!(!shared.ledger().release(lease));
        thread.join().unwrap();
        shared.check(&[(1, 0)]);
    });
}

#[test]
fn a_take_while_a_dead_one_is_reclaimed() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (dead, second) = (shared.enter(1), shared.enter(2));
        shared.take(dead, 1, 1).expect("room");
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || other.take(second, 1, 1));
        // If the taker comes upon a release that is begun, it ends it.
        assert!(shared.ledger().reclaim(dead).leases <= 1);
        let theirs = thread.join().unwrap();
        shared.check(&[(1, theirs.is_some().into())]);
    });
}

#[test]
fn two_reclaimers_and_the_next_process_of_the_slot() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let dead = shared.enter(1);
        shared.take(dead, 1, 1).expect("room");
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || other.ledger().reclaim(dead).leases);
        let mine = shared.ledger().reclaim(dead).leases;
        let next = shared.enter(2);
        let lease = shared.take(next, 1, 1);
        let theirs = thread.join().unwrap();
        assert_eq!(mine + theirs, 1);
        assert!(lease.is_some());
        shared.check(&[(1, 1)]);
    });
}

/// The dead one raised the tally; its cell is still pending.
#[test]
fn a_counted_take_is_given_back_whoever_settles_it() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (dead, second) = (shared.enter(1), shared.enter(2));
        shared.take(dead, 1, 1).expect("room");
        shared.die(dead, |held| Cell(held.free().0 | 1 << 61));
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || other.take(second, 1, 2));
        assert!(shared.ledger().reclaim(dead).leases <= 1);
        assert!(thread.join().unwrap().is_some());
        shared.check(&[(1, 1)]);
    });
}

/// The dead one marked its cell, but did not lower the tally: two reclaimers may, and so may a living process
/// that wants to change the tally.
#[test]
fn a_begun_release_is_ended_once() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (dead, second) = (shared.enter(1), shared.enter(2));
        shared.take(dead, 1, 1).expect("room");
        shared.die(dead, Cell::releasing);
        let (other, third) = (Arc::clone(&shared), Arc::clone(&shared));
        let reclaimer = thread::spawn(move || other.ledger().reclaim(dead).leases);
        let taker = thread::spawn(move || third.take(second, 1, 2));
        let mine = shared.ledger().reclaim(dead).leases;
        assert!(mine + reclaimer.join().unwrap() <= 1);
        assert!(taker.join().unwrap().is_some());
        shared.check(&[(1, 1)]);
    });
}

/// Of two leases one is parked, while the other is given back and a third process takes one over.
#[test]
fn a_parked_lease_is_taken_over_or_lowered() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (first, second) = (shared.enter(1), shared.enter(2));
        let lease = shared.take(first, 1, 2).expect("room");
        let last = shared.take(first, 1, 2).expect("room");
        assert!(shared.ledger().release(last));
        let other = Arc::clone(&shared);
        let taker = thread::spawn(move || other.take(second, 1, 2));
        assert!(shared.ledger().release(lease));
        let theirs = taker.join().unwrap().expect("room");
        shared.check(&[(1, 1)]);
        assert!(shared.ledger().release(theirs) && !shared.ledger().release(last));
        shared.check(&[(1, 0)]);
    });
}

/// Whoever has settled a parked lease dies before it lowers the tally, and is reclaimed while another takes.
#[test]
fn a_parked_lease_that_a_dead_one_settled_is_lowered_once() {
    model(|| {
        let shared = Arc::new(Shared::new());
        let (first, dead) = (shared.enter(1), shared.enter(2));
        shared.take(first, 1, 1).expect("room");
        shared.die(first, Cell::releasing);
        let other = Arc::clone(&shared);
        let taker = thread::spawn(move || other.take(first, 1, 1));
        assert_eq!(shared.ledger().reclaim(dead).leases, 0);
        assert!(taker.join().unwrap().is_some());
        shared.check(&[(1, 1)]);
    });
}
