//! Whether limits count right, for ever: clients come and go while children are killed and httpd reads
//! its configuration anew.
//!
//! The clients keep a book of what they have open ([`truth`]). Meanwhile
//!
//! * the status page is read again and again: no count is above what the book allows at that time, and
//!   none of one client, section or group above its limit;
//! * every refusal must be due: without the refused request the book has as many as the limit.
//!
//! Every few kills all clients **stand still** with what they have open, and every count must be equal to
//! what the book and the kernel's table of connections say; then, often just after another kill, they
//! all **leave**, and every count must be zero within a second.

mod truth;
mod visit;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::sys::signal::{Signal, kill};

use crate::limits::{OBSERVER, put_big};
use crate::status::Status;
use crate::{Httpd, Mpm, Setup, eventually};
use truth::{Ending, HOSTS, Truth, ends, is_per_client};
use visit::{Connection, status};

const CLIENTS: usize = 32;
/// So many kills, about, before the clients stand still.
const ROUND: usize = 10;
/// Within this all counts are zero when all clients have gone: a second, as the parent looks for dead
/// children once a second, and what a busy machine may take.
const ZERO: Duration = Duration::from_millis(1250);
/// Within this what a killed child held is given back, so that counts are exact.
const EXACT: Duration = Duration::from_millis(2500);

const LIMITS: [(&str, &str, u64); 7] = [
    ("MaxConnectionsPerIP", "a.test", 2),
    ("MaxConnectionsPerIP", "b.test", 3),
    ("GlobalMaxConnectionsPerIP", "", 4),
    ("LoadLimitServer", "", 14),
    ("LoadLimit", "", 4),
    ("LoadLimit1", "", 3),
    ("MaxConcurrentReqs", "", 5),
];

const CONFIGURATION: &str = r#"
KeepAliveTimeout 20
GlobalMaxConnectionsPerIP 4
LoadLimitServer 14
LoadLimit 4 /disk.bin /small.txt
LoadLimit1 3 /page /images
Header always set X-Refused "expr=%{note:offload-refused}"
<Location /slow.bin>
    MaxConcurrentReqs 5
</Location>
<Location /status>
    SetHandler choke-status
</Location>
<VirtualHost *:${PORT}>
    ServerName a.test
    MaxConnectionsPerIP 2
</VirtualHost>
<VirtualHost *:${PORT}>
    ServerName b.test
    MaxConnectionsPerIP 3
</VirtualHost>"#;

const SMALL: [&str; 3] = ["/small.txt", "/page/index.html", "/images/1.jpg"];
/// More than the sockets' buffers take.
const SLOW: [&str; 3] = ["/slow.bin", "/disk.bin", "/images/big.bin"];

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Under which MPM.
    pub mpm: Mpm,
    /// How many children are killed.
    pub kills: usize,
    /// Where chance begins.
    pub seed: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Report {
    /// What did not hold.
    pub failures: Vec<String>,
    /// The closing table.
    pub table: String,
}

/// Carries a plan out; prints how it goes on.
pub fn run(plan: Plan) -> Report {
    let setup = Setup::default().mpm(plan.mpm).module("headers").offload().without_access_log();
    let server = setup
        .directives(&format!("LimitTableSize 10000\nLimitExempt {OBSERVER}"))
        .directives(match plan.mpm {
            Mpm::Prefork => "StartServers 32\nMinSpareServers 32\nMaxSpareServers 48",
            // Four children, so that most of what is open survives a kill.
            _ => "StartServers 4\nMinSpareThreads 64\nMaxSpareThreads 96",
        })
        .directives(CONFIGURATION)
        .start();
    for path in SMALL {
        server.put(path, path.repeat(20));
    }
    for path in SLOW {
        put_big(&server, path);
    }
    let soak = Soak {
        address: server.address(),
        truth: Truth::default(),
        phase: AtomicU8::new(RUN),
        waiting: AtomicUsize::new(0),
        findings: Mutex::default(),
    };
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut chance = Chance(plan.seed.wrapping_mul(1000) + number as u64);
            let soak = &soak;
            scope.spawn(move || soak.client(&mut chance));
        }
        scope.spawn(|| soak.observe());
        // However this ends, the others end too.
        let _over = Over(&soak.phase);
        soak.drive(&server, plan);
    });
    soak.report(&server)
}

struct Over<'a>(&'a AtomicU8);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(OVER, Ordering::SeqCst);
    }
}

/// Clients come and go.
const RUN: u8 = 0;
/// Each client keeps what it has open and does nothing.
const STAND: u8 = 1;
/// Each client has nothing open.
const LEAVE: u8 = 2;
const OVER: u8 = 3;

struct Soak {
    address: SocketAddr,
    truth: Truth,
    phase: AtomicU8,
    /// Clients that do what the phase says.
    waiting: AtomicUsize,
    findings: Mutex<Findings>,
}

#[derive(Default)]
struct Findings {
    failures: Vec<String>,
    kills: usize,
    gracefuls: usize,
    requests: usize,
    answered: usize,
    /// Requests without an answer: a child was killed, or had to go.
    lost: u64,
    refusals: BTreeMap<String, u64>,
    readings: usize,
    /// By limit: sums of held, and of what was possible, over all readings.
    seen: BTreeMap<(String, String), (u64, u64, u64)>,
    standing: usize,
    exact: Vec<Duration>,
    zero: Vec<Duration>,
}

impl Soak {
    fn find(&self, note: impl FnOnce(&mut Findings)) {
        note(&mut self.findings.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn fail(&self, failure: String) {
        eprintln!("FAILED: {failure}");
        self.find(|findings| findings.failures.push(failure));
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::SeqCst)
    }

    fn wait_while(&self, phase: u8) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.phase() == phase {
            thread::sleep(Duration::from_millis(2));
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    // ---- clients

    fn client(&self, chance: &mut Chance) {
        loop {
            match self.phase() {
                RUN => {
                    let refused = Conversation::hold(self, chance)
                        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                    let pause = chance.below(if refused { 300 } else { 30 });
                    let _ = self.pause(Duration::from_millis(pause));
                }
                OVER => break,
                phase => self.wait_while(phase),
            }
        }
    }

    /// Does nothing for a while; an error when all are to leave.
    fn pause(&self, length: Duration) -> io::Result<()> {
        let end = Instant::now() + length;
        loop {
            match self.phase() {
                RUN => {}
                STAND => self.wait_while(STAND),
                _ => return Err(io::ErrorKind::Interrupted.into()),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(10)));
        }
    }

    // ---- the observer

    fn observe(&self) {
        while self.phase() != OVER {
            self.truth.forget();
            let from = Instant::now();
            if let Some(status) = status(self.address) {
                self.compare(&status, (from, Instant::now()));
            }
            thread::sleep(Duration::from_millis(15));
        }
    }

    /// No count is above what was possible while it was read.
    fn compare(&self, status: &Status, window: (Instant, Instant)) {
        for row in &status.scopes {
            let scope = (&*row.directive, &*row.place);
            let possible = self.truth.possible(scope, window, &[]);
            let most = possible.values().copied().max().unwrap_or(0);
            // Only requests for its first path meet this limit.
            let limit = if row.directive == "LoadLimit1" { u64::MAX } else { row.limit };
            let all: u64 = possible.values().map(|&count| count.min(limit)).sum();
            let all = if is_per_client(&row.directive) { all } else { all.min(limit) };
            if row.held > all
                || row.greatest > most.min(limit)
                || row.clients > possible.len() as u64
                || row.uncounted > 0
            {
                self.fail(format!(
                    "more than there can be ({all} of {}, of one {most}): {row:?}",
                    possible.len()
                ));
            }
            self.find(|findings| {
                let seen = findings.seen.entry((row.directive.clone(), row.place.clone()));
                let seen = seen.or_default();
                *seen = (seen.0 + row.held, seen.1 + all, seen.2.max(row.held));
            });
        }
        self.find(|findings| findings.readings += 1);
    }

    // ---- the driver

    fn drive(&self, server: &Httpd, plan: Plan) {
        let mut chance = Chance(plan.seed);
        let mut next_graceful = Instant::now() + Duration::from_secs(1);
        let mut kills = 0;
        while kills < plan.kills {
            let round = ROUND.min(plan.kills - kills);
            // Sometimes the last one comes when everybody stands still.
            let at_the_end = usize::from(round > 1 && chance.below(2) == 0);
            for _ in 0..round - at_the_end {
                thread::sleep(Duration::from_millis(60 + chance.below(1100)));
                self.kill_a_child(server, &mut chance);
                if Instant::now() > next_graceful {
                    kill(server.pid(), Signal::SIGUSR1).unwrap();
                    self.find(|findings| findings.gracefuls += 1);
                    next_graceful =
                        Instant::now() + Duration::from_millis(2000 + chance.below(2000));
                }
            }
            thread::sleep(Duration::from_millis(chance.below(1500)));
            self.turn(STAND);
            self.must_be_exact();
            for _ in 0..at_the_end {
                self.kill_a_child(server, &mut chance);
            }
            self.turn(LEAVE);
            self.must_be_zero();
            kills += round;
            self.find(|findings| {
                let refused: u64 = findings.refusals.values().sum();
                eprintln!(
                    "{kills} kills, {} graceful, {} requests, {refused} refused, {} lost; {} stood still; \
                     exact after {:?}, zero after {:?}",
                    findings.gracefuls,
                    findings.requests,
                    findings.lost,
                    findings.standing,
                    findings.exact.last().unwrap_or(&Duration::ZERO),
                    findings.zero.last().unwrap_or(&Duration::ZERO),
                );
            });
            self.phase.store(RUN, Ordering::SeqCst);
        }
        self.phase.store(LEAVE, Ordering::SeqCst);
        // A dead process must not keep a place in the ledger; httpd looks at all of them now and then.
        let start = Instant::now();
        while status(self.address)
            .is_none_or(|status| status.table["processes"] > server.children().len() as u64 + 1)
        {
            if start.elapsed() > 12 * ZERO {
                return self.fail(format!("dead processes are known: {:?}", status(self.address)));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill_a_child(&self, server: &Httpd, chance: &mut Chance) {
        let child = eventually("httpd has a child", || {
            let children = server.children();
            let number = usize::try_from(chance.below(children.len().max(1) as u64)).ok()?;
            children.get(number).copied()
        });
        self.truth.kill();
        if kill(child, Signal::SIGKILL).is_ok() {
            self.find(|findings| findings.kills += 1);
        }
    }

    /// Tells all clients, and waits until they do so.
    fn turn(&self, phase: u8) {
        self.phase.store(phase, Ordering::SeqCst);
        if phase == LEAVE {
            // They still stand.
            thread::sleep(Duration::from_millis(10));
        }
        eventually("all clients do as they are told", || {
            (self.waiting.load(Ordering::SeqCst) == CLIENTS && self.phase() == phase).then_some(())
        });
    }

    /// While the clients stand still each count is what the clients and the kernel say.
    fn must_be_exact(&self) {
        let start = Instant::now();
        let mut last = Vec::new();
        loop {
            let ends = ends(self.address);
            let status = status(self.address);
            let wrong = status.map_or_else(
                || vec!["no answer".to_owned()],
                |status| {
                    let wrong = status.scopes.iter().filter_map(|row| {
                        let standing = self.truth.standing(row, &ends);
                        let held: u64 = standing.values().sum();
                        let most = standing.values().copied().max().unwrap_or(0);
                        let is = (row.held, row.clients, row.greatest);
                        (is != (held, standing.len() as u64, most))
                            .then(|| format!("{standing:?}: {row:?}"))
                    });
                    wrong.collect()
                },
            );
            if wrong.is_empty() {
                if start.elapsed() > ZERO {
                    eprintln!("for {:?} not {}", start.elapsed(), last.join("; not "));
                }
                self.find(|findings| {
                    findings.exact.push(start.elapsed());
                    findings.standing += ends.len();
                });
                return;
            }
            if start.elapsed() > EXACT {
                return self.fail(format!("all stand still, yet not {}", wrong.join("; not ")));
            }
            last = wrong;
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// When all clients are gone every count is zero within a second.
    fn must_be_zero(&self) {
        let start = Instant::now();
        loop {
            let asked = Instant::now();
            match status(self.address) {
                Some(status) if status.is_empty() => {
                    self.find(|findings| findings.zero.push(start.elapsed()));
                    if asked - start > ZERO {
                        self.fail(format!("all have gone, and it took {:?}", asked - start));
                    }
                    return;
                }
                Some(status) if start.elapsed() > 10 * ZERO => {
                    return self.fail(format!("all have gone, and still {status:?}"));
                }
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn report(&self, server: &Httpd) -> Report {
        let status = eventually("the status page", || status(self.address));
        if !status.is_empty() {
            self.fail(format!("at the end: {status:?}"));
        }
        for row in &status.scopes {
            // Requests of whose answers nobody has heard may have been refused too.
            self.find(|findings| {
                let same = |name: &&String| **name == row.directive;
                let heard = findings.refusals.iter().filter(|(name, _)| same(name));
                let heard: u64 = heard.map(|(_, count)| count).sum();
                let counted = status.scopes.iter().filter(|other| same(&&other.directive));
                let counted: u64 = counted.map(|row| row.refused).sum();
                if counted < heard || counted > heard + findings.lost {
                    let lost = findings.lost;
                    findings.failures.push(format!(
                        "{}: {counted} refusals counted, {heard} heard of, {lost} answers lost",
                        row.directive
                    ));
                }
            });
        }
        let log = server.error_log();
        for line in log.lines() {
            let died = line.contains("exit signal") && !line.contains("Killed");
            if died || line.contains("panic") || line.contains("uncounted") {
                self.fail(line.to_owned());
            }
        }
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        Report { table: findings.table(), failures: std::mem::take(&mut findings.failures) }
    }
}

impl Findings {
    fn table(&self) -> String {
        let mut table = String::new();
        let longest = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
        let middle = |times: &[Duration]| {
            let mut times = times.to_vec();
            times.sort();
            times.get(times.len() / 2).copied().unwrap_or_default()
        };
        let mut line = |name: &str, value: String| writeln!(table, "{name:<42} {value}").unwrap();
        line("children killed", self.kills.to_string());
        line("graceful restarts", self.gracefuls.to_string());
        line("requests", self.requests.to_string());
        line("  answered", self.answered.to_string());
        line("  refused, each of them due", self.refusals.values().sum::<u64>().to_string());
        for (directive, count) in &self.refusals {
            line(&format!("    {directive}"), count.to_string());
        }
        line("  without an answer", self.lost.to_string());
        line("readings of the status page", self.readings.to_string());
        line("  a limit: most held, held of possible", String::new());
        for ((directive, place), (held, possible, most)) in &self.seen {
            let percent = 100 * held / (*possible).max(1);
            let place: String = place.chars().take(30).collect();
            line(&format!("    {directive}"), format!("{most:>3} {percent:>4} %  {place}"));
        }
        line("connections while all stood still", self.standing.to_string());
        for (name, times) in
            [("counts exact after", &self.exact), ("counts zero after", &self.zero)]
        {
            let (middle, longest) = (middle(times), longest(times));
            let times =
                format!("{} times: median {middle:.1?}, longest {longest:.1?}", times.len());
            line(name, times);
        }
        table
    }
}

/// One connection of a client, and the requests on it; its end is noted when it goes.
struct Conversation<'a> {
    soak: &'a Soak,
    client: Ipv4Addr,
    host: &'static str,
    connection: Option<Connection>,
    number: u64,
    request: Option<u64>,
    /// Whether one of its requests was let in.
    admitted: bool,
    ending: Ending,
}

impl<'a> Conversation<'a> {
    /// Says something of the mixture; however it ends, the connection is closed when this goes.
    fn hold(soak: &'a Soak, chance: &mut Chance) -> io::Result<()> {
        // A few clients have many connections, many clients have few.
        let client = if chance.below(2) == 0 {
            [127, 0, 1, chance.byte(3)]
        } else {
            [127, 0, 2 + chance.byte(8), 1 + chance.byte(250)]
        };
        let (client, host) = (Ipv4Addr::from(client), HOSTS[usize::from(chance.byte(2))]);
        let number = soak.truth.begin(client, 0, host, None);
        let mut this = Self {
            soak,
            client,
            host,
            connection: None,
            number,
            request: None,
            admitted: false,
            ending: Ending::Refused,
        };
        let connection = Connection::open(client, soak.address)?;
        soak.truth.connected(number, connection.port());
        this.connection = Some(connection);
        let (path, slow) = (SMALL[usize::from(chance.byte(3))], SLOW[usize::from(chance.byte(3))]);
        match chance.below(10) {
            // Takes what there is and goes.
            0..3 => this.whole(path),
            // Comes back on the same connection after a while, or not.
            3..6 => {
                for _ in 0..=chance.below(3) {
                    this.whole(path)?;
                    soak.pause(Duration::from_millis(chance.below(1500)))?;
                }
                Ok(())
            }
            // Reads slowly; then the rest at once, or nothing more of it.
            6..8 => {
                let length = this.ask(slow)?;
                let mut left = length;
                for _ in 0..chance.below(15) {
                    left -= this.read(left.min(40_000))?;
                    soak.pause(Duration::from_millis(chance.below(250)))?;
                }
                if chance.below(2) == 0 {
                    this.read(left)?;
                    this.finish();
                    soak.pause(Duration::from_millis(chance.below(200)))?;
                }
                Ok(())
            }
            // Goes when the answer begins.
            8 => this.ask(slow).map(drop),
            // Goes before that.
            _ => {
                this.send(path)?;
                Ok(())
            }
        }
    }

    fn whole(&mut self, path: &'static str) -> io::Result<()> {
        let length = self.ask(path)?;
        self.read(length)?;
        self.finish();
        Ok(())
    }

    fn send(&mut self, path: &'static str) -> io::Result<()> {
        let port = self.connection.as_ref().map_or(0, Connection::port);
        self.request = Some(self.soak.truth.begin(self.client, port, self.host, Some(path)));
        self.ending = Ending::Unheard;
        self.soak.find(|findings| findings.requests += 1);
        self.connection.as_mut().unwrap().send(self.host, path)
    }

    /// Sends a request and reads the head of the answer: how long is the body? A refusal is an error.
    fn ask(&mut self, path: &'static str) -> io::Result<usize> {
        self.send(path)?;
        let head = self.connection.as_mut().unwrap().head().inspect_err(|error| {
            // It timed out.
            if error.kind() == io::ErrorKind::WouldBlock {
                self.soak.fail(format!("no answer: {} {path}", self.client));
            }
        })?;
        let request = self.request.unwrap();
        if head.status == 200 {
            (self.admitted, self.ending) = (true, Ending::Heard);
            self.soak.truth.admitted(self.number);
            self.soak.truth.admitted(request);
            self.soak.find(|findings| findings.answered += 1);
            return Ok(head.length);
        }
        if head.status == 503 && !head.refused.is_empty() {
            self.ending = Ending::Refused;
            self.must_be_due(&head.refused, path);
            self.soak.find(|findings| *findings.refusals.entry(head.refused).or_default() += 1);
        } else {
            self.soak.fail(format!("{path}: {head:?}"));
        }
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    /// A refusal is right only if the others were as many as the limit, at some time since it was asked.
    fn must_be_due(&self, directive: &str, path: &str) {
        let request = self.request.unwrap();
        let window = (self.soak.truth.begun(request), Instant::now());
        let place = if directive == "MaxConnectionsPerIP" { self.host } else { "" };
        let Some(limit) = LIMITS.iter().find(|limit| (limit.0, limit.1) == (directive, place))
        else {
            return self.soak.fail(format!("refused by {directive}"));
        };
        let but = [self.number, request];
        let others = self.soak.truth.possible((directive, place), window, &but);
        let whose = if is_per_client(directive) { self.client } else { Ipv4Addr::UNSPECIFIED };
        let others = others.get(&whose).copied().unwrap_or(0);
        if others < limit.2 {
            let failure = format!("{directive} {} refused {path} with {others} others", limit.2);
            self.soak.fail(failure);
        }
        if directive == "LoadLimit1" && !path.starts_with("/page") {
            self.soak.fail(format!("LoadLimit1 refused {path}"));
        }
    }

    fn read(&mut self, length: usize) -> io::Result<usize> {
        self.connection.as_mut().unwrap().body(length).map(|body| body.len())
    }

    /// The answer is complete.
    fn finish(&mut self) {
        if let Some(request) = self.request.take() {
            self.soak.truth.end(request, self.ending);
        }
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        drop(self.connection.take());
        if self.ending == Ending::Unheard {
            self.soak.find(|findings| findings.lost += 1);
        }
        self.finish();
        // A connection on which something was let in goes on counting after a refusal.
        let refused = self.ending == Ending::Refused && self.admitted;
        let ending = if refused { Ending::Heard } else { self.ending };
        self.soak.truth.end(self.number, ending);
    }
}

/// Chance that can be repeated: splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)) % most
    }

    fn byte(&mut self, most: u8) -> u8 {
        u8::try_from(self.below(u64::from(most))).unwrap_or(0)
    }
}
