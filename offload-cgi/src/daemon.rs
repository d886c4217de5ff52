//! The daemon: an offload host without a web server.
//!
//! ```text
//! listener -> sender (epoll: heads, hits, bytes) <-> pool (steps of exchanges, which may wait for the base)
//!                |-> carrier (a thread for what the base sends past the cache)
//!                '-> journal (the access log's thread)
//! ```
//! `settings` says what is to be done, `site` is a base that is served, `plan` what holds now, `life` the signals,
//! `admin` what is shown to who may look.

mod admin;
mod answer;
mod counters;
mod file;
mod journal;
mod life;
mod listen;
mod lobby;
mod plan;
mod pool;
mod settings;
mod site;
mod upgrade;
mod user;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

pub(crate) use self::answer::{Step, Visit, has_end, head as write_head, read};
use self::counters::Counters;
use self::journal::Journal;
pub(crate) use self::listen::Listener;
pub(crate) use self::lobby::{Herald, News, Visitor};
use self::plan::{Bodies, Doors};
pub(crate) use self::plan::{Entered, OpenBody, Plan};
use self::pool::Pool;
pub(crate) use self::settings::{Flags, Settings};
pub(crate) use self::site::{Site, client_of};
use self::user::User;
use crate::log;
use crate::reply::Reply;
use crate::sender::{Inbox, Paces};

/// The words that make this program a daemon, or look at what it would do.
pub(crate) const WORD: &str = "serve";
pub(crate) const CHECK: &str = "check";

/// Says that this process takes over from the one that started it; not a setting.
const UPGRADE: &str = "OFFLOAD_UPGRADE";

/// What all threads share.
pub(crate) struct Common {
    plan: RwLock<Arc<Plan>>,
    version: AtomicU64,
    pub(crate) counters: Counters,
    pub(crate) doors: Arc<Doors>,
    bodies: Arc<Bodies>,
    pub(crate) paces: Arc<Paces>,
    pub(crate) pool: Pool,
    pub(crate) journal: Journal,
    /// The loops, when all have started.
    senders: OnceLock<Vec<Arc<Inbox>>>,
    /// Replies that hold a thread.
    pub(crate) carriers: AtomicUsize,
    begun: Instant,
}

impl Common {
    fn new(plan: Plan, pool: Pool, journal: Journal, descriptors: usize) -> Self {
        Self {
            plan: RwLock::new(Arc::new(plan)),
            version: AtomicU64::new(0),
            counters: Counters::default(),
            doors: Arc::default(),
            bodies: Arc::new(Bodies::new(descriptors)),
            paces: Arc::default(),
            pool,
            journal,
            senders: OnceLock::new(),
            carriers: AtomicUsize::new(0),
            begun: Instant::now(),
        }
    }

    /// The loops; none before all have started.
    pub(crate) fn senders(&self) -> &[Arc<Inbox>] {
        self.senders.get().map_or(&[], Vec::as_slice)
    }

    /// A place for one more body, if there are descriptors for it.
    pub(crate) fn open_body(&self) -> Option<OpenBody> {
        self.bodies.open(self.doors.total())
    }

    /// What holds now, and its number.
    pub(crate) fn plan(&self) -> (Arc<Plan>, u64) {
        let plan = self.plan.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&plan), self.version.load(Ordering::Acquire))
    }

    /// The same, if it is another than that of this number.
    pub(crate) fn plan_after(&self, version: u64) -> (Option<Arc<Plan>>, u64) {
        if self.version.load(Ordering::Acquire) == version {
            return (None, version);
        }
        let (plan, version) = self.plan();
        (Some(plan), version)
    }

    fn replace(&self, plan: Plan) {
        let mut now = self.plan.write().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(plan);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a reply that begins. `asked`: whether a site was asked for a file.
    pub(crate) fn count(&self, reply: &Reply<'_>, asked: bool) {
        self.counters.requests.add(1);
        let status = reply.headers.iter().find(|(name, _)| *name == "Cache-Status");
        match status.map(|(_, value)| value.as_str()) {
            Some(status) if status.starts_with("offload; hit") => self.counters.hits.add(1),
            Some(_) => self.counters.misses.add(1),
            None if !asked && reply.code >= 400 => self.counters.refused_requests.add(1),
            None => {}
        }
    }

    /// Notes a reply that is over.
    pub(crate) fn note(
        &self,
        visit: &Visit,
        site: Option<&'static Site>,
        sent: u64,
        whole: bool,
        now: Instant,
    ) {
        self.counters.bytes.add(sent);
        if !whole {
            self.counters.broken_off.add(1);
        }
        let (plan, _) = self.plan();
        // What was not meant for any site is noted where there is a log at all.
        let site = site.or_else(|| {
            let named =
                plan.sites.iter().find(|site| Some(site.settings.name.as_str()) == visit.site);
            named.or_else(|| plan.sites.first()).copied()
        });
        if let Some(path) = site.and_then(|site| site.options().log.as_ref()) {
            let line = visit.line_of_log(plan.log_format, sent, whole, now);
            self.journal.add(path, &line, &self.counters.lost_log_lines);
        }
    }
}

/// Serves until a signal ends it.
pub(crate) fn serve(flags: &Flags) -> ExitCode {
    let settings = match settings(flags) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match life::run(settings, flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            log::line(&sentence);
            ExitCode::FAILURE
        }
    }
}

/// Says whether the daemon would start with these settings.
pub(crate) fn check(flags: &Flags) -> ExitCode {
    let settings = match settings(flags) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    if let Some(Err(sentence)) = settings.user.as_deref().map(User::find) {
        log::line(&format!("user: {sentence}"));
        return ExitCode::from(2);
    }
    let names: Vec<String> =
        settings.sites.iter().map(|site| site.options.base.to_string()).collect();
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let listen = if listen.is_empty() { "sockets of systemd".to_owned() } else { listen.join(" ") };
    println!("The configuration is good: {} on {listen}", names.join(", "));
    ExitCode::SUCCESS
}

fn settings(flags: &Flags) -> Result<Settings, ExitCode> {
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let settings = Settings::read(environment, flags).map_err(|errors| {
        errors.iter().for_each(|error| log::line(error));
        ExitCode::from(2)
    })?;
    settings.warnings.iter().for_each(|warning| log::line(warning));
    Ok(settings)
}
