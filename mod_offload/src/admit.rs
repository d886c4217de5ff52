//! Limits: gathers what concerns a request, asks the ledger, lets in or refuses.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use offload_core::admission::{self, Demand, Demands, Facts, Kind, SEATS, Spot, Whom};
use offload_core::directive::HostLayer;
use offload_core::ledger::{Key, Ledger, Owner, Taken, Who};
use offload_core::limit::Group;

use crate::ffi::expression;
use crate::ffi::log::Level;
use crate::ffi::request::Request;
use crate::ffi::server::Server;
use crate::hooks::{Answer, HostState, Running};
use crate::lease::{Leases, Seats, Set};

/// What access logs print as `%{offload-refused}n`.
const REFUSED: &std::ffi::CStr = c"offload-refused";

/// When a place will be free is not known; so a client may ask again in so many seconds.
const RETRY_AFTER: &std::ffi::CStr = c"10";

/// Lets a request in, or refuses it.
pub(crate) fn admit(request: Request<'_>) -> Answer {
    if is_easy(request) { Answer::Declined } else { ask(request) }
}

/// Whether the request is let in without further ado, as most are: nothing limits it; or it is one more of a
/// seated client, and each limit that concerns it is met by the lease that was given back last.
#[inline]
fn is_easy(request: Request<'_>) -> bool {
    if request.previous().is_some() || request.is_subrequest() || request.user().is_some() {
        return false;
    }
    let Some(host) = request.server().and_then(Server::host) else { return true };
    let (scopes, section) = (&host.scopes, request.policy());
    let is_seated = match request.old_seats() {
        Some(seats) => {
            let mut seats = seats.borrow_mut();
            seats.latest = request.number();
            seats.settled == Some(scopes.number())
        }
        None if scopes.is_empty() => {
            return section.is_none_or(|layer| layer.max_concurrent().is_empty());
        }
        None => sit_down(request, host),
    };
    let is_usual = is_seated && request.is_of_its_connection() && scopes.is_plain();
    if !is_usual || !request.is_fine() {
        return false;
    }
    let Some(leases) = request.first_leases() else { return false };
    let now = request.begun();
    let ledger = &host.running().ledger;
    let mut leases = leases.borrow_mut();
    let is_let_in = scopes.are_met(section, request.path(), request.method(), |spot, most| {
        retake(ledger, spot, most, now, &mut leases)
    });
    if !is_let_in {
        begin_anew(request, &mut leases);
    }
    is_let_in
}

/// Gives back what was taken so far: all is asked again.
#[cold]
fn begin_anew(request: Request<'_>, leases: &mut Leases) {
    leases.truncate(0);
    if let Some(seats) = request.old_seats()
        && seats.borrow().born == request.begun()
    {
        seats.borrow_mut().leave();
    }
}

/// Gives a new connection of a client that was here before its seats; whether that was easily done.
#[inline(never)]
fn sit_down(request: Request<'_>, host: &HostState) -> bool {
    let Some(layer) = request.server().and_then(Server::layer) else { return false };
    if !request.is_of_its_connection() || !host.scopes.is_plain() || !request.is_fine() {
        return false;
    }
    let (running, scopes) = (host.running(), &host.scopes);
    let Some(&owner) = running.owner.get() else { return false };
    let Some(demands) = scopes.of_each_client() else { return false };
    if is_exempt(request, layer) {
        return false;
    }
    let client = admission::client(layer, request.client_address());
    let who = running.ledger.who(client.as_bytes());
    let Some(seats) = request.seats() else { return false };
    let mut seats = seats.borrow_mut();
    seats.client.set(Some((client, who)));
    for (seat, spot, most) in demands {
        let key = spot.key(&running.directory, who, running.everybody);
        let lease = running.ledger.take_again(owner, key, most, request.begun());
        if !lease.is_some() {
            seats.leave();
            return false;
        }
        seats.held.put(seat, lease);
    }
    seats.latest = request.number();
    seats.settled = Some(scopes.number());
    seats.born = request.begun();
    true
}

fn is_exempt(request: Request<'_>, layer: &HostLayer) -> bool {
    let exempt = layer.limit_exempt();
    !exempt.is_empty() && {
        let (address, text) = (request.client_address(), request.client());
        exempt.iter().any(|exempt| exempt.matches(address, text))
    }
}

/// Takes the lease that was given back last in this spot, if that meets the limit.
#[inline(never)]
fn retake(ledger: &Ledger<'_>, spot: &Spot, most: u32, now: u64, leases: &mut Leases) -> bool {
    let lease = ledger.retake(most, now, spot.trace());
    if lease.is_some() {
        leases.keep(lease);
    }
    lease.is_some()
}

/// Asks for every limit that concerns the request.
#[inline(never)]
fn ask(request: Request<'_>) -> Answer {
    let previous = request.previous();
    if let Some(note) = previous.and_then(|previous| previous.note(REFUSED)) {
        // Access logs look at the last request of a redirection.
        request.set_note_text(REFUSED, &[&String::from_utf8_lossy(note)]);
    }
    // A part of an answer, and the page for an error, belong to a request that has been asked.
    if request.is_subrequest() || !request.is_fine() {
        return Answer::Declined;
    }
    let Some(server) = request.server() else { return Answer::Declined };
    let (Some(layer), Some(host)) = (server.layer(), server.host()) else {
        return Answer::Declined;
    };
    let section = request.policy();
    let limits = !host.scopes.is_empty()
        || section.is_some_and(|section| !section.max_concurrent().is_empty());
    let counts_idle = limits && layer.count_idle().is_on();
    if !counts_idle && let Some(seats) = request.old_seats() {
        // The connection was another virtual host's, where it counts while it is idle.
        seats.borrow_mut().leave();
    }
    if !limits {
        return Answer::Declined;
    }
    let running = host.running();
    let Some(&owner) = running.owner.get() else { return Answer::Declined };
    let Some(leases) = request.first().leases() else { return Answer::Declined };

    let seats = if counts_idle { request.seats() } else { None };
    if let Some(seats) = seats {
        seats.borrow_mut().latest = request.first().number();
    }
    let has_user = request.user().is_some();
    let number = host.scopes.number();
    let is_seated = !has_user && seats.is_some_and(|seats| seats.borrow().settled == Some(number));
    let kept = leases.borrow().len();
    // An internal redirect brings a request here again.
    let looks_twice = kept > 0 || host.scopes.has_twins();
    let is_dry = layer.limit_dry_run().is_on();
    let mut desk = Desk {
        request,
        layer,
        running,
        owner,
        seats,
        leases,
        now: request.begun(),
        looks_twice,
        is_dry,
        is_plain: !looks_twice && !is_dry,
        client: None,
        new: Set::default(),
        // A redirection knows less of the client than the request that it comes from: it adds only.
        right: [previous.is_some(); SEATS],
        is_settled: host.scopes.are_seats_steady() && !has_user && previous.is_none(),
    };
    // Who is seated was asked whether it is exempt, and is not.
    if !is_seated && is_exempt(request, layer) {
        desk.is_settled = false;
    } else {
        let facts = Facts { has_user, is_seated, path: request.path(), method: request.method() };
        if let Err(refused) = desk.ask_for_all(Demands::new(&host.scopes, section, facts)) {
            leases.borrow_mut().truncate(kept);
            return refuse(request, layer, &refused);
        }
    }
    if !is_seated {
        desk.take_seats(number);
    }
    Answer::Declined
}

/// A request has asked for another protocol (`Upgrade:`), and it is granted. With HTTP/2 it comes again, as
/// the first stream, and is let in as that; until the connection ends, it itself is only a shell.
pub(crate) fn switch(request: Request<'_>, protocol: &[u8]) {
    if protocol != b"h2c" {
        return;
    }
    if let Some(leases) = request.first().held_leases() {
        leases.borrow_mut().truncate(0);
    }
    if let Some(seats) = request.old_seats() {
        seats.borrow_mut().leave();
    }
}

/// Where one request is let in.
struct Desk<'d> {
    request: Request<'d>,
    layer: &'d HostLayer,
    running: &'d Running,
    owner: Owner,
    /// What the connection holds; `None` if only the request does.
    seats: Option<&'d RefCell<Seats>>,
    leases: &'d RefCell<Leases>,
    /// Whether the request may ask for what it holds already.
    looks_twice: bool,
    is_dry: bool,
    /// Neither of the two.
    is_plain: bool,
    /// In microseconds.
    now: u64,
    client: Option<Who>,
    /// The leases that the connection will hold, if the request is let in; else Drop gives them back.
    new: Set,
    /// The seats of the connection that are right as they are.
    right: [bool; SEATS],
    /// Whether the next request of the connection will ask for the same seats.
    is_settled: bool,
}

impl<'d> Desk<'d> {
    fn ask_for_all(&mut self, mut demands: Demands<'d>) -> Result<(), Box<Demand<'d>>> {
        while let Some(demand) = demands.next() {
            let ledger = &self.running.ledger;
            let is_met = self.is_plain
                && demand.is_plain
                && retake(
                    ledger,
                    demand.spot,
                    demand.most,
                    self.now,
                    &mut self.leases.borrow_mut(),
                );
            if is_met || self.ask_if_it_holds(&demand)? {
                demands.last_one_holds();
            }
        }
        Ok(())
    }

    fn ask_if_it_holds(&mut self, demand: &Demand<'d>) -> Result<bool, Box<Demand<'d>>> {
        let holds = self.holds(demand);
        if holds {
            self.ask(demand)?;
        }
        Ok(holds)
    }

    /// Whether a limit's condition, if it has one, holds for the request.
    fn holds(&self, demand: &Demand<'_>) -> bool {
        let Some(condition) = demand.condition() else { return true };
        expression::holds(condition, self.request).unwrap_or_else(|why| {
            let directive = demand.kind().directive().to_string_lossy();
            let line = format!("mod_offload: the if= of {directive} failed: {why}");
            self.request.log(Level::Error, &line);
            false
        })
    }

    fn ask(&mut self, demand: &Demand<'d>) -> Result<(), Box<Demand<'d>>> {
        let (directory, everybody) = (&self.running.directory, self.running.everybody);
        let key = demand.spot.key(directory, self.who(demand.whom()), everybody);
        let seat = demand.kind().seat().zip(self.seats);
        let is_held = match seat {
            Some((seat, seats)) => {
                let right = seats.borrow().held.counts_in(seat, key);
                self.right[seat] = right;
                right
            }
            // An internal redirect brings a request here again.
            None => self.looks_twice && self.leases.borrow().count_in(key),
        };
        if is_held {
            return Ok(());
        }
        match self.take(demand, key) {
            Taken::Held { lease, held } => {
                match seat {
                    Some((seat, _)) => self.new.put(seat, lease),
                    None => self.leases.borrow_mut().keep(lease),
                }
                if held > demand.most {
                    note_dry_refusal(self.request, self.running, demand, key);
                }
                Ok(())
            }
            Taken::Refused { .. } => Err(Box::new(*demand)),
            Taken::Uncounted => {
                self.is_settled = false;
                say_full(self.request, self.running);
                Ok(())
            }
        }
    }

    fn take(&self, demand: &Demand<'d>, key: Key) -> Taken {
        let (ledger, now) = (&self.running.ledger, self.now);
        let most = if self.is_dry { u32::MAX } else { demand.most };
        let taken = match demand.spot.of_everybody() {
            Some((everybody, trace)) if everybody == key => {
                ledger.take_and_trace(self.owner, key, most, now, trace)
            }
            _ => ledger.take(self.owner, key, most, now),
        };
        // Nobody is refused for the sake of the dead.
        if matches!(taken, Taken::Refused { .. }) && self.running.bury_the_dead(now) {
            return ledger.take(self.owner, key, most, now);
        }
        taken
    }

    fn who(&mut self, whom: Whom) -> Who {
        let ledger = &self.running.ledger;
        match whom {
            Whom::Everybody => self.running.everybody,
            Whom::User => ledger.who(self.request.user().unwrap_or_default()),
            Whom::Client => {
                if let Some(client) = self.client {
                    return client;
                }
                let bytes = admission::client(self.layer, self.request.client_address());
                let seats = self.seats.map(RefCell::borrow);
                let known = seats.as_ref().and_then(|seats| seats.client.get());
                let who = match known {
                    Some((known, who)) if known == bytes => who,
                    _ => ledger.who(bytes.as_bytes()),
                };
                if let Some(seats) = seats {
                    seats.client.set(Some((bytes, who)));
                }
                self.client = Some(who);
                who
            }
        }
    }

    /// The connection holds from now on what this request has asked for, and nothing else: what belonged
    /// to another virtual host, user or client is given back.
    fn take_seats(&mut self, host: u32) {
        let Some(seats) = self.seats else { return };
        let mut seats = seats.borrow_mut();
        seats.settled = self.is_settled.then_some(host);
        seats.held.swap(&mut self.new, self.right);
    }
}

fn refuse(request: Request<'_>, layer: &HostLayer, refused: &Demand<'_>) -> Answer {
    let path = refused.group().map(Group::first_path);
    refuse_with(request, refused.kind(), refused.most, path, layer.limit_status().0)
}

/// Refuses a request for a limit that it meets.
pub(crate) fn refuse_with(
    request: Request<'_>,
    kind: Kind,
    most: u32,
    path: Option<&str>,
    status: u16,
) -> Answer {
    let directive = kind.directive();
    let page = admission::page(kind, path);
    request.set_note(REFUSED, directive);
    request.log(
        Level::Info,
        &format!("mod_offload: refused by {} {most}: {page}", directive.to_string_lossy()),
    );
    request.refuse(status, RETRY_AFTER, &page);
    Answer::Refused(status)
}

fn note_dry_refusal(request: Request<'_>, running: &Running, demand: &Demand<'_>, key: Key) {
    let directive = demand.kind().directive().to_string_lossy();
    running.ledger.note_dry_refusal(key.scope());
    request.set_note_text(REFUSED, &["dry-run ", &directive]);
    request.log(
        Level::Notice,
        &format!("mod_offload: {directive} {} would refuse this (LimitDryRun)", demand.most),
    );
}

/// Says once a minute in each child that there is no room to count.
fn say_full(request: Request<'_>, running: &Running) {
    let (now, said) = (request.begun(), running.said_full.load(Ordering::Relaxed));
    if now.saturating_sub(said) >= 60_000_000
        && running
            .said_full
            .compare_exchange(said, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    {
        request.log(
            Level::Warning,
            "mod_offload: the counters are full; requests that find no room are let in (LimitTableSize)",
        );
    }
}
