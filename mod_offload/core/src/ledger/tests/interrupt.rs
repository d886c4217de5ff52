//! Stops an operation before any of its accesses to shared memory: to kill it there, or to let others
//! work before it goes on.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

type Deed = Box<dyn FnOnce()>;

thread_local! {
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    static DEED: RefCell<Option<Deed>> = const { RefCell::new(None) };
}

struct Killed;

/// Called before each access.
#[inline]
pub(in crate::ledger) fn step() {
    if let Some(left) = LEFT.get() {
        LEFT.set(left.checked_sub(1));
        if left == 0 {
            let deed = DEED.take();
            deed.into_iter().for_each(|deed| deed());
        }
    }
}

/// Does `operation`, and `deed` before its access number `at`. The second value: whether it came to that.
pub(super) fn interrupt<T>(
    at: u32,
    deed: impl FnOnce() + 'static,
    operation: impl FnOnce() -> T,
) -> (T, bool) {
    DEED.set(Some(Box::new(deed)));
    LEFT.set(Some(at));
    let result = operation();
    LEFT.set(None);
    (result, DEED.take().is_none())
}

/// Does `operation`, but dies before its access number `at`: `None` if it did die.
pub(super) fn kill<T>(at: u32, operation: impl FnOnce() -> T) -> Option<T> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // No panic hook, no message: nothing but the end.
        interrupt(at, || resume_unwind(Box::new(Killed)), operation).0
    }));
    LEFT.set(None);
    match outcome {
        Ok(result) => Some(result),
        Err(payload) if payload.is::<Killed>() => None,
        Err(payload) => resume_unwind(payload),
    }
}
