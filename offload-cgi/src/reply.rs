//! A reply: status, headers, a body, and what the log is to know about it.

use crate::body::Body;
use crate::failure::{Failure, Kind};

/// What a client is to be sent.
pub(crate) struct Reply<'a> {
    pub(crate) code: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Body<'a>,
    /// Why it is what it is.
    pub(crate) note: String,
    /// Whether the error log is to have the note in any case.
    pub(crate) loud: bool,
    /// Whether the base is to be asked about the file when the reply is out.
    pub(crate) revalidate: bool,
}

impl<'a> Reply<'a> {
    /// A head without headers, and with room for those of a file.
    pub(crate) fn new(code: u16) -> Self {
        Self {
            code,
            headers: Vec::with_capacity(12),
            body: Body::default(),
            note: String::new(),
            loud: false,
            revalidate: false,
        }
    }

    /// A short plain page.
    pub(crate) fn page(code: u16, sentence: &str) -> Self {
        let text = format!("{sentence}\n");
        Self::new(code)
            .header("Content-Type", "text/plain; charset=utf-8")
            .header("Content-Length", &text.len().to_string())
            .header("X-Content-Type-Options", "nosniff")
            .body(Body::text(text))
    }

    /// A page about what the client did wrong; the log is told.
    pub(crate) fn refused(code: u16, why: &str) -> Self {
        Self::page(code, &format!("This request is refused: {why}.")).loud(why)
    }

    /// What a client gets that loads one file over more connections than it may.
    pub(crate) fn too_many(limit: u32) -> Self {
        let connections =
            if limit == 1 { "1 connection".into() } else { format!("{limit} connections") };
        Self::page(
            403,
            &format!(
                "You are downloading this file already, and may do so over {connections} at a time.\n\
                 If you use a download accelerator, please switch it off: it does not make this\n\
                 server any faster, and it keeps others from their downloads. You can download other\n\
                 files meanwhile, and this one again when the running download has ended."
            ),
        )
        .header("Retry-After", "10")
        .note("too many connections of this client for this file")
    }

    /// A page about what went wrong elsewhere; the log is told.
    pub(crate) fn failed(failure: &Failure) -> Self {
        let code = failure.kind.status();
        let reply = match failure.kind {
            Kind::Refused => {
                let why = &failure.sentence;
                Self::page(code, &format!("This file is not served from here: {why}."))
            }
            Kind::Changed => Self::page(code, "The file is changing; try again in a moment.")
                .header("Retry-After", "1"),
            Kind::TimedOut => Self::page(code, "The base server does not answer in time.")
                .header("Retry-After", "30"),
            Kind::Down | Kind::NoRoom | Kind::Unstorable => {
                Self::page(code, "The base server cannot be asked.").header("Retry-After", "30")
            }
        };
        reply.status("offload; fwd=miss").loud(&failure.sentence)
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// The `Cache-Status` (RFC 9211).
    pub(crate) fn status(self, text: &str) -> Self {
        let reply = self.header("Cache-Status", text);
        if reply.note.is_empty() { reply.note(text) } else { reply }
    }

    pub(crate) fn body(mut self, body: Body<'a>) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn note(mut self, why: &str) -> Self {
        why.clone_into(&mut self.note);
        self
    }

    fn loud(mut self, why: &str) -> Self {
        self.loud = true;
        self.note(why)
    }

    /// The head as a CGI writes it.
    pub(crate) fn head(&self) -> String {
        let mut text = format!("Status: {}\r\n", self.code);
        for (name, value) in &self.headers {
            // The base's values are printable by now; this is the last door to the client.
            let value: String = value.chars().filter(|letter| !letter.is_control()).collect();
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text + "\r\n"
    }
}
