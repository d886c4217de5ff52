//! What a head asks for, of which site; and a reply's head as HTTP/1.1 writes it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use ureq::http::StatusCode;

use super::journal::{self, Format, More};
use super::plan::Plan;
use super::site::Site;
use crate::cgi;
use crate::exchange::Request;
use crate::head::Head;
use crate::log::Access;
use crate::reply::Reply;
use crate::representation::DATE;

/// What a head comes to.
pub(crate) enum Step {
    /// It is answered without anybody being asked.
    Reply(Reply<'static>),
    /// A file of a site is wanted.
    Ask(&'static Site, Request),
}

/// A request, for logs and for who looks at what is running.
#[derive(Clone, Debug)]
pub(crate) struct Visit {
    /// Who asks, behind trusted proxies.
    pub(crate) client: Option<IpAddr>,
    pub(crate) site: Option<&'static str>,
    pub(crate) begun: Instant,
    pub(crate) code: u16,
    /// `Cache-Status`, or why the reply is what it is.
    pub(crate) cache: Box<str>,
    pub(crate) head_only: bool,
    pub(crate) line: Box<str>,
    host: Box<str>,
    referer: Box<str>,
    agent: Box<str>,
}

/// Finds out what a head asks for.
pub(crate) fn read(head: &Head, plan: &Plan) -> Step {
    let site = plan.site(head.host());
    if head.has_body() && matches!(head.method(), "GET" | "HEAD") {
        return Step::Reply(Reply::refused(400, "it has a body"));
    }
    let Some(site) = site else {
        return Step::Reply(Reply::refused(421, "no base of this host is served here"));
    };
    match cgi::request(|name| head.variable(name)) {
        Err(refusal) => Step::Reply(Reply::refused(refusal.status(), &refusal.to_string())),
        Ok(request) if request.path.as_str() == "/robots.txt" => {
            Step::Reply(Reply::page(200, "User-agent: *\nDisallow: /").note("our own robots.txt"))
        }
        Ok(request) => Step::Ask(site, request),
    }
}

impl Visit {
    pub(crate) fn new(head: &Head, plan: &Plan, peer: Option<IpAddr>, now: Instant) -> Self {
        let field = |name| {
            let value = head.field(name).unwrap_or_default();
            String::from_utf8_lossy(value).into_owned().into_boxed_str()
        };
        let site = plan.site(head.host());
        let forwarded = head.variable("HTTP_X_FORWARDED_FOR");
        let forwarded = forwarded.as_ref().and_then(|text| std::str::from_utf8(text).ok());
        let client = match (site, peer) {
            (Some(site), Some(peer)) => Some(site.options().trust.client(peer, forwarded)),
            (Some(site), None) => site.options().trust.client_over_unix(forwarded),
            (None, peer) => peer,
        };
        Self {
            client,
            site: site.map(|site| site.settings.name.as_str()),
            begun: now,
            code: 0,
            cache: Box::default(),
            head_only: head.method() == "HEAD",
            line: head.line().into(),
            host: field("host"),
            referer: field("referer"),
            agent: field("user-agent"),
        }
    }

    /// One that could not be read.
    pub(crate) fn unreadable(peer: Option<IpAddr>, now: Instant) -> Self {
        Self {
            client: peer,
            site: None,
            begun: now,
            code: 0,
            cache: Box::default(),
            head_only: false,
            line: Box::default(),
            host: Box::default(),
            referer: Box::default(),
            agent: Box::default(),
        }
    }

    /// Who asks, as text.
    pub(crate) fn client(&self) -> String {
        self.client.map_or_else(|| "unix:".to_owned(), |client| client.to_string())
    }

    /// The line of the access log.
    pub(crate) fn line_of_log(
        &self,
        format: Format,
        sent: u64,
        whole: bool,
        now: Instant,
    ) -> String {
        let access = Access {
            client: &self.client(),
            user: "",
            request: &self.line,
            referer: &self.referer,
            agent: &self.agent,
            status: self.code,
            sent,
        };
        let more = More {
            host: &self.host,
            base: self.site.unwrap_or_default(),
            cache: &self.cache,
            time: now.saturating_duration_since(self.begun),
            whole,
        };
        journal::line(format, &access, &more, SystemTime::now())
    }
}

/// A reply's head. `keep`: whether the connection goes on; `minor`: what the client speaks.
pub(crate) fn head(reply: &Reply<'_>, minor: u8, keep: bool) -> Vec<u8> {
    let reason = StatusCode::from_u16(reply.code).ok().and_then(|code| code.canonical_reason());
    let mut text = String::with_capacity(512);
    let _ = write!(text, "HTTP/1.1 {} {}\r\n", reply.code, reason.unwrap_or("Unknown"));
    let mut dated = false;
    for (name, value) in &reply.headers {
        // That is between the client and this program.
        if *name == "Connection" {
            continue;
        }
        dated |= *name == DATE;
        text.push_str(name);
        text.push_str(": ");
        // The base's values are printable by now; this is the last door to the client.
        if value.contains(char::is_control) {
            text.extend(value.chars().filter(|letter| !letter.is_control()));
        } else {
            text.push_str(value);
        }
        text.push_str("\r\n");
    }
    if !dated {
        let _ = write!(text, "{DATE}: {}\r\n", httpdate::fmt_http_date(SystemTime::now()));
    }
    match (keep, minor) {
        (false, _) => text.push_str("Connection: close\r\n"),
        (true, 0) => text.push_str("Connection: keep-alive\r\n"),
        (true, _) => {}
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// Whether the end of a reply shows without the end of the connection.
pub(crate) fn has_end(reply: &Reply<'_>) -> bool {
    reply.code == 304 || reply.headers.iter().any(|(name, _)| *name == "Content-Length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_written_as_http_wants_it() {
        let reply = Reply::new(206)
            .header("Content-Length", "2")
            .header("Connection", "close")
            .header("X", "a\r\nb")
            .header(DATE, "now");
        let text = String::from_utf8(head(&reply, 1, true)).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\nX: ab\r\nDate: now\r\n\r\n"
        );
        assert!(has_end(&reply));
        let text = String::from_utf8(head(&Reply::new(304), 0, true)).unwrap();
        assert!(text.starts_with("HTTP/1.1 304 Not Modified\r\nDate: "), "{text}");
        assert!(text.ends_with(" GMT\r\nConnection: keep-alive\r\n\r\n"), "{text}");
    }
}
