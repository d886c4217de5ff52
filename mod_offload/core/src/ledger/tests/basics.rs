//! What a ledger promises when nobody dies in the middle; a model; threads; capacity.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use super::world::{Dice, Doubt, World, created, memory};
use crate::ledger::lease::RENEWAL;
use crate::ledger::word::{Tally, store};
use crate::ledger::{Identity, Key, Lease, Ledger, Owner, Scope, TableSize, Taken, Trace};

fn lease(taken: Taken) -> Lease {
    match taken {
        Taken::Held { lease, .. } => lease,
        other => panic!("{other:?}"),
    }
}

fn with_ledger(size: TableSize, test: impl FnOnce(Ledger<'_>, Owner)) {
    let words = memory(size);
    let ledger = created(&words, size);
    let owner = ledger.enter(Identity::new(1, 1)).expect("a free slot");
    test(ledger, owner);
}

#[test]
fn a_limit_is_exact_at_n_and_at_n_plus_1() {
    with_ledger(TableSize::new(10), |ledger, owner| {
        let key = ledger.key(Scope(3), b"192.0.2.1");
        let leases: Vec<Lease> = (0..5).map(|_| lease(ledger.take(owner, key, 5, 0))).collect();
        assert_eq!(ledger.take(owner, key, 5, 0), Taken::Refused { held: 5 });
        assert_eq!(ledger.take(owner, key, 0, 0), Taken::Refused { held: 5 });
        assert!(ledger.release(leases[2]));
        assert!(!ledger.release(leases[2]));
        assert_eq!(ledger.held(key), 4);
        let again = lease(ledger.take(owner, key, 5, 0));
        assert!(!ledger.release(leases[2]), "the cell may be another's by now");
        let Taken::Held { held: 6, .. } = ledger.take(owner, key, u32::MAX, 0) else { panic!() };
        ledger.note_dry_refusal(Scope(3));
        let scope = ledger.snapshot().scope(Scope(3));
        assert_eq!((scope.held, scope.keys, scope.greatest), (6, 1, 6));
        assert_eq!((scope.refusals, scope.overflows, scope.dry_refusals), (2, 0, 1));
        assert!(ledger.release(again));
        assert_eq!(ledger.reclaim(owner).leases, 5);
        assert_eq!(ledger.held(key), 0);
        assert_eq!(ledger.owners().count(), 0);
    });
}

#[test]
fn who_holds_nothing_leaves_in_one_step_and_its_slot_is_another_s() {
    with_ledger(TableSize::new(10).with_owners(1), |ledger, owner| {
        let key = ledger.key(Scope(0), b"192.0.2.1");
        assert!(ledger.release(lease(ledger.take(owner, key, 1, 0))));
        ledger.leave(owner);
        let next = ledger.enter(Identity::new(2, 2)).expect("the slot is free");
        ledger.leave(owner);
        assert_eq!(ledger.owners().next(), Some(next), "who has left has nothing to leave");
        assert_eq!(ledger.held(key), 0);
    });
}

#[test]
fn scopes_count_apart_and_need_no_statistics() {
    with_ledger(TableSize::new(10).with_scopes(2), |ledger, owner| {
        let who = ledger.who(b"anybody");
        for scope in [Scope(0), Scope(1), Scope(2), Scope(u16::MAX)] {
            lease(ledger.take(owner, who.in_scope(scope), 1, 0));
            assert_eq!(ledger.take(owner, who.in_scope(scope), 1, 0), Taken::Refused { held: 1 });
        }
        assert_eq!(ledger.snapshot().scopes.len(), 2);
        assert_eq!(ledger.snapshot().busy, 4);
    });
}

#[test]
fn owners_are_found_by_identity() {
    with_ledger(TableSize::new(10).with_owners(2), |ledger, first| {
        let second = ledger.enter(Identity::new(2, 77)).unwrap();
        assert_eq!(ledger.enter(Identity::new(3, 1)), None, "all slots are taken");
        assert_eq!(ledger.enter(Identity::new(0, 1)), None);
        let found: Vec<Identity> = ledger.owners().map(Owner::identity).collect();
        assert_eq!(found, [Identity::new(1, 1), Identity::new(2, 77)]);
        assert_ne!(found[1], Identity::new(2, 78), "the same id, another process");
        assert_eq!(found[1].pid(), 2);
        ledger.reclaim(first);
        let third = ledger.enter(Identity::new(1, 1)).unwrap();
        assert_ne!(first, third, "the same slot, another claim");
        let key = ledger.key(Scope(0), b"x");
        lease(ledger.take(third, key, 1, 0));
        assert_eq!(ledger.reclaim(first).leases, 0);
        assert_eq!(ledger.reclaim(second).leases, 0);
        assert_eq!(ledger.held(key), 1);
    });
}

#[test]
fn a_count_that_cannot_be_expressed_refuses_only_who_has_a_limit() {
    with_ledger(TableSize::new(10), |ledger, owner| {
        let key = ledger.key(Scope(0), b"x");
        ledger.release(lease(ledger.take(owner, key, 1, 0)));
        let full = u64::from(Tally::MAX_COUNT) << 24;
        store(ledger.tally(ledger.find(key).unwrap()).unwrap(), full - (1 << 24));
        let last = lease(ledger.take(owner, key, u32::MAX, 0));
        assert_eq!(ledger.held(key), Tally::MAX_COUNT);
        assert_eq!(ledger.take(owner, key, u32::MAX, 0), Taken::Uncounted);
        let refused = Taken::Refused { held: Tally::MAX_COUNT };
        assert_eq!(ledger.take(owner, key, Tally::MAX_COUNT, 0), refused);
        assert!(ledger.release(last));
        assert_eq!(ledger.held(key), Tally::MAX_COUNT - 1);
    });
}

#[test]
fn leases_that_find_no_cell_are_not_counted() {
    with_ledger(TableSize::new(4).with_leases(4), |ledger, owner| {
        let key = ledger.key(Scope(0), b"x");
        let leases: Vec<Lease> =
            (0..8).map(|_| lease(ledger.take(owner, key, u32::MAX, 0))).collect();
        assert_eq!(ledger.take(owner, key, u32::MAX, 0), Taken::Uncounted);
        let snapshot = ledger.snapshot();
        assert_eq!((snapshot.overflows, snapshot.scope(Scope(0)).overflows), (1, 1));
        assert!(leases.into_iter().all(|lease| ledger.release(lease)));
        assert_eq!(ledger.snapshot().leases, 0);
    });
}

#[test]
fn who_was_idle_longest_goes_first() {
    with_ledger(TableSize::new(4), |ledger, owner| {
        let key = |number: u8| ledger.key(Scope(0), &[number]);
        for number in 0..8 {
            ledger.release(lease(ledger.take(owner, key(number), 1, 100 - u64::from(number))));
        }
        let busy = lease(ledger.take(owner, key(7), 1, 1));
        lease(ledger.take(owner, key(8), 1, 101));
        let present: Vec<u8> =
            (0..9).filter(|number| ledger.find(key(*number)).is_some()).collect();
        assert_eq!(present, [0, 1, 2, 3, 4, 5, 7, 8]);
        ledger.release(busy);
    });
}

#[test]
fn a_trace_leads_to_its_key_and_to_no_other() {
    with_ledger(TableSize::new(4), |ledger, owner| {
        let key = |number: u8| ledger.key(Scope(0), &[number]);
        let trace = Trace::default();
        let retake = |limit| Some(ledger.retake(limit, 9, &trace)).filter(|lease| lease.is_some());
        assert_eq!(retake(1), None, "it leads nowhere yet");
        let first = lease(ledger.take_and_trace(owner, key(0), 2, 0, &trace));
        assert_eq!(retake(2), None, "it is still held");
        assert!(ledger.counts_for(first, key(0)) && !ledger.counts_for(first, key(1)));
        assert!(ledger.release(first));
        assert_eq!(retake(0), None, "the limit");
        let later = ledger.retake(1, 1 << RENEWAL, &trace);
        assert!(!later.is_some(), "the entry's time is old");
        assert!(!ledger.release(later));
        let stranger = ledger.enter(Identity::new(2, 1)).expect("a free slot");
        let second = retake(1).expect("it is parked");
        assert_eq!((ledger.held(key(0)), retake(1)), (1, None));
        assert!(ledger.release(second) && !ledger.release(second) && !ledger.release(first));
        let theirs = lease(ledger.take(stranger, key(0), 1, 9));
        assert!(ledger.release(theirs));
        assert_eq!(retake(1), None, "it was another's meanwhile");
        let third = lease(ledger.take_and_trace(owner, key(0), 1, 9, &trace));
        assert!(ledger.release(third));
        // Eight ways for eight others: the traced one is evicted, and its way is another's.
        let others: Vec<Lease> =
            (1..9).map(|number| lease(ledger.take(owner, key(number), 1, 10))).collect();
        others.into_iter().for_each(|lease| assert!(ledger.release(lease)));
        assert_eq!(retake(1), None, "its count was lowered");
        assert_eq!(ledger.snapshot().leases, 0);
        // Of two that are held, the trace knows what was held besides.
        let both = [9, 9].map(|now| lease(ledger.take_and_trace(owner, key(0), 2, now, &trace)));
        assert!(ledger.release(both[1]));
        assert_eq!((retake(1), ledger.held(key(0))), (None, 1));
        assert!(retake(2).is_some());
        assert_eq!(ledger.held(key(0)), 2);
    });
}

#[test]
fn what_is_parked_stands_in_nobodys_way() {
    // Sixteen ways, and a cell for every second one.
    with_ledger(TableSize::new(8).with_leases(8), |ledger, owner| {
        for client in 0..40 {
            let key = numbered(&ledger, client);
            let visit = lease(ledger.take(owner, key, 1, client.into()));
            assert_eq!(ledger.take(owner, key, 1, 0), Taken::Refused { held: 1 });
            assert!(ledger.release(visit));
            let snapshot = ledger.snapshot();
            assert_eq!((snapshot.busy, snapshot.leases, ledger.held(key)), (0, 0, 0));
        }
        let visits: Vec<Lease> = (0..8)
            .map(|client| lease(ledger.take(owner, numbered(&ledger, client), 1, 99)))
            .collect();
        assert_eq!(ledger.snapshot().overflows, 0);
        visits.into_iter().for_each(|visit| assert!(ledger.release(visit)));
        assert_eq!(ledger.reclaim(owner).leases, 0, "what is parked is nobody's");
        let next = ledger.enter(Identity::new(2, 1)).expect("a free slot");
        for client in 0..8 {
            lease(ledger.take(next, numbered(&ledger, client), 1, 99));
        }
    });
}

#[test]
fn random_work_agrees_with_a_model() {
    for seed in 0..if cfg!(miri) { 2 } else { 400 } {
        let (mut dice, world) = (Dice(seed), World::new(4));
        for _ in 0..300 {
            let player = dice.below(world.players.borrow().len().min(4));
            if dice.below(40) == 0 {
                let leases = world.players.borrow()[player].leases.len();
                let reclaimed = world.ledger().reclaim(world.owner(player));
                assert_eq!(reclaimed.leases, leases as u64);
                let mut players = world.players.borrow_mut();
                players[player].leases.clear();
                players[player].owner = world.ledger().enter(Identity::new(9, seed)).unwrap();
            } else {
                world.act(player, &mut dice, Doubt::Nothing);
            }
        }
        world.check_exact();
    }
}

fn numbered(ledger: &Ledger<'_>, client: u32) -> Key {
    ledger.key(Scope(0), &client.to_le_bytes())
}

#[test]
fn the_promised_entries_fit_whoever_comes_and_goes() {
    let (entries, churn) = if cfg!(miri) { (40, 20) } else { (1000, 99_000) };
    for secret in 0..if cfg!(miri) { 1 } else { 5 } {
        let size = TableSize::new(entries);
        let words = memory(size);
        let ledger = Ledger::create(&words, size, (secret, 2)).unwrap();
        let owner = ledger.enter(Identity::new(1, 1)).unwrap();
        let take = |client: u32| {
            let key = numbered(&ledger, client);
            let leave = lease(ledger.take(owner, key, 1, client.into()));
            assert_eq!(ledger.take(owner, key, 1, 0), Taken::Refused { held: 1 });
            leave
        };
        let mut present: Vec<Lease> = (0..entries).map(take).collect();
        let mut dice = Dice(secret);
        for client in entries..entries + churn {
            let leaving = dice.below(present.len());
            assert!(ledger.release(present[leaving]));
            present[leaving] = take(client);
        }
        let snapshot = ledger.snapshot();
        assert_eq!((snapshot.busy, snapshot.leases), (entries.into(), entries.into()));
        assert_eq!((snapshot.overflows, snapshot.scope(Scope(0)).greatest), (0, 1));
    }
}

#[test]
fn a_table_of_1000_under_100_000_clients_refuses_nobody() {
    let clients = if cfg!(miri) { 200 } else { 100_000 };
    with_ledger(TableSize::new(if cfg!(miri) { 20 } else { 1000 }), |ledger, owner| {
        let mut uncounted = 0;
        for client in 0..clients {
            match ledger.take(owner, numbered(&ledger, client), 1, client.into()) {
                Taken::Held { held: 1, .. } => {}
                Taken::Uncounted => uncounted += 1,
                other => panic!("{other:?}"),
            }
        }
        let snapshot = ledger.snapshot();
        assert!(snapshot.busy >= u64::from(ledger.size().entries()));
        assert_eq!(snapshot.overflows, uncounted);
        assert_eq!(snapshot.scope(Scope(0)).refusals, 0);
    });
}

/// Threads as processes: each has an owner, and now and then leaves all behind and is reclaimed by two
/// others at once.
#[test]
fn threads_never_exceed_a_limit_and_leave_nothing() {
    const LIMIT: u32 = 3;
    let rounds = if cfg!(miri) { 60 } else { 200_000 };
    // Eight ways for twelve keys: insertions and evictions.
    let size = TableSize::new(4).with_leases(64).with_owners(40);
    let words = memory(size);
    let ledger = created(&words, size);
    let inside: Vec<AtomicU32> = (0..12).map(|_| AtomicU32::new(0)).collect();
    let leave = |client: usize, lease: Lease| {
        inside[client].fetch_sub(1, SeqCst);
        assert!(ledger.release(lease));
    };
    let work = |thread: u32| {
        let mut dice = Dice(thread.into());
        let mut owner = ledger.enter(Identity::new(thread, 1)).expect("a free slot");
        let mut held: Vec<(usize, Lease)> = Vec::new();
        for round in 0..rounds {
            let client = dice.below(inside.len());
            let key = numbered(&ledger, u32::try_from(client).unwrap());
            if held.len() < 2 && dice.below(2) == 0 {
                if let Taken::Held { lease, held: count } = ledger.take(owner, key, LIMIT, round) {
                    assert!(count <= LIMIT);
                    assert!(inside[client].fetch_add(1, SeqCst) < LIMIT, "more than the limit");
                    held.push((client, lease));
                }
            } else if dice.below(200) == 0 {
                for (client, _) in held.drain(..) {
                    inside[client].fetch_sub(1, SeqCst);
                }
                thread::scope(|scope| {
                    scope.spawn(|| ledger.reclaim(owner));
                    ledger.reclaim(owner);
                });
                owner = ledger.enter(Identity::new(thread, round)).expect("a free slot");
            } else if let Some((client, lease)) = held.pop() {
                leave(client, lease);
            }
        }
        held.into_iter().for_each(|(client, lease)| leave(client, lease));
    };
    thread::scope(|scope| {
        for thread in 1..=4 {
            scope.spawn(move || work(thread));
        }
    });
    let snapshot = ledger.snapshot();
    assert_eq!((snapshot.leases, snapshot.busy, snapshot.owners), (0, 0, 4));
}
