//! A client's connection from a chosen address.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use crate::limits::OBSERVER;
use crate::status::Status;

/// How long an answer may take; a server without children for a while is not hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) length: usize,
    /// The directive that refused the request.
    pub(super) refused: String,
}

/// A connection that reads no more than it is asked to.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// What came together with a head.
    rest: Vec<u8>,
}

impl Connection {
    /// From this address, any port.
    pub(super) fn open(from: Ipv4Addr, server: SocketAddr) -> io::Result<Self> {
        let SocketAddr::V4(server) = server else { panic!("not IPv4: {server}") };
        let socket =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        // The port is chosen when the other end is known: there are more of them then.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0))).unwrap();
        connect(socket.as_raw_fd(), &SockaddrIn::from(server))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, rest: Vec::new() })
    }

    pub(super) fn port(&self) -> u16 {
        self.stream.local_addr().map_or(0, |address| address.port())
    }

    pub(super) fn send(&mut self, host: &str, path: &str) -> io::Result<()> {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
    }

    pub(super) fn head(&mut self) -> io::Result<Head> {
        let end = loop {
            if let Some(at) = self.rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            let mut part = [0; 4096];
            match self.stream.read(&mut part)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => self.rest.extend_from_slice(&part[..length]),
            }
        };
        let body = self.rest.split_off(end);
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        self.rest = body;
        let field = |name: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(": "));
            fields.find(|field| field.0.eq_ignore_ascii_case(name)).map_or("", |field| field.1)
        };
        Ok(Head {
            status: text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0),
            length: field("Content-Length").parse().unwrap_or(0),
            refused: field("X-Refused").to_owned(),
        })
    }

    /// The next bytes of a body.
    pub(super) fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let kept = length.min(self.rest.len());
        let mut body: Vec<u8> = self.rest.drain(..kept).collect();
        body.resize(length, 0);
        self.stream.read_exact(&mut body[kept..])?;
        Ok(body)
    }
}

/// What `choke-status` says to somebody whom no limit counts; `None` if the child that was to answer died.
pub(super) fn status(server: SocketAddr) -> Option<Status> {
    let mut connection = Connection::open(OBSERVER.parse().unwrap(), server).ok()?;
    connection.send("a.test", "/status?json").ok()?;
    let head = connection.head().ok()?;
    assert_eq!(head.status, 200, "choke-status");
    let body = connection.body(head.length).ok()?;
    Some(Status::read(&String::from_utf8(body).unwrap()))
}
