//! Each hook: gather facts -> ask core -> carry out.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use offload_core::admission::{Directory, HostScopes, Kind, ScopeName, Spot};
use offload_core::advice;
use offload_core::choke::Share;
use offload_core::directive::Layer;
use offload_core::ledger::{Key, Ledger, Owner, TableSize, Who};
use offload_core::path::{CanonicalPath, percent_encode};
use offload_core::placement::{Host, Placement, home, in_turn};
use offload_core::verdict::{self, Facts, Reason};

use crate::ffi::expression;
use crate::ffi::log::Level;
use crate::ffi::request::Request;
use crate::ffi::server::{self, Server};
use crate::ffi::shared::Turns;
use crate::ffi::socket::Socket;
use crate::lease::LEDGER;
use crate::pacer::{PACER, TRANSFERS};
use crate::resolver::Resolver;
use crate::{admit, choke, process, status};

/// What access logs print as `%{offload-verdict}n`.
const VERDICT: &std::ffi::CStr = c"offload-verdict";

/// What all requests need, made ready when the server starts.
pub(crate) struct Running {
    resolver: Resolver,
    turns: Turns,
    pub(crate) ledger: Ledger<'static>,
    /// Everybody together, as the ledger hashes them.
    pub(crate) everybody: Who,
    /// The scopes that the configuration files name.
    pub(crate) directory: Directory,
    /// This child's place in the ledger; nobody's in the parent.
    pub(crate) owner: OnceLock<Owner>,
    /// When this child last said that the ledger is full, in microseconds.
    pub(crate) said_full: AtomicU64,
    /// When this child last looked for dead ones, in microseconds.
    looked: AtomicU64,
    /// Whether the MPM writes what is left of a response without a worker.
    pub(crate) is_async: bool,
    /// How many workers throttling may hold, and where those that it holds are counted.
    pub(crate) max_held: u32,
    held: Spot,
}

/// What the requests of one virtual host need.
pub(crate) struct HostState {
    running: Arc<Running>,
    pub(crate) scopes: HostScopes,
    /// For each rate that its connections share, what keeps that apart from every other one.
    pub(crate) shares: Vec<u64>,
}

impl HostState {
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// As if the module were not there.
    Declined,
    /// It was answered.
    Done,
    /// It is refused with this status.
    Refused(u16),
}

/// The configuration is read, the children are not made yet. Whether the server may start.
pub(crate) fn post_config(server: Server<'_>) -> bool {
    match make_ready(server) {
        Ok(()) => true,
        Err(why) => {
            server
                .log(Level::Error, &format!("mod_offload: no shared memory could be made: {why}"));
            false
        }
    }
}

fn make_ready(server: Server<'_>) -> Result<(), String> {
    let names: BTreeSet<String> = server.all().flat_map(Server::host_names).cloned().collect();
    let (resolver, failures) = Resolver::start(&names, Instant::now());
    for (name, why) in failures {
        server.log(
            Level::Warning,
            &format!(
                "mod_offload: OffloadHost {name} cannot be looked up ({why}); downloads are sent there all the same, \
                 but until it can be, it is recognised only by its X-Mod-Offload-Bypass header"
            ),
        );
    }
    let clients = server.layer().map_or(1, |layer| layer.limit_table_size().0);
    let ledger = server.ledger(TableSize::new(clients))?;
    // It is the same one after a restart.
    let _ = LEDGER.set(ledger);
    if ledger.size().entries() != clients {
        server.log(
            Level::Warning,
            &format!(
                "mod_offload: the counters have room for {} clients, not for {clients}: \
                 LimitTableSize changes when httpd is stopped and started",
                ledger.size().entries()
            ),
        );
    }
    let _ = TRANSFERS.set(server.transfers(TRANSFER_ROWS)?);
    let mut directory = Directory::default();
    let mut hosts = Vec::new();
    let max_held = server.layer().map_or(0, |layer| layer.choke_max_held().of(server::workers()));
    let held = ScopeName::of(Kind::ChokeMaxHeld, "the server");
    if server.all().any(Server::chokes) {
        directory.declare(Kind::ChokeMaxHeld, held, "the server", max_held);
        advise(server);
    }
    for host in server.all() {
        let Some(layer) = host.layer() else { continue };
        let scopes = directory.declare_host(layer, &host.name());
        for limit in host.sections() {
            if let Some(most) = limit.limit.most() {
                directory.declare(Kind::MaxConcurrentReqs, limit.scope, &limit.section, most);
            }
        }
        let place = |share: &Share| share.place(&host.name());
        hosts.push((host, scopes, layer.choke_shares().iter().map(place).collect()));
    }
    let running = Arc::new(Running {
        resolver,
        turns: server.turns()?,
        ledger,
        everybody: ledger.who(b""),
        directory,
        owner: OnceLock::new(),
        said_full: AtomicU64::new(0),
        looked: AtomicU64::new(0),
        is_async: server::is_async(),
        max_held,
        held: Spot::new(held),
    });
    for (host, scopes, shares) in hosts {
        host.set_host(HostState { running: Arc::clone(&running), scopes, shares });
    }
    Ok(())
}

/// So many throttled transfers are listed, and share rates; more are throttled, each by its own rate.
const TRANSFER_ROWS: usize = 65_536;

/// Tells the administrator what stands in the way of many slow downloads.
fn advise(server: Server<'_>) {
    let mut advice = server::machine().advice();
    for host in server.all() {
        // What is said for the server holds in its virtual hosts too.
        let slowest = [host.slowest(), server.slowest()].into_iter().flatten().min();
        let sentence = slowest.and_then(|rate| advice::timeout(rate, host.timeout()));
        advice.extend(sentence.map(|sentence| format!("{}: {sentence}", host.name())));
    }
    advice.dedup();
    for sentence in advice {
        server.log(Level::Warning, &format!("mod_offload: Choke: {sentence}"));
    }
}

/// A child begins: it claims its place in the ledger.
pub(crate) fn child_init(server: Server<'_>) {
    let Some(host) = server.host() else { return };
    let running = host.running();
    match running.ledger.enter(process::own_identity()) {
        // With one process (httpd -X) it may be set already, for the same process.
        Some(owner) => drop(running.owner.set(owner)),
        None => server.log(
            Level::Warning,
            "mod_offload: there is no place in the ledger for this process; it does not count, and limits nobody",
        ),
    }
}

/// A child ends: nothing of ours may touch httpd's memory any more.
pub(crate) fn child_ends() {
    PACER.stop();
}

/// A child has ended, and httpd has waited for it: what it held is given back.
pub(crate) fn child_exited(server: Server<'_>, pid: u32) {
    give_back(server, |owner| owner.identity().pid() == pid);
}

/// Now and then: what httpd may not have noticed.
pub(crate) fn monitor(server: Server<'_>) {
    give_back(server, |_| true);
}

fn give_back(server: Server<'_>, is_meant: impl Fn(Owner) -> bool) {
    let Some(host) = server.host() else { return };
    if let Some(transfers) = TRANSFERS.get() {
        transfers.reclaim(process::is_dead);
    }
    for (pid, leases) in reclaim(host.running().ledger, is_meant) {
        server.log(
            Level::Info,
            &format!("mod_offload: process {pid} has ended; {leases} that it held are given back"),
        );
    }
}

/// Gives back what the dead hold; the processes, and how much each held.
fn reclaim(ledger: Ledger<'static>, is_meant: impl Fn(Owner) -> bool) -> Vec<(u32, u64)> {
    let dead =
        ledger.owners().filter(|&owner| is_meant(owner) && process::is_dead(owner.identity()));
    let reclaimed = dead.map(|owner| (owner.identity().pid(), ledger.reclaim(owner).leases));
    reclaimed.filter(|&(_, leases)| leases > 0).collect()
}

impl Running {
    /// Where the workers that throttling holds are counted.
    pub(crate) fn held_key(&self) -> Key {
        self.held.key(&self.directory, self.everybody, self.everybody)
    }

    /// Looks for dead processes, unless this one has looked just now: httpd's parent does so only once a
    /// second. Whether any of them held something.
    pub(crate) fn bury_the_dead(&self, now: u64) -> bool {
        const PAUSE: u64 = 50_000;
        let looked = self.looked.load(Ordering::Relaxed);
        now.saturating_sub(looked) >= PAUSE
            && self
                .looked
                .compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            && !reclaim(self.ledger, |_| true).is_empty()
    }
}

/// The request is about to be answered: may it come in now?
pub(crate) fn fixups(request: Request<'_>) -> Answer {
    admit::admit(request)
}

/// The request will be answered here, or an error is: what holds for the sending?
pub(crate) fn insert_filter(request: Request<'_>) -> Answer {
    choke::insert_filter(request);
    Answer::Declined
}

/// httpd is about to close a connection.
pub(crate) fn pre_close(socket: Socket) {
    PACER.close(socket);
}

/// Whether anybody wants to know of connections that are closed.
pub(crate) fn watches_closing() -> bool {
    !PACER.is_empty()
}

/// Something is about to answer the request: may an offload host?
pub(crate) fn first_handler(request: Request<'_>) -> Answer {
    #[cfg(feature = "fault-injection")]
    inject_fault(request);

    if request.is_handled_by(c"choke-status") {
        return status::show(request);
    }
    let Some(policy) = request.policy() else { return Answer::Declined };
    if !policy.engine().is_on() && policy.hosts().is_empty() && !policy.debug().is_on() {
        // Here offloading is nobody's wish: no verdict, for the sake of servers that only limit.
        return if policy.choke().is_on() {
            choke::before_handler(request)
        } else {
            Answer::Declined
        };
    }
    judge(request, policy)
}

#[inline(never)]
fn judge<'r>(request: Request<'r>, policy: &'r Layer) -> Answer {
    let verdict = if policy.engine().is_on() {
        let Some(running) = request.running() else { return Answer::Declined };
        decide(request, policy, running)
    } else {
        // The checklist would say the same, but most requests of most servers end here: no facts needed.
        Err(Reason::EngineOff)
    };
    if verdict.is_err()
        && let refused @ Answer::Refused(_) = choke::before_handler(request)
    {
        return refused;
    }
    match verdict {
        Ok(host) => {
            request.promise(host);
            // What holds if another module takes the request before our last word.
            request.set_note(VERDICT, Reason::Dynamic.note());
        }
        Err(reason) => {
            request.set_note(VERDICT, reason.note());
            if policy.debug().is_on() {
                log_verdict(request, reason);
            }
        }
    }
    Answer::Declined
}

/// No other module has answered the request, and httpd is about to send the file.
pub(crate) fn last_handler(request: Request<'_>) -> Answer {
    match request.promised() {
        Some(host) => send_to(request, host),
        None => Answer::Declined,
    }
}

#[inline(never)]
fn send_to(request: Request<'_>, host: &Host) -> Answer {
    request.set_note_text(VERDICT, &["offload ", host.prefix()]);
    if request.policy().is_some_and(|policy| policy.debug().is_on()) {
        log_verdict(request, format_args!("offloaded to {host}"));
    }
    request.redirect(&[host.prefix(), &percent_encode(raw_path(request))]);
    Answer::Done
}

fn decide<'r>(
    request: Request<'r>,
    policy: &'r Layer,
    running: &Running,
) -> Result<&'r Host, Reason> {
    let first = request.first();
    let path = CanonicalPath::parse(raw_path(request)).ok();
    let client_text = request.client();
    let client = request.client_address();
    let facts = Facts {
        subrequest: request.is_subrequest(),
        error_document: !request.is_fine(),
        get: request.is_get(),
        query: first.has_query() || request.has_query(),
        authentication: request.has_authentication(),
        dynamic: verdict::is_dynamic(request.handler(), request.content_type())
            || request.path_info().is_some()
            || request.has_filter(verdict::changes_content)
            // A script that redirects internally has made a decision that an offload host cannot make.
            || request.predecessors().any(|request| {
                verdict::is_dynamic(request.handler(), request.content_type())
                    && request.handler() != Some(b"redirect-handler")
            }),
        varies: request.answer_header(c"Vary").is_some_and(verdict::varies),
        file: request.regular_file(),
        client,
        client_text,
        offload_host: client.is_some_and(|client| {
            policy.hosts().iter().any(|host| match host.address() {
                Some(address) => address == client,
                None => running.resolver.has_address(host.name(), client),
            })
        }),
        bypass: request.header(c"X-Mod-Offload-Bypass").is_some(),
        content_type: request.content_type(),
        agent: request.header(c"User-Agent"),
        path: path.as_ref(),
    };
    let path = verdict::judge(policy, &facts)?;
    choose(request, policy, running, path).ok_or(Reason::NoHost)
}

fn choose<'r>(
    request: Request<'_>,
    policy: &'r Layer,
    running: &Running,
    path: &CanonicalPath,
) -> Option<&'r Host> {
    let eligible = policy.hosts().iter().filter(|host| is_eligible(request, host));
    // To take turns one looks at the hosts twice; a condition is asked once.
    let in_turn = |turn: &dyn Fn(&[&Host]) -> u64| {
        let hosts: Vec<&Host> = eligible.clone().collect();
        in_turn(hosts.iter().copied(), turn(&hosts))
    };
    match policy.policy() {
        Placement::Hash => home(eligible, path),
        Placement::Rotate => in_turn(&|hosts| {
            let mut list = DefaultHasher::new();
            hosts.iter().for_each(|host| host.prefix().hash(&mut list));
            running.turns.next(list.finish())
        }),
        // Each RandomState has keys of its own.
        Placement::Random => in_turn(&|_| RandomState::new().hash_one(())),
    }
}

fn is_eligible(request: Request<'_>, host: &Host) -> bool {
    let Some(condition) = host.condition() else { return true };
    expression::holds(condition, request).unwrap_or_else(|why| {
        request.log(
            Level::Error,
            &format!("mod_offload: the if= of OffloadHost {host} failed: {why}"),
        );
        false
    })
}

/// The path that the client asked for, before internal redirects; empty if the target has none.
fn raw_path(request: Request<'_>) -> &[u8] {
    offload_core::path::of_target(request.first().target()).unwrap_or_default()
}

fn log_verdict(request: Request<'_>, verdict: impl std::fmt::Display) {
    let path = raw_path(request);
    request
        .log(Level::Notice, &format!("mod_offload: {}: {verdict}", String::from_utf8_lossy(path)));
}

/// For the tests: a bug on demand.
#[cfg(feature = "fault-injection")]
fn inject_fault(request: Request<'_>) {
    #[allow(clippy::panic)] // that is the point
    if request.header(c"X-Fault-Injection") == Some(b"handler") {
        panic!("a fault was injected");
    }
}
