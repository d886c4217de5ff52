//! Throttling: what holds for a response, and how it is held to it.
//!
//! A filter counts what goes by, and puts a switch into the stream where the burst ends: when everything
//! before it has been given to the kernel, the socket is paced ([`pacer`]). A file goes
//! without a worker then: on a plain connection by httpd's own asynchronous writing, with TLS by the pair of
//! filters that encrypts as the client takes it, and what a script makes through a temporary file, if the
//! administrator allows one. What holds a worker all the same counts under `ChokeMaxHeld`.

mod send;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Mutex;

use offload_core::admission;
use offload_core::choke::{Overflow, Sharers};
use offload_core::directive::Layer;
use offload_core::ledger::Taken;
use offload_core::rate::{BURST_END, Terms};
use offload_core::transfers::{Manner, Shared, Shares};
use offload_core::units::Bytes;
use offload_core::verdict;

pub(crate) use self::send::write;
use crate::admit;
use crate::ffi::filter::{BROKEN, Brigade, Kept, Status};
use crate::ffi::log::Level;
use crate::ffi::request::Request;
use crate::ffi::server::{Journal, Server};
use crate::ffi::socket::Socket;
use crate::hooks::Answer;
use crate::lease::Lease;
use crate::pacer::{self, Begin, PACER, Pacer, Phase, Summary, Switch};
use crate::spool::Spool;

/// More than this, in memory, and httpd makes a worker wait (FlushMaxThreshold, core_filters.c).
const ASYNC: u64 = 64 << 10;

/// A response that is throttled, or that lifts what held for the one before it. It lives as long as the
/// first of the redirected requests: until the last byte has been given to the kernel.
pub(crate) struct Response {
    socket: Socket,
    terms: Cell<Terms>,
    shares: Cell<Shares>,
    is_throttled: Cell<bool>,
    manner: Cell<Manner>,
    stage: Cell<Stage>,
    /// Bytes that a worker may have to wait for.
    blocking: Cell<u64>,
    is_over: Cell<bool>,
    /// Where its end is told, if that is wanted.
    journal: Cell<Option<Journal>>,
    lease: RefCell<Option<Lease>>,
    spool: RefCell<Option<Spool>>,
    began: Cell<u64>,
    /// What follows behind a boundary.
    rest: Kept,
    /// No file could be made for what a generator makes.
    has_no_spool: Cell<bool>,
    /// The pacer knows of it.
    is_counted: Cell<bool>,
}

/// How far the response is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Nothing has been sent.
    New,
    /// So many bytes go at full speed yet, and then the burst's last ones.
    Burst(u64),
    /// So many of these are left.
    BurstEnd(u64),
    /// The switch is in the stream.
    Throttled,
    /// It goes as it goes.
    Free,
}

impl Stage {
    /// How a response begins of which so many bytes go at full speed.
    fn with_burst(bytes: u64) -> Self {
        match bytes.checked_sub(BURST_END) {
            _ if bytes == 0 => Self::Throttled,
            None | Some(0) => Self::BurstEnd(bytes),
            Some(before) => Self::Burst(before),
        }
    }

    fn phase(self) -> Phase {
        match self {
            Self::New | Self::Free => Phase::Free,
            Self::Burst(_) => Phase::Burst,
            Self::BurstEnd(_) => Phase::BurstEnd,
            Self::Throttled => Phase::Throttled,
        }
    }
}

/// The request is about to be answered: puts the filter into its way, if its section throttles, or if its
/// connection was throttled before. A HEAD has no body that could be throttled, and leaves the connection as it is.
pub(crate) fn insert_filter(request: Request<'_>) {
    let policy = request.policy().filter(|policy| policy.choke().is_on());
    if policy.is_some() || !PACER.is_empty() {
        throttle(request, policy);
    }
}

#[inline(never)]
fn throttle(request: Request<'_>, policy: Option<&Layer>) {
    if request.is_subrequest() || request.is_head() {
        return;
    }
    let Some(socket) = request.socket() else { return };
    let known = request.first().held_response();
    if policy.is_none() && known.is_none() && !PACER.knows(socket) {
        return;
    }
    let Some(response) = known.or_else(|| request.first().keep_response(Response::new(socket)))
    else {
        return;
    };
    // An internal redirection leads to another section; what has begun goes on as it began.
    if response.stage.get() == Stage::New {
        response.settle(request, policy);
        request.add_pace_filter(response);
    }
}

/// Something is about to make the response. Refuses it, if it would hold a worker and may not.
#[inline(never)]
pub(crate) fn before_handler(request: Request<'_>) -> Answer {
    let refuses = request.policy().is_some_and(|policy| {
        policy.choke().is_on() && policy.choke_overflow() == Overflow::Refuse
    });
    let response = request.first().held_response();
    let response =
        response.filter(|response| response.stage.get() == Stage::New && response.has_rate());
    let may_refuse = refuses && !request.is_subrequest() && request.is_fine();
    let (true, Some(response)) = (may_refuse, response) else {
        return Answer::Declined;
    };
    let is_dynamic = verdict::is_dynamic(request.handler(), request.content_type());
    if !(is_dynamic || response.holds_from_the_start(request)) || response.hold(request) {
        return Answer::Declined;
    }
    response.is_throttled.set(false);
    let most = request.running().map_or(0, |running| running.max_held);
    let layer = request.server().and_then(Server::layer);
    let status = layer.map_or(503, |layer| layer.limit_status().0);
    admit::refuse_with(request, admission::Kind::ChokeMaxHeld, most, None, status)
}

impl Response {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            terms: Cell::new(Terms { rate: None, burst: Bytes::new(0) }),
            shares: Cell::new(Shares::default()),
            is_throttled: Cell::new(false),
            manner: Cell::new(Manner::Paced),
            stage: Cell::new(Stage::New),
            blocking: Cell::new(0),
            is_over: Cell::new(false),
            journal: Cell::new(None),
            lease: RefCell::new(None),
            spool: RefCell::new(None),
            began: Cell::new(0),
            rest: Kept::default(),
            has_no_spool: Cell::new(false),
            is_counted: Cell::new(false),
        }
    }

    /// What holds in the section that the request has come to.
    fn settle(&self, request: Request<'_>, policy: Option<&Layer>) {
        let Some(policy) = policy else {
            self.is_throttled.set(false);
            return;
        };
        let terms = Terms::of(
            policy,
            |name| request.variable(name),
            |name, why| complain(request, name, &format!("{why}; the variable is ignored")),
        );
        let shares = shares(request);
        self.terms.set(terms);
        self.shares.set(shares);
        let has_rate = terms.rate.is_some() || shares != Shares::default();
        let is_told = policy.choke_summary().is_on();
        self.journal.set(request.server().filter(|_| is_told).map(Server::journal));
        self.is_throttled.set(has_rate || is_told);
    }

    /// Whether it has a rate, or a part of one.
    fn has_rate(&self) -> bool {
        self.is_throttled.get()
            && (self.terms.get().rate.is_some() || self.shares.get() != Shares::default())
    }

    /// Whether the whole response holds a worker, whatever it is made of.
    fn holds_from_the_start(&self, request: Request<'_>) -> bool {
        let Some(policy) = request.policy() else { return false };
        request.is_stream()
            || !policy.choke_pacing().is_on()
            || !is_async(request)
            || (request.is_encrypted() && !policy.choke_pull().is_on())
    }

    /// Takes a place among those who hold a worker, if it has none; whether there is one.
    fn hold(&self, request: Request<'_>) -> bool {
        if self.lease.borrow().is_some() {
            return true;
        }
        let Some(running) = request.running() else { return true };
        let Some(owner) = running.owner.get() else { return true };
        if running.max_held == 0 {
            return false;
        }
        let key = running.held_key();
        let now = request.begun();
        let take = || running.ledger.take(*owner, key, running.max_held, now);
        let mut taken = take();
        if matches!(taken, Taken::Refused { .. }) && running.bury_the_dead(now) {
            taken = take();
        }
        match taken {
            Taken::Held { lease, .. } => {
                self.lease.replace(Some(Lease::new(lease)));
                true
            }
            Taken::Uncounted => true,
            Taken::Refused { .. } => false,
        }
    }

    fn rest<'r>(&self, request: Request<'r>) -> Result<Brigade<'r>, Status> {
        Brigade::of_response(request, &self.rest).ok_or(BROKEN)
    }

    /// The first bytes are here: how will it be held?
    fn begin(&self, request: Request<'_>, brigade: Brigade<'_>) {
        let policy = request.policy();
        let is_throttled = self.is_throttled.get() && policy.is_some();
        let (Some(policy), true) = (policy, is_throttled) else {
            self.go_on(Stage::Free, request, brigade);
            return;
        };
        let (terms, has_rate) = (self.terms.get(), self.has_rate());
        let manner = if !has_rate {
            Manner::Unthrottled
        } else if !policy.choke_pacing().is_on() || !Pacer::can_pace(self.socket) {
            Manner::Slept
        } else if is_async(request)
            && !request.is_stream()
            && policy.choke_pull().is_on()
            // Either way httpd has the file in memory before it is sent, and waits for what is too much.
            && (request.is_encrypted() || request.forbids_sendfile())
            && request.hold_response()
        {
            Manner::Pulled
        } else {
            Manner::Paced
        };
        self.manner.set(manner);
        self.began.set(pacer::now());
        self.is_counted.set(true);
        PACER.begin(
            self.socket,
            &Begin {
                client: request.client().to_owned(),
                path: target_path(request).to_owned(),
                terms,
                shares: self.shares.get(),
                manner,
                is_stream: request.is_stream(),
            },
        );
        let burst = terms.burst.count();
        let stage = if has_rate { Stage::with_burst(burst) } else { Stage::Free };
        self.go_on(stage, request, brigade);
        if has_rate && (request.is_stream() || manner == Manner::Slept) {
            self.hold_or_lift(request);
        }
    }

    /// The brigade's beginning is where this stage begins, and what held before it ends, of the response
    /// before this one too.
    fn go_on(&self, stage: Stage, request: Request<'_>, brigade: Brigade<'_>) {
        self.stage.set(stage);
        let switch = Switch::To(stage.phase(), self.socket.cookie());
        if !request.is_stream() {
            brigade.put_switch(switch);
        } else if stage == Stage::Throttled {
            // A stream's data takes another way than its switches would. The rest of its connection's streams
            // may be throttled still.
            switch.throw();
        }
    }

    /// Counts as one that holds a worker; if it may not, it is not throttled.
    fn hold_or_lift(&self, request: Request<'_>) {
        if self.manner.get() != Manner::Unthrottled && !self.hold(request) {
            self.manner.set(Manner::Unthrottled);
            PACER.lift(self.socket);
        }
    }

    /// Counts what a worker may have to wait for.
    fn count_blocking(&self, request: Request<'_>, bytes: u64) {
        let blocking = self.blocking.get().saturating_add(bytes);
        self.blocking.set(blocking);
        if blocking > ASYNC {
            self.hold_or_lift(request);
        }
    }
}

impl Response {
    /// The request ends: its last byte has been given to the kernel, or its client is gone.
    pub(crate) fn end(&self, request: Request<'_>, is_aborted: bool) {
        if !self.is_counted.get() {
            return;
        }
        // The request's section may be gone by now.
        let summary = self.journal.get().map(|journal| Summary {
            journal,
            path: target_path(request).to_owned(),
            client: request.client().to_owned(),
            bytes: request.body_bytes(),
            began: self.began.get(),
            terms: self.terms.get(),
            manner: self.manner.get(),
            aborted: is_aborted || !self.is_over.get(),
        });
        PACER.end(self.socket, summary);
    }
}

/// Whether the MPM writes what is left of the response without a worker.
fn is_async(request: Request<'_>) -> bool {
    request.running().is_some_and(|running| running.is_async)
}

/// The common rates that the request takes part in.
fn shares(request: Request<'_>) -> Shares {
    let mut shares = Shares::default();
    let Some(server) = request.server() else { return shares };
    let (Some(layer), Some(host)) = (server.layer(), server.host()) else { return shares };
    for (share, place) in layer.choke_shares().iter().zip(&host.shares) {
        let bytes;
        let who = match share.sharers {
            Sharers::Client => {
                bytes = admission::client(layer, request.client_address());
                bytes.as_bytes()
            }
            Sharers::User => match request.user() {
                Some(user) => user,
                None => continue,
            },
            Sharers::Host => b"",
        };
        let name = host.running().ledger.who(who).in_place(*place).number();
        if let Some(entry) = shares.get_mut(share.sharers as usize) {
            *entry = Some(Shared { name, rate: share.rate });
        }
    }
    shares
}

/// Says once in each child what is wrong with something that the configuration names.
fn complain(request: Request<'_>, name: &str, why: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    // The names come from the configuration: there are few.
    let is_new = SAID.lock().is_ok_and(|mut said| said.insert(name.to_owned()));
    if is_new {
        request.log(Level::Warning, &format!("mod_offload: {why}"));
    }
}

/// The path that the client asked for.
fn target_path(request: Request<'_>) -> &[u8] {
    let target = request.first().target();
    target.split(|&byte| byte == b'?').next().unwrap_or_default()
}
