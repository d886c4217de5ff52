//! A base that misbehaves as a test wants it to.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::DEADLINE;

/// What a client of an [`Origin`] asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path and the query.
    pub path: String,
    /// The whole head.
    pub head: String,
}

/// A server of one request a connection, which writes whatever the test's function writes.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Origin {
    /// Listens on any free port of 127.0.0.1; `answer` writes the answer, then the connection is closed: the
    /// answer should say so, or who asks may send another request into the closing.
    pub fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (address, ended) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let (answer, end) = (Arc::new(answer), Arc::clone(&ended));
        let listener = thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let (answer, stream) = (Arc::clone(&answer), stream.unwrap());
                thread::spawn(move || serve(stream, answer.as_ref()));
            }
        });
        Self { address, ended, listener: Some(listener) }
    }

    /// Its URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&Request, &mut TcpStream)) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let mut words = head.split_whitespace().map(ToOwned::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    answer(&Request { method, path, head }, &mut stream);
    // The other side may have gone, which is not this side's failure.
    let _ = stream.flush();
}
