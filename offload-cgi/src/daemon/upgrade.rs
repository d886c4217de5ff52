//! A new process of this program, perhaps of a newer version, takes over the sockets that listen: no connection
//! is refused meanwhile, and none that is open is cut off.
//!
//! The new one gets a Unix socket as its standard input, and the listening sockets through it. When it serves
//! it says so; then the old one stops accepting and ends when its downloads have.

use std::env;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::UPGRADE;
use super::listen::{Listener, Passed};
use crate::shared::adopt;

/// How long a new process may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most descriptors that one message carries (SCM_MAX_FD).
const MOST: usize = 253;
const READY: &[u8] = b"ready\n";

/// The process that this one takes over from.
pub(super) struct Before {
    pub(super) passed: Vec<Passed>,
    stream: UnixStream,
}

impl Before {
    /// Tells it that this process serves now.
    pub(super) fn tell(mut self) {
        let _ = self.stream.write_all(READY);
    }
}

/// Takes over from the process before, if there is one.
///
/// # Errors
/// A sentence, when it has not given what it should.
pub(super) fn before() -> Result<Option<Before>, String> {
    if env::var_os(UPGRADE).is_none() {
        return Ok(None);
    }
    let wrong = |error: io::Error| format!("the sockets of the process before: {error}");
    let stream = io::stdin().as_fd().try_clone_to_owned().map_err(wrong)?;
    let nothing = std::fs::File::open("/dev/null").map_err(wrong)?;
    nix::unistd::dup2_stdin(nothing).map_err(|error| wrong(error.into()))?;
    let stream = UnixStream::from(stream);
    let passed = receive(&stream).map_err(wrong)?;
    Ok(Some(Before { passed, stream }))
}

/// Starts the new process and waits until it serves. Returns its id.
///
/// # Errors
/// A sentence; this process goes on.
pub(super) fn start(listeners: &[Passed]) -> Result<u32, String> {
    let sentence = |error: io::Error| error.to_string();
    // The file that stands there now, which may be a newer version.
    let program = env::current_exe().map_err(sentence)?;
    let name = program.as_os_str().to_string_lossy();
    let program = std::path::Path::new(name.strip_suffix(" (deleted)").unwrap_or(&name)).to_owned();
    let (mut mine, its) = UnixStream::pair().map_err(sentence)?;
    let mut child = Command::new(&program)
        .args(env::args_os().skip(1))
        .env(UPGRADE, "1")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .stdin(Stdio::from(OwnedFd::from(its)))
        .spawn()
        .map_err(|error| format!("'{}' cannot be started: {error}", program.display()))?;
    send(&mine, listeners).map_err(sentence)?;
    mine.set_read_timeout(Some(PATIENCE)).map_err(sentence)?;
    let mut said = [0; READY.len()];
    if mine.read_exact(&mut said).is_ok() && said == READY {
        return Ok(child.id());
    }
    let _ = child.kill();
    let _ = child.wait();
    Err("the new process has not come up; its own lines say why".to_owned())
}

/// One message: a byte for each listener, which says what it is, and their descriptors.
fn send(stream: &UnixStream, listeners: &[Passed]) -> io::Result<()> {
    if listeners.len() > MOST {
        return Err(io::Error::other(format!("more than {MOST} sockets cannot be handed on")));
    }
    let kinds: Vec<u8> = listeners.iter().map(kind).collect();
    let descriptors: Vec<RawFd> =
        listeners.iter().map(|passed| passed.listener.as_fd().as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&kinds)], &control, MsgFlags::empty(), None)?;
    Ok(())
}

fn kind(passed: &Passed) -> u8 {
    b'0' + u8::from(passed.is_admin) + 2 * u8::from(passed.is_of_systemd)
}

fn receive(stream: &UnixStream) -> io::Result<Vec<Passed>> {
    let (mut kinds, mut space) = ([0; MOST], nix::cmsg_space!([RawFd; MOST]));
    let mut parts = [IoSliceMut::new(&mut kinds)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // The kernel has made them for this message, so they are nobody's yet.
            received.extend(descriptors.into_iter().filter_map(adopt));
        }
    }
    let count = message.bytes;
    if count != received.len() {
        return Err(io::Error::other("not all of them have come"));
    }
    let named = received.into_iter().zip(kinds);
    named
        .map(|(descriptor, kind)| {
            let listener = Arc::new(Listener::from_descriptor(descriptor)?);
            let bits = kind.wrapping_sub(b'0');
            Ok(Passed { listener, is_admin: bits & 1 != 0, is_of_systemd: bits & 2 != 0 })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::listen::Address;
    use super::*;

    #[test]
    fn sockets_go_from_one_process_to_another_with_what_they_are() {
        let any = Address::parse("127.0.0.1:0").unwrap();
        let passed: Vec<Passed> = [(false, false), (true, false), (false, true), (true, true)]
            .into_iter()
            .map(|(is_admin, is_of_systemd)| {
                let listener = Arc::new(Listener::bind(&any).unwrap());
                Passed { listener, is_admin, is_of_systemd }
            })
            .collect();
        let (one, two) = UnixStream::pair().unwrap();
        send(&one, &passed).unwrap();
        let received = receive(&two).unwrap();
        let about = |passed: &Passed| {
            (passed.listener.address().clone(), passed.is_admin, passed.is_of_systemd)
        };
        assert!(received.iter().map(about).eq(passed.iter().map(about)));
    }
}
