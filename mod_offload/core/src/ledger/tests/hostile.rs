//! Memory that is no ledger, or was one.

use std::sync::atomic::Ordering::Relaxed;

use super::world::{Dice, created, memory};
use crate::ledger::word::load;
use crate::ledger::{Identity, Ledger, LedgerError, Scope, TableSize, Taken};

fn small() -> TableSize {
    TableSize::new(10).with_leases(20).with_owners(4).with_scopes(2)
}

fn error_with(at: usize, value: u64) -> Option<LedgerError> {
    let words = memory(small());
    created(&words, small());
    words[at].store(value, Relaxed);
    Ledger::open(&words).err()
}

#[test]
fn only_a_ledger_opens() {
    assert_eq!(Ledger::open(&[]).err(), Some(LedgerError::Foreign));
    assert_eq!(Ledger::open(&memory(small())).err(), Some(LedgerError::Foreign));
    assert_eq!(error_with(0, u64::MAX), Some(LedgerError::Foreign));
    assert_eq!(error_with(1, 9), Some(LedgerError::Version(9)));
    for field in 2..6 {
        for value in [0, u64::MAX, 1 << 32, u64::from(u32::MAX)] {
            assert_eq!(error_with(field, value), Some(LedgerError::Damaged), "{field} = {value}");
        }
    }
    let large = TableSize::new(TableSize::MAX).with_leases(20).with_owners(4).with_scopes(2);
    let needed = Ledger::words_needed(large);
    let words = memory(small()).len();
    let too_small = LedgerError::TooSmall { words, needed };
    assert_eq!(error_with(2, u64::from(TableSize::MAX)), Some(too_small));
    let words = memory(small());
    created(&words, small());
    assert!(Ledger::open(&words).is_ok());
    for length in 0..words.len() {
        assert!(Ledger::open(&words[..length]).is_err(), "{length} words");
    }
    assert_eq!(Ledger::create(&words, small(), (1, 2)).err(), Some(LedgerError::InUse));
    assert!(matches!(
        Ledger::create(&words[1..], small(), (1, 2)).err(),
        Some(LedgerError::TooSmall { .. })
    ));
}

#[test]
fn what_was_created_can_be_opened_elsewhere() {
    let words = memory(small());
    let made = created(&words, small());
    let opened = Ledger::open(&words).unwrap();
    assert_eq!(opened.size(), small());
    assert_eq!(opened.key(Scope(1), b"anybody"), made.key(Scope(1), b"anybody"));
    assert_ne!(opened.key(Scope(1), b"anybody"), made.key(Scope(0), b"anybody"));
}

/// Whatever stands behind the header, nothing panics and everything ends.
#[test]
fn scribbled_contents_do_no_harm() {
    for seed in 0..if cfg!(miri) { 3 } else { 300 } {
        let mut dice = Dice(seed);
        let words = memory(small());
        created(&words, small());
        for word in &words[16..] {
            let value = (0..4).fold(0, |value, _| value << 16 | dice.below(1 << 16) as u64);
            // Small numbers name what exists.
            word.store([value, value & 0x8000_003f_0000_0013, 0][dice.below(3)], Relaxed);
        }
        let ledger = Ledger::open(&words).unwrap();
        let owner = ledger.enter(Identity::new(5, 5)).or_else(|| ledger.owners().next()).unwrap();
        for round in 0..200 {
            let who = [u8::try_from(dice.below(20)).unwrap()];
            let key = ledger.key(Scope(round % 3), &who);
            ledger.held(key);
            if let Taken::Held { lease, .. } = ledger.take(owner, key, 3, round.into()) {
                ledger.release(lease);
            }
        }
        ledger.snapshot();
        for owner in ledger.owners().collect::<Vec<_>>() {
            ledger.reclaim(owner);
        }
        assert_eq!(ledger.owners().count(), 0);
        assert!(words.iter().take(1).all(|word| load(word) != 0));
    }
}
