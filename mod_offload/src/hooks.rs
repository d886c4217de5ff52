//! Each hook: gather facts -> ask core -> carry out.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use offload_core::directive::Layer;
use offload_core::path::{CanonicalPath, percent_encode};
use offload_core::placement::{Host, Placement, home, in_turn};
use offload_core::verdict::{self, Facts, Reason};

use crate::ffi::expression;
use crate::ffi::log::Level;
use crate::ffi::request::Request;
use crate::ffi::server::Server;
use crate::ffi::shared::Turns;
use crate::resolver::Resolver;

/// What access logs print as `%{offload-verdict}n`.
const VERDICT: &std::ffi::CStr = c"offload-verdict";

/// What all requests need, made ready when the server starts.
pub(crate) struct Running {
    resolver: Resolver,
    turns: Turns,
}

/// How a handler answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// As if the module were not there.
    Declined,
    /// It was redirected.
    Done,
}

/// The configuration is read, the children are not made yet. Whether the server may start.
pub(crate) fn post_config(server: Server<'_>) -> bool {
    let (resolver, failures) = Resolver::start(&server.host_names(), Instant::now());
    for (name, why) in failures {
        server.log(
            Level::Warning,
            &format!(
                "mod_offload: OffloadHost {name} cannot be looked up ({why}); downloads are sent there all the same, \
                 but until it can be, it is recognised only by its X-Mod-Offload-Bypass header"
            ),
        );
    }
    match server.turns() {
        Ok(turns) => {
            server.start(Running { resolver, turns });
            true
        }
        Err(why) => {
            server
                .log(Level::Error, &format!("mod_offload: no shared memory could be made: {why}"));
            false
        }
    }
}

/// Something is about to answer the request: may an offload host?
pub(crate) fn first_handler(request: Request<'_>) -> Answer {
    #[cfg(feature = "fault-injection")]
    inject_fault(request);

    let Some(policy) = request.policy() else { return Answer::Declined };
    let verdict = if policy.engine().is_on() {
        let Some(running) = request.running() else { return Answer::Declined };
        decide(request, policy, running)
    } else {
        // The checklist would say the same, but most requests of most servers end here: no facts needed.
        Err(Reason::EngineOff)
    };
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
    let Some(host) = request.promised() else { return Answer::Declined };
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
    let client = std::str::from_utf8(client_text).ok().and_then(|text| {
        // A link-local address names its interface behind a '%'.
        text.split('%').next()?.parse::<IpAddr>().ok()
    });
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
    let eligible: Vec<&Host> =
        policy.hosts().iter().filter(|host| is_eligible(request, host)).collect();
    let hosts = eligible.iter().copied();
    match policy.policy() {
        Placement::Hash => home(hosts, path),
        Placement::Rotate => {
            let mut list = DefaultHasher::new();
            hosts.clone().for_each(|host| host.prefix().hash(&mut list));
            in_turn(hosts, running.turns.next(list.finish()))
        }
        // Each RandomState has keys of its own.
        Placement::Random => in_turn(hosts, RandomState::new().hash_one(())),
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
