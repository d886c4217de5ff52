//! The daemon's life: start, signals, reload, upgrade, drain.

use std::env;
use std::io;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::geteuid;

use super::Common;
use super::admin::Admin;
use super::journal::Journal;
use super::listen::{self, Listener, Listeners, Passed};
use super::plan::Plan;
use super::pool::Pool;
use super::settings::{Flags, Settings};
use super::site::Sites;
use super::upgrade;
use super::user::User;
use crate::log;
use crate::sender::{Inbox, Sender};

/// How long the last lines of the logs may take: a disk that hangs must not keep the process.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Whoever waits for longer than this is told what for.
const TOLD: Duration = Duration::from_millis(200);

/// How often it is looked whether what drains has ended.
const LOOK: Duration = Duration::from_millis(20);

/// The daemon, as its first thread sees it.
struct Daemon {
    common: Arc<Common>,
    sites: Sites,
    settings: Settings,
    flags: Flags,
    listeners: Listeners,
    /// Those of them that systemd has made.
    of_systemd: Vec<Arc<Listener>>,
    admin: Admin,
    senders: Vec<(Arc<Inbox>, JoinHandle<()>)>,
}

/// Starts, serves, ends.
///
/// # Errors
/// A sentence, when it cannot start.
pub(super) fn run(settings: Settings, flags: &Flags) -> Result<(), String> {
    let signals = SigSet::from_iter([
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR2,
        Signal::SIGCHLD,
    ]);
    // Before there is a second thread, so that all of them leave signals to this one.
    signals.thread_block().map_err(|error| format!("signals cannot be blocked: {error}"))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|error| format!("signals cannot be read: {error}"))?;
    raise_limits();
    crate::shared::share_heaps(settings.senders + 1);
    let mut passed = listen::passed(|name| env::var(name).ok())?;
    let before = upgrade::before()?;
    passed.extend(before.iter().flat_map(|before| before.passed.iter().cloned()));
    let listeners = Listeners::arrange(&settings.listen, &settings.admin, &passed)?;
    passed.retain(|passed| passed.is_of_systemd);
    let of_systemd = passed.into_iter().map(|passed| passed.listener).collect();
    become_user(&settings)?;
    let sites = Sites::default();
    let plan = plan(&settings, &sites)?;
    let failed = |error: io::Error| format!("the daemon cannot start: {error}");
    let (journal, writer) = Journal::start().map_err(failed)?;
    let pool = Pool::start(settings.workers).map_err(failed)?;
    let common = Arc::new(Common::new(plan, pool, journal, descriptors()));
    let mut senders = Vec::new();
    for _ in 0..settings.senders {
        senders.push(Sender::start(&common, listeners.serving.clone()).map_err(failed)?);
    }
    let inboxes: Vec<_> = senders.iter().map(|(inbox, _)| Arc::clone(inbox)).collect();
    let _ = common.senders.set(inboxes.clone());
    let admin = Admin::start(&common, inboxes, listeners.admin.clone()).map_err(failed)?;
    let flags = flags.clone();
    let mut daemon =
        Daemon { common, sites, settings, flags, listeners, of_systemd, admin, senders };
    daemon.say_where();
    notify("READY=1");
    if let Some(before) = before {
        before.tell();
    }
    if !daemon.wait(&signals) {
        notify("STOPPING=1");
        daemon.unlink_all_but(&[]);
    }
    daemon.drain(&signals);
    daemon.common.journal.end();
    let end = Instant::now() + LAST_LINES;
    while !writer.is_finished() && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn plan(settings: &Settings, sites: &Sites) -> Result<Plan, String> {
    let sites = settings.sites.iter().map(|site| sites.site(site)).collect::<Result<_, _>>()?;
    Ok(Plan {
        header_timeout: settings.header_timeout,
        idle_timeout: settings.idle_timeout,
        min_rate: settings.min_rate,
        max_connections: match settings.max_connections {
            // There must be some left to serve them with.
            0 => descriptors() / 4 * 3,
            most => most,
        },
        max_client_connections: settings.max_client_connections,
        log_format: settings.log_format,
        sites,
    })
}

impl Daemon {
    fn say_where(&self) {
        let of = |listeners: &[Arc<Listener>]| {
            let words: Vec<String> =
                listeners.iter().map(|listener| listener.address().to_string()).collect();
            words.join(" ")
        };
        log::line(&format!("serves on {}", of(&self.listeners.serving)));
        if !self.listeners.admin.is_empty() {
            log::line(&format!("admin on {}", of(&self.listeners.admin)));
        }
    }

    /// Does what signals ask for, until one asks for the end. Whether another process has taken over.
    fn wait(&mut self, signals: &SignalFd) -> bool {
        loop {
            match next(signals, None) {
                Some(Signal::SIGTERM | Signal::SIGINT) => return false,
                Some(Signal::SIGHUP) => self.reload(),
                Some(Signal::SIGUSR2) => {
                    match upgrade::start(&self.listeners.passed(&self.of_systemd)) {
                        Ok(child) => {
                            notify(&format!("MAINPID={child}"));
                            log::line(&format!("process {child} takes over"));
                            return true;
                        }
                        Err(sentence) => log::line(&format!("no upgrade: {sentence}")),
                    }
                }
                Some(Signal::SIGCHLD) => reap(),
                _ => {}
            }
        }
    }

    fn reload(&mut self) {
        notify("RELOADING=1");
        match self.try_reload() {
            Ok(()) => log::line("reloaded"),
            Err(sentences) => {
                for sentence in sentences {
                    log::line(&format!("not reloaded, all stays as it was: {sentence}"));
                }
            }
        }
        self.common.journal.reopen();
        notify("READY=1");
    }

    fn try_reload(&mut self) -> Result<(), Vec<String>> {
        let settings = Settings::read(env::vars_os(), &self.flags)?;
        settings.warnings.iter().for_each(|warning| log::line(warning));
        let there = self.listeners.passed(&self.of_systemd);
        let listeners = Listeners::arrange(&settings.listen, &settings.admin, &there)
            .map_err(|error| vec![error])?;
        let plan = plan(&settings, &self.sites).map_err(|error| vec![error])?;
        for (now, then, what) in [
            (settings.workers, self.settings.workers, "workers"),
            (settings.senders, self.settings.senders, "senders"),
        ] {
            if now != then {
                log::line(&format!(
                    "{what} is changed by a restart or an upgrade, not by a reload"
                ));
            }
        }
        let sites = plan.sites.clone();
        self.common.replace(plan);
        self.sites.only(&sites);
        for (inbox, _) in &self.senders {
            inbox.listen(listeners.serving.clone());
        }
        self.admin.listen(listeners.admin.clone());
        self.unlink_all_but(&listeners.passed(&[]));
        self.listeners = listeners;
        self.settings = settings;
        Ok(())
    }

    /// Takes the names of Unix sockets away that are of no use any more.
    fn unlink_all_but(&self, used: &[Passed]) {
        for Passed { listener, is_of_systemd, .. } in self.listeners.passed(&self.of_systemd) {
            let is_used = used.iter().any(|other| other.listener.address() == listener.address());
            if !is_used && !is_of_systemd {
                listener.unlink();
            }
        }
    }

    /// Waits until the running downloads have ended, but not for ever.
    fn drain(&mut self, signals: &SignalFd) {
        for (inbox, _) in &self.senders {
            inbox.drain();
        }
        self.admin.end();
        // The last ones: from here on connections are refused, unless another process has these sockets.
        self.listeners = Listeners { serving: Vec::new(), admin: Vec::new() };
        self.of_systemd.clear();
        let (begun, drain) = (Instant::now(), self.settings.drain);
        let running = |daemon: &Self| {
            let senders = daemon.senders.iter().any(|(_, thread)| !thread.is_finished());
            senders || daemon.common.carriers.load(Ordering::Acquire) > 0
        };
        let mut told = false;
        while running(self) && begun.elapsed() < drain {
            let open = self.common.doors.total();
            // Those without a request have just been told to go.
            if !told && open > 0 && begun.elapsed() > TOLD {
                log::line(&format!(
                    "{open} connections are open and may end within {drain:?}; a second signal ends them at once"
                ));
                told = true;
            }
            match next(signals, Some(LOOK)) {
                // Whoever asks twice is in a hurry.
                Some(Signal::SIGTERM | Signal::SIGINT) => break,
                Some(Signal::SIGCHLD) => reap(),
                _ => {}
            }
        }
        if running(self) {
            let left = self.common.doors.total();
            log::line(&format!("{left} connections were cut off at the end of the drain"));
            self.senders.iter().for_each(|(inbox, _)| inbox.cut_off());
            let end = Instant::now() + LAST_LINES;
            while running(self) && Instant::now() < end {
                std::thread::sleep(LOOK);
            }
        }
    }
}

/// The next signal; `None` when none has come for so long.
fn next(signals: &SignalFd, limit: Option<Duration>) -> Option<Signal> {
    let limit = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO)
    });
    let mut wait = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut wait, limit);
    let info = signals.read_signal().ok()??;
    Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
}

/// Takes note of the processes that have filled the cache and ended.
fn reap() {
    while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
        waitpid(None, Some(WaitPidFlag::WNOHANG))
    {}
}

/// Each download needs a descriptor or a few.
fn raise_limits() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How many descriptors this process may have.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    limit.map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Stops being root.
fn become_user(settings: &Settings) -> Result<(), String> {
    let Some(name) = &settings.user else {
        if geteuid().is_root() {
            log::line("it runs as root; name a user to become (user = www-data)");
        }
        return Ok(());
    };
    let user = User::find(name).map_err(|error| format!("user: {error}"))?;
    if geteuid() == user.uid {
        return Ok(());
    }
    for site in &settings.sites {
        if let Some(cache) = &site.options.cache
            && !cache.exists()
        {
            std::fs::create_dir_all(cache)
                .and_then(|()| Ok(nix::unistd::chown(cache, Some(user.uid), Some(user.gid))?))
                .map_err(|error| format!("cache: '{}': {error}", cache.display()))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            let _ = std::fs::set_permissions(cache, mode);
        }
    }
    user.become_him().map_err(|error| format!("user: cannot become '{name}': {error}"))
}

/// Tells systemd (sd_notify(3)), if it has started this process.
pub(super) fn notify(what: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let name = path.as_encoded_bytes();
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let mut text = what.to_owned();
    if what == "RELOADING=1"
        && let Ok(now) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
    {
        let now = Duration::from(now).as_micros();
        text.push_str(&format!("\nMONOTONIC_USEC={now}"));
    }
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(text.as_bytes(), &address);
    }
}
