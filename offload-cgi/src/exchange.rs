//! One request -> one Reply: asks the base if need be, finds the bytes, writes the head.

mod heads;

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use offload_core::path::CanonicalPath;

use self::heads::{head, multipart};
use crate::ask::{Asker, Certainty, Found, Known};
use crate::body::{Body, Piece, Supply};
use crate::failure::{Failure, Kind};
use crate::http::{Conditions, Part, Verdict, judge};
use crate::options::Options;
use crate::origin::{Answer, Origin, Other};
use crate::reply::Reply;
use crate::representation::{DATE, Representation};
use crate::source::Source;
use crate::store::{Object, Store, age};
use crate::{local, log};

/// How often the base may change a file under our hands before the client is sent away.
const MOST_CHANGES: u32 = 3;

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

impl<'a> Exchange<'a> {
    /// Answers one request.
    pub(crate) fn answer(&self, request: &Request) -> Reply<'a> {
        let Some(store) = self.store else { return self.answer_without_cache(request) };
        let object = store.object(&self.options.base, request.path.as_str());
        let asker = self.asker(store, &object, request);
        let mut known = asker.find(SystemTime::now());
        for _ in 0..MOST_CHANGES {
            match known {
                Ok(Known::File(found)) => match self.serve(request, &object, found) {
                    Err(failure) if failure.kind == Kind::Changed => {}
                    reply => return reply.unwrap_or_else(|failure| Reply::failed(&failure)),
                },
                Ok(Known::Other(other)) => return self.pass_on(request, &asker, &other),
                Err(failure) if matches!(failure.kind, Kind::Down | Kind::TimedOut) => {
                    let stale = self.stale(request, &asker, &failure.sentence);
                    return stale.unwrap_or_else(|| Reply::failed(&failure));
                }
                Err(failure) => return Reply::failed(&failure),
            }
            known = asker.ask(SystemTime::now());
        }
        Reply::failed(&Kind::Changed.says("the base changes the file all the time"))
    }

    /// Asks the base about a file that was served although it should have been asked before; unless others
    /// do so, about this file or many at the same time: nobody waits for it, and nothing else bounds them.
    pub(crate) fn revalidate(&self, request: &Request) {
        let Some(store) = self.store else { return };
        let object = store.object(&self.options.base, request.path.as_str());
        let asker = self.asker(store, &object, request);
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

    /// Passes through what the base has, for there is nowhere to keep it.
    fn answer_without_cache(&self, request: &Request) -> Reply<'a> {
        let checked = SystemTime::now();
        match self.origin.head(request.path.as_str()) {
            Ok(Answer::File(found)) => match self.local(request, &found) {
                Some(file) => {
                    let reply = self.reply_with(request, Source::whole(file, found));
                    aged(reply, checked).status("offload; hit; detail=document-root")
                }
                None => self
                    .pass_through(request, &found, "miss; detail=no-cache")
                    .unwrap_or_else(|failure| Reply::failed(&failure)),
            },
            Ok(Answer::Other(other)) => of_base(&other),
            Err(failure) => Reply::failed(&failure),
        }
    }

    /// The file of no-cache mode, if it is the base's.
    fn local(&self, request: &Request, found: &Representation) -> Option<File> {
        let root = self.options.document_root.as_ref()?;
        local::open(root, &request.path, found)
    }

    /// Serves a version that the base has.
    fn serve(
        &self,
        request: &Request,
        object: &Object,
        found: Found,
    ) -> Result<Reply<'a>, Failure> {
        let Found { representation: found_now, checked, certainty, .. } = found;
        if let Some(why) = found_now.unstorable {
            let forward = format!("miss; detail={}", why.detail());
            return self.pass_through(request, &found_now, &forward);
        }
        let generation = object.generation(&found_now.generation());
        // What is damaged is found out, and put aside, by who sets the generation up.
        let whole = match certainty {
            // The record has been written, or compared, since.
            Certainty::Asked => generation.open_whole().ok().flatten(),
            Certainty::Fresh | Certainty::Stale => {
                object.touch(SystemTime::now());
                generation.open_whole_of(found_now.clone())
            }
        };
        if let Some(whole) = whole {
            // The date that makes Last-Modified strong is the stored body's.
            let mut now = found_now;
            now.validators.answered = whole.record.validators.answered;
            let source = Source::whole(whole.file, now).of(generation);
            let reply = self.reply_with(request, source);
            return Ok(hit(reply, checked, certainty));
        }
        let verdict = self.judge(request, &found_now);
        let parts = verdict.parts(found_now.length);
        if !request.get || !verdict.has_body() {
            let reply = missed(head(&found_now, verdict), checked, certainty);
            return Ok(reply.status("offload; fwd=miss"));
        }
        let path = request.path.as_str();
        let source = Source::open(self.options, generation, &found_now, path, &parts);
        let source = source.and_then(|mut source| {
            let all_there = source.has(&parts);
            if let Some(part) = parts.first().filter(|part| part.length > 0) {
                source.wait_for(part.first)?;
            }
            source.refresh();
            Ok((source, all_there))
        });
        match source {
            Ok((source, true)) => {
                let reply = self.reply_with(request, source);
                Ok(hit(reply, checked, certainty))
            }
            Ok((source, false)) => {
                let detail = if source.has_filled() { "; stored" } else { "; collapsed" };
                let reply = missed(self.reply_with(request, source), checked, certainty);
                // httpd would keep the connection, and the client waiting, when the fill breaks off.
                Ok(reply
                    .status(&format!("offload; fwd=miss{detail}"))
                    .header("Connection", "close"))
            }
            Err(failure) if failure.kind == Kind::NoRoom => {
                let text = format!("{path}: passed through: {}", failure.sentence);
                log::rarely(self.options.notes(), "no-room", &text);
                self.pass_through(request, &found_now, "miss; detail=no-room")
            }
            Err(failure) if failure.kind == Kind::Unstorable => {
                self.pass_through(request, &found_now, "miss; detail=unstorable")
            }
            Err(failure) => Err(failure),
        }
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
    fn pass_on(&self, request: &Request, asker: &Asker<'_>, other: &Other) -> Reply<'a> {
        if other.status >= 500
            && let Some(reply) =
                self.stale(request, asker, &format!("the base answered {}", other.status))
        {
            return reply;
        }
        if matches!(other.status, 404 | 410) {
            forget(asker.object, request);
        }
        of_base(other)
    }

    /// Serves what is cached although the base cannot be asked, if that is allowed.
    fn stale(&self, request: &Request, asker: &Asker<'_>, why: &str) -> Option<Reply<'a>> {
        let (found, freshness) = asker.recall()?;
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
            let generation = asker.object.generation(&record.generation());
            let source = match generation.open_whole() {
                Ok(Some(whole)) => Source::whole(whole.file, whole.record).of(generation),
                // Perhaps the bytes that are asked for are there although others are not.
                _ => Source::open(self.options, generation, record, asker.path, &parts).ok()?,
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

fn forget(object: &Object, request: &Request) {
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
