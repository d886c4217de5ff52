//! A client that wants one file again and again, over a few connections that it keeps, as fast as it comes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};

/// The most that is taken at a time.
const STEP: usize = 1 << 20;

struct Line {
    stream: TcpStream,
    head: Vec<u8>,
    /// What is left of the body that is coming.
    left: usize,
}

/// The bytes of bodies that came within this time, a second.
#[allow(clippy::cast_precision_loss)] // far below 2^52
pub(crate) fn rate(server: SocketAddr, path: &str, connections: usize, time: Duration) -> f64 {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut lines: Vec<Line> = (0..connections)
        .map(|number| {
            let stream = TcpStream::connect(server).unwrap();
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number).unwrap());
            epoll.add(&stream, event).unwrap();
            (&stream).write_all(request.as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            Line { stream, head: Vec::new(), left: 0 }
        })
        .collect();
    let mut buffer = vec![0; STEP];
    let mut events = [EpollEvent::empty(); 64];
    let (begin, mut bytes) = (Instant::now(), 0);
    while begin.elapsed() < time {
        let timeout = EpollTimeout::try_from(Duration::from_millis(100)).unwrap();
        let ready = epoll.wait(&mut events, timeout).unwrap();
        for event in &events[..ready] {
            let line = &mut lines[usize::try_from(event.data()).unwrap()];
            bytes += line.advance(&request, &mut buffer);
        }
    }
    bytes as f64 / begin.elapsed().as_secs_f64()
}

impl Line {
    /// Takes what has come; returns how much of a body it was.
    fn advance(&mut self, request: &str, buffer: &mut [u8]) -> usize {
        let count = if self.left == 0 {
            self.read_head(buffer)
        } else {
            let room = buffer.len().min(self.left);
            // With this flag the kernel forgets the bytes instead of copying them.
            match recv(self.stream.as_raw_fd(), &mut buffer[..room], MsgFlags::MSG_TRUNC) {
                Err(Errno::EAGAIN) => 0,
                count => match count.unwrap() {
                    0 => panic!("the connection ended within a body"),
                    count => count,
                },
            }
        };
        let begun = self.left > 0;
        self.left -= count;
        if begun && self.left == 0 {
            self.stream.write_all(request.as_bytes()).unwrap();
        }
        count
    }

    /// Returns how much of the body came with the head.
    fn read_head(&mut self, buffer: &mut [u8]) -> usize {
        match self.stream.read(&mut buffer[..8192]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
            count => self.head.extend_from_slice(&buffer[..count.unwrap()]),
        }
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else { return 0 };
        let text = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 200"), "{text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        self.left = length.expect("no length").parse().unwrap();
        let count = self.head.len() - end - 4;
        self.head.clear();
        count
    }
}
