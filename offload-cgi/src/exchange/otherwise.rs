//! What is answered when the cache cannot: what the base sends past it, what it says instead of a file, what
//! was known before it could not be asked any more.

use std::fs::File;
use std::time::SystemTime;

use super::heads::head;
use super::{Exchange, Outcome, Request, aged};
use crate::ask::Found;
use crate::body::{Body, Supply};
use crate::failure::{Failure, Kind};
use crate::http::Verdict;
use crate::origin::Other;
use crate::reply::Reply;
use crate::representation::Representation;
use crate::source::Source;
use crate::store::{Object, age};
use crate::{local, log};

/// How often the base may change a file under our hands before the client is sent away.
const MOST_CHANGES: u32 = 3;

impl<'a> Exchange<'a> {
    /// What follows when the cache does not get the bytes of a version.
    pub(super) fn despite(
        &self,
        request: &Request,
        found: &Found,
        failure: &Failure,
        changes: &mut u32,
    ) -> Option<Outcome<'a>> {
        let path = &request.path;
        let forward = match failure.kind {
            Kind::Changed => {
                *changes += 1;
                let too_often = *changes >= MOST_CHANGES;
                let failure = Kind::Changed.says("the base changes the file all the time");
                return too_often.then(|| Outcome::Reply(Reply::failed(&failure)));
            }
            Kind::NoRoom => {
                let text = format!("{path}: passed through: {}", failure.sentence);
                log::rarely(self.options.notes(), "no-room", &text);
                "miss; detail=no-room"
            }
            Kind::Unstorable => "miss; detail=unstorable",
            _ => return Some(Outcome::Reply(Reply::failed(failure))),
        };
        match self.pass_through(request, &found.representation, forward) {
            Err(failure) if failure.kind == Kind::Changed => {
                self.despite(request, found, &failure, changes)
            }
            reply => Some(Outcome::Reply(reply.unwrap_or_else(|failure| Reply::failed(&failure)))),
        }
    }

    /// Answers about a version that is not for the cache, or for which there is none.
    pub(super) fn past_cache(
        &self,
        request: &Request,
        found: &Found,
    ) -> Result<Reply<'a>, Failure> {
        let Found { representation, checked, .. } = found;
        if let Some(why) = representation.unstorable.filter(|_| self.store.is_some()) {
            let forward = format!("miss; detail={}", why.detail());
            return self.pass_through(request, representation, &forward);
        }
        match self.local(request, representation) {
            Some(file) => {
                let reply = self.reply_with(request, Source::whole(file, representation.clone()));
                Ok(aged(reply, *checked).status("offload; hit; detail=document-root"))
            }
            None => self.pass_through(request, representation, "miss; detail=no-cache"),
        }
    }

    /// The file of no-cache mode, if it is the base's.
    fn local(&self, request: &Request, found: &Representation) -> Option<File> {
        let root = self.options.document_root.as_ref()?;
        local::open(root, &request.path, found)
    }

    /// Answers from the base without storing.
    fn pass_through(
        &self,
        request: &Request,
        found: &Representation,
        forward: &str,
    ) -> Result<Reply<'a>, Failure> {
        let verdict = match self.judge(request, found) {
            // They would be as many requests to the base.
            Verdict::Parts(_) => Verdict::Whole,
            verdict => verdict,
        };
        let status = format!("offload; fwd={forward}");
        let parts = verdict.parts(found.length);
        let Some(&part) = parts.first().filter(|_| request.get) else {
            return Ok(head(found, verdict).status(&status));
        };
        let incoming = self.origin.get(request.path.as_str(), found, part)?;
        Ok(head(&incoming.representation, verdict)
            .status(&status)
            .header("Connection", "close")
            .body(Body::part(part, Supply::Passing(Box::new(incoming)))))
    }

    /// Passes on what the base says instead of sending the file.
    pub(super) fn pass_on(&self, request: &Request, other: &Other) -> Reply<'a> {
        if other.status >= 500
            && let Some(reply) = self.stale(request, &format!("the base answered {}", other.status))
        {
            return reply;
        }
        if matches!(other.status, 404 | 410)
            && let Some(store) = self.store
        {
            forget(&store.object(&self.options.base, request.path.as_str()), request);
        }
        of_base(other)
    }

    /// Answers although the base cannot be asked.
    pub(super) fn fail(&self, request: &Request, failure: &Failure) -> Reply<'a> {
        let stale = matches!(failure.kind, Kind::Down | Kind::TimedOut)
            .then(|| self.stale(request, &failure.sentence));
        stale.flatten().unwrap_or_else(|| Reply::failed(failure))
    }

    /// Serves what is cached although the base cannot be asked, if that is allowed.
    fn stale(&self, request: &Request, why: &str) -> Option<Reply<'a>> {
        let path = request.path.as_str();
        let object = self.store?.object(&self.options.base, path);
        let (found, freshness) = self.asker(self.store?, &object, request).recall()?;
        let age = age(found.checked, SystemTime::now())?;
        if age > freshness.lifetime.saturating_add(freshness.stale_if_error) {
            return None;
        }
        let record = &found.representation;
        if record.unstorable.is_some() {
            return None;
        }
        let verdict = self.judge(request, record);
        let reply = if request.get && verdict.has_body() {
            let parts = verdict.parts(record.length);
            let generation = object.generation(&record.generation());
            let source = match generation.open_whole() {
                Ok(Some(whole)) => Source::whole(whole.file, whole.record).of(generation),
                // Perhaps the bytes that are asked for are there although others are not.
                _ => Source::open(self.options, generation, record, path, &parts).ok()?,
            };
            if !source.has(&parts) {
                return None;
            }
            self.reply_with(request, source)
        } else {
            head(record, verdict)
        };
        log::line(&format!("{}: served from the cache, unchecked: {why}", request.path));
        Some(aged(reply, found.checked).status("offload; hit; detail=stale-if-error"))
    }
}

pub(super) fn forget(object: &Object, request: &Request) {
    if let Err(error) = object.remove() {
        log::line(&format!("{}: cannot be removed from the cache: {error}", request.path));
    }
}

/// A reply with the base's status, and nothing else of what it has sent.
fn of_base<'a>(other: &Other) -> Reply<'a> {
    let mut reply = Reply::page(other.status, &format!("The base server says {}.", other.status))
        .note(&format!("the base answered {}", other.status))
        .status(&format!("offload; fwd=miss; fwd-status={}", other.status));
    if let Some(location) = &other.location {
        reply = reply.header("Location", location);
    }
    if let Some(retry_after) = &other.retry_after {
        reply = reply.header("Retry-After", retry_after);
    }
    reply
}
