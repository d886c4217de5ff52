//! The handler choke-status: what is limited, and what is held now. Who may see it is for `Require`.

use offload_core::report;

use crate::ffi::request::Request;
use crate::hooks::Answer;

/// Answers with the state as text, or with `?json` as JSON.
pub(crate) fn show(request: Request<'_>) -> Answer {
    let Some(running) = request.running() else { return Answer::Declined };
    running.bury_the_dead(request.begun());
    let snapshot = running.ledger.snapshot();
    if request.query() == b"json" {
        request.answer(c"application/json", &report::json(&running.directory, &snapshot));
    } else {
        request.answer(c"text/plain; charset=utf-8", &report::text(&running.directory, &snapshot));
    }
    Answer::Done
}
