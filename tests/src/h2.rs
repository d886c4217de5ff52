//! A client of HTTP/2 that decides, stream by stream, when it takes the next byte.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use crate::{Httpd, Raw};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const MOST: u32 = (1 << 31) - 1 - 65_535;

/// What has come on one stream so far.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// The status; only 200 and "another one" are told apart, since nothing else is needed.
    pub ok: Option<bool>,
    /// The body's beginning: what fits into the window.
    pub body: Vec<u8>,
    /// How long the body is so far.
    pub length: u64,
    /// Whether it has ended.
    pub ended: bool,
}

/// What HPACK has for these two.
const HTTP: u8 = 0x86;
const HTTPS: u8 = 0x87;

/// One connection, by prior knowledge, from one address; a stream gets 64 KB unless it is let run.
#[derive(Debug)]
pub struct Connection {
    raw: Raw,
    scheme: u8,
    authority: String,
    next: u32,
    streams: BTreeMap<u32, Stream>,
}

impl Connection {
    /// Connects.
    pub fn open(server: &Httpd, from: &str) -> Self {
        let from: Ipv4Addr = from.parse().unwrap();
        Self::begin(Raw::connect_from(from, server.address()), server, HTTP)
    }

    /// Begins on a connection of TLS to this server.
    pub fn over_tls(raw: Raw, server: &Httpd) -> Self {
        Self::begin(raw, server, HTTPS)
    }

    fn begin(mut raw: Raw, server: &Httpd, scheme: u8) -> Self {
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let (authority, streams) = (server.authority(), BTreeMap::new());
        let mut new = Self { raw, scheme, authority, next: 1, streams };
        new.send(SETTINGS, 0, 0, &[]);
        new.send(WINDOW_UPDATE, 0, 0, &MOST.to_be_bytes());
        new
    }

    /// GETs a path on a stream of its own, and returns its number.
    pub fn get(&mut self, path: &str) -> u32 {
        let id = self.next;
        self.next += 2;
        let mut block = vec![0x82, self.scheme]; // 0x82 is ":method GET"
        for (name, value) in [(4, path), (1, &self.authority)] {
            block.extend([name, u8::try_from(value.len()).unwrap()]);
            block.extend(value.as_bytes());
        }
        self.streams.insert(id, Stream::default());
        self.send(HEADERS, END_STREAM | END_HEADERS, id, &block);
        id
    }

    /// Waits until a stream has its status.
    pub fn is_ok(&mut self, id: u32) -> bool {
        loop {
            if let Some(ok) = self.streams[&id].ok {
                return ok;
            }
            self.step();
        }
    }

    /// Takes everything of a stream, to its end.
    pub fn finish(&mut self, id: u32) -> Stream {
        if !self.streams[&id].ended {
            self.send(WINDOW_UPDATE, 0, id, &MOST.to_be_bytes());
        }
        while !self.streams[&id].ended {
            self.step();
        }
        self.streams.remove(&id).unwrap()
    }

    /// The client's end of the connection.
    pub fn local(&self) -> SocketAddr {
        self.raw.local()
    }

    /// Gives a stream up.
    pub fn cancel(&mut self, id: u32) {
        self.send(RST_STREAM, 0, id, &8u32.to_be_bytes());
    }

    fn send(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &id.to_be_bytes()].concat();
        self.raw.send([&head, payload].concat());
    }

    /// Reads one frame.
    fn step(&mut self) {
        let head = self.raw.read_exactly(9).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = self.raw.read_exactly(usize::try_from(length).unwrap()).unwrap();
        match kind {
            SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => self.send(PING, ACK, 0, &payload),
            GOAWAY => panic!("the server ends the connection: {payload:?}"),
            _ => {}
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match kind {
            // 0x88 is ":status 200" in every table; nothing else begins with this byte.
            HEADERS => stream.ok = stream.ok.or(Some(payload.first() == Some(&0x88))),
            DATA => {
                stream.length += u64::from(length);
                if stream.body.len() < 65_536 {
                    stream.body.extend(&payload);
                }
            }
            RST_STREAM => panic!("the server gives stream {id} up: {payload:?}"),
            _ => {}
        }
        stream.ended |= matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
    }
}
