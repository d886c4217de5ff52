//! One connection of a crowd.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect,
    getsockopt, recv, setsockopt, socket, sockopt,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use super::Crowd;
use super::rate::Gauge;
use crate::client::ETHERNET;

/// The name that every request is for.
const HOST: &str = "base.test";
/// A slow reader's window, so that the server feels it soon.
const SLOW_WINDOW: usize = 32 << 10;
/// A slow reader takes so much at a time or what comes in a quarter of a second: with thousands of them less would cost
/// much.
const LEAST: usize = 1 << 10;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    Connecting,
    /// The head of the answer is being waited for, with TLS after the handshake.
    Head,
    Body,
}

pub(super) struct Line {
    stream: TcpStream,
    pub(super) stage: Stage,
    session: Option<Box<ClientConnection>>,
    asked: bool,
    head: Vec<u8>,
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Line {
    /// Begins to connect.
    pub(super) fn connect(crowd: &Crowd, number: usize) -> io::Result<Self> {
        let family =
            if crowd.server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        if crowd.reading.is_some() {
            setsockopt(&socket, sockopt::RcvBuf, &SLOW_WINDOW)?;
        }
        if crowd.ethernet {
            setsockopt(&socket, sockopt::TcpMaxSeg, &ETHERNET)?;
        }
        if !crowd.from.is_empty() {
            let from: Ipv4Addr = crowd.from[number % crowd.from.len()];
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
        }
        let begun = match crowd.server {
            SocketAddr::V4(to) => connect(socket.as_raw_fd(), &SockaddrIn::from(to)),
            SocketAddr::V6(to) => connect(socket.as_raw_fd(), &SockaddrIn6::from(to)),
        };
        match begun {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let session = crowd.tls.then(|| Box::new(tls_session()));
        let (stream, stage) = (TcpStream::from(socket), Stage::Connecting);
        Ok(Self { stream, stage, session, asked: false, head: Vec::new() })
    }

    /// Does what can be done without waiting; whether the connection is still open.
    pub(super) fn advance(
        &mut self,
        crowd: &Crowd,
        gauge: &mut Gauge,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        match self.stage {
            Stage::Connecting => {
                let error = getsockopt(&self.stream, sockopt::SocketError)?;
                if error != 0 {
                    return Err(io::Error::from_raw_os_error(error));
                }
                self.stage = Stage::Head;
                match &mut self.session {
                    Some(session) => while_wanted(session, &self.stream)?,
                    None => (&self.stream).write_all(request(crowd).as_bytes())?,
                }
                Ok(true)
            }
            Stage::Head if self.session.is_some() => self.read_head_of_tls(crowd, gauge),
            Stage::Head => self.read_head(gauge, buffer),
            Stage::Body => self.read_body(crowd, gauge, buffer),
        }
    }

    fn read_head(&mut self, gauge: &mut Gauge, buffer: &mut [u8]) -> io::Result<bool> {
        // The head and little more, so that a slow reader stays slow.
        let Some(count) = received((&self.stream).read(&mut buffer[..8192]))? else {
            return Ok(true);
        };
        gauge.receive(Instant::now(), count);
        self.head.extend_from_slice(&buffer[..count]);
        self.understand_head(gauge);
        Ok(count > 0)
    }

    fn read_head_of_tls(&mut self, crowd: &Crowd, gauge: &mut Gauge) -> io::Result<bool> {
        let Some(session) = &mut self.session else { return Ok(false) };
        let Some(count) = received(session.read_tls(&mut &self.stream))? else { return Ok(true) };
        gauge.receive(Instant::now(), count);
        let state = session
            .process_new_packets()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        if !self.asked && !session.is_handshaking() {
            session.writer().write_all(request(crowd).as_bytes())?;
            self.asked = true;
        }
        while_wanted(session, &self.stream)?;
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        session.reader().read_exact(&mut plain)?;
        self.head.extend_from_slice(&plain);
        self.understand_head(gauge);
        Ok(count > 0)
    }

    /// Goes on to the body when the head is complete.
    ///
    /// From there on nothing is decrypted: what counts is how much comes and when.
    fn understand_head(&mut self, gauge: &mut Gauge) {
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else { return };
        let text = String::from_utf8_lossy(&self.head[..end]).into_owned();
        let status = text.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        gauge.status = status.unwrap_or(0);
        gauge.length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        if self.session.is_none() {
            gauge.head = end + 4;
        }
        self.stage = Stage::Body;
        (self.session, self.head) = (None, Vec::new());
    }

    fn read_body(
        &mut self,
        crowd: &Crowd,
        gauge: &mut Gauge,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let mut room = buffer.len();
        if let (Some(rate), Some(opened)) = (crowd.reading, gauge.opened) {
            let due = u128::from(rate) * opened.elapsed().as_micros() / 1_000_000;
            let due = u64::try_from(due).unwrap().saturating_sub(gauge.bytes);
            room = room.min(usize::try_from(due).unwrap());
            if room < LEAST.min(usize::try_from(rate / 4).unwrap()).max(1) {
                return Ok(true);
            }
        }
        // With this flag the kernel forgets the bytes instead of copying them.
        let flags = MsgFlags::MSG_TRUNC;
        let count = recv(self.stream.as_raw_fd(), &mut buffer[..room], flags);
        let Some(count) = received(count.map_err(io::Error::from))? else { return Ok(true) };
        gauge.receive(Instant::now(), count);
        Ok(count > 0)
    }
}

fn request(crowd: &Crowd) -> String {
    let Crowd { path, fields, .. } = crowd;
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{fields}\r\n")
}

/// What was received, or nothing when there was nothing yet.
fn received(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// Sends what TLS has to say: little, so the kernel takes it at once.
fn while_wanted(session: &mut ClientConnection, mut stream: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(&mut stream)?;
    }
    Ok(())
}

/// A client's side of TLS that believes every certificate and resumes no session.
pub fn tls_session() -> ClientConnection {
    static CONFIGURATION: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Credulous(provider.clone()));
        let mut configuration = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        configuration.resumption = Resumption::disabled();
        Arc::new(configuration)
    });
    ClientConnection::new(CONFIGURATION.clone(), ServerName::try_from(HOST).unwrap()).unwrap()
}

/// Believes every certificate: a test's server has made its own.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
