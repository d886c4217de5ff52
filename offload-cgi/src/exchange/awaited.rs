//! A request that is answered when its first byte is there.

use std::fs::File;

use super::{Exchange, Outcome, Request, hit, missed};
use crate::ask::{Certainty, Found};
use crate::failure::Failure;
use crate::http::Part;
use crate::reply::Reply;
use crate::source::{Look, Source};
use crate::store::Generation;

/// A reply whose head waits for the first byte: with it the base may say something else about the file, or
/// that it has another one by now.
pub(crate) struct Awaited<'a> {
    source: Source<'a>,
    first: u64,
    found: Found,
}

impl<'a> Exchange<'a> {
    /// Opens what the client wants to have of a generation, and sees to it that somebody fetches what is missing.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(super) fn join(
        &self,
        request: &Request,
        generation: Generation,
        found: &Found,
        parts: &[Part],
    ) -> Result<Outcome<'a>, Failure> {
        let path = request.path.as_str();
        let mut source =
            Source::open(self.options, generation, &found.representation, path, parts)?;
        if source.has(parts) {
            source.refresh();
            let reply = self.reply_with(request, source);
            return Ok(Outcome::Reply(hit(reply, found.checked, found.certainty)));
        }
        let first = parts.first().map_or(0, |part| part.first);
        // It need not be the first byte that is missing.
        let look = source.look(first)?;
        let awaited = Awaited { source, first, found: found.clone() };
        Ok(match look {
            Look::Bytes(_) => Outcome::Reply(self.finish(request, awaited)),
            Look::Wait => Outcome::Awaits(Box::new(awaited)),
        })
    }

    /// The reply, now that its first byte is there. Waits for nothing.
    pub(crate) fn finish(&self, request: &Request, awaited: Awaited<'a>) -> Reply<'a> {
        let Awaited { mut source, found, .. } = awaited;
        source.refresh();
        let detail = if source.has_filled() { "; stored" } else { "; collapsed" };
        missed(self.reply_with(request, source), found.checked, found.certainty)
            .status(&format!("offload; fwd=miss{detail}"))
            // httpd would keep the connection, and the client waiting, when the fill breaks off.
            .header("Connection", "close")
    }
}

impl Awaited<'_> {
    /// Whether the base should have been asked about it before.
    pub(crate) fn is_stale(&self) -> bool {
        self.found.certainty == Certainty::Stale
    }

    /// Looks whether the byte has come. Never waits.
    ///
    /// # Errors
    /// Why it will not come: for `Exchange::resume`.
    pub(crate) fn look(&mut self) -> Result<Look, Failure> {
        self.source.look(self.first)
    }

    /// Waits for the byte.
    ///
    /// # Errors
    /// As `look`.
    pub(super) fn wait(&mut self) -> Result<(), Failure> {
        self.source.wait_for(self.first).map(drop)
    }

    /// The version that was to be served.
    pub(super) fn into_found(self) -> Found {
        self.found
    }

    /// The file that is written to whenever there is news, and which one it is of those there have been.
    pub(crate) fn news(&self) -> Option<(&File, u32)> {
        self.source.news()
    }
}
