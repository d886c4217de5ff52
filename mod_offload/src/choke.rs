//! Throttling: what holds for a response, and how it is held to it.
//!
//! A filter counts what goes by, and puts a switch into the stream where the burst ends: when everything
//! before it has been given to the kernel, the socket is paced ([`pacer`]). A file goes
//! without a worker then: on a plain connection by httpd's own asynchronous writing, with TLS by the pair of
//! filters that encrypts as the client takes it, and what a script makes through a temporary file, if the
//! administrator allows one. What holds a worker all the same counts under `ChokeMaxHeld`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::sync::Mutex;
use std::thread;

use offload_core::admission;
use offload_core::choke::{Overflow, Sharers};
use offload_core::directive::Layer;
use offload_core::ledger::Taken;
use offload_core::rate::Terms;
use offload_core::transfers::{KINDS, Manner};
use offload_core::units::Bytes;
use offload_core::verdict;

use crate::admit;
use crate::ffi::filter::{BROKEN, Brigade, Kept, Output, Status};
use crate::ffi::log::Level;
use crate::ffi::request::Request;
use crate::ffi::server::{Journal, Server};
use crate::ffi::socket::Socket;
use crate::hooks::Answer;
use crate::lease::Lease;
use crate::pacer::{self, Begin, PACER, Pacer, Shared, Summary, Switch};
use crate::spool::Spool;

/// More than this, in memory, and httpd makes a worker wait (FlushMaxThreshold, core_filters.c).
const ASYNC: u64 = 64 << 10;
/// A generator's output is put into a file when it is longer than this.
const WORTH_A_FILE: u64 = 32 << 10;

/// A response that is throttled, or that lifts what held for the one before it. It lives as long as the
/// first of the redirected requests: until the last byte has been given to the kernel.
pub(crate) struct Response {
    socket: Socket,
    terms: Cell<Terms>,
    shares: Cell<[Option<Shared>; KINDS]>,
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
    /// So many bytes go at full speed yet.
    Burst(u64),
    /// The switch is in the stream.
    Throttled,
    /// It goes as it goes.
    Free,
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
            shares: Cell::new([None; KINDS]),
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
        let has_rate = terms.rate.is_some() || shares != [None; KINDS];
        let is_told = policy.choke_summary().is_on();
        self.journal.set(request.server().filter(|_| is_told).map(Server::journal));
        self.is_throttled.set(has_rate || is_told);
    }

    /// Whether it has a rate, or a part of one.
    fn has_rate(&self) -> bool {
        self.is_throttled.get()
            && (self.terms.get().rate.is_some() || self.shares.get() != [None; KINDS])
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
            self.stage.set(Stage::Free);
            if !request.is_stream() {
                brigade.put_switch(Switch::Off(self.socket.cookie()));
            }
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
            && request.is_encrypted()
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
        self.stage.set(match terms.burst.count() {
            _ if !has_rate => Stage::Free,
            0 => Stage::Throttled,
            burst => Stage::Burst(burst),
        });
        if (!has_rate || terms.burst.count() > 0) && !request.is_stream() {
            // What held for the response before this one.
            brigade.put_switch(Switch::Off(self.socket.cookie()));
        }
        if self.stage.get() == Stage::Throttled {
            self.switch_on(request, brigade);
        }
        if has_rate && (request.is_stream() || manner == Manner::Slept) {
            self.hold_or_lift(request);
        }
    }

    /// From the brigade's beginning on the response is throttled.
    fn switch_on(&self, request: Request<'_>, brigade: Brigade<'_>) {
        self.stage.set(Stage::Throttled);
        if request.is_stream() {
            // A stream's data takes another way than its switches would.
            Switch::On(self.socket.cookie()).throw();
        } else {
            brigade.put_switch(Switch::On(self.socket.cookie()));
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

/// The response, piece by piece.
///
/// # Errors
/// What the filters below say: mostly that the client is gone.
pub(crate) fn write(
    response: &Response,
    output: Output<'_>,
    brigade: Brigade<'_>,
) -> Result<(), Status> {
    let Some(request) = output.request() else { return output.pass(brigade) };
    let census = brigade.census();
    if response.stage.get() == Stage::New && (census.bytes() > 0 || census.unknown) {
        response.begin(request, brigade);
    }
    let result = match response.stage.get() {
        Stage::New | Stage::Free => output.pass(brigade),
        Stage::Burst(left) => response.write_burst(request, output, brigade, left),
        Stage::Throttled => response.write_throttled(request, output, brigade),
    };
    if census.ends {
        response.is_over.set(true);
        // The handler returns now; what is left is written without a worker, if the MPM can.
        if is_async(request) && !request.is_stream() {
            response.lease.take();
        }
    }
    result
}

impl Response {
    /// Has files sent in a way that holds no worker: by sendfile where it can be.
    fn send_files_directly(&self, request: Request<'_>, brigade: Brigade<'_>) {
        let may_sendfile = !request.is_encrypted() && !request.is_stream();
        brigade.send_files_directly(request, may_sendfile);
    }

    fn write_burst(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
        left: u64,
    ) -> Result<(), Status> {
        let census = brigade.census();
        if !census.unknown && census.bytes() <= left {
            self.stage.set(Stage::Burst(left - census.bytes()));
            self.send_files_directly(request, brigade);
            return self.pass(request, output, brigade);
        }
        self.send_files_directly(request, brigade);
        let rest = self.rest(request)?;
        brigade.split(left, rest)?;
        // What lies in the spool belongs to the burst.
        self.put_spooled(request, brigade);
        self.pass_all(request, output, brigade)?;
        // The switch goes by itself, so that nothing of what follows comes before it.
        self.switch_on(request, brigade);
        self.pass_all(request, output, brigade)?;
        brigade.append(rest);
        self.write_throttled(request, output, brigade)
    }

    /// Passes a brigade on, and leaves it empty for more.
    fn pass_all(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        if brigade.is_empty() {
            return Ok(());
        }
        let passed = output.pass(brigade);
        brigade.clear();
        if passed.is_err() {
            // It may have lost what it points to when somebody looks again.
            self.rest(request)?.clear();
        }
        passed
    }

    /// Puts what was spooled and not passed on at the brigade's beginning.
    fn put_spooled(&self, request: Request<'_>, brigade: Brigade<'_>) {
        if let Some(file) = self.spool.borrow_mut().as_mut()
            && let Some((start, length)) = file.take_part()
        {
            brigade.put_file(file.as_fd(), start, length, request);
        }
    }

    fn write_throttled(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        match self.manner.get() {
            Manner::Unthrottled => output.pass(brigade),
            Manner::Slept => self.write_and_sleep(request, output, brigade),
            Manner::Paced | Manner::Pulled | Manner::Spooled => {
                self.send_files_directly(request, brigade);
                self.pass(request, output, brigade)
            }
        }
    }

    /// Passes on what the kernel paces, through a file if that is wanted.
    fn pass(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        let census = brigade.census();
        if !is_async(request) || request.is_stream() {
            self.count_blocking(request, census.bytes());
            return output.pass(brigade);
        }
        if self.spool(request, brigade)? {
            return if brigade.is_empty() { Ok(()) } else { output.pass(brigade) };
        }
        // A flush behind a file has the worker wait for all of it.
        let is_encrypted = self.manner.get() != Manner::Pulled && request.is_encrypted();
        let is_memory = census.flushes || is_encrypted;
        let waits = census.memory + if is_memory { census.file } else { 0 };
        self.count_blocking(request, if census.unknown { ASYNC + 1 } else { waits });
        output.pass(brigade)
    }

    /// Puts what a generator has made into a file, and a part of the file into the brigade. Whether there is
    /// nothing else to pass on.
    fn spool(&self, request: Request<'_>, brigade: Brigade<'_>) -> Result<bool, Status> {
        let waits_for_memory = request.is_encrypted() && self.manner.get() != Manner::Pulled;
        if self.manner.get() == Manner::Slept || waits_for_memory {
            // It holds its worker anyway.
            return Ok(false);
        }
        let most = request.policy().map_or(0, |policy| policy.choke_spool().0.count());
        let census = brigade.census();
        let mut spool = self.spool.borrow_mut();
        let so_far = self.blocking.get().saturating_add(census.memory);
        let is_wanted = most > 0 && !self.has_no_spool.get();
        if spool.is_none() && is_wanted && (so_far > WORTH_A_FILE || census.unknown) {
            match Spool::create() {
                Ok(made) => {
                    PACER.change_manner(self.socket, Manner::Spooled);
                    if self.manner.get() == Manner::Paced {
                        self.manner.set(Manner::Spooled);
                    }
                    *spool = Some(made);
                }
                Err(why) => {
                    self.has_no_spool.set(true);
                    complain(
                        request,
                        "ChokeSpool",
                        &format!("ChokeSpool: no file can be made: {why}"),
                    );
                    return Ok(false);
                }
            }
        }
        let Some(file) = spool.as_mut() else { return Ok(false) };
        if census.flushes && file.is_passed_on() && !request.has_output_waiting() {
            // The client has all that was made so far: what follows is written at once.
            return Ok(true);
        }
        let mut is_over = file.is_full(most) || census.file > 0;
        if !is_over {
            // Also a flush without data would have the worker wait.
            let poured = brigade.pour(|bytes| {
                file.write(bytes).map_err(|why| {
                    is_over = true;
                    request.log(Level::Error, &format!("mod_offload: ChokeSpool: {why}"));
                    BROKEN
                })
            });
            if !is_over {
                poured?;
            }
        }
        let is_due = is_over || census.ends || census.closes || census.flushes;
        if (is_due || file.is_worth_a_part())
            && let Some((start, length)) = file.take_part()
        {
            brigade.put_file(file.as_fd(), start, length, request);
            if census.flushes && !is_over {
                brigade.put_nudge();
            }
        }
        if is_over {
            // There is no more room: what is in the file goes first, and then the rest, by a worker.
            file.end();
        }
        Ok(!is_over)
    }

    /// Writes a little, and sleeps until it is time for more.
    fn write_and_sleep(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        let rest = self.rest(request)?;
        loop {
            let Some(slice) = PACER.slice(self.socket) else { return output.pass(brigade) };
            brigade.split(slice, rest)?;
            let bytes = brigade.census().bytes();
            if bytes > 0 {
                thread::sleep(PACER.reserve(self.socket, bytes));
                brigade.put_flush();
            }
            self.pass_all(request, output, brigade)?;
            if rest.is_empty() {
                return Ok(());
            }
            brigade.append(rest);
        }
    }

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
fn shares(request: Request<'_>) -> [Option<Shared>; KINDS] {
    let mut shares = [None; KINDS];
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
