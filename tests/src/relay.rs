//! Makes the segments of a program's connection as large as on Ethernet.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::client::dial;

/// Stands between a program that cannot set the size of its segments, such as curl, and a server: what
/// either side sends goes to the other one at once.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens on any free port of 127.0.0.1 for those who want to go to this server.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (address, ended) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&ended);
        let listener = thread::spawn(move || {
            for client in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                // Without a server the client sees the end of its connection.
                if let Ok(server) = dial(Ipv4Addr::LOCALHOST, server, None) {
                    join(client.unwrap(), server);
                }
            }
        });
        Self { address, ended, listener: Some(listener) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What makes curl go through it, and leaves the URL as it is.
    pub fn detour(&self) -> [String; 2] {
        ["--connect-to".to_owned(), format!("::{}:{}", self.address.ip(), self.address.port())]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Two threads carry the bytes until either side has gone.
fn join(client: TcpStream, server: TcpStream) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        carry(from, &to);
        // A client that has ended its side has gone: no program that a test uses goes on to read.
        let _ = to.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        carry(server, &client);
        let _ = client.shutdown(Shutdown::Write);
    });
}

fn carry(mut from: TcpStream, mut to: &TcpStream) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut bytes) {
        if length == 0 || to.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}
