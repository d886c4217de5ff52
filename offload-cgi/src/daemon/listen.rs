//! Where connections come from: addresses, sockets that listen, those of systemd, those of the process before.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockname, listen,
    setsockopt, socket, sockopt,
};

use crate::sender::{Socket, prepare};
use crate::shared::adopt;

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST: i32 = 3;

/// Where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// Reads `ADDRESS:PORT`, `[ADDRESS]:PORT` or `unix:/PATH`.
    ///
    /// # Errors
    /// A sentence that names the word and what would be accepted.
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        if let Some(path) = word.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        word.parse().map(Self::Tcp).map_err(|_| {
            format!("'{word}' is not an address; use 0.0.0.0:80, [::]:80 or unix:/PATH")
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens, and never waits.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Kind,
    address: Address,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// A sentence, when that is not possible.
    pub(crate) fn bind(address: &Address) -> Result<Self, String> {
        let result = match address {
            Address::Tcp(address) => bind_tcp(*address).map(Kind::Tcp),
            Address::Unix(path) => bind_unix(path).map(Kind::Unix),
        };
        let wrong = |error: io::Error| format!("listen: {address}: {error}");
        let socket = result.map_err(wrong)?;
        let address = match &socket {
            // Port 0 has become one.
            Kind::Tcp(listener) => Address::Tcp(listener.local_addr().map_err(wrong)?),
            Kind::Unix(_) => address.clone(),
        };
        Ok(Self { socket, address })
    }

    /// One that somebody else has made.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let unix = getsockname::<nix::sys::socket::SockaddrStorage>(descriptor.as_raw_fd())?;
        if unix.as_sockaddr_in().is_some() || unix.as_sockaddr_in6().is_some() {
            let listener = TcpListener::from(descriptor);
            let address = Address::Tcp(listener.local_addr()?);
            prepare(listener.as_fd());
            listener.set_nonblocking(true)?;
            return Ok(Self { socket: Kind::Tcp(listener), address });
        }
        let listener = UnixListener::from(descriptor);
        let address = listener.local_addr()?;
        let path = address.as_pathname().unwrap_or(Path::new("")).to_owned();
        listener.set_nonblocking(true)?;
        Ok(Self { socket: Kind::Unix(listener), address: Address::Unix(path) })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it listens where it is wanted.
    fn is_at(&self, wanted: &Address) -> bool {
        match (&self.address, wanted) {
            // Port 0 is any.
            (Address::Tcp(mine), Address::Tcp(wanted)) if wanted.port() == 0 => {
                mine.ip() == wanted.ip()
            }
            (mine, wanted) => mine == wanted,
        }
    }

    /// The next connection; `None` when there is none now.
    ///
    /// # Errors
    /// When there is one that cannot be had.
    pub(crate) fn accept(&self) -> io::Result<Option<Socket>> {
        loop {
            let accepted = match &self.socket {
                Kind::Tcp(listener) => {
                    listener.accept().and_then(|(stream, peer)| Socket::tcp(stream, peer.ip()))
                }
                Kind::Unix(listener) => {
                    listener.accept().and_then(|(stream, _)| Socket::unix(stream))
                }
            };
            match accepted {
                Ok(socket) => return Ok(Some(socket)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                    ) =>
                {
                    return Err(error);
                }
                // Who has gone before he was let in (accept(2)).
                Err(_) => {}
            }
        }
    }

    /// Takes the name of a Unix socket away, for nobody listens there any more.
    pub(crate) fn unlink(&self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Sees to it that there is a listener for each address: one of those that are there, which it takes away, or
/// a new one.
///
/// # Errors
/// A sentence, when one cannot be had.
fn open(wanted: &[Address], there: &mut Vec<Arc<Listener>>) -> Result<Vec<Arc<Listener>>, String> {
    let mut found: Vec<Arc<Listener>> = Vec::new();
    for address in wanted {
        let same = there.iter().position(|listener| listener.is_at(address));
        match same {
            Some(at) => found.push(there.remove(at)),
            None => found.push(Arc::new(Listener::bind(address)?)),
        }
    }
    Ok(found)
}

/// A listener that this process was given.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) listener: Arc<Listener>,
    /// It is for who may look.
    pub(crate) is_admin: bool,
    /// systemd has made it: it is used whatever the settings say, and its name stays.
    pub(crate) is_of_systemd: bool,
}

/// The listeners that serve, and those for who may look.
pub(crate) struct Listeners {
    pub(crate) serving: Vec<Arc<Listener>>,
    pub(crate) admin: Vec<Arc<Listener>>,
}

impl Listeners {
    /// Finds or makes what the settings want; what was passed and is of no use any more is dropped with `passed`.
    ///
    /// # Errors
    /// A sentence, when there is none to serve on or one cannot be had.
    pub(crate) fn arrange(
        serving: &[Address],
        admin: &[Address],
        passed: &[Passed],
    ) -> Result<Self, String> {
        let mut there: Vec<_> = passed.iter().map(|one| Arc::clone(&one.listener)).collect();
        let mut found =
            Self { serving: open(serving, &mut there)?, admin: open(admin, &mut there)? };
        for passed in passed.iter().filter(|passed| passed.is_of_systemd) {
            let is_used = |known: &Arc<Listener>| Arc::ptr_eq(known, &passed.listener);
            if !found.serving.iter().chain(&found.admin).any(is_used) {
                let mine = if passed.is_admin { &mut found.admin } else { &mut found.serving };
                mine.push(Arc::clone(&passed.listener));
            }
        }
        if found.serving.is_empty() {
            return Err("listen is not set; set it to 0.0.0.0:80, [::]:80 or unix:/PATH".to_owned());
        }
        Ok(found)
    }

    /// All of them, to be given to another process or another arrangement. `of_systemd` says which are not ours.
    pub(crate) fn passed(&self, of_systemd: &[Arc<Listener>]) -> Vec<Passed> {
        let serving = self.serving.iter().map(|listener| (listener, false));
        let all = serving.chain(self.admin.iter().map(|listener| (listener, true)));
        all.map(|(listener, is_admin)| Passed {
            listener: Arc::clone(listener),
            is_admin,
            is_of_systemd: of_systemd.iter().any(|other| Arc::ptr_eq(other, listener)),
        })
        .collect()
    }
}

/// What systemd has passed to this process.
///
/// # Errors
/// A sentence, when it is not what it should be.
pub(crate) fn passed(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Passed>, String> {
    let own = std::process::id().to_string();
    if variable("LISTEN_PID") != Some(own) {
        return Ok(Vec::new());
    }
    let count: i32 = variable("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut listeners = Vec::new();
    for descriptor in FIRST..FIRST.saturating_add(count.clamp(0, 1000)) {
        let is_admin = names.next() == Some("admin");
        // systemd gave it to this process, which has opened nothing of its own so far with such a number.
        let owned = adopt(descriptor).ok_or("LISTEN_FDS: there are not so many sockets")?;
        let _ = nix::fcntl::fcntl(
            &owned,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
        );
        let listener = Listener::from_descriptor(owned)
            .map_err(|error| format!("LISTEN_FDS: {descriptor} is no listening socket: {error}"))?;
        listeners.push(Passed { listener: Arc::new(listener), is_admin, is_of_systemd: true });
    }
    Ok(listeners)
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    match address {
        SocketAddr::V4(address) => bind(socket.as_raw_fd(), &SockaddrIn::from(address))?,
        SocketAddr::V6(address) => {
            // So that 0.0.0.0 and [::] can both be named.
            if *address.ip() == Ipv6Addr::UNSPECIFIED {
                setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            }
            bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
        }
    }
    prepare(socket.as_fd());
    listen(&socket, Backlog::MAXCONN)?;
    Ok(TcpListener::from(socket))
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // A name that nobody answers to is left over.
            if UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    // As for TCP, anybody may connect; the folder says who reaches it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_three_forms() {
        for word in ["0.0.0.0:80", "[::1]:8080", "unix:/run/offload.sock"] {
            assert_eq!(Address::parse(word).unwrap().to_string(), word);
        }
        for word in ["", "80", ":80", "localhost:80", "::1:80x", "unix:run", "1.2.3.4"] {
            assert!(Address::parse(word).unwrap_err().contains("[::]:80"), "{word}");
        }
    }

    #[test]
    fn what_listens_already_is_used_again() {
        let any = Address::parse("127.0.0.1:0").unwrap();
        let first = open(&[any], &mut Vec::new()).unwrap();
        let again = open(&[first[0].address().clone()], &mut first.clone()).unwrap();
        assert!(Arc::ptr_eq(&first[0], &again[0]));
        assert!(Listener::bind(first[0].address()).is_err());
    }

    #[test]
    fn a_name_that_is_left_over_is_replaced_and_one_that_is_used_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("socket"));
        drop(Listener::bind(&address).unwrap());
        let listener = Listener::bind(&address).unwrap();
        assert!(Listener::bind(&address).is_err());
        listener.unlink();
        Listener::bind(&address).unwrap();
    }
}
