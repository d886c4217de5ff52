//! From bytes that came in to a reply that goes out: heads, hits, whom to ask.

use std::sync::Arc;
use std::time::SystemTime;

use super::connection::{Ask, Bytes, Connection, Sending, State, Waiting};
use super::pulse::Pulse;
use super::queue::Turn;
use super::socket::Moved;
use super::{Fate, Sender};
use crate::body::Supply;
use crate::daemon::{Site, Step, Visit, client_of, has_end, read, write_head};
use crate::downloads::Place;
use crate::exchange::Request;
use crate::head::{BadHead, Head, Scan};
use crate::options::DupeMode;
use crate::reply::Reply;

impl Sender {
    /// Receives until there is a head, and sees to it that it is answered. `None`: the connection goes on.
    pub(super) fn read(&mut self, connection: &mut Box<Connection>, number: u64) -> Option<Fate> {
        let found = if connection.buffer.is_empty() {
            Ok(None)
        } else {
            let mut scan = std::mem::take(&mut connection.scan);
            let found = scan.find(&connection.buffer);
            connection.scan = scan;
            found
        };
        match found {
            Ok(Some((head, end))) => {
                connection.buffer.drain(..end);
                self.headed(connection, number, &head)
            }
            Ok(None) => self.receive(connection, number),
            Err(bad) => self.refuse(connection, bad),
        }
    }

    fn receive(&mut self, connection: &mut Box<Connection>, number: u64) -> Option<Fate> {
        if !connection.readable {
            return Some(Fate::Keep);
        }
        let count = match connection.socket.receive(&mut self.scratch) {
            Ok(Moved::Bytes(0)) | Err(_) => return Some(Fate::Close),
            Ok(Moved::Full) => {
                connection.readable = false;
                return Some(Fate::Keep);
            }
            Ok(Moved::Bytes(count)) => count,
        };
        // What comes after this, or the end that has not come yet, is another edge.
        connection.readable = count == self.scratch.len() || connection.ended;
        let bytes = self.scratch.get(..count).unwrap_or_default();
        if !connection.buffer.is_empty() {
            connection.buffer.extend_from_slice(bytes);
            return None;
        }
        if connection.served > 0 {
            // The time for a head begins with its first byte.
            connection.since = self.now;
        }
        let mut scan = Scan::default();
        match scan.find(bytes) {
            Ok(Some((head, end))) => {
                connection.buffer = bytes.get(end..).unwrap_or_default().to_vec();
                self.headed(connection, number, &head)
            }
            Ok(None) => {
                connection.buffer = bytes.to_vec();
                connection.scan = scan;
                None
            }
            Err(bad) => self.refuse(connection, bad),
        }
    }

    fn headed(
        &mut self,
        connection: &mut Box<Connection>,
        number: u64,
        head: &Head,
    ) -> Option<Fate> {
        connection.scan = Scan::default();
        if connection.buffer.is_empty() {
            connection.buffer = Vec::new();
        }
        connection.served += 1;
        let visit = Visit::new(head, &self.plan, connection.socket.peer(), self.now);
        let visit = Box::new(visit);
        // After a body that is not read nobody knows where the next head begins.
        let keep = head.wants_more() && !head.has_body() && !self.draining;
        match read(head, &self.plan) {
            Step::Reply(reply) => self.reply(connection, visit, head.minor(), keep, reply),
            Step::Ask(site, request) => {
                let minor = head.minor();
                let request = Arc::new(request);
                let ask = Ask { site, request, visit, minor, keep, body: None };
                self.ask(connection, number, ask)
            }
        }
    }

    /// What is no request of HTTP.
    fn refuse(&mut self, connection: &mut Box<Connection>, bad: BadHead) -> Option<Fate> {
        connection.buffer = Vec::new();
        connection.served += 1;
        let visit = Box::new(Visit::unreadable(connection.socket.peer(), self.now));
        let reply = Reply::refused(bad.status(), &bad.to_string());
        self.reply(connection, visit, 1, false, reply)
    }

    /// A file is wanted: sees whether its client may have it now, then who can answer.
    pub(super) fn ask(
        &mut self,
        connection: &mut Box<Connection>,
        number: u64,
        ask: Ask,
    ) -> Option<Fate> {
        let place = match self.turn_of(&ask) {
            Turn::Now(place) => place,
            Turn::Later(patience) => {
                let until = self.now + patience;
                connection.state = State::Waiting(Box::new(Waiting { ask, until }));
                self.queue.push(number);
                return Some(Fate::Keep);
            }
        };
        if let Some(kept) = ask.site.kept(ask.request.path.as_str(), SystemTime::now()) {
            let reply = ask.site.exchange().answer_with(&ask.request, &kept);
            return self.begin(
                connection,
                number,
                ask,
                reply,
                place,
                Bytes::Kept(Arc::clone(&kept.source)),
            );
        }
        let Some(body) = self.common.open_body() else {
            let reply =
                Reply::page(503, "There are too many downloads now; please try again in a moment.")
                    .header("Retry-After", "10")
                    .note("there are not enough descriptors (see `ulimit -n`, LimitNOFILE)");
            return self.reply(connection, ask.visit, ask.minor, ask.keep, reply);
        };
        let ask = Ask { body: Some(body), ..ask };
        self.give(connection, number, ask, place);
        Some(Fate::Keep)
    }

    /// There is a reply, whose parts are those of `supply` if it has none of its own. `None`: it can go out.
    pub(super) fn begin(
        &mut self,
        connection: &mut Box<Connection>,
        number: u64,
        ask: Ask,
        mut reply: Reply<'static>,
        mut place: Option<Place<'static>>,
        supply: Bytes,
    ) -> Option<Fate> {
        let options = ask.site.options();
        let has_body = matches!(reply.code, 200 | 206) && ask.request.get;
        if !has_body {
            place = None;
        } else if place.is_none()
            && options.dupe_mode == DupeMode::Deny
            && let (Some(downloads), Some(client)) = (ask.site.downloads(), ask.visit.client)
        {
            let source = format!("{}{}", options.base, ask.request.path);
            place = downloads.take(client, &source, options.max_dupes);
            if place.is_none() {
                return self.too_many(connection, ask);
            }
        }
        let body = std::mem::take(&mut reply.body);
        let supply = match body.supply {
            Supply::None => supply,
            Supply::Stored { source, origin, path, options } => {
                Bytes::Stored { source, origin, path, options }
            }
            Supply::Passing(incoming) => Bytes::Passing(incoming),
        };
        let Ask { site, request, visit, minor, keep, body: open } = ask;
        let passing = has_body && matches!(supply, Bytes::Passing(_));
        let mut sending = self.sending(visit, Some(site), minor, keep && !passing, &reply);
        if request.get {
            sending.pieces = body.pieces.into_iter();
            sending.body = open.filter(|_| !matches!(supply, Bytes::None | Bytes::Kept(_)));
            sending.supply = supply;
            sending.place = place;
        }
        if has_body {
            self.pace(connection, &mut sending, site, &request);
        }
        connection.state = State::Sending(Box::new(sending));
        connection.since = self.now;
        // The base's speed, and a thread: there is no file to send from.
        passing.then(|| self.carry(connection, number))
    }

    /// Sees to it that a body goes out no faster than it may.
    fn pace(
        &self,
        connection: &mut Connection,
        sending: &mut Sending,
        site: &'static Site,
        request: &Request,
    ) {
        let caps = site.caps();
        let Some(peer) = connection.socket.peer().filter(|_| !caps.is_none()) else {
            if std::mem::take(&mut connection.is_paced) {
                connection.socket.pace(None);
            }
            return;
        };
        if connection.is_paced {
            // What is left of the reply before is not this one's.
            sending.pulse = Pulse::behind(connection.socket.queued(), self.now);
        }
        connection.is_paced = true;
        // Behind a proxy the connection is the proxy's; its client is whom it names.
        let client = client_of(sending.visit.client.or(Some(peer)));
        let (socket, path) = (&connection.socket, request.path.as_str());
        sending.paced = Some(self.common.paces.join(socket, caps, client, site.number, path));
        // Of the connection, not of the reply: else many small parts would all be a burst.
        sending.burst = site.settings.burst.saturating_sub(connection.sent_before);
    }

    /// A reply of this program itself.
    pub(super) fn reply(
        &mut self,
        connection: &mut Box<Connection>,
        visit: Box<Visit>,
        minor: u8,
        keep: bool,
        mut reply: Reply<'static>,
    ) -> Option<Fate> {
        let body = std::mem::take(&mut reply.body);
        let mut sending = self.sending(visit, None, minor, keep, &reply);
        if !sending.visit.head_only {
            sending.pieces = body.pieces.into_iter();
        }
        connection.state = State::Sending(Box::new(sending));
        connection.since = self.now;
        None
    }

    fn sending(
        &self,
        mut visit: Box<Visit>,
        site: Option<&'static Site>,
        minor: u8,
        keep: bool,
        reply: &Reply<'static>,
    ) -> Sending {
        let keep = keep && has_end(reply);
        visit.code = reply.code;
        visit.cache = reply.note.as_str().into();
        if reply.loud || site.is_some_and(|site| site.options().debug) {
            self.common.journal.tell(&format!("{} {}: {}", reply.code, visit.line, reply.note));
        }
        self.common.count(reply, site.is_some());
        Sending {
            text: write_head(reply, minor, keep),
            text_sent: 0,
            in_head: true,
            part: None,
            pieces: Vec::new().into_iter(),
            supply: Bytes::None,
            keep,
            visit,
            site,
            sent: 0,
            place: None,
            body: None,
            paced: None,
            burst: 0,
            queue: 0,
            watch: None,
            changes: 0,
            changed: self.now,
            is_waiting: false,
            pulse: Pulse::new(self.now),
        }
    }
}
