//! The CGI's environment and stdout: a request out of the one, a reply into the other.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use offload_core::path::{CanonicalPath, PathError};

use crate::body::{Body, Cut};
use crate::downloads::Downloads;
use crate::exchange::{Exchange, Request};
use crate::http::Conditions;
use crate::log::{self, Access};
use crate::options::{DupeMode, Options};
use crate::origin::Origin;
use crate::process;
use crate::reply::Reply;
use crate::store::{Store, Unusable};

/// Why a request is refused before anybody is asked. Every one is the client's fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusal {
    Method,
    Query,
    Body,
    Path(PathError),
}

impl Refusal {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Method | Self::Query => 403,
            Self::Body | Self::Path(_) => 400,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method => f.write_str("only GET and HEAD are served here"),
            Self::Query => f.write_str("it has a query string"),
            Self::Body => f.write_str("it has a body"),
            Self::Path(error) => error.fmt(f),
        }
    }
}

/// Whether the environment is that of a CGI.
pub(crate) fn is_here() -> bool {
    variable("GATEWAY_INTERFACE").is_some_and(|interface| !interface.is_empty())
}

/// Whether the words of the command line are the administrator's. A query without a `=` comes to a
/// CGI as its arguments (RFC 3875, section 4.4): `/?--base=http://evil` must not set anything.
pub(crate) fn arguments_are_ours() -> bool {
    let empty = |name: &str| variable(name).is_none_or(|value| value.is_empty());
    let target = variable("REQUEST_URI").unwrap_or_default();
    empty("QUERY_STRING") && empty("REDIRECT_QUERY_STRING") && !target.contains(&b'?')
}

/// Makes sure that httpd sends the `Content-Length` that this program gives.
///
/// Since 2.4.59 it replaces it by chunks, which it ends properly even where a body was cut off: clients
/// would take half a file for a whole one, HEAD would tell no length, no download could be resumed.
fn check_server(software: Option<&[u8]>, trust: Option<&[u8]>) -> Result<(), String> {
    if trust.is_none() && software.is_some_and(|software| software.starts_with(b"Apache")) {
        return Err(
            "ap_trust_cgilike_cl is not set, so that httpd would not send Content-Length; \
                    put 'SetEnv ap_trust_cgilike_cl 1' beside 'SetEnv OFFLOAD_BASE …'"
                .to_owned(),
        );
    }
    Ok(())
}

/// Answers the request in the environment. `read` gives the settings, or says what is wrong with them.
pub(crate) fn run(read: impl FnOnce() -> Result<Options, String>) -> ExitCode {
    let ready = read().and_then(|options| {
        let origin = Origin::new(&options)?;
        let store = match Store::open(&options) {
            _ if options.document_root.is_some() => None,
            Ok(store) => Some(store),
            Err(Unusable::Wrong(sentence)) => return Err(sentence),
            Err(Unusable::Missing(sentence)) => {
                log::rarely(options.notes(), "no-cache", &format!("{sentence}; nothing is stored"));
                None
            }
        };
        let (software, trust) = (variable("SERVER_SOFTWARE"), variable("ap_trust_cgilike_cl"));
        check_server(software.as_deref(), trust.as_deref())?;
        if options.dupe_mode == DupeMode::Share {
            return Err("OFFLOAD_DUPE_MODE: share needs the daemon; use deny or queue".to_owned());
        }
        Ok((options, origin, store))
    });
    let (options, origin, store) = match ready {
        Ok(ready) => ready,
        Err(sentence) => {
            log::line(&sentence);
            let page = "This offload host is not configured correctly; its error log says why.";
            return send(Reply::page(500, page), None);
        }
    };
    for warning in &options.warnings {
        log::line(warning);
    }
    let exchange = Exchange { options: &options, origin: &origin, store: store.as_ref() };
    let request = match request(variable) {
        Ok(request) => request,
        Err(refusal) => {
            return send(Reply::refused(refusal.status(), &refusal.to_string()), Some(&options));
        }
    };
    if request.path.as_str() == "/robots.txt" {
        let page = Reply::page(200, "User-agent: *\nDisallow: /").note("our own robots.txt");
        return send(page, Some(&options));
    }
    process::name(&format!("serve {}", request.path.as_str().rsplit('/').next().unwrap_or("")));
    let downloads = downloads(&options);
    let client = client(&options);
    let place = |patience| {
        let downloads = downloads.as_ref()?;
        let source = format!("{}{}", options.base, request.path);
        Some(match options.dupe_mode {
            DupeMode::Deny => downloads.take(client?, &source, options.max_dupes),
            // Settings with `share` are refused above.
            DupeMode::Queue | DupeMode::Share => {
                downloads.wait_for(client?, &source, options.max_dupes, patience)
            }
        })
    };
    let patience = options.timeout.duration();
    // What is only asked for on a condition is counted when it is clear that there is a body.
    let first = request.get && !request.conditions.may_have_no_body();
    let mut seat = if first { place(patience) } else { None };
    if let Some(None) = seat {
        return send(Reply::too_many(options.max_dupes), Some(&options));
    }
    let reply = exchange.answer(&request);
    if request.get && !first && matches!(reply.code, 200 | 206) {
        seat = place(patience);
        if let Some(None) = seat {
            return send(Reply::too_many(options.max_dupes), Some(&options));
        }
    }
    let revalidate = reply.revalidate;
    let code = send(reply, Some(&options));
    drop(seat);
    if revalidate && let Ok(nothing) = File::open("/dev/null") {
        // The server need not wait for what the client has no use of.
        let _ = nix::unistd::dup2_stdout(&nothing);
        let _ = nix::unistd::dup2_stderr(&nothing);
        exchange.revalidate(&request);
    }
    code
}

/// The table of downloads, if there is anything to count. Without it everybody is let in.
fn downloads(options: &Options) -> Option<Downloads> {
    let folder = options.cache.as_ref().filter(|_| options.max_dupes > 0)?;
    match Downloads::open(folder, options.max_clients) {
        Ok(downloads) => Some(downloads),
        Err(error) => {
            let text = format!("OFFLOAD_MAX_DUPES: nobody is counted: {error}");
            log::rarely(options.notes(), "downloads", &text);
            None
        }
    }
}

/// Who asks; `None` where the server does not say.
fn client(options: &Options) -> Option<IpAddr> {
    let remote = String::from_utf8(variable("REMOTE_ADDR")?).ok()?.parse().ok()?;
    let forwarded = variable("HTTP_X_FORWARDED_FOR");
    let forwarded = forwarded.as_ref().and_then(|text| std::str::from_utf8(text).ok());
    Some(options.trust.client(remote, forwarded))
}

/// A variable of the environment, which need not be text.
fn variable(name: &str) -> Option<Vec<u8>> {
    std::env::var_os(name).map(|value| value.as_bytes().to_vec())
}

/// Reads the request, or says why it is refused.
pub(crate) fn request(variable: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Request, Refusal> {
    // With `ErrorDocument 404`, httpd turns every method into GET and keeps the client's there.
    let method = variable("REDIRECT_REQUEST_METHOD").or_else(|| variable("REQUEST_METHOD"));
    let mut get = match method.as_deref() {
        Some(b"GET") => true,
        Some(b"HEAD") => false,
        _ => return Err(Refusal::Method),
    };
    // Whatever the method became on the way, httpd sends no body to who asked with HEAD.
    get &= variable("REQUEST_METHOD").as_deref() != Some(b"HEAD");
    let length = variable("CONTENT_LENGTH").unwrap_or_default();
    if !length.iter().all(|byte| *byte == b'0') || variable("HTTP_TRANSFER_ENCODING").is_some() {
        return Err(Refusal::Body);
    }
    let target = variable("REQUEST_URI").unwrap_or_default();
    let target = without_authority(&target);
    if target.contains(&b'?') {
        return Err(Refusal::Query);
    }
    let path = CanonicalPath::parse(target).map_err(Refusal::Path)?;
    let header = |name: &str| variable(name).and_then(|value| String::from_utf8(value).ok());
    let conditions = Conditions {
        if_match: header("HTTP_IF_MATCH"),
        if_none_match: header("HTTP_IF_NONE_MATCH"),
        if_modified_since: header("HTTP_IF_MODIFIED_SINCE"),
        if_unmodified_since: header("HTTP_IF_UNMODIFIED_SINCE"),
        if_range: header("HTTP_IF_RANGE"),
        range: header("HTTP_RANGE"),
    };
    Ok(Request { get, path, conditions })
}

/// The path and query of a request target, which a client of a proxy writes as a whole URL. Which
/// host it names does not matter: there is one base.
fn without_authority(target: &[u8]) -> &[u8] {
    for scheme in ["http://", "https://"] {
        if let Some((start, rest)) = target.split_at_checked(scheme.len())
            && start.eq_ignore_ascii_case(scheme.as_bytes())
        {
            let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
            return if end == rest.len() { b"/" } else { &rest[end..] };
        }
    }
    target
}

/// Reads what a client has sent without being asked, up to a bound: httpd would lose the reply to it,
/// for the socket to a CGI that leaves input unread is reset.
fn drain() {
    const LONGEST: u64 = 1 << 20;
    if variable("CONTENT_LENGTH").is_some() || variable("HTTP_TRANSFER_ENCODING").is_some() {
        let _ = io::copy(&mut io::stdin().take(LONGEST), &mut io::sink());
    }
}

/// Writes the reply and the logs.
fn send(reply: Reply<'_>, options: Option<&Options>) -> ExitCode {
    drain();
    let words = |name: &str| {
        variable(name).map_or(String::new(), |value| String::from_utf8_lossy(&value).into_owned())
    };
    let method = variable("REDIRECT_REQUEST_METHOD").or_else(|| variable("REQUEST_METHOD"));
    let method = String::from_utf8_lossy(&method.unwrap_or_default()).into_owned();
    let request = format!("{method} {}", words("REQUEST_URI"));
    if reply.loud || options.is_some_and(|options| options.debug) {
        log::line(&format!("{} {request}: {}", reply.code, reply.note));
    }
    let code = reply.code;
    let silent = method == "HEAD" || words("REQUEST_METHOD") == "HEAD";
    let sent = AtomicU64::new(0);
    let result = write(reply, silent, &sent);
    let sent = sent.into_inner();
    if let Some(path) = options.and_then(|options| options.log.as_ref()) {
        let full = format!("{request} {}", words("SERVER_PROTOCOL"));
        let access = Access {
            client: &words("REMOTE_ADDR"),
            user: &words("REMOTE_USER"),
            request: full.trim_end(),
            referer: &words("HTTP_REFERER"),
            agent: &words("HTTP_USER_AGENT"),
            status: code,
            sent,
        };
        if let Err(error) = access.append(path, SystemTime::now()) {
            log::line(&format!("OFFLOAD_LOG: '{}' cannot be written: {error}", path.display()));
        }
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Cut::Client(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Cut::Client(error)) => {
            log::line(&format!("{request}: the reply cannot be written: {error}"));
            ExitCode::FAILURE
        }
        Err(Cut::Source(failure)) => {
            log::line(&format!("{request}: cut off after {sent} bytes: {}", failure.sentence));
            ExitCode::FAILURE
        }
    }
}

fn write(reply: Reply<'_>, silent: bool, sent: &AtomicU64) -> Result<(), Cut> {
    // Not std's stdout: its buffer looks for the ends of lines.
    let out = io::stdout().as_fd().try_clone_to_owned().map_err(Cut::Client)?;
    let mut out = File::from(out);
    let head = reply.head().into_bytes();
    let body = if silent { Body::default() } else { reply.body };
    body.send(head, &mut out, sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Request, u16> {
        let find = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name)?;
            Some(found.1.as_bytes().to_vec())
        };
        request(find).map_err(Refusal::status)
    }

    fn get(target: &str) -> Result<String, u16> {
        read(&[("REQUEST_METHOD", "GET"), ("REQUEST_URI", target)])
            .map(|request| request.path.as_str().to_owned())
    }

    #[test]
    fn the_target_is_the_path_of_the_base_whatever_host_is_named() {
        for (target, path) in [
            ("/a%20b", "/a%20b"),
            ("http://evil.test/a", "/a"),
            ("HTTPS://evil.test:1/a", "/a"),
            ("http://evil.test", "/"),
            ("//evil.test/a", "/evil.test/a"),
            ("/http://x/y", "/http:/x/y"),
        ] {
            assert_eq!(get(target).as_deref(), Ok(path), "{target}");
        }
    }

    #[test]
    fn what_is_not_served_is_refused_with_its_status() {
        for (target, status) in [
            ("/a?b", 403),
            ("/a?", 403),
            ("http://x?b", 403),
            ("", 400),
            ("*", 400),
            ("/../etc/passwd", 400),
            ("/a%2fb", 400),
            ("/%00", 400),
            ("/%zz", 400),
        ] {
            assert_eq!(get(target), Err(status), "{target}");
        }
        let uri = ("REQUEST_URI", "/a");
        for (lines, status) in [
            (vec![uri, ("REQUEST_METHOD", "POST")], 403),
            (vec![uri, ("REQUEST_METHOD", "get")], 403),
            (vec![uri], 403),
            (vec![uri, ("REQUEST_METHOD", "GET"), ("REDIRECT_REQUEST_METHOD", "PUT")], 403),
            (vec![uri, ("REQUEST_METHOD", "GET"), ("CONTENT_LENGTH", "1")], 400),
            (vec![uri, ("REQUEST_METHOD", "GET"), ("HTTP_TRANSFER_ENCODING", "chunked")], 400),
        ] {
            assert_eq!(read(&lines).map(|_| ()), Err(status), "{lines:?}");
        }
    }

    #[test]
    fn httpd_must_be_told_to_send_our_length() {
        for (software, trust, good) in [
            (Some("Apache/2.4.71 (Debian)"), None, false),
            (Some("Apache"), None, false),
            (Some("Apache"), Some("1"), true),
            (Some("lighttpd/1.4"), None, true),
            (None, None, true),
        ] {
            let checked = check_server(software.map(str::as_bytes), trust.map(str::as_bytes));
            assert_eq!(checked.is_ok(), good, "{software:?} {trust:?}");
        }
    }

    #[test]
    fn a_head_stays_one_behind_an_error_document() {
        let uri = ("REQUEST_URI", "/a");
        for (lines, get) in [
            (vec![uri, ("REQUEST_METHOD", "GET")], true),
            (vec![uri, ("REQUEST_METHOD", "HEAD")], false),
            (vec![uri, ("REQUEST_METHOD", "GET"), ("REDIRECT_REQUEST_METHOD", "HEAD")], false),
            (vec![uri, ("REQUEST_METHOD", "HEAD"), ("REDIRECT_REQUEST_METHOD", "GET")], false),
            (vec![uri, ("REQUEST_METHOD", "GET"), ("CONTENT_LENGTH", "0")], true),
        ] {
            assert_eq!(read(&lines).map(|request| request.get), Ok(get), "{lines:?}");
        }
    }
}
