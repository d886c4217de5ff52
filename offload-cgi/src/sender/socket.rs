//! The socket of a client: what can be done to it without ever waiting.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use offload_core::rate::queue_limit;
use offload_core::units::Rate;

/// How much may wait in a socket that is not paced: enough for any speed, little beside what is in flight.
const QUEUE: u32 = 4 << 20;

/// An open connection.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    /// Who has connected; `None` over a Unix socket.
    peer: Option<IpAddr>,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moved {
    Bytes(usize),
    /// Nothing can be moved now.
    Full,
}

impl Socket {
    /// A connection over TCP.
    ///
    /// # Errors
    /// When it has ended already.
    pub(crate) fn tcp(stream: TcpStream, peer: IpAddr) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { descriptor: stream.into(), peer: Some(peer.to_canonical()) })
    }

    /// A connection over a Unix socket.
    ///
    /// # Errors
    /// When it has ended already.
    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { descriptor: stream.into(), peer: None })
    }

    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Receives what is there; 0 bytes: the other side has ended.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        moved(recv(self.descriptor.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT))
    }

    /// Sends bytes; `more` when others follow at once.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn send(&self, bytes: &[u8], more: bool) -> io::Result<Moved> {
        let mut flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if more {
            // A flag that nix does not name.
            flags |= MsgFlags::from_bits_retain(libc::MSG_MORE);
        }
        moved(send(self.descriptor.as_raw_fd(), bytes, flags))
    }

    /// Sends bytes of a file, which never come into this process. 0 bytes: the file ends before `offset`.
    ///
    /// # Errors
    /// When the connection is broken, or the file cannot be read.
    pub(crate) fn send_file(&self, file: &File, offset: u64, count: u64) -> io::Result<Moved> {
        let mut place = i64::try_from(offset).map_err(io::Error::other)?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        moved(sendfile64(self, file, Some(&mut place), count))
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end(&self) {
        let _ = shutdown(self.descriptor.as_raw_fd(), Shutdown::Write);
    }

    /// Breaks the connection off, whoever is using it.
    pub(crate) fn abort(&self) {
        let _ = shutdown(self.descriptor.as_raw_fd(), Shutdown::Both);
    }

    /// Lets this connection have so many bytes a second, or as many as it can; at once for what is sent from
    /// now on.
    pub(crate) fn pace(&self, rate: Option<u64>) {
        if self.peer.is_some() {
            crate::shared::pace(self.as_fd(), rate);
            self.limit_queue(rate.and_then(Rate::new).map_or(QUEUE, queue_limit));
        }
    }

    /// Lets so many bytes wait unsent.
    pub(crate) fn limit_queue(&self, bytes: u32) {
        if self.peer.is_some() {
            crate::shared::limit_queue(self.as_fd(), bytes);
        }
    }

    /// How many of the bytes that were sent have not arrived.
    pub(crate) fn queued(&self) -> u64 {
        crate::shared::queued(self.as_fd())
    }

    /// A second descriptor of this connection that waits, at most so long.
    ///
    /// # Errors
    /// When the kernel has none left.
    pub(crate) fn blocking(&self, patience: Duration) -> io::Result<File> {
        let twin = self.descriptor.try_clone()?;
        let stream = UnixStream::from(twin);
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(patience))?;
        Ok(File::from(OwnedFd::from(stream)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The options that connections inherit from the socket that listens.
pub(crate) fn prepare(listener: BorrowedFd<'_>) {
    crate::shared::limit_queue(listener, QUEUE);
    let _ = nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::TcpNoDelay, &true);
    let _ = nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::KeepAlive, &true);
}

fn moved(result: nix::Result<usize>) -> io::Result<Moved> {
    match result {
        Ok(count) => Ok(Moved::Bytes(count)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Moved::Full),
        Err(error) => Err(error.into()),
    }
}
