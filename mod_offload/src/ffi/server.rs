//! The server and its virtual hosts while the configuration is made ready, as borrowed Rust types.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use offload_core::advice::Machine;
use offload_core::directive::{HostLayer, Layer};
use offload_core::ledger::{Ledger, TableSize};
use offload_core::limit::SectionLimit;
use offload_core::transfers::Transfers;
use offload_core::units::Rate;

use super::log::{Level, c_line};
use super::pool::Pool;
use super::shared::{Turns, ledger_of_process, transfers_of_process};
use super::{bytes, module, sys};
use crate::hooks::HostState;

/// What one virtual host (or the main server) keeps of the module: written while the configuration is
/// read and at the end of it, before the children exist; read-only afterwards.
#[derive(Clone, Default)]
pub(super) struct ServerState {
    pub(super) layer: HostLayer,
    host_names: BTreeSet<String>,
    sections: Vec<SectionLimit>,
    /// The sections that say something of throttling, by their addresses: whether they switch it on, and the
    /// rate that can hold in them.
    chokes: BTreeMap<usize, (bool, Option<Rate>)>,
    host: OnceLock<Arc<HostState>>,
}

impl ServerState {
    pub(super) fn remember_host_names<'h>(&mut self, names: impl Iterator<Item = &'h str>) {
        self.host_names.extend(names.map(str::to_owned));
    }

    /// Remembers the limits of a section, for the status page.
    pub(super) fn remember_sections(&mut self, limits: &[SectionLimit]) {
        for limit in limits {
            if !self.sections.iter().any(|known| known.scope == limit.scope) {
                self.sections.push(limit.clone());
            }
        }
    }

    /// Remembers what a section says of throttling so far.
    pub(super) fn remember_choke(&mut self, section: &Layer) {
        let rate = Rate::new(section.choke_rate().count()).filter(|_| section.may_choke());
        let (is_on, section) = (section.choke().is_on(), ptr::from_ref(section).addr());
        if is_on || rate.is_some() || self.chokes.contains_key(&section) {
            self.chokes.insert(section, (is_on, rate));
        }
    }

    /// What holds in a virtual host of the server.
    pub(super) fn merged(server: &Self, host: &Self) -> Self {
        Self { layer: HostLayer::merged(&server.layer, &host.layer), ..host.clone() }
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

    /// This server and all virtual hosts behind it in httpd's list.
    pub(crate) fn all(self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self), |server| server.next())
    }

    fn state(self) -> Option<&'s ServerState> {
        // SAFETY: the server is live (`borrow`).
        let vector = unsafe { (*self.raw.as_ptr()).module_config };
        // SAFETY: httpd made the vector; our entry in it is NULL or what `create_server_config` or
        // `merge_server_config` returned, a ServerState in the configuration's pool, which lives as long
        // as the server.
        unsafe { module::config(vector) }
    }

    /// The state, to write into while the configuration is read.
    ///
    /// # Safety
    /// httpd is reading its configuration, and no other reference to the state is in use.
    pub(super) unsafe fn state_mut(self) -> Option<&'s mut ServerState> {
        // SAFETY: the server is live (`borrow`).
        let vector = unsafe { (*self.raw.as_ptr()).module_config };
        // SAFETY: httpd made the vector, which lives as long as the server.
        let entry = unsafe { module::entry(vector) };
        // SAFETY: our entry is NULL or a ServerState that `Pool::own` made, and the caller promises that
        // nobody else uses it.
        unsafe { entry.cast::<ServerState>().as_mut() }
    }

    /// Gives the virtual host a state of its own, where it has the main server's because it says nothing.
    pub(super) fn own_state(self, main: Self, pool: Pool) {
        let (Some(own), Some(shared)) = (self.state(), main.state()) else { return };
        if ptr::eq(own, shared) {
            let made = pool.own(shared.clone());
            // SAFETY: the server is live (`borrow`).
            let vector = unsafe { (*self.raw.as_ptr()).module_config };
            // SAFETY: httpd made the vector, and the entry is a ServerState in the configuration's pool.
            unsafe { module::set_config(vector, made.cast_const()) };
        }
    }

    /// What holds in the virtual host.
    pub(crate) fn layer(self) -> Option<&'s HostLayer> {
        self.state().map(|state| &state.layer)
    }

    /// What was made ready for the requests of the virtual host.
    pub(crate) fn host(self) -> Option<&'s HostState> {
        self.state()?.host.get().map(Arc::as_ref)
    }

    /// Makes a virtual host ready.
    pub(crate) fn set_host(self, host: HostState) {
        if let Some(state) = self.state() {
            // It cannot be set already: each virtual host has a state of its own (`own_state`).
            let _ = state.host.set(Arc::new(host));
        }
    }

    /// The names of the offload hosts that the virtual host's sections name.
    pub(crate) fn host_names(self) -> impl Iterator<Item = &'s String> {
        self.state().into_iter().flat_map(|state| &state.host_names)
    }

    /// Whether one of its sections is to be throttled.
    pub(crate) fn chokes(self) -> bool {
        self.state().is_some_and(|state| state.chokes.values().any(|&(is_on, _)| is_on))
    }

    /// The lowest rate that one of its sections names.
    pub(crate) fn slowest(self) -> Option<Rate> {
        self.state()?.chokes.values().filter_map(|&(_, rate)| rate).min()
    }

    /// How long httpd waits for a client to take something.
    pub(crate) fn timeout(self) -> Duration {
        // SAFETY: the server is live (`borrow`).
        let micros = unsafe { (*self.raw.as_ptr()).timeout };
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// Where lines about it can be written from any thread.
    pub(crate) fn journal(self) -> Journal {
        Journal(self.raw)
    }

    /// The limits of its sections.
    pub(crate) fn sections(self) -> impl Iterator<Item = &'s SectionLimit> {
        self.state().into_iter().flat_map(|state| &state.sections)
    }

    /// A name that is the same after a restart: `ServerName` and port, or where it is defined.
    pub(crate) fn name(self) -> String {
        // SAFETY: the server is live (`borrow`); its fields are read.
        let server = unsafe { self.raw.as_ref() };
        // SAFETY: httpd's strings end with a NUL and live as long as the server.
        let name = unsafe { bytes(server.server_hostname) };
        // SAFETY: as above.
        let file = unsafe { bytes(server.defn_name) };
        // SAFETY: the list of addresses is NULL or lives as long as the server.
        let port =
            unsafe { server.addrs.as_ref() }.map_or(server.port, |address| address.host_port);
        // What httpd makes up when it finds no name.
        let name = name.filter(|name| !name.starts_with(b"bogus_host"));
        // SAFETY: as above; a virtual host is told from another of the same name by its address.
        let address = unsafe { server.addrs.as_ref() };
        // SAFETY: as above.
        let address = address.and_then(|address| unsafe { bytes(address.virthost) });
        let address = address.filter(|address| !matches!(*address, b"*" | b"_default_" | b""));
        let mut text = match (name, file) {
            (Some(name), _) => String::from_utf8_lossy(name).into_owned(),
            (None, Some(file)) => {
                format!("{}:{}", String::from_utf8_lossy(file), server.defn_line_number)
            }
            (None, None) => "the server".to_owned(),
        };
        if name.is_some() && port != 0 {
            text.push_str(&format!(":{port}"));
        }
        if let Some(address) = address.filter(|_| server.is_virtual != 0) {
            text.push_str(&format!(" on {}", String::from_utf8_lossy(address)));
        }
        text
    }

    /// Whether it is a virtual host and not the main server.
    pub(super) fn is_virtual(self) -> bool {
        // SAFETY: the server is live (`borrow`).
        unsafe { (*self.raw.as_ptr()).is_virtual != 0 }
    }

    /// The counters of turns, which live as long as the parent process, over all restarts.
    ///
    /// # Errors
    /// They could not be made.
    pub(crate) fn turns(self) -> Result<Turns, String> {
        Turns::of_process(self.process_pool()?).map_err(|error| error.to_string())
    }

    /// The ledger, which lives as long as the parent process, over all restarts.
    ///
    /// # Errors
    /// It could not be made.
    pub(crate) fn ledger(self, size: TableSize) -> Result<Ledger<'static>, String> {
        ledger_of_process(self.process_pool()?, size)
    }

    /// The transfers of all children, a table which lives as long as the parent process.
    ///
    /// # Errors
    /// It could not be made.
    pub(crate) fn transfers(self, rows: usize) -> Result<Transfers<'static>, String> {
        transfers_of_process(self.process_pool()?, rows)
    }

    fn process_pool(self) -> Result<Pool, String> {
        // SAFETY: the server is live (`borrow`).
        let process = unsafe { (*self.raw.as_ptr()).process };
        // SAFETY: every server_rec points to the one process_rec of its process (httpd.h).
        let raw = unsafe { (*process).pool };
        // SAFETY: the process pool lives longest of all, and only one thread runs at this time.
        unsafe { Pool::borrow(raw) }.ok_or_else(|| "the process has no pool".to_owned())
    }

    /// Writes one line to the server's error log.
    pub(crate) fn log(self, level: Level, line: &str) {
        // SAFETY: the server is live (`borrow`).
        unsafe { log(self.raw.as_ptr(), level, line) };
    }
}

/// A server's error log, for a thread that serves no request.
#[derive(Clone, Copy)]
pub(crate) struct Journal(NonNull<sys::server_rec>);

// SAFETY: a child's server records stay as they are until it ends (the pacer's thread stops before), and httpd
// writes to its logs from any thread.
unsafe impl Send for Journal {}

impl Journal {
    /// Writes a line that the administrator has asked for.
    pub(crate) fn note(self, line: &str) {
        // SAFETY: the server is live: see above.
        unsafe { log(self.0.as_ptr(), Level::Notice, line) };
    }
}

/// What the MPM says to a question; 0 if it does not know.
fn ask_mpm(question: u32) -> u64 {
    let mut answer = 0;
    let question = c_int::try_from(question).unwrap_or(-1);
    // SAFETY: `answer` is writable.
    let status = unsafe { sys::ap_mpm_query(question, &raw mut answer) };
    if status == sys::APR_SUCCESS.cast_signed() { u64::try_from(answer).unwrap_or(0) } else { 0 }
}

/// Whether the MPM writes what is left of a response without a worker.
pub(crate) fn is_async() -> bool {
    ask_mpm(sys::AP_MPMQ_IS_ASYNC) != 0
}

/// How many workers all children have together at the most.
pub(crate) fn workers() -> u32 {
    let workers = ask_mpm(sys::AP_MPMQ_MAX_DAEMONS) * ask_mpm(sys::AP_MPMQ_MAX_THREADS).max(1);
    u32::try_from(workers).unwrap_or(u32::MAX)
}

/// What httpd and the machine are set to, for who wants many slow downloads.
pub(crate) fn machine() -> Machine {
    // SAFETY: httpd sets it before it makes its configuration ready, which is now, with one thread.
    let tree = unsafe { sys::ap_conftree };
    // SAFETY: httpd keeps the tree meanwhile.
    let said = |name| unsafe { configured(tree, name) };
    let hundredths = |text: String| {
        let number = text.parse::<f64>().ok().filter(|number| (0.0..=1e6).contains(number))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it is in bounds
        Some((number * 100.0).round() as u64)
    };
    let number = |file: &str, word: usize| {
        let text = std::fs::read_to_string(file).ok()?;
        text.split_whitespace().nth(word)?.parse::<u64>().ok()
    };
    // What event.c and ap_listen.h have for who says nothing.
    let factor = said("AsyncRequestWorkerFactor").and_then(hundredths).unwrap_or(200);
    let backlog = said("ListenBacklog").and_then(|text| text.parse().ok()).unwrap_or(511);
    Machine {
        children: ask_mpm(sys::AP_MPMQ_MAX_DAEMONS),
        threads: ask_mpm(sys::AP_MPMQ_MAX_THREADS),
        factor: is_async().then_some(factor),
        backlog,
        most_backlog: number("/proc/sys/net/core/somaxconn", 0).unwrap_or(u64::MAX),
        files: getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft),
        // In pages.
        tcp_memory: number("/proc/sys/net/ipv4/tcp_mem", 1).map_or(u64::MAX, |pages| pages * 4096),
    }
}

/// What a directive of this name is given, the last time that it stands somewhere.
///
/// # Safety
/// `next` is NULL or in httpd's tree of its configuration, which stays as it is meanwhile.
unsafe fn configured(mut next: *mut sys::ap_directive_t, name: &str) -> Option<String> {
    let mut found = None;
    // SAFETY: the caller promises the tree.
    while let Some(directive) = unsafe { next.as_ref() } {
        // SAFETY: the texts of a directive end with a NUL and live as long as it.
        let own = unsafe { bytes(directive.directive) }.unwrap_or_default();
        if own.eq_ignore_ascii_case(name.as_bytes()) {
            // SAFETY: as above.
            let words = unsafe { bytes(directive.args) }.unwrap_or_default();
            let words = String::from_utf8_lossy(words);
            found = words.split_whitespace().next().map(|word| word.trim_matches('"').to_owned());
        }
        // SAFETY: what lies inside a section is in the tree too.
        found = unsafe { configured(directive.first_child, name) }.or(found);
        next = directive.next;
    }
    found
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
