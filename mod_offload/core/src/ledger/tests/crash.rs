//! Death before every single access to shared memory, and every operation stopped there while others
//! work. The states are random but repeatable.

use super::interrupt::{interrupt, kill};
use super::world::{Dice, Doubt, KEYS, World, key_of};
use crate::ledger::{Lease, Taken};

const ROUNDS: u64 = if cfg!(miri) { 2 } else { 250 };
const VICTIM: usize = 0;
/// Who joins when the victim's slot is free again.
const NEXT: usize = 3;

/// What is stopped in the middle.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Take(usize, u32),
    Release(Lease),
    Reclaim,
}

/// A random state with three processes, and what the first is about to do; with the key of that.
fn scene(seed: u64) -> (World, Dice, Deed, usize) {
    let mut dice = Dice(seed);
    let world = World::new(3);
    for _ in 0..dice.below(60) {
        world.act(dice.below(3), &mut dice, Doubt::Nothing);
    }
    let key = dice.below(KEYS);
    let held = world.players.borrow()[VICTIM].leases.len();
    let (deed, key) = if dice.below(2) == 0 && held > 0 {
        let lease = world.players.borrow_mut()[VICTIM].leases.swap_remove(dice.below(held));
        (Deed::Release(lease.1), lease.0)
    } else {
        (Deed::Take(key, [1, 3, u32::MAX, u32::MAX][dice.below(4)]), key)
    };
    (world, dice, deed, key)
}

/// Does the deed; a lease that was got goes to the model.
fn perform(world: &World, deed: Deed) {
    let ledger = world.ledger();
    match deed {
        Deed::Take(key, limit) => {
            let taken = ledger.take(world.owner(VICTIM), key_of(&ledger, key), limit, 5);
            if let Taken::Held { lease, .. } = taken {
                world.players.borrow_mut()[VICTIM].leases.push((key, lease));
            }
        }
        Deed::Release(lease) => assert!(ledger.release(lease)),
        Deed::Reclaim => drop(ledger.reclaim(world.owner(VICTIM))),
    }
}

fn others_work(world: &World, dice: &mut Dice, doubt: Doubt) {
    for _ in 0..dice.below(8) {
        world.act(1 + dice.below(2), dice, doubt);
        world.check_bounds(doubt);
    }
}

/// Until an operation ends without having come to access `at`.
fn at_every_access(mut stopped: impl FnMut(u32) -> bool) {
    assert!((0..2000).any(|at| !stopped(at)), "the operation does not end");
}

#[test]
fn death_at_every_instruction_leaks_nothing() {
    for seed in 0..ROUNDS {
        let (start, dice, deed, key) = scene(seed);
        at_every_access(|at| {
            let (world, mut dice) = (start.copy(), dice.clone());
            let died = kill(at, || perform(&world, deed)).is_none();
            others_work(&world, &mut dice, if died { Doubt::Key(key) } else { Doubt::Nothing });
            world.ledger().reclaim(world.owner(VICTIM));
            world.forget(VICTIM);
            world.check_exact();
            assert_eq!(world.ledger().owners().count(), 2);
            assert_eq!(world.ledger().reclaim(world.owner(VICTIM)).leases, 0);
            died
        });
    }
}

#[test]
fn a_reclaimer_may_die_too() {
    for seed in 0..ROUNDS {
        let (start, dice, deed, key) = scene(seed);
        let half_reclaimed = Doubt::Reclaiming(VICTIM, key);
        let first_death = u32::try_from(dice.clone().below(30)).unwrap();
        at_every_access(|at| {
            let (world, mut dice) = (start.copy(), dice.clone());
            kill(first_death, || perform(&world, deed));
            let died = kill(at, || perform(&world, Deed::Reclaim)).is_none();
            if !died {
                world.forget(VICTIM);
            }
            others_work(&world, &mut dice, if died { half_reclaimed } else { Doubt::Nothing });
            world.ledger().reclaim(world.owner(VICTIM));
            world.forget(VICTIM);
            world.check_exact();
            died
        });
    }
}

#[test]
fn an_operation_may_be_stopped_anywhere_while_others_work() {
    for seed in 0..ROUNDS {
        let (start, dice, deed, key) = scene(seed);
        at_every_access(|at| {
            let world = start.copy();
            let (others, mut dice) = (world.clone(), dice.clone());
            let meanwhile = move || others_work(&others, &mut dice, Doubt::Key(key));
            let ((), stopped) = interrupt(at, meanwhile, || perform(&world, deed));
            world.check_exact();
            stopped
        });
    }
}

/// While one process stands still in the middle of an operation, another dies in the middle of its
/// own and is reclaimed, and a third works on.
#[test]
fn an_operation_may_be_stopped_while_another_process_dies() {
    for seed in 0..ROUNDS {
        let (start, dice, deed, key) = scene(seed);
        at_every_access(|at| {
            let world = start.copy();
            let (others, mut dice) = (world.clone(), dice.clone());
            let meanwhile = move || {
                let ledger = others.ledger();
                let leases = others.players.borrow()[1].leases.clone();
                let access = u32::try_from(dice.below(40)).unwrap();
                // Of the same key, if it holds any.
                let held = leases.iter().find(|(of, _)| *of == key).or(leases.first());
                match (held, dice.below(3)) {
                    (Some((_, lease)), 0) => {
                        kill(access, || ledger.release(*lease));
                    }
                    (held, _) => {
                        // It gives one back and takes anew, most likely in the same cell.
                        held.into_iter().for_each(|(_, lease)| assert!(ledger.release(*lease)));
                        let other_key = key_of(&ledger, held.map_or(key, |(of, _)| *of));
                        let _ = kill(access / 2, || ledger.take(others.owner(1), other_key, 3, 9));
                    }
                }
                others.forget(1);
                if dice.below(2) == 0 {
                    ledger.reclaim(others.owner(1));
                    for _ in 0..dice.below(6) {
                        others.act(2, &mut dice, Doubt::Key(key));
                        others.check_bounds(Doubt::Key(key));
                    }
                }
            };
            let ((), stopped) = interrupt(at, meanwhile, || perform(&world, deed));
            world.ledger().reclaim(world.owner(1));
            world.forget(1);
            world.check_exact();
            stopped
        });
    }
}

/// A reclaimer that stands still while another finishes, and the slot has a new process: it must not
/// touch what that one holds.
#[test]
fn a_late_reclaimer_leaves_the_next_process_of_the_slot_alone() {
    for seed in 0..ROUNDS {
        let (start, dice, deed, _) = scene(seed);
        let first_death = u32::try_from(dice.clone().below(30)).unwrap();
        at_every_access(|at| {
            let world = start.copy();
            kill(first_death, || perform(&world, deed));
            let (others, mut dice) = (world.clone(), dice.clone());
            let meanwhile = move || {
                others.ledger().reclaim(others.owner(VICTIM));
                others.forget(VICTIM);
                others.join();
                assert_eq!(others.owner(NEXT).slot, others.owner(VICTIM).slot);
                for _ in 0..dice.below(20) {
                    others.act(1 + dice.below(NEXT), &mut dice, Doubt::Nothing);
                }
                // The next one may die in turn, with a lock or in the middle of a take.
                if dice.below(2) == 0 {
                    let key = key_of(&others.ledger(), dice.below(KEYS));
                    let access = u32::try_from(dice.below(60)).unwrap();
                    let next = others.owner(NEXT);
                    let _ = kill(access, || others.ledger().take(next, key, u32::MAX, 9));
                    others.players.borrow_mut()[NEXT].died = true;
                }
            };
            let late = || perform(&world, Deed::Reclaim);
            let ((), stopped) = interrupt(at, meanwhile, late);
            world.forget(VICTIM);
            if stopped {
                if !world.players.borrow()[NEXT].died {
                    world.check_exact();
                }
                world.ledger().reclaim(world.owner(NEXT));
                world.forget(NEXT);
            }
            world.check_exact();
            stopped
        });
    }
}
