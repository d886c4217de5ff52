//! What the tests of the limits have in common: clients that do not read, and what `choke-status` says.

use std::fs::File;
use std::net::Ipv4Addr;

pub use crate::status::{Scope, Status, Transfer, eventually_empty, eventually_held};
use crate::{Head, Httpd, Mpm, Raw, Setup, age, eventually};

/// No limit concerns this client, so that its looking changes nothing.
pub const OBSERVER: &str = "127.0.0.99";

/// More than the buffers of a connection hold: the server cannot be done with it before the client reads.
pub const BIG: u64 = 24 << 20;

/// A server with the module and its status page. Nothing but what a test does ends a request: the
/// server's patience is longer than the test's.
pub fn limited(mpm: Mpm, directives: &str) -> Setup {
    let common = format!(
        "Timeout 300\nKeepAliveTimeout 300\nLimitExempt {OBSERVER}\n\
         <Location /choke-status>\nSetHandler choke-status\n</Location>\n"
    );
    // Prefork makes a child a second, and a test would wait for them.
    let children = "StartServers 20\nMinSpareServers 10\nMaxSpareServers 30";
    let children = if mpm == Mpm::Prefork { children } else { "" };
    Setup::default()
        .mpm(mpm)
        .offload()
        .directives(&common)
        .directives(children)
        .directives(directives)
}

/// Puts a file of [`BIG`] zeros that takes no room on the disk.
pub fn put_big(server: &Httpd, name: &str) {
    let path = server.put(name, "");
    File::options().write(true).open(&path).unwrap().set_len(BIG).unwrap();
    age(&path);
}

/// A client of one server: where it comes from and what it says.
#[derive(Clone, Debug)]
pub struct Client<'a> {
    server: &'a Httpd,
    from: Ipv4Addr,
    buffer: usize,
    method: &'static str,
    host: String,
    fields: String,
}

impl<'a> Client<'a> {
    /// A client at 127.0.0.1.
    pub fn of(server: &'a Httpd) -> Self {
        let (from, host) = (Ipv4Addr::LOCALHOST, "base.test".to_owned());
        Self { server, from, buffer: 32 << 10, method: "GET", host, fields: String::new() }
    }

    /// Comes from this address.
    #[must_use]
    pub fn from(self, address: &str) -> Self {
        Self { from: address.parse().unwrap(), ..self }
    }

    /// Takes so much in before it reads; usually 32 KB.
    #[must_use]
    pub fn buffer(self, bytes: usize) -> Self {
        Self { buffer: bytes, ..self }
    }

    /// Asks this virtual host.
    #[must_use]
    pub fn host(self, name: &str) -> Self {
        Self { host: name.to_owned(), ..self }
    }

    /// Asks with another method; a POST has an empty body.
    #[must_use]
    pub fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    /// Sends this field too.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.fields += field;
        self.fields += "\r\n";
        self
    }

    /// Is this user, whose password is the name.
    #[must_use]
    pub fn user(self, name: &str) -> Self {
        let field = format!("Authorization: Basic {}", base64(&format!("{name}:{name}")));
        self.field(&field)
    }

    /// A connection without a request.
    pub fn connect(&self) -> Raw {
        Raw::connect_with(self.from, self.server.address(), self.buffer)
    }

    /// Whether it asks for heads only.
    pub(crate) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Asks for a path on a connection, and reads the head of the answer only.
    pub fn ask(&self, mut raw: Raw, path: &str) -> Opened {
        let Self { method, host, fields, .. } = self;
        let length = if *method == "POST" { "Content-Length: 0\r\n" } else { "" };
        raw.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}{length}\r\n"));
        let head = raw.try_receive_head().unwrap_or_else(|error| {
            panic!("{method} {path} for {} with {fields:?}: {error}", self.from)
        });
        Opened { head, raw }
    }

    /// Asks for a path on a connection of its own, whose other end may be killed.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn try_get(&self, path: &str) -> std::io::Result<(Head, String)> {
        let mut raw = self.connect();
        let Self { method, host, .. } = self;
        raw.try_send(format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))?;
        let (head, body) = raw.try_receive()?;
        Ok((head, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Asks for a path on a connection of its own, and reads the head of the answer only.
    pub fn open(&self, path: &str) -> Opened {
        self.ask(self.connect(), path)
    }

    /// Asks for a path and is let in; the answer is not read.
    pub fn hold(&self, path: &str) -> Opened {
        let opened = self.open(path);
        assert_eq!(opened.status(), 200, "{path} for {self:?}: {:?}", opened.head);
        opened
    }

    /// Asks for a path as often as that, and is let in.
    pub fn hold_all(&self, path: &str, count: usize) -> Vec<Opened> {
        (0..count).map(|_| self.hold(path)).collect()
    }

    /// Asks for a path, and reads to the end of the connection, which the server closes.
    pub fn get(&self, path: &str) -> (Head, String) {
        let opened = self.clone().field("Connection: close").open(path);
        let (head, mut raw) = (opened.head, opened.raw);
        let body = match self.method {
            "HEAD" => Vec::new(),
            _ => raw.try_receive_body(&head).unwrap(),
        };
        assert!(raw.ended(), "{path}: more than an answer");
        (head, String::from_utf8(body).unwrap())
    }

    /// The status that a path gets.
    pub fn status(&self, path: &str) -> u16 {
        self.get(path).0.status
    }

    /// Is refused with these words.
    pub fn assert_refused(&self, path: &str, words: &str) {
        let (head, page) = self.get(path);
        assert_eq!(head.status, 503, "{path} for {self:?}: {page}");
        assert!(self.method == "HEAD" || page.contains(words), "{path}: {page}");
    }

    /// Waits until it is let in.
    pub fn eventually_hold(&self, path: &str) -> Opened {
        eventually(&format!("{path} is let in"), || {
            let opened = self.open(path);
            assert!([200, 503].contains(&opened.status()), "{path}: {:?}", opened.head);
            (opened.status() == 200).then_some(opened)
        })
    }
}

/// An answer of which only the head was read.
#[derive(Debug)]
pub struct Opened {
    /// The head.
    pub head: Head,
    /// The connection.
    pub raw: Raw,
}

impl Opened {
    /// The status.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// Reads the body to its end, and returns its length and the connection, which stays open.
    pub fn finish(mut self) -> (u64, Raw) {
        let body = self.raw.try_receive_body(&self.head).unwrap();
        (u64::try_from(body.len()).unwrap(), self.raw)
    }
}

fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let three = |bytes: &[u8]| {
        let number =
            (0..3).fold(0, |number, at| number << 8 | usize::from(*bytes.get(at).unwrap_or(&0)));
        (0..4).map(move |at| LETTERS[number >> (18 - 6 * at) & 63]).take(bytes.len() + 1).collect()
    };
    let parts =
        text.as_bytes().chunks(3).map(three).map(|part: Vec<u8>| String::from_utf8(part).unwrap());
    parts.map(|part| format!("{part:=<4}")).collect()
}
