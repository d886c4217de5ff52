//! The handler choke-status: what is limited, what is held, and what is throttled now. Who may see it is for `Require`.

use offload_core::report::{self, State};
use offload_core::transfers::Transfers;

use crate::ffi::request::Request;
use crate::hooks::Answer;
use crate::pacer::TRANSFERS;

/// Answers with the state as text, or with `?json` as JSON.
#[inline(never)]
pub(crate) fn show(request: Request<'_>) -> Answer {
    let Some(running) = request.running() else { return Answer::Declined };
    running.bury_the_dead(request.begun());
    let snapshot = running.ledger.snapshot();
    let transfers = TRANSFERS.get().map(Transfers::list).unwrap_or_default();
    let (directory, max_held) = (&running.directory, running.max_held);
    let state = State { directory, snapshot: &snapshot, transfers: &transfers, max_held };
    if request.query() == b"json" {
        request.answer(c"application/json", &report::json(&state));
    } else {
        request.answer(c"text/plain; charset=utf-8", &report::text(&state));
    }
    Answer::Done
}
