//! Limits: who may come in, and who must wait.
//!
//! A request meets **demands**, one for each limit that concerns it: under which scope and for whom it
//! counts, and how many may be held there. The ledger says whether there is room; this module does not
//! know it.

use std::collections::HashSet;
use std::ffi::CStr;
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::OnceLock;

use siphasher::sip::SipHasher13;

use crate::directive::{HostLayer, Layer};
use crate::ledger::{Key, Scope, Trace, Who};
use crate::limit::{Client, Group, Limit, Position, Prefixes, SectionLimit};
use crate::setting::Condition;

/// Which limit it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[allow(missing_docs)] // the directives' own names
pub enum Kind {
    MaxConnectionsPerIp,
    MaxConnectionsPerUser,
    GlobalMaxConnectionsPerIp,
    GlobalMaxConnectionsPerUser,
    LoadLimitServer,
    LoadLimit,
    LoadLimit1,
    MaxConcurrentReqs,
    ChokeMaxHeld,
}

impl Kind {
    /// The directive: the note that access logs print.
    pub fn directive(self) -> &'static CStr {
        match self {
            Self::MaxConnectionsPerIp => c"MaxConnectionsPerIP",
            Self::MaxConnectionsPerUser => c"MaxConnectionsPerUser",
            Self::GlobalMaxConnectionsPerIp => c"GlobalMaxConnectionsPerIP",
            Self::GlobalMaxConnectionsPerUser => c"GlobalMaxConnectionsPerUser",
            Self::LoadLimitServer => c"LoadLimitServer",
            Self::LoadLimit => c"LoadLimit",
            Self::LoadLimit1 => c"LoadLimit1",
            Self::MaxConcurrentReqs => c"MaxConcurrentReqs",
            Self::ChokeMaxHeld => c"ChokeMaxHeld",
        }
    }

    /// Where a connection keeps the lease of this kind; `None` for limits of requests.
    pub fn seat(self) -> Option<usize> {
        match self {
            Self::MaxConnectionsPerIp => Some(0),
            Self::MaxConnectionsPerUser => Some(1),
            Self::GlobalMaxConnectionsPerIp => Some(2),
            Self::GlobalMaxConnectionsPerUser => Some(3),
            _ => None,
        }
    }
}

/// How many kinds of leases a connection keeps.
pub const SEATS: usize = 4;

/// A scope by a name that is the same in every process and after every restart.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ScopeName(u64);

impl ScopeName {
    /// The scope of one limit in one place: a virtual host, a section, a group of paths.
    pub fn of(kind: Kind, place: &str) -> Self {
        let mut hasher = SipHasher13::new_with_keys(0, 0);
        hasher.write(kind.directive().to_bytes());
        hasher.write(b"\0");
        hasher.write(place.as_bytes());
        Self(hasher.finish())
    }

    /// The name as a number: what keeps its counts apart from those of every other scope.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// A scope and the row of its statistics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// What keeps its counts apart.
    pub name: ScopeName,
    /// Where its statistics are; two scopes may share a row, but never a count.
    pub scope: Scope,
}

/// The limits of a virtual host that need no section, as each request meets them.
#[derive(Debug)]
pub struct HostScopes {
    number: u32,
    /// Of groups of paths.
    of_paths: Vec<HostLimit>,
    /// Of users and of clients, which a connection may hold already.
    of_clients: Vec<HostLimit>,
    /// Of the whole server.
    of_server: Vec<HostLimit>,
    has_twins: bool,
    are_seats_steady: bool,
    is_plain: bool,
}

/// One of them.
#[derive(Debug)]
struct HostLimit {
    kind: Kind,
    spot: Spot,
    whom: Whom,
    most: u32,
    condition: Option<Condition>,
    /// The paths that it is about, if not about all.
    group: Option<Group>,
    /// For everybody, without a condition.
    is_plain: bool,
}

impl HostScopes {
    /// What tells the virtual host from the others of this configuration.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        [&self.of_paths, &self.of_clients, &self.of_server].into_iter().all(Vec::is_empty)
    }

    /// Whether two of the limits for everybody count in the same place.
    pub fn has_twins(&self) -> bool {
        self.has_twins
    }

    /// Whether the limits of connections ask the same of each request of one client without a user.
    pub fn are_seats_steady(&self) -> bool {
        self.are_seats_steady
    }

    /// Whether idle connections count, nobody is let in for a trial, and no two limits count in one place: as
    /// it is in most virtual hosts.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// What an unseated client without a user is asked for its connection, if that is the same each time: the
    /// seat, where it counts, and how many may be held.
    pub fn of_each_client(&self) -> Option<impl Iterator<Item = (usize, &Spot, u32)>> {
        let of_clients = self.of_clients.iter().filter(|limit| limit.whom == Whom::Client);
        self.are_seats_steady.then(|| {
            of_clients.filter_map(|limit| Some((limit.kind.seat()?, &limit.spot, limit.most)))
        })
    }

    /// What [`Demands`] finds for a request of a seated client, found without a stop: whether each limit that
    /// concerns the request is plain and met.
    #[inline(always)]
    pub fn are_met<'a>(
        &'a self,
        section: Option<&'a Layer>,
        path: &[u8],
        method: u32,
        mut is_met: impl FnMut(&'a Spot, u32) -> bool,
    ) -> bool {
        let sections = section.map_or(&[][..], Layer::max_concurrent);
        if let Some(limit) = sections.iter().rev().find(|limit| limit.covers(method)) {
            let is_plain = limit.limit.condition().is_none();
            if !is_plain || limit.limit.most().is_some_and(|most| !is_met(&limit.spot, most)) {
                return false;
            }
        }
        for limit in &self.of_paths {
            if let Some(most) = limit.most(path)
                && !(limit.is_plain && is_met(&limit.spot, most))
            {
                return false;
            }
        }
        for limit in &self.of_server {
            if !(limit.is_plain && is_met(&limit.spot, limit.most)) {
                return false;
            }
        }
        true
    }
}

/// What is known of a request when it asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether it said who its user is.
    pub has_user: bool,
    /// Whether its connection holds already all that the limits of connections ask.
    pub is_seated: bool,
    /// The URL path, as httpd has normalised it.
    pub path: &'a [u8],
    /// httpd's number of the method.
    pub method: u32,
}

/// For whom a limit counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whom {
    /// All together.
    Everybody,
    /// The client, by its address.
    Client,
    /// The authenticated user.
    User,
}

/// One limit that concerns a request.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    source: Source<'a>,
    /// Where it counts.
    pub spot: &'a Spot,
    /// How many may be held, this one included; [`u32::MAX`]: it only counts.
    pub most: u32,
    /// Whether it is for everybody and has no condition, as most are.
    pub is_plain: bool,
}

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Section(&'a SectionLimit),
    Host(&'a HostLimit),
}

impl<'a> Demand<'a> {
    /// Which limit.
    pub fn kind(&self) -> Kind {
        match self.source {
            Source::Section(_) => Kind::MaxConcurrentReqs,
            Source::Host(limit) => limit.kind,
        }
    }

    /// For whom it counts.
    pub fn whom(&self) -> Whom {
        match self.source {
            Source::Section(_) => Whom::Everybody,
            Source::Host(limit) => limit.whom,
        }
    }

    /// When it holds.
    pub fn condition(&self) -> Option<&'a Condition> {
        match self.source {
            Source::Section(limit) => limit.limit.condition(),
            Source::Host(limit) => limit.condition.as_ref(),
        }
    }

    /// The paths that it is about, if not about all.
    pub fn group(&self) -> Option<&'a Group> {
        match self.source {
            Source::Section(_) => None,
            Source::Host(limit) => limit.group.as_ref(),
        }
    }
}

/// The limits that concern a request, the narrow ones first: who is refused by one of them has not held
/// a place of a wide one meanwhile.
#[derive(Debug)]
pub struct Demands<'a> {
    /// The limits of the sections around it, the innermost last.
    sections: &'a [SectionLimit],
    of_paths: &'a [HostLimit],
    of_clients: &'a [HostLimit],
    of_server: &'a [HostLimit],
    facts: Facts<'a>,
}

impl<'a> Demands<'a> {
    /// Of a virtual host, and of a section with those around it.
    #[inline]
    pub fn new(host: &'a HostScopes, section: Option<&'a Layer>, facts: Facts<'a>) -> Self {
        let sections = section.map_or(&[][..], Layer::max_concurrent);
        // Who is seated and has no user is asked nothing there.
        let asks_clients = facts.has_user || !facts.is_seated;
        let of_clients = if asks_clients { &*host.of_clients } else { &[] };
        Self { sections, of_paths: &host.of_paths, of_clients, of_server: &host.of_server, facts }
    }

    /// The last demand's condition holds: if it was a section's, those around it do not matter.
    #[inline]
    pub fn last_one_holds(&mut self) {
        self.sections = &[];
    }

    fn next_of_section(&mut self) -> Option<Demand<'a>> {
        while let Some((limit, outer)) = self.sections.split_last() {
            self.sections = outer;
            if !limit.covers(self.facts.method) {
                continue;
            }
            let is_plain = limit.limit.condition().is_none();
            if let Some(most) = limit.limit.most() {
                let source = Source::Section(limit);
                return Some(Demand { source, spot: &limit.spot, most, is_plain });
            }
            // It lifts those around it, if it needs no condition.
            if is_plain {
                self.last_one_holds();
            }
        }
        None
    }

    fn next_of_paths(&mut self) -> Option<Demand<'a>> {
        while let Some((limit, others)) = self.of_paths.split_first() {
            self.of_paths = others;
            if let Some(most) = limit.most(self.facts.path) {
                return Some(limit.demand(most));
            }
        }
        None
    }

    fn next_of_clients(&mut self) -> Option<Demand<'a>> {
        while let Some((limit, others)) = self.of_clients.split_first() {
            self.of_clients = others;
            let is_concerned = match limit.whom {
                Whom::Everybody => true,
                Whom::Client => !self.facts.is_seated,
                Whom::User => self.facts.has_user,
            };
            if is_concerned {
                return Some(limit.demand(limit.most));
            }
        }
        None
    }

    fn next_of_server(&mut self) -> Option<Demand<'a>> {
        let (limit, others) = self.of_server.split_first()?;
        self.of_server = others;
        Some(limit.demand(limit.most))
    }
}

impl HostLimit {
    /// How many may be held if a request for this path comes in; `None` if the limit is not about it.
    #[inline(always)]
    fn most(&self, path: &[u8]) -> Option<u32> {
        let Some(group) = &self.group else { return Some(self.most) };
        let only_counts = group.position(path)? == Position::Other && self.kind == Kind::LoadLimit1;
        Some(if only_counts { u32::MAX } else { self.most })
    }

    fn demand(&self, most: u32) -> Demand<'_> {
        let (source, spot, is_plain) = (Source::Host(self), &self.spot, self.is_plain);
        Demand { source, spot, most, is_plain }
    }
}

impl<'a> Iterator for Demands<'a> {
    type Item = Demand<'a>;

    #[inline]
    fn next(&mut self) -> Option<Demand<'a>> {
        self.next_of_section()
            .or_else(|| self.next_of_paths())
            .or_else(|| self.next_of_clients())
            .or_else(|| self.next_of_server())
    }
}

/// The bytes by which a client is known; a client without an address is everybody without one.
pub fn client(host: &HostLayer, address: Option<IpAddr>) -> Client {
    let prefixes = host.limit_client_prefix().copied().unwrap_or(Prefixes::USUAL);
    address.map_or(Client::default(), |address| prefixes.client(address))
}

/// Which row of the ledger's statistics belongs to a scope.
#[derive(Debug, Default)]
pub struct Directory {
    /// What has been given away, by number; empty until the first scope is declared.
    rows: Vec<Option<ScopeName>>,
    entries: Vec<Entry>,
    hosts: u32,
}

/// Where a limit counts, with what this process has found out about it.
#[derive(Debug)]
pub struct Spot {
    name: ScopeName,
    known: OnceLock<(Place, Key)>,
    trace: Trace,
}

impl Spot {
    /// A scope of which nothing is known yet.
    pub fn new(name: ScopeName) -> Self {
        Self { name, known: OnceLock::new(), trace: Trace::default() }
    }

    /// Where everybody counts together, if that is known already, and where that was last.
    #[inline]
    pub fn of_everybody(&self) -> Option<(Key, &Trace)> {
        self.known.get().map(|&(_, key)| (key, &self.trace))
    }

    /// Where everybody counted together last.
    #[inline]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Where `who` counts, where everybody is `everybody`.
    pub fn key(&self, directory: &Directory, who: Who, everybody: Who) -> Key {
        let &(place, key) = self.known.get_or_init(|| {
            let place = directory.place(self.name);
            (place, place.key(everybody))
        });
        if who == everybody { key } else { place.key(who) }
    }
}

impl Place {
    /// The key of somebody here.
    fn key(self, who: Who) -> Key {
        who.in_place(self.name.0).in_scope(self.scope)
    }
}

/// A scope as the status page shows it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The row of its statistics.
    pub scope: Scope,
    /// Which limit.
    pub kind: Kind,
    /// The virtual host, section or group.
    pub place: String,
    /// How many may be held.
    pub most: u32,
}

/// The scopes that have rows of their own; row 0 is for those that only .htaccess files name.
const ROWS: u16 = 1024;

/// The rows that a scope may be given, the best one first.
fn probe(name: ScopeName) -> impl Iterator<Item = u16> {
    let first = u16::try_from(name.0 % u64::from(ROWS - 1)).unwrap_or(0);
    (0..ROWS - 1).map(move |step| 1 + (first + step) % (ROWS - 1))
}

impl Directory {
    /// Gives a scope a row: by its name the same one after a restart, unless two names meet.
    pub fn declare(&mut self, kind: Kind, scope: ScopeName, place: &str, most: u32) {
        if self.row(scope).is_some() || self.entries.len() >= usize::from(ROWS) - 1 {
            return;
        }
        self.rows.resize(usize::from(ROWS), None);
        let free = probe(scope).find(|&row| self.rows[usize::from(row)].is_none());
        let Some(row) = free else { return };
        self.rows[usize::from(row)] = Some(scope);
        self.entries.push(Entry { scope: Scope(row), kind, place: place.to_owned(), most });
    }

    /// The row that was given to a scope: it lies before the first free one on its way.
    fn row(&self, name: ScopeName) -> Option<u16> {
        for row in probe(name) {
            match *self.rows.get(usize::from(row))? {
                Some(given) if given == name => return Some(row),
                Some(_) => {}
                None => return None,
            }
        }
        None
    }

    /// Where a scope counts.
    pub fn place(&self, name: ScopeName) -> Place {
        Place { name, scope: Scope(self.row(name).unwrap_or(0)) }
    }

    /// All that were declared, in the order of their declaration.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Declares what a virtual host limits, apart from its sections, and says where it counts.
    pub fn declare_host(&mut self, host: &HostLayer, name: &str) -> HostScopes {
        let server = "the server";
        let groups = |kind, groups: &[Group]| -> Vec<_> {
            let limit = |group: &Group| {
                (
                    kind,
                    Whom::Everybody,
                    Some(group.limit.clone()),
                    group.name.to_string(),
                    Some(group.clone()),
                )
            };
            groups.iter().map(limit).collect()
        };
        let one = |kind, whom, limit: Option<&Limit>, place: &str| {
            vec![(kind, whom, limit.cloned(), place.to_owned(), None)]
        };
        // The narrow ones first, as `demands` promises.
        let all = [
            groups(Kind::LoadLimit, host.load_limits()),
            groups(Kind::LoadLimit1, host.load_limits_of_first()),
            one(Kind::MaxConnectionsPerUser, Whom::User, host.max_per_user(), name),
            one(Kind::GlobalMaxConnectionsPerUser, Whom::User, host.global_max_per_user(), server),
            one(Kind::MaxConnectionsPerIp, Whom::Client, host.max_per_address(), name),
            one(
                Kind::GlobalMaxConnectionsPerIp,
                Whom::Client,
                host.global_max_per_address(),
                server,
            ),
            one(Kind::LoadLimitServer, Whom::Everybody, host.load_limit_server(), server),
        ];
        let (mut of_paths, mut of_clients, mut of_server) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, whom, limit, place, group) in all.into_iter().flatten() {
            let Some((limit, most)) = limit.and_then(|limit| Some((limit.clone(), limit.most()?)))
            else {
                continue;
            };
            let scope = ScopeName::of(kind, &place);
            self.declare(kind, scope, &place, most);
            let condition = limit.condition().cloned();
            let is_plain = whom == Whom::Everybody && condition.is_none();
            let spot = Spot::new(scope);
            let limits = match kind {
                Kind::LoadLimit | Kind::LoadLimit1 => &mut of_paths,
                Kind::LoadLimitServer => &mut of_server,
                _ => &mut of_clients,
            };
            limits.push(HostLimit { kind, spot, whom, most, condition, group, is_plain });
        }
        self.hosts += 1;
        let mut seen = HashSet::new();
        let mut of_everybody = of_paths.iter().chain(&of_server);
        let has_twins = !of_everybody.all(|limit| seen.insert(limit.spot.name));
        HostScopes {
            number: self.hosts,
            has_twins,
            is_plain: host.count_idle().is_on() && !host.limit_dry_run().is_on() && !has_twins,
            are_seats_steady: of_clients.iter().all(|limit| limit.condition.is_none()),
            of_paths,
            of_clients,
            of_server,
        }
    }
}

/// The page of a refusal: which limit was met, never who holds it. Plain words, safe in HTML.
pub fn page(kind: Kind, path: Option<&str>) -> String {
    let name = path.unwrap_or("this part of the server");
    let name: String = name
        .chars()
        .map(
            |char| if char.is_ascii_alphanumeric() || "/._-~ ".contains(char) { char } else { '?' },
        )
        .collect();
    match kind {
        Kind::ChokeMaxHeld => "Too many slow downloads are in progress".to_owned(),
        Kind::LoadLimitServer => "Too many users are connected to this server".to_owned(),
        Kind::LoadLimit | Kind::LoadLimit1 => format!("Too many users are connected to {name}"),
        Kind::MaxConcurrentReqs => {
            "Too many requests are being answered in this part of the server".to_owned()
        }
        Kind::MaxConnectionsPerIp | Kind::GlobalMaxConnectionsPerIp => {
            "Too many connections from your address".to_owned()
        }
        Kind::MaxConnectionsPerUser | Kind::GlobalMaxConnectionsPerUser => {
            "Too many connections of your user".to_owned()
        }
    }
}

#[cfg(test)]
mod tests;
