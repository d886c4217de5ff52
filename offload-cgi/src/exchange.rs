//! One request -> one Reply: asks the base if need be, finds the bytes, writes the head. Each step says whether it
//! may wait for the base; none waits for bytes but `answer`, which takes all of them for a process of its own.

mod awaited;
mod heads;
mod otherwise;

use std::sync::Arc;
use std::time::SystemTime;

use offload_core::path::CanonicalPath;

pub(crate) use self::awaited::Awaited;
use self::heads::{head, multipart};
use self::otherwise::forget;
use crate::ask::{Asker, Certainty, Found, Known};
use crate::body::{Body, Piece, Supply};
use crate::failure::Failure;
use crate::http::{Conditions, Part, Verdict, judge};
use crate::log;
use crate::options::Options;
use crate::origin::{Answer, Origin};
use crate::reply::Reply;
use crate::representation::{DATE, Representation};
use crate::source::Source;
use crate::store::{Object, Store};

/// What a client asks for, as far as it matters here.
pub(crate) struct Request {
    /// GET, not HEAD.
    pub(crate) get: bool,
    pub(crate) path: CanonicalPath,
    pub(crate) conditions: Conditions,
}

/// What answers requests: settings, base and cache.
pub(crate) struct Exchange<'a> {
    pub(crate) options: &'a Options,
    pub(crate) origin: &'a Origin,
    /// None where the cache cannot be had: then everything is passed through.
    pub(crate) store: Option<&'a Store>,
}

/// A whole body of the cache, open; nobody takes it away meanwhile.
pub(crate) struct Kept {
    pub(crate) source: Arc<Source<'static>>,
    checked: SystemTime,
    pub(crate) until: SystemTime,
}

/// How far a request has come.
pub(crate) enum Outcome<'a> {
    Reply(Reply<'a>),
    /// The first of its bytes is still to come.
    Awaits(Box<Awaited<'a>>),
}

impl<'a> Exchange<'a> {
    /// Answers one request, however long that takes.
    pub(crate) fn answer(&self, request: &Request) -> Reply<'a> {
        let (mut changes, mut outcome) = (0, None);
        loop {
            let mut awaited = match outcome {
                Some(Outcome::Reply(reply)) => return reply,
                Some(Outcome::Awaits(awaited)) => awaited,
                None => {
                    let known = self.check(request, changes);
                    outcome = self.settle(request, known, &mut changes);
                    continue;
                }
            };
            outcome = match awaited.wait() {
                Ok(()) => return self.finish(request, *awaited),
                Err(failure) => self.resume(request, *awaited, &failure, &mut changes),
            };
        }
    }

    /// What can be done with what the cache has, without waiting for anybody; `None`: the base is to be asked.
    pub(crate) fn recall(&self, request: &Request) -> Option<Outcome<'a>> {
        let store = self.store?;
        let object = store.object(&self.options.base, request.path.as_str());
        let found = self.asker(store, &object, request).known(SystemTime::now())?;
        self.proceed(request, &Ok(Known::File(found)))
    }

    /// What the base says about a file, or the cache if that is good enough: not for who was told once, or more
    /// often, something that was not so any more.
    ///
    /// # Errors
    /// As `Asker::ask`.
    pub(crate) fn check(&self, request: &Request, changes: u32) -> Result<Known, Failure> {
        let now = SystemTime::now();
        let Some(store) = self.store else {
            return self.origin.head(request.path.as_str()).map(|answer| match answer {
                Answer::File(representation) => Known::File(Found::unnoted(representation, now)),
                Answer::Other(other) => Known::Other(other),
            });
        };
        let object = store.object(&self.options.base, request.path.as_str());
        let asker = self.asker(store, &object, request);
        let known = if changes == 0 { asker.known(now) } else { None };
        known.map_or_else(|| asker.ask(now), |found| Ok(Known::File(found)))
    }

    /// What the base says about a file of which others cannot be told.
    ///
    /// # Errors
    /// As `Asker::ask`.
    pub(crate) fn check_alone(&self, request: &Request) -> Result<Known, Failure> {
        let Some(store) = self.store else { return self.check(request, 0) };
        let object = store.object(&self.options.base, request.path.as_str());
        self.asker(store, &object, request).ask_alone()
    }

    /// What follows from what is known, as far as that needs the base no more. `None`: see `settle`.
    pub(crate) fn proceed(
        &self,
        request: &Request,
        known: &Result<Known, Failure>,
    ) -> Option<Outcome<'a>> {
        match known {
            Ok(Known::File(found)) => self.serve(request, found).ok().flatten(),
            Ok(Known::Other(other)) => Some(Outcome::Reply(self.pass_on(request, other))),
            Err(failure) => Some(Outcome::Reply(self.fail(request, failure))),
        }
    }

    /// What follows from what is known. May wait for the base. `None`: it has changed the file, and is to be
    /// asked again.
    pub(crate) fn settle(
        &self,
        request: &Request,
        known: Result<Known, Failure>,
        changes: &mut u32,
    ) -> Option<Outcome<'a>> {
        let Ok(Known::File(found)) = &known else { return self.proceed(request, &known) };
        let served = self.serve(request, found).and_then(|outcome| match outcome {
            Some(outcome) => Ok(outcome),
            None => self.past_cache(request, found).map(Outcome::Reply),
        });
        served.map_or_else(|failure| self.despite(request, found, &failure, changes), Some)
    }

    /// What follows when the byte that was waited for does not come. May wait for the base. `None`: as `settle`.
    pub(crate) fn resume(
        &self,
        request: &Request,
        awaited: Awaited<'a>,
        failure: &Failure,
        changes: &mut u32,
    ) -> Option<Outcome<'a>> {
        self.despite(request, &awaited.into_found(), failure, changes)
    }

    /// Asks the base about a file that was served although it should have been asked before; unless others
    /// do so, about this file or many at the same time: nobody waits for it, and nothing else bounds them.
    pub(crate) fn revalidate(&self, request: &Request) {
        let Some(store) = self.store else { return };
        let object = store.object(&self.options.base, request.path.as_str());
        let asker = self.asker(store, &object, request);
        // Somebody may have asked since.
        let known = asker.known(SystemTime::now());
        if known.is_some_and(|found| found.certainty == Certainty::Fresh) {
            return;
        }
        let Ok(Some(_place)) = store.revalidation() else { return };
        match asker.ask_if_nobody_does() {
            Ok(Some(Known::Other(other))) if matches!(other.status, 404 | 410) => {
                forget(&object, request)
            }
            Ok(_) => {}
            Err(failure) => log::line(&format!("{}: {}", request.path, failure.sentence)),
        }
    }

    fn asker<'b>(
        &'b self,
        store: &'b Store,
        object: &'b Object,
        request: &'b Request,
    ) -> Asker<'b> {
        Asker {
            options: self.options,
            origin: self.origin,
            store,
            object,
            path: request.path.as_str(),
            makes_room: request.get,
        }
    }

    /// Serves a version that the base has, from the cache. `None`: it is not for the cache.
    ///
    /// # Errors
    /// Why the cache does not have it, and will not.
    fn serve(&self, request: &Request, found: &Found) -> Result<Option<Outcome<'a>>, Failure> {
        let Found { representation, checked, certainty, .. } = found;
        let (checked, certainty) = (*checked, *certainty);
        let Some(store) = self.store.filter(|_| representation.unstorable.is_none()) else {
            return Ok(None);
        };
        let object = store.object(&self.options.base, request.path.as_str());
        let generation = object.generation(&representation.generation());
        // What is damaged is found out, and put aside, by who sets the generation up.
        let whole = match certainty {
            // The record has been written, or compared, since.
            Certainty::Asked => generation.open_whole().ok().flatten(),
            Certainty::Fresh | Certainty::Stale => {
                object.touch(SystemTime::now());
                generation.open_whole_of(representation.clone())
            }
        };
        if let Some(whole) = whole {
            // The date that makes Last-Modified strong is the stored body's.
            let mut now = representation.clone();
            now.validators.answered = whole.record.validators.answered;
            let source = Source::whole(whole.file, now).of(generation);
            let reply = self.reply_with(request, source);
            return Ok(Some(Outcome::Reply(hit(reply, checked, certainty))));
        }
        let verdict = self.judge(request, representation);
        if !request.get || !verdict.has_body() {
            let reply = missed(head(representation, verdict), checked, certainty);
            return Ok(Some(Outcome::Reply(reply.status("offload; fwd=miss"))));
        }
        let parts = verdict.parts(representation.length);
        self.join(request, generation, found, &parts).map(Some)
    }

    fn judge(&self, request: &Request, found: &Representation) -> Verdict {
        judge(&request.conditions, &found.validators, found.length, request.get)
    }

    /// Answers from a body in the cache.
    fn reply_with(&self, request: &Request, source: Source<'a>) -> Reply<'a> {
        let mut reply = self.shape(request, &source.record);
        if reply.body.pieces.iter().any(|piece| matches!(piece, Piece::Part(_))) {
            reply.body.supply = self.stored(source, request.path.as_str().to_owned());
        }
        reply
    }

    /// A reply about a body that somebody else supplies.
    fn shape(&self, request: &Request, record: &Representation) -> Reply<'a> {
        let verdict = self.judge(request, record);
        let reply = head(record, verdict.clone());
        match verdict {
            Verdict::Whole => reply.body(Body::part(Part::whole(record.length), Supply::None)),
            Verdict::Part(part) => reply.body(Body::part(part, Supply::None)),
            Verdict::Parts(parts) => {
                let (content_type, length, pieces) = multipart(record, &parts);
                reply
                    .header("Content-Type", &content_type)
                    .header("Content-Length", &length.to_string())
                    .body(Body { pieces, supply: Supply::None })
            }
            _ => reply,
        }
    }

    /// A whole body of the cache that may be served without asking anybody, and until when: for who
    /// keeps it open.
    pub(crate) fn keep(&self, request: &Request) -> Option<Kept> {
        let object = self.store?.object(&self.options.base, request.path.as_str());
        let (found, freshness) = self.asker(self.store?, &object, request).recall()?;
        let until = found.checked.checked_add(freshness.lifetime)?;
        let generation = object.generation(&found.representation.generation());
        let whole = generation.open_whole().ok()??;
        let mut record = found.representation;
        record.validators.answered = whole.record.validators.answered;
        let usable = record.unstorable.is_none() && SystemTime::now() < until;
        let source = Arc::new(Source::whole(whole.file, record).of(generation));
        usable.then_some(Kept { source, checked: found.checked, until })
    }

    /// Answers with a body that was kept open; its parts are those of the kept file.
    pub(crate) fn answer_with(&self, request: &Request, kept: &Kept) -> Reply<'a> {
        hit(self.shape(request, &kept.source.record), kept.checked, Certainty::Fresh)
    }

    fn stored(&self, source: Source<'a>, path: String) -> Supply<'a> {
        Supply::Stored {
            source: Box::new(source),
            origin: self.origin,
            path,
            options: self.options,
        }
    }
}

/// A reply from the cache, which says how well it is known that it is the base's.
fn hit(reply: Reply<'_>, checked: SystemTime, certainty: Certainty) -> Reply<'_> {
    let reply = aged(reply, checked);
    match certainty {
        Certainty::Asked | Certainty::Fresh => reply.status("offload; hit"),
        Certainty::Stale => {
            let mut reply = reply.status("offload; hit; detail=stale-while-revalidate");
            reply.revalidate = true;
            reply
        }
    }
}

/// A reply about bytes that are not all in the cache. The base need not have been asked about them now.
fn missed(reply: Reply<'_>, checked: SystemTime, certainty: Certainty) -> Reply<'_> {
    let is_old = checked.elapsed().is_ok_and(|age| age.as_secs() > 0);
    let mut reply =
        if is_old || certainty != Certainty::Asked { aged(reply, checked) } else { reply };
    reply.revalidate = certainty == Certainty::Stale;
    reply
}

/// Says when the base has vouched for this (RFC 9111, section 5.1).
fn aged(reply: Reply<'_>, checked: SystemTime) -> Reply<'_> {
    let age = checked.elapsed().unwrap_or_default();
    reply.header("Age", &age.as_secs().to_string()).header(DATE, &httpdate::fmt_http_date(checked))
}
