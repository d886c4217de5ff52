//! Limits: who may come in, and who must wait.
//!
//! A request meets **demands**, one for each limit that concerns it: under which scope and for whom it
//! counts, and how many may be held there. The ledger says whether there is room; this module does not
//! know it.

use std::collections::HashMap;
use std::ffi::CStr;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::directive::{HostLayer, Layer};
use crate::ledger::Scope;
use crate::limit::{Limit, Position, Prefixes};
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

/// The places of a virtual host's limits that need no section.
#[derive(Clone, Copy, Debug)]
pub struct HostScopes {
    address: Place,
    user: Place,
    global_address: Place,
    global_user: Place,
    server: Place,
}

/// What is known of a request when it asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether it said who its user is.
    pub has_user: bool,
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
    pub place: Place,
    /// For whom it counts there.
    pub whom: Whom,
    /// How many may be held, this one included; [`u32::MAX`]: it only counts.
    pub most: u32,
    /// When it holds.
    pub condition: Option<&'a Condition>,
    /// The group's first path, for the page.
    pub path: Option<&'a str>,
}

/// Tells the limits that concern a request, until `tell` breaks off. The narrow ones come first: who is
/// refused by one of them has not held a place of a wide one meanwhile.
/// `tell` says whether the limit's condition holds.
///
/// # Errors
/// What `tell` broke off with.
pub fn demands<'a, E>(
    host: &'a HostLayer,
    scopes: &HostScopes,
    directory: &Directory,
    section: Option<&'a Layer>,
    facts: &Facts<'_>,
    mut tell: impl FnMut(Demand<'a>) -> Result<bool, E>,
) -> Result<(), E> {
    let sections = section.map_or_else(Default::default, Layer::max_concurrent);
    for limit in sections.iter().rev().filter(|limit| limit.covers(facts.method)) {
        // The innermost whose condition holds; one that lifts the limits around it needs no condition.
        let lifts = limit.limit.most().is_none() && limit.limit.condition().is_none();
        let place = directory.place(limit.scope);
        if lifts
            || ask(&mut tell, Kind::MaxConcurrentReqs, Some(&limit.limit), place, Whom::Everybody)?
        {
            break;
        }
    }
    for (kind, groups) in
        [(Kind::LoadLimit, host.load_limits()), (Kind::LoadLimit1, host.load_limits_of_first())]
    {
        for group in groups {
            let Some((position, most)) = group.position(facts.path).zip(group.limit.most()) else {
                continue;
            };
            let refuses = kind == Kind::LoadLimit || position == Position::First;
            tell(Demand {
                kind,
                place: directory.place(group.scope(kind)),
                whom: Whom::Everybody,
                most: if refuses { most } else { u32::MAX },
                condition: group.limit.condition(),
                path: Some(group.first_path()),
            })?;
        }
    }
    let mut ask =
        |kind, limit: Option<&'a Limit>, place, whom| ask(&mut tell, kind, limit, place, whom);
    if facts.has_user {
        let (server, own) = (host.global_max_per_user(), host.max_per_user());
        ask(Kind::MaxConnectionsPerUser, own, scopes.user, Whom::User)?;
        ask(Kind::GlobalMaxConnectionsPerUser, server, scopes.global_user, Whom::User)?;
    }
    let (server, own) = (host.global_max_per_address(), host.max_per_address());
    ask(Kind::MaxConnectionsPerIp, own, scopes.address, Whom::Client)?;
    ask(Kind::GlobalMaxConnectionsPerIp, server, scopes.global_address, Whom::Client)?;
    ask(Kind::LoadLimitServer, host.load_limit_server(), scopes.server, Whom::Everybody)?;
    Ok(())
}

fn ask<'a, E>(
    tell: &mut impl FnMut(Demand<'a>) -> Result<bool, E>,
    kind: Kind,
    limit: Option<&'a Limit>,
    place: Place,
    whom: Whom,
) -> Result<bool, E> {
    match limit.and_then(|limit| Some((limit, limit.most()?))) {
        Some((limit, most)) => {
            tell(Demand { kind, place, whom, most, condition: limit.condition(), path: None })
        }
        None => Ok(false),
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
    numbers: HashMap<ScopeName, u16, BuildHasherDefault<Same>>,
    entries: Vec<Entry>,
}

/// The hash of what is a hash already, made of the administrator's words and not of a client's.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
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

impl Directory {
    /// Gives a scope a row: by its name the same one after a restart, unless two names meet.
    pub fn declare(&mut self, kind: Kind, scope: ScopeName, place: &str, most: u32) {
        if self.numbers.contains_key(&scope) || self.entries.len() >= usize::from(ROWS) - 1 {
            return;
        }
        let first = u16::try_from(scope.0 % u64::from(ROWS - 1)).unwrap_or(0);
        let taken = |row: u16| self.entries.iter().any(|entry| entry.scope.0 == row);
        let row =
            (0..ROWS - 1).map(|step| 1 + (first + step) % (ROWS - 1)).find(|&row| !taken(row));
        let Some(row) = row else { return };
        self.numbers.insert(scope, row);
        self.entries.push(Entry { scope: Scope(row), kind, place: place.to_owned(), most });
    }

    /// Where a scope counts.
    pub fn place(&self, name: ScopeName) -> Place {
        Place { name, scope: Scope(self.numbers.get(&name).copied().unwrap_or(0)) }
    }

    /// All that were declared, in the order of their declaration.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Declares what a virtual host limits, apart from its sections, and says where it counts.
    pub fn declare_host(&mut self, host: &HostLayer, name: &str) -> HostScopes {
        let mut declare = |kind, limit: Option<&Limit>, place: &str| {
            let scope = ScopeName::of(kind, place);
            if let Some(most) = limit.and_then(Limit::most) {
                self.declare(kind, scope, place, most);
            }
            self.place(scope)
        };
        let server = "the server";
        let scopes = HostScopes {
            server: declare(Kind::LoadLimitServer, host.load_limit_server(), server),
            global_address: declare(
                Kind::GlobalMaxConnectionsPerIp,
                host.global_max_per_address(),
                server,
            ),
            global_user: declare(
                Kind::GlobalMaxConnectionsPerUser,
                host.global_max_per_user(),
                server,
            ),
            address: declare(Kind::MaxConnectionsPerIp, host.max_per_address(), name),
            user: declare(Kind::MaxConnectionsPerUser, host.max_per_user(), name),
        };
        for (kind, groups) in
            [(Kind::LoadLimit, host.load_limits()), (Kind::LoadLimit1, host.load_limits_of_first())]
        {
            for group in groups {
                declare(kind, Some(&group.limit), &group.name);
            }
        }
        scopes
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
        let told = demands(&host, &scopes, &directory, Some(&section), facts, |demand| {
            asked.push((demand.kind, demand.most));
            Ok::<bool, ()>(true)
        });
        assert_eq!(told, Ok(()));
        asked
    }

    const FACTS: Facts<'static> = Facts { has_user: false, path: b"/a/b", method: 0 };

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
        let mut told = Vec::new();
        let done = demands(&host, &scopes, &directory, Some(&section), &FACTS, |demand| {
            told.push(demand.most);
            Ok::<bool, ()>(demand.condition.is_none())
        });
        assert_eq!((done, told), (Ok(()), vec![2, 5]));
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
