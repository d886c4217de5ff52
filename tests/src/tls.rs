//! A server that speaks TLS too, with a certificate of its own making, and clients of it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use crate::client::Between;
use crate::{Curl, Port, Raw, Relay, Scratch, Setup};

/// Makes a certificate for the name `base.test` in the server's folder: `certificate.pem`, `key.pem`.
pub fn certificate(scratch: &Scratch) {
    let folder = scratch.path();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=base.test", "-days", "2", "-keyout"])
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("certificate.pem"))
        .output()
        .expect("cannot start openssl: install it");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// The same server, which also listens for TLS on this port.
pub fn listening(setup: Setup, port: &Port) -> Setup {
    certificate(setup.scratch());
    let address = port.address();
    setup.module("socache_shmcb").module("ssl").directives(&format!(
        "Listen {address} https\nMutex file:${{SCRATCH}}/run\n<VirtualHost {address}>\nServerName base.test\nSSLEngine On\n\
         SSLCertificateFile ${{SCRATCH}}/certificate.pem\nSSLCertificateKeyFile ${{SCRATCH}}/key.pem\n</VirtualHost>"
    ))
}

/// A server's port for TLS, and the way of its clients there.
#[derive(Debug)]
pub struct Tls {
    port: Port,
    relay: Relay,
}

impl Default for Tls {
    fn default() -> Self {
        let port = Port::of(Ipv4Addr::LOCALHOST.into());
        let relay = Relay::to(port.address());
        Self { port, relay }
    }
}

impl Tls {
    /// Lets a server listen here.
    pub fn serve(&self, setup: Setup) -> Setup {
        listening(setup, &self.port)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// A connection that gets these options of `openssl s_client`, on which a test writes and reads what
    /// is then encrypted.
    pub fn connect(&self, options: &[&str]) -> Raw {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        theirs.set_nodelay(true).unwrap();
        let theirs = OwnedFd::from(theirs);
        let program = Command::new("openssl")
            // Quiet: every letter is for the server.
            .args(["s_client", "-quiet", "-servername", "base.test", "-connect"])
            .arg(self.relay.address().to_string())
            .args(options)
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start openssl: install it");
        Raw::through(ours, Between(program)).unwrap()
    }

    /// A curl that is going to GET this path.
    pub fn curl(&self, path: &str) -> Curl {
        let curl = Curl::new(format!("https://{}{path}", self.address())).arg("-k");
        self.relay.detour().iter().fold(curl, |curl, argument| curl.arg(argument))
    }
}
