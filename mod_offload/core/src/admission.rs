//! Limits: who may come in, and who must wait.
//!
//! A request meets **demands**, one for each limit that concerns it: under which scope and for whom it
//! counts, and how many may be held there. The ledger says whether there is room; this module does not
//! know it.

use std::collections::HashSet;
use std::ffi::CStr;
use std::hash::Hasher;
use std::net::IpAddr;
use std::slice;
use std::sync::OnceLock;

use siphasher::sip::SipHasher13;

use crate::directive::{HostLayer, Layer};
use crate::ledger::{Key, Scope, Trace, Who};
use crate::limit::{Group, Limit, Position, Prefixes, SectionLimit};
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
    limits: Vec<HostLimit>,
    has_twins: bool,
    are_seats_steady: bool,
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
}

impl HostScopes {
    /// What tells the virtual host from the others of this configuration.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Whether two of the limits for everybody count in the same place.
    pub fn has_twins(&self) -> bool {
        self.has_twins
    }

    /// Whether the limits of connections ask the same of each request of one client without a user.
    pub fn are_seats_steady(&self) -> bool {
        self.are_seats_steady
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
    /// Which limit.
    pub kind: Kind,
    /// Where it counts.
    pub spot: &'a Spot,
    /// For whom it counts there.
    pub whom: Whom,
    /// How many may be held, this one included; [`u32::MAX`]: it only counts.
    pub most: u32,
    /// When it holds.
    pub condition: Option<&'a Condition>,
    /// The paths that it is about, if not about all.
    pub group: Option<&'a Group>,
}

/// The limits that concern a request, the narrow ones first: who is refused by one of them has not held
/// a place of a wide one meanwhile.
#[derive(Debug)]
pub struct Demands<'a> {
    /// The limits of the sections around it, the innermost last.
    sections: slice::Iter<'a, SectionLimit>,
    limits: slice::Iter<'a, HostLimit>,
    facts: Facts<'a>,
}

impl<'a> Demands<'a> {
    /// Of a virtual host, and of a section with those around it.
    #[inline]
    pub fn new(host: &'a HostScopes, section: Option<&'a Layer>, facts: Facts<'a>) -> Self {
        let sections = section.map_or_else(Default::default, Layer::max_concurrent);
        Self { sections: sections.iter(), limits: host.limits.iter(), facts }
    }

    /// The last demand's condition holds: if it was a section's, those around it do not matter.
    #[inline]
    pub fn last_one_holds(&mut self) {
        self.sections = Default::default();
    }

    #[inline]
    fn next_of_section(&mut self) -> Option<Demand<'a>> {
        while let Some(limit) = self.sections.next_back() {
            if !limit.covers(self.facts.method) {
                continue;
            }
            let condition = limit.limit.condition();
            if let Some(most) = limit.limit.most() {
                let (kind, whom) = (Kind::MaxConcurrentReqs, Whom::Everybody);
                return Some(Demand {
                    kind,
                    spot: &limit.spot,
                    whom,
                    most,
                    condition,
                    group: None,
                });
            }
            // It lifts those around it, if it needs no condition.
            if condition.is_none() {
                self.last_one_holds();
            }
        }
        None
    }

    #[inline]
    fn next_of_host(&mut self) -> Option<Demand<'a>> {
        for limit in self.limits.by_ref() {
            let is_concerned = match limit.whom {
                Whom::Everybody => true,
                Whom::Client => !self.facts.is_seated,
                Whom::User => self.facts.has_user,
            };
            if !is_concerned {
                continue;
            }
            let group = limit.group.as_ref();
            let most = match group.map(|group| group.position(self.facts.path)) {
                Some(None) => continue,
                Some(Some(Position::Other)) if limit.kind == Kind::LoadLimit1 => u32::MAX,
                _ => limit.most,
            };
            let (kind, spot, whom) = (limit.kind, &limit.spot, limit.whom);
            let condition = limit.condition.as_ref();
            return Some(Demand { kind, spot, whom, most, condition, group });
        }
        None
    }
}

impl<'a> Iterator for Demands<'a> {
    type Item = Demand<'a>;

    #[inline]
    fn next(&mut self) -> Option<Demand<'a>> {
        self.next_of_section().or_else(|| self.next_of_host())
    }
}

/// The bytes by which a client is known; a client without an address is everybody without one.
pub fn client(host: &HostLayer, address: Option<IpAddr>) -> [u8; 17] {
    let prefixes = host.limit_client_prefix().copied().unwrap_or(Prefixes::USUAL);
    address.map_or([0; 17], |address| prefixes.client(address))
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
        let mut limits = Vec::new();
        for (kind, whom, limit, place, group) in all.into_iter().flatten() {
            let Some((limit, most)) = limit.and_then(|limit| Some((limit.clone(), limit.most()?)))
            else {
                continue;
            };
            let scope = ScopeName::of(kind, &place);
            self.declare(kind, scope, &place, most);
            let condition = limit.condition().cloned();
            limits.push(HostLimit { kind, spot: Spot::new(scope), whom, most, condition, group });
        }
        self.hosts += 1;
        let of_everybody = limits.iter().filter(|limit| limit.whom == Whom::Everybody);
        let mut seen = HashSet::new();
        HostScopes {
            number: self.hosts,
            has_twins: !of_everybody.map(|limit| limit.spot.name).all(|name| seen.insert(name)),
            are_seats_steady: limits
                .iter()
                .all(|limit| limit.kind.seat().is_none() || limit.condition.is_none()),
            limits,
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
mod tests {
    use super::*;
    use crate::directive::rows;
    use crate::setting::Context;

    fn layers(statements: &[&str]) -> (HostLayer, Layer) {
        let (mut host, mut section) = (HostLayer::default(), Layer::default());
        for statement in statements {
            let (at, statement) = statement.split_once(": ").unwrap_or(("", statement));
            let words: Vec<&str> = statement.split(' ').collect();
            let context = Context {
                compile: &|text| Ok(Condition::new(text.to_owned())),
                section: &|| Some(format!("<Location {at}>")),
                server: &|| "www.example.org:80".to_owned(),
                methods: if at == "get" { 1 } else { u64::MAX },
            };
            let row = rows().find(|row| row.name.to_str() == Ok(words[0])).unwrap();
            row.say(&mut section, &mut host, &words[1..], &context).unwrap();
        }
        (host, section)
    }

    fn asked(statements: &[&str], facts: &Facts<'_>) -> Vec<(Kind, u32)> {
        let (host, section) = layers(statements);
        let mut directory = Directory::default();
        let scopes = directory.declare_host(&host, "www.example.org:80");
        let mut asked = Vec::new();
        let mut demands = Demands::new(&scopes, Some(&section), *facts);
        while let Some(demand) = demands.next() {
            asked.push((demand.kind, demand.most));
            demands.last_one_holds();
        }
        asked
    }

    const FACTS: Facts<'static> =
        Facts { has_user: false, is_seated: false, path: b"/a/b", method: 0 };

    #[test]
    fn a_server_without_limits_asks_nothing() {
        assert!(asked(&[], &FACTS).is_empty());
        assert!(asked(&["MaxConnectionsPerIP 0", "LoadLimitServer 0"], &FACTS).is_empty());
    }

    #[test]
    fn limits_of_users_concern_only_those_who_said_who_they_are() {
        let statements = ["MaxConnectionsPerUser 3", "GlobalMaxConnectionsPerUser 10"];
        assert!(asked(&statements, &FACTS).is_empty());
        let facts = Facts { has_user: true, ..FACTS };
        assert_eq!(
            asked(&statements, &facts),
            [(Kind::MaxConnectionsPerUser, 3), (Kind::GlobalMaxConnectionsPerUser, 10)]
        );
    }

    #[test]
    fn an_inner_limit_whose_condition_fails_leaves_the_outer_one() {
        let (host, section) =
            layers(&["outer: MaxConcurrentReqs 5", "inner: MaxConcurrentReqs 2 if=never"]);
        let mut directory = Directory::default();
        let scopes = directory.declare_host(&host, "www");
        let demands = Demands::new(&scopes, Some(&section), FACTS);
        // Nobody says that a condition holds.
        let told: Vec<u32> = demands.map(|demand| demand.most).collect();
        assert_eq!(told, [2, 5]);
    }

    #[test]
    fn of_a_load_limit_1_only_the_first_path_is_ever_refused() {
        let statements = ["LoadLimit1 5 /page /images"];
        let at = |path| asked(&statements, &Facts { path, ..FACTS });
        assert_eq!(at(b"/page/x"), [(Kind::LoadLimit1, 5)]);
        assert_eq!(at(b"/images/x"), [(Kind::LoadLimit1, u32::MAX)]);
        assert!(at(b"/other").is_empty());
    }

    #[test]
    fn the_innermost_section_that_covers_the_method_counts() {
        let statements = ["outer: MaxConcurrentReqs 5", "get: MaxConcurrentReqs 2"];
        assert_eq!(asked(&statements, &FACTS), [(Kind::MaxConcurrentReqs, 2)]);
        assert_eq!(
            asked(&statements, &Facts { method: 2, ..FACTS }),
            [(Kind::MaxConcurrentReqs, 5)]
        );
        let statements = ["outer: MaxConcurrentReqs 5", "inner: MaxConcurrentReqs 0"];
        assert!(asked(&statements, &FACTS).is_empty(), "0 lifts the limit of the outer section");
    }

    #[test]
    fn every_declared_scope_has_a_row_of_its_own() {
        let mut directory = Directory::default();
        for number in 0..900 {
            let place = number.to_string();
            directory.declare(
                Kind::MaxConcurrentReqs,
                ScopeName::of(Kind::MaxConcurrentReqs, &place),
                &place,
                1,
            );
        }
        let mut rows: Vec<u16> = directory.entries().iter().map(|entry| entry.scope.0).collect();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 900);
        assert!(!rows.contains(&0), "row 0 is for scopes that nobody declared");
        let unlisted = ScopeName::of(Kind::LoadLimit, "x");
        assert_eq!(directory.place(unlisted).scope, Scope(0));
    }

    #[test]
    fn a_page_names_the_limit_and_cannot_break_html() {
        assert_eq!(page(Kind::LoadLimit, Some("/a<b>")), "Too many users are connected to /a?b?");
        assert_eq!(
            page(Kind::LoadLimitServer, None),
            "Too many users are connected to this server"
        );
    }
}
