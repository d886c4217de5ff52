//! Panics stop here: one request fails, one line is logged, the child lives on.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

thread_local! {
    /// The last panic of this thread, kept by the panic hook until its guard reports it.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Takes over panic messages, which would otherwise go to stderr in several lines.
pub(crate) fn install() {
    panic::set_hook(Box::new(remember));
}

fn remember(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("(no message)").replace(['\n', '\r'], " ");
    let place = info.location().map_or_else(String::new, |location| format!(" at {location}"));
    // Empty unless the administrator asked for it with RUST_BACKTRACE.
    let trace = Backtrace::capture();
    let trace = match trace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("; {trace}").replace('\n', " "),
        _ => String::new(),
    };
    // When a thread ends, what is dropped after the cell finds it gone.
    let _ = LAST.try_with(|last| {
        // A panic inside a panic finds the cell in use; the first message is the one that counts.
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Some(format!("mod_offload: internal error{place}: {message}{trace}"));
        }
    });
}

/// Runs the body of an `extern "C"` function. If it panics, `report` is given one line for the log and
/// `fallback` is returned: what httpd understands as a failure of this call only.
#[inline]
pub(crate) fn guard<T>(fallback: T, report: impl FnOnce(&str), body: impl FnOnce() -> T) -> T {
    // Nothing that the body borrowed is looked at after a panic: it belongs to a request that ends.
    match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(payload) => {
            caught(payload, report);
            fallback
        }
    }
}

/// Out of the way of all the calls that do not panic.
#[cold]
#[inline(never)]
fn caught(payload: Box<dyn Any + Send>, report: impl FnOnce(&str)) {
    let line = LAST.try_with(|last| last.try_borrow_mut().ok()?.take()).ok().flatten();
    // Neither a failing log nor a payload whose Drop panics may unwind into C.
    let _ = panic::catch_unwind(AssertUnwindSafe(|| {
        report(line.as_deref().unwrap_or("mod_offload: internal error"));
    }));
    std::mem::forget(payload);
}
