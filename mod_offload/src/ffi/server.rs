//! The server and its virtual hosts while the configuration is made ready, as borrowed Rust types.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::log::{Level, c_line};
use super::pool::Pool;
use super::shared::Turns;
use super::{module, sys};
use crate::hooks::Running;

/// What one virtual host (or the main server) keeps of the module: written while the configuration is
/// read and at the end of it, before the children exist; read-only afterwards.
#[derive(Default)]
pub(super) struct ServerState {
    host_names: Mutex<BTreeSet<String>>,
    running: OnceLock<Arc<Running>>,
}

impl ServerState {
    pub(super) fn remember_host_names<'h>(&self, names: impl Iterator<Item = &'h str>) {
        let mut known = self.host_names.lock().unwrap_or_else(PoisonError::into_inner);
        names.for_each(|name| {
            known.insert(name.to_owned());
        });
    }

    pub(super) fn running(&self) -> Option<&Running> {
        self.running.get().map(Arc::as_ref)
    }
}

/// A server or virtual host that httpd lent for a call.
#[derive(Clone, Copy)]
pub(crate) struct Server<'s> {
    raw: NonNull<sys::server_rec>,
    life: PhantomData<&'s ()>,
}

impl<'s> Server<'s> {
    /// Borrows a server.
    ///
    /// # Safety
    /// `raw` is NULL or a server that stays alive and as it is for `'s`.
    pub(super) unsafe fn borrow(raw: *mut sys::server_rec) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, life: PhantomData })
    }

    /// The virtual host after this one in httpd's list.
    fn next(self) -> Option<Self> {
        // SAFETY: the server is live (`borrow`).
        let next = unsafe { (*self.raw.as_ptr()).next };
        // SAFETY: the virtual hosts of a list live as long as each other.
        unsafe { Self::borrow(next) }
    }

    pub(super) fn state(self) -> Option<&'s ServerState> {
        // SAFETY: the server is live (`borrow`).
        let vector = unsafe { (*self.raw.as_ptr()).module_config };
        // SAFETY: httpd made the vector; our entry in it is NULL or what `create_server_config` returned,
        // a ServerState in the configuration's pool, which lives as long as the server.
        unsafe { module::config(vector) }
    }

    /// The names of all offload hosts that the configuration files name, of all virtual hosts.
    pub(crate) fn host_names(self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for state in
            std::iter::successors(Some(self), |server| server.next()).filter_map(Self::state)
        {
            names.extend(
                state.host_names.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned(),
            );
        }
        names
    }

    /// Hands to all virtual hosts what requests need.
    pub(crate) fn start(self, running: Running) {
        let running = Arc::new(running);
        for state in
            std::iter::successors(Some(self), |server| server.next()).filter_map(Self::state)
        {
            // It is set already where a virtual host shares the main server's state.
            let _ = state.running.set(Arc::clone(&running));
        }
    }

    /// The counters that live as long as the parent process, over all restarts.
    ///
    /// # Errors
    /// They could not be made.
    pub(crate) fn turns(self) -> Result<Turns, String> {
        // SAFETY: the server is live (`borrow`).
        let process = unsafe { (*self.raw.as_ptr()).process };
        // SAFETY: every server_rec points to the one process_rec of its process (httpd.h).
        let raw = unsafe { (*process).pool };
        // SAFETY: the process pool lives longest of all, and only one thread runs at this time.
        let pool = unsafe { Pool::borrow(raw) }.ok_or("the process has no pool")?;
        Turns::of_process(pool).map_err(|error| error.to_string())
    }

    /// Writes one line to the server's error log.
    pub(crate) fn log(self, level: Level, line: &str) {
        // SAFETY: the server is live (`borrow`).
        unsafe { log(self.raw.as_ptr(), level, line) };
    }
}

/// Writes one line to a server's error log, or to the process's first one.
///
/// # Safety
/// `server` is NULL or live.
pub(super) unsafe fn log(server: *const sys::server_rec, level: Level, line: &str) {
    let line = c_line(line);
    // SAFETY: the caller promises `server`; the line ends with a NUL.
    unsafe { sys::offload_log_server(server, level.number(), line.as_ptr()) };
}
