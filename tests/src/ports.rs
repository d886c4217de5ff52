//! Free ports that stay free until the server listens on them.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt,
};

/// A port of one address, reserved while this value lives.
///
/// The socket behind it is bound and does not listen. With `SO_REUSEADDR` on both sides the kernel lets
/// a server listen there, and gives the port to nobody who asks for any port, nor to a connection that
/// goes out. So nobody can take it between the choice and the server's start, or while the server is down.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    /// Bound, but not listening in spite of its type.
    _reservation: TcpListener,
}

impl Port {
    /// Any free port of this address.
    pub fn of(address: IpAddr) -> Self {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        match SocketAddr::new(address, 0) {
            SocketAddr::V4(address) => bind(socket.as_raw_fd(), &SockaddrIn::from(address)),
            SocketAddr::V6(address) => bind(socket.as_raw_fd(), &SockaddrIn6::from(address)),
        }
        .unwrap_or_else(|error| panic!("no free port on {address}: {error}"));
        let reservation = TcpListener::from(socket);
        Self { address: reservation.local_addr().unwrap(), _reservation: reservation }
    }

    /// Address and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_can_listen_on_a_reserved_port_and_nobody_else_gets_it() {
        let port = Port::of(IpAddr::from([127, 0, 0, 9]));
        let others: Vec<Port> = (0..200).map(|_| Port::of(IpAddr::from([127, 0, 0, 9]))).collect();
        assert!(others.iter().all(|other| other.address() != port.address()));
        let server = TcpListener::bind(port.address()).unwrap();
        drop(server);
        TcpListener::bind(port.address()).unwrap();
    }
}
