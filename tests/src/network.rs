//! Two network namespaces with a wire between them, for what loopback distorts: its segments are 64 KB.

use std::fmt;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

/// A network of two hosts: a veth pair with Ethernet's MTU of 1500.
///
/// The namespaces have no names. They, and the wire, are there as long as this process or one that it has
/// started there, and nothing remains when all are killed. A namespace is a thread's: threads and
/// processes that a closure of [`at_server`](Self::at_server) starts are there too, and stay there.
#[derive(Debug)]
pub struct Network {
    server: File,
    client: File,
}

impl Network {
    /// The server's address.
    pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 209, 0, 1);
    /// The client's.
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 209, 0, 2);

    /// Makes it; connections use this congestion control.
    ///
    /// # Errors
    /// When this process is not root, or the kernel or `ip` refuses.
    pub fn make(congestion_control: &str) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        let made = || -> Result<Self, String> {
            Ok(Self { server: new_namespace()?, client: new_namespace()? })
        };
        let network = made()?;
        let other = format!("/proc/{}/fd/{}", std::process::id(), network.client.as_raw_fd());
        let (server, client) = (Self::SERVER, Self::CLIENT);
        network.at_server(|| {
            ip(&format!("link add wire mtu 1500 type veth peer name wire mtu 1500 netns {other}"))?;
            bring_up(server, congestion_control)
        })?;
        network.at_client(|| bring_up(client, congestion_control))?;
        Ok(network)
    }

    /// Does this on the server's host, in this thread.
    pub fn at_server<T>(&self, action: impl FnOnce() -> T) -> T {
        within(&self.server, action)
    }

    /// Does this on the client's host, in this thread.
    pub fn at_client<T>(&self, action: impl FnOnce() -> T) -> T {
        within(&self.client, action)
    }
}

/// A namespace with a loopback that is down.
fn new_namespace() -> Result<File, String> {
    let home = current();
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("cannot make a network namespace: {error}"))?;
    let made = current();
    enter(&home);
    Ok(made)
}

fn bring_up(address: impl fmt::Display, congestion_control: &str) -> Result<(), String> {
    ip("link set lo up")?;
    ip(&format!("address add {address}/24 dev wire"))?;
    ip("link set wire up")?;
    let route = format!("10.209.0.0/24 dev wire src {address}");
    // The route says it, since the namespace's own default cannot be set everywhere.
    ip(&format!("route change {route} proto kernel scope link congctl {congestion_control}"))
}

fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).output();
    let output = output.map_err(|error| format!("cannot run ip: {error}; run `make setup`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("ip {words}: {}", said.trim()))
}

fn current() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn enter(namespace: &File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
}

fn within<T>(namespace: &File, action: impl FnOnce() -> T) -> T {
    /// Goes back also when the action panics.
    struct Return(File);
    impl Drop for Return {
        fn drop(&mut self) {
            enter(&self.0);
        }
    }
    let _return = Return(current());
    enter(namespace);
    action()
}
