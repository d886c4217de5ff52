//! An exchange's way through the threads of the pool, and back to the sender: what the cache knows, then what
//! the base says, if it must be asked. No thread waits for bytes; the sender does, for all of its connections.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::Sender;
use super::connection::{Ask, Awaiting, Connection, State};
use super::inbox::{Answered, Inbox, Message};
use super::socket::Socket;
use crate::ask::Known;
use crate::body::Supply;
use crate::daemon::{Common, Herald, News, Site, Visitor};
use crate::downloads::Place;
use crate::exchange::{Awaited, Outcome, Request};
use crate::failure::{Failure, Kind};
use crate::reply::Reply;
use crate::source::Source;

/// A request on its way through the threads.
pub(crate) struct Errand {
    common: Arc<Common>,
    site: &'static Site,
    request: Arc<Request>,
    socket: Weak<Socket>,
    asked: Instant,
    /// How often the base had another version than it said.
    changes: u32,
    owed: Owed,
}

/// A debt: whoever asked gets a reply, even if the exchange panics.
struct Owed {
    inbox: Arc<Inbox>,
    number: u64,
    ask: Option<Ask>,
    place: Option<Place<'static>>,
}

impl Owed {
    fn pay(&mut self, reply: Reply<'static>, body: Option<Arc<Source<'static>>>) {
        if let Some(ask) = self.ask.take() {
            let answered = Answered { ask, reply, place: self.place.take(), body };
            // A sender that has ended has no connection that waits for it.
            let _ = self.inbox.put(Message::Answer(self.number, Box::new(answered)));
        }
    }

    /// There is a reply as soon as there are bytes.
    fn promise(&mut self, awaited: Box<Awaited<'static>>, changes: u32) {
        if let Some(ask) = self.ask.take() {
            let awaiting =
                Awaiting { ask, place: self.place.take(), awaited, changes, watch: None };
            let _ = self.inbox.put(Message::Await(self.number, Box::new(awaiting)));
        }
    }

    /// Nobody waits for it any more.
    fn forget(&mut self) {
        (self.ask, self.place) = (None, None);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let page = Reply::page(500, "Something went wrong here; the error log says what.");
        self.pay(page, None);
    }
}

impl Sender {
    /// Has a request answered by the threads of the pool.
    pub(super) fn give(
        &self,
        connection: &mut Connection,
        number: u64,
        ask: Ask,
        place: Option<Place<'static>>,
    ) {
        let errand = self.errand(connection, number, ask, place, 0);
        self.common.pool.give(move || errand.begin());
    }

    /// Has an exchange go on whose bytes do not come.
    pub(super) fn give_back(
        &self,
        connection: &mut Connection,
        number: u64,
        awaiting: Awaiting,
        failure: Failure,
    ) {
        let Awaiting { ask, place, awaited, changes, .. } = awaiting;
        let site = ask.site.number;
        let asks = failure.kind == Kind::Changed || failure.kind.is_of_cache();
        let errand = self.errand(connection, number, ask, place, changes);
        let resume = move || errand.resume(*awaited, &failure);
        if asks {
            self.common.pool.ask(site, resume);
        } else {
            self.common.pool.give(resume);
        }
    }

    fn errand(
        &self,
        connection: &mut Connection,
        number: u64,
        ask: Ask,
        place: Option<Place<'static>>,
        changes: u32,
    ) -> Box<Errand> {
        connection.state = State::Asked;
        Box::new(Errand {
            common: Arc::clone(&self.common),
            site: ask.site,
            request: Arc::clone(&ask.request),
            socket: Arc::downgrade(&connection.socket),
            asked: self.now,
            changes,
            owed: Owed { inbox: Arc::clone(&self.inbox), number, ask: Some(ask), place },
        })
    }
}

impl Errand {
    /// What the cache can answer by itself, it answers.
    fn begin(mut self: Box<Self>) {
        if self.is_forgotten() {
            return;
        }
        match self.site.exchange().recall(&self.request) {
            Some(outcome) => self.end(outcome),
            None if self.is_over() => {}
            None => self.ask(),
        }
    }

    /// Has the base asked, unless it is being asked about this file: then what it says is waited for.
    fn ask(self: Box<Self>) {
        let site = self.site;
        if !site.is_stored() {
            // What comes of it is for who has asked.
            let common = Arc::clone(&self.common);
            return common.pool.ask(site.number, move || self.ask_alone());
        }
        let request = Arc::clone(&self.request);
        if let Some((errand, herald)) = site.lobby.enter(request.path.as_str(), self) {
            let common = Arc::clone(&errand.common);
            common.pool.ask(site.number, move || errand.ask_for_all(herald));
        }
    }

    /// Asks the base, and tells who else wants to hear it.
    fn ask_for_all(mut self: Box<Self>, herald: Herald<'static, Box<Self>>) {
        if self.is_over() {
            return;
        }
        let known = self.site.exchange().check(&self.request, self.changes);
        herald.tell(&known);
        self.settle(known);
    }

    fn hear_out(mut self: Box<Self>, news: News) {
        // Who has nobody asking for him is not to wait for each of the others in turn.
        let is_over = match &news {
            News::None => self.is_over(),
            _ => self.is_forgotten(),
        };
        if is_over {
            return;
        }
        let (common, site) = (Arc::clone(&self.common), self.site.number);
        match news {
            // Who was told something that was not so any more needs something newer.
            News::Heard(Ok(known)) if self.changes > 0 && !known.is_asked() => self.ask(),
            News::Heard(known) => match self.site.exchange().proceed(&self.request, &known) {
                Some(outcome) => self.end(outcome),
                // It is for the base to send it.
                None => common.pool.ask(site, move || self.settle(known)),
            },
            News::Private => common.pool.ask(site, move || self.ask_alone()),
            News::None => self.ask(),
        }
    }

    fn ask_alone(mut self: Box<Self>) {
        if self.is_over() {
            return;
        }
        let known = self.site.exchange().check_alone(&self.request);
        self.settle(known);
    }

    fn settle(mut self: Box<Self>, known: Result<Known, Failure>) {
        if self.is_forgotten() {
            return;
        }
        let exchange = self.site.exchange();
        let outcome = exchange.settle(&self.request, known, &mut self.changes);
        self.go_on(outcome);
    }

    /// The bytes that were waited for do not come.
    fn resume(mut self: Box<Self>, awaited: Awaited<'static>, failure: &Failure) {
        if self.is_over() {
            return;
        }
        let exchange = self.site.exchange();
        let outcome = exchange.resume(&self.request, awaited, failure, &mut self.changes);
        self.go_on(outcome);
    }

    fn go_on(self: Box<Self>, outcome: Option<Outcome<'static>>) {
        match outcome {
            Some(outcome) => self.end(outcome),
            None => self.ask(),
        }
    }

    /// Whether it is of no use to go on: the client has gone, or has waited long enough.
    fn is_over(&mut self) -> bool {
        if self.is_forgotten() {
            return true;
        }
        let patience = self.site.options().timeout;
        let late = self.asked.elapsed() >= patience.duration();
        if late {
            let why = format!("the base, or a thread to ask it, was not there for {patience}");
            self.owed.pay(Reply::failed(&Kind::TimedOut.says(why)), None);
        }
        late
    }

    fn is_forgotten(&mut self) -> bool {
        let gone = self.socket.strong_count() == 0;
        if gone {
            self.owed.forget();
        }
        gone
    }

    fn end(mut self, outcome: Outcome<'static>) {
        let mut reply = match outcome {
            Outcome::Reply(reply) => reply,
            Outcome::Awaits(awaited) => {
                let is_stale = awaited.is_stale();
                self.owed.promise(awaited, self.changes);
                if is_stale {
                    self.renew();
                }
                return;
            }
        };
        let (revalidate, hit) = (reply.revalidate, is_hit(&reply));
        let body = share(self.site, &self.request, &mut reply);
        if hit && !revalidate {
            self.site.keep(&self.request);
        }
        self.owed.pay(reply, body);
        if revalidate {
            self.renew();
        }
    }

    fn renew(&self) {
        let (pool, site) = (&self.common.pool, self.site);
        site.renew(Arc::clone(&self.request), |work| pool.ask(site.number, work));
    }
}

impl Visitor for Box<Errand> {
    /// The base has been asked: what it says is enough, or else this one asks, too.
    fn hear(self, news: News) {
        let common = Arc::clone(&self.common);
        common.pool.give(move || self.hear_out(news));
    }
}

/// Takes a whole body out of a reply, or the same one that is open already.
pub(super) fn share(
    site: &'static Site,
    request: &Request,
    reply: &mut Reply<'static>,
) -> Option<Arc<Source<'static>>> {
    match std::mem::replace(&mut reply.body.supply, Supply::None) {
        Supply::Stored { source, .. } if source.is_whole() => {
            Some(site.share(request.path.as_str(), Arc::new(*source)))
        }
        other => {
            reply.body.supply = other;
            None
        }
    }
}

/// Whether all that is asked for was in the cache.
fn is_hit(reply: &Reply<'_>) -> bool {
    reply
        .headers
        .iter()
        .any(|(name, value)| *name == "Cache-Status" && value.starts_with("offload; hit"))
}
