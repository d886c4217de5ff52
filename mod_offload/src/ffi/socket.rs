//! Pacing: socket options of the client connection.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use offload_core::rate::Sample;
use offload_core::units::Rate;

use super::sys;

/// A TCP connection to a client, by its descriptor and by a number that no other socket ever has.
///
/// The descriptor is httpd's. It may be closed, and its number be another connection's: whoever uses it
/// from another thread than the connection's own asks [`is_alive`](Self::is_alive) first, and holds back
/// the closing meanwhile (see the pacer).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    descriptor: RawFd,
    cookie: u64,
}

impl Socket {
    /// The socket of a connection; for an HTTP/2 stream that of its connection.
    ///
    /// # Safety
    /// `connection` is live.
    pub(super) unsafe fn of(connection: *mut sys::conn_rec) -> Option<Self> {
        // SAFETY: the caller promises the connection.
        let master = unsafe { (*connection).master };
        let connection = if master.is_null() { connection } else { master };
        // SAFETY: a stream's connection lives longer than the stream; httpd only reads its configuration.
        let socket = unsafe { sys::ap_get_conn_socket(connection) };
        if socket.is_null() {
            return None;
        }
        let mut descriptor: sys::apr_os_sock_t = -1;
        // SAFETY: the socket is the connection's, and `descriptor` is writable.
        let status = unsafe { sys::apr_os_sock_get(&raw mut descriptor, socket) };
        if status != 0 || descriptor < 0 {
            return None;
        }
        Some(Self { descriptor, cookie: cookie(descriptor)? })
    }

    /// The number that the kernel gives to no other socket (`SO_COOKIE`, socket(7)).
    pub(crate) fn cookie(self) -> u64 {
        self.cookie
    }

    /// Whether the descriptor still is this socket.
    pub(crate) fn is_alive(self) -> bool {
        cookie(self.descriptor) == Some(self.cookie)
    }

    /// The most that the kernel sends in a second; `None`: as fast as it goes. Whether the kernel does it.
    pub(crate) fn set_rate(self, rate: Option<Rate>) -> bool {
        // Zero would stop it for ever; all ones is the kernel's own "no limit".
        let rate = rate.map_or(u64::MAX, Rate::per_second);
        set(self.descriptor, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, rate)
    }

    /// How many bytes may wait unsent before httpd is told to wait; 0: the kernel's own measure.
    pub(crate) fn set_queue_limit(self, bytes: u32) -> bool {
        set(self.descriptor, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
    }

    /// How many bytes the client has not acknowledged (`SIOCOUTQ`, tcp(7)).
    pub(crate) fn queued(self) -> u64 {
        let mut bytes: c_int = 0;
        // SAFETY: the request writes one int.
        let status = unsafe { libc::ioctl(self.descriptor, libc::TIOCOUTQ, &raw mut bytes) };
        if status == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
    }

    /// What the connection is doing, at the time `at` (microseconds).
    pub(crate) fn sample(self, at: u64) -> Option<Sample> {
        let mut info = MaybeUninit::<TcpInfo>::zeroed();
        let size = size_of::<TcpInfo>();
        let got = get(
            self.descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            size,
        )?;
        if got < size {
            return None;
        }
        // SAFETY: the kernel has written all of it, and any bits are integers.
        let info = unsafe { info.assume_init() };
        Some(Sample {
            at,
            acked: info.bytes_acked,
            busy: info.busy_time,
            stalled: info.rwnd_limited,
            pacing: info.pacing_rate,
        })
    }
}

/// The beginning of `struct tcp_info` (linux/tcp.h), as far as it is looked at: Linux 4.10 has it all.
#[repr(C)]
struct TcpInfo {
    bytes: [u8; 8],
    numbers: [u32; 24],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    queue_and_round_trip: [u32; 2],
    segments_with_data: [u32; 2],
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
}

fn cookie(descriptor: RawFd) -> Option<u64> {
    let mut cookie = 0u64;
    let size = size_of::<u64>();
    let place = (&raw mut cookie).cast();
    let got = get(descriptor, libc::SOL_SOCKET, libc::SO_COOKIE, place, size)?;
    (got == size).then_some(cookie)
}

fn set<T>(descriptor: RawFd, level: c_int, name: c_int, value: T) -> bool {
    let size = u32::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads `size` bytes of `value`, and no more of this process.
    unsafe { libc::setsockopt(descriptor, level, name, (&raw const value).cast(), size) == 0 }
}

/// Returns how many bytes the kernel has written to `place`, which has room for `size`.
fn get(
    descriptor: RawFd,
    level: c_int,
    name: c_int,
    place: *mut c_void,
    size: usize,
) -> Option<usize> {
    let mut length = libc::socklen_t::try_from(size).ok()?;
    // SAFETY: `place` has room for `size` bytes: both callers pass a value and its size.
    let status = unsafe { libc::getsockopt(descriptor, level, name, place, &raw mut length) };
    (status == 0).then(|| usize::try_from(length).unwrap_or(0))
}
