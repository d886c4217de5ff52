//! One request -> one Reply: asks the base, finds the bytes, writes the head.

use std::time::SystemTime;

use offload_core::path::CanonicalPath;

use crate::body::Body;
use crate::failure::{Failure, Kind};
use crate::fill::Order;
use crate::follow::{Follower, Source};
use crate::http::{Conditions, EntityTag, Modified, Part, Verdict, judge};
use crate::log;
use crate::options::Options;
use crate::origin::{Answer, Origin, Other};
use crate::reply::Reply;
use crate::representation::Representation;
use crate::store::{Generation, Object, Store, Whole};

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
    pub(crate) store: &'a Store,
}

impl<'a> Exchange<'a> {
    /// Answers one request.
    pub(crate) fn answer(&self, request: &Request) -> Reply<'a> {
        let path = request.path.as_str();
        let object = self.store.object(&self.options.base, path);
        for _ in 0..MOST_CHANGES {
            let checked = SystemTime::now();
            match self.origin.head(path) {
                Ok(Answer::File(found)) => match self.serve(request, &object, found, checked) {
                    Err(failure) if failure.kind == Kind::Changed => {}
                    reply => return reply.unwrap_or_else(|failure| Reply::failed(&failure)),
                },
                Ok(Answer::Other(other)) => return self.pass_on(request, &object, &other),
                Err(failure) if matches!(failure.kind, Kind::Down | Kind::TimedOut) => {
                    let stale = self.stale(request, &object, &failure.sentence);
                    return stale.unwrap_or_else(|| Reply::failed(&failure));
                }
                Err(failure) => return Reply::failed(&failure),
            }
        }
        Reply::failed(&Kind::Changed.says("the base changes the file all the time"))
    }

    /// Serves the version that the base has now.
    fn serve(
        &self,
        request: &Request,
        object: &Object,
        found: Representation,
        checked: SystemTime,
    ) -> Result<Reply<'a>, Failure> {
        let generation = object.generation(&found.generation());
        // What is damaged is found out, and put aside, by the follower.
        if let Ok(Some(whole)) = generation.open_whole() {
            if let Err(error) = object.confirm(generation.name(), checked) {
                log::line(&format!("{}: the check cannot be noted: {error}", request.path));
            }
            // The date that makes Last-Modified strong is the stored body's.
            let mut now = found;
            now.validators.answered = whole.record.validators.answered;
            let source = Source::whole(whole.file, now);
            return Ok(self.reply_with(request, source).status("offload; hit"));
        }
        let stale = object.current().is_some_and(|current| current.generation != generation.name());
        let forward = if stale { "stale" } else { "miss" };
        let verdict = judge(&request.conditions, &found.validators, found.length, request.get);
        let part = match verdict {
            Verdict::Whole => Part::whole(found.length),
            Verdict::Part(part) => part,
            _ => return Ok(head(&found, verdict).status(&format!("offload; fwd={forward}"))),
        };
        if !request.get {
            return Ok(head(&found, verdict).status(&format!("offload; fwd={forward}")));
        }
        match self.follow(request, generation, &found, checked) {
            Ok(source) => {
                let whole = source.whole;
                let detail = if source.has_filled() { "; stored" } else { "; collapsed" };
                let reply = self.reply_with(request, source);
                let reply = reply.status(&format!("offload; fwd={forward}{detail}"));
                // httpd would keep the connection, and the client waiting, when the fill breaks off.
                Ok(if whole { reply } else { reply.header("Connection", "close") })
            }
            Err(failure) if failure.kind == Kind::NoRoom => {
                log::line(&format!("{}: passed through: {}", request.path, failure.sentence));
                self.pass_through(request, &found, part, forward)
            }
            Err(failure) => Err(failure),
        }
    }

    fn follow(
        &self,
        request: &Request,
        generation: Generation,
        found: &Representation,
        checked: SystemTime,
    ) -> Result<Source<'a>, Failure> {
        let path = request.path.as_str().to_owned();
        let order = Order { path, wanted: found.clone(), checked };
        Follower::new(self.store, self.options, generation, order)?.attach()
    }

    /// Answers from a body in the cache.
    fn reply_with(&self, request: &Request, source: Source<'a>) -> Reply<'a> {
        let record = &source.record;
        let verdict = judge(&request.conditions, &record.validators, record.length, request.get);
        let reply = head(record, verdict);
        let part = match verdict {
            Verdict::Whole => Part::whole(record.length),
            Verdict::Part(part) => part,
            _ => return reply,
        };
        let path = request.path.as_str().to_owned();
        reply.body(Body::Stored { source: Box::new(source), part, origin: self.origin, path })
    }

    /// Answers from the base without storing.
    fn pass_through(
        &self,
        request: &Request,
        found: &Representation,
        part: Part,
        forward: &str,
    ) -> Result<Reply<'a>, Failure> {
        let incoming = self.origin.get(request.path.as_str(), found, part)?;
        let verdict = judge(&request.conditions, &found.validators, found.length, true);
        Ok(head(&incoming.representation, verdict)
            .status(&format!("offload; fwd={forward}; detail=no-room"))
            .header("Connection", "close")
            .body(Body::Passing { incoming: Box::new(incoming), part }))
    }

    /// Passes on what the base says instead of sending the file.
    fn pass_on(&self, request: &Request, object: &Object, other: &Other) -> Reply<'a> {
        if other.status >= 500
            && let Some(reply) =
                self.stale(request, object, &format!("the base answered {}", other.status))
        {
            return reply;
        }
        if matches!(other.status, 404 | 410)
            && let Err(error) = object.remove()
        {
            log::line(&format!("{}: cannot be removed from the cache: {error}", request.path));
        }
        let mut reply =
            Reply::page(other.status, &format!("The base server says {}.", other.status))
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

    /// Serves what is cached although the base cannot be asked, if that is allowed.
    fn stale(&self, request: &Request, object: &Object, why: &str) -> Option<Reply<'a>> {
        let current = object.current()?;
        let age = current.checked.elapsed().unwrap_or_default();
        if age > self.options.stale_if_error.duration() {
            return None;
        }
        let Ok(Some(Whole { file, record })) = object.generation(&current.generation).open_whole()
        else {
            return None;
        };
        log::line(&format!("{}: served from the cache, unchecked: {why}", request.path));
        let reply = self.reply_with(request, Source::whole(file, record));
        let reply = reply.header("Age", &age.as_secs().to_string());
        Some(reply.status("offload; hit; detail=stale-if-error"))
    }
}

/// The head of a reply about a version, as the verdict wants it; the body is still to come.
fn head<'a>(found: &Representation, verdict: Verdict) -> Reply<'a> {
    let length = found.length;
    let mut reply = match verdict {
        Verdict::Whole => Reply::new(200).header("Content-Length", &length.to_string()),
        Verdict::Part(part) => Reply::new(206)
            .header("Content-Length", &part.length.to_string())
            .header("Content-Range", &part.content_range(length)),
        Verdict::NotModified => Reply::new(304),
        Verdict::Failed => return Reply::page(412, "The file is another one by now."),
        Verdict::Unsatisfiable => {
            return Reply::page(416, "The file has no such bytes.")
                .header("Content-Range", &format!("bytes */{length}"));
        }
    };
    reply = reply.header("Accept-Ranges", "bytes");
    if let Some(etag) = found.validators.etag.as_ref().map(EntityTag::as_str) {
        reply = reply.header("ETag", etag);
    }
    if let Some(modified) = found.validators.modified.as_ref().map(Modified::as_str) {
        reply = reply.header("Last-Modified", modified);
    }
    for (name, value) in &found.headers {
        // A 304 has no content to describe (RFC 9110, section 15.4.5).
        if verdict != Verdict::NotModified || !name.starts_with("Content-") {
            reply = reply.header(name, value);
        }
    }
    reply
}
