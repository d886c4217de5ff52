//! What `choke-status?json` says.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use crate::limits::{Client, OBSERVER};
use crate::{Httpd, eventually};

/// A scope in the status.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the names in the JSON
pub struct Scope {
    pub directive: String,
    pub place: String,
    pub limit: u64,
    pub held: u64,
    pub clients: u64,
    pub greatest: u64,
    pub refused: u64,
    pub dry_refused: u64,
    pub uncounted: u64,
}

/// A transfer in the status.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the names in the JSON
pub struct Transfer {
    pub client: String,
    pub path: String,
    pub rate: u64,
    pub now: u64,
    pub bytes: u64,
    pub streams: u64,
    pub how: String,
}

/// What `choke-status?json` says.
#[derive(Clone, Debug)]
pub struct Status {
    /// The scopes, in the server's order.
    pub scopes: Vec<Scope>,
    /// The table.
    pub table: BTreeMap<String, u64>,
    /// What is being sent under a rate.
    pub transfers: Vec<Transfer>,
    /// The numbers about throttling.
    pub choke: BTreeMap<String, u64>,
}

impl Status {
    /// Asks the server, as the observer, while its children may be killed.
    pub fn try_of(server: &Httpd) -> Option<Self> {
        let (head, body) = Client::of(server).from(OBSERVER).try_get("/choke-status?json").ok()?;
        (head.status == 200).then(|| Self::read(&body))
    }

    /// Asks the server, as the observer.
    pub fn of(server: &Httpd) -> Self {
        let (head, body) = Client::of(server).from(OBSERVER).get("/choke-status?json");
        assert_eq!(
            (head.status, head.field("content-type")),
            (200, Some("application/json")),
            "{body}"
        );
        Self::read(&body)
    }

    /// Reads the JSON.
    pub fn read(body: &str) -> Self {
        let mut letters = body.chars().peekable();
        let Json::Map(mut whole) = json(&mut letters) else { panic!("no object: {body}") };
        assert!(letters.all(char::is_whitespace), "more than JSON: {body}");
        let Some(Json::List(scopes)) = whole.remove("scopes") else { panic!("no scopes: {body}") };
        let mut numbers = |name: &str| match whole.remove(name) {
            Some(Json::Map(map)) => {
                map.iter().map(|(name, value)| (name.clone(), value.number())).collect()
            }
            other => panic!("{name} is {other:?}: {body}"),
        };
        let (table, choke) = (numbers("table"), numbers("choke"));
        let Some(Json::List(transfers)) = whole.remove("transfers") else {
            panic!("no transfers: {body}")
        };
        let transfers = transfers.iter().map(transfer).collect();
        Self { scopes: scopes.iter().map(scope).collect(), table, transfers, choke }
    }

    /// The transfers of a path.
    pub fn transfers_of(&self, path: &str) -> Vec<&Transfer> {
        self.transfers.iter().filter(|transfer| transfer.path == path).collect()
    }

    /// The scopes of a directive.
    pub fn scopes_of(&self, directive: &str) -> Vec<&Scope> {
        self.scopes.iter().filter(|scope| scope.directive == directive).collect()
    }

    /// The only scope of a directive.
    pub fn scope(&self, directive: &str) -> &Scope {
        let scopes = self.scopes_of(directive);
        assert_eq!(scopes.len(), 1, "scopes of {directive}: {self:?}");
        scopes[0]
    }

    /// What is held under a directive, in all its scopes.
    pub fn held(&self, directive: &str) -> u64 {
        self.scopes_of(directive).iter().map(|scope| scope.held).sum()
    }

    /// Whether nothing at all is held.
    pub fn is_empty(&self) -> bool {
        self.table["leases"] == 0 && self.scopes.iter().all(|scope| scope.held == 0)
    }
}

/// Waits until so many are held under a directive.
pub fn eventually_held(server: &Httpd, directive: &str, count: u64) {
    eventually(&format!("{count} held under {directive}"), || {
        (Status::try_of(server)?.held(directive) == count).then_some(())
    });
}

/// Waits until everything was given back.
pub fn eventually_empty(server: &Httpd) {
    eventually("nothing is held", || Status::try_of(server)?.is_empty().then_some(()));
}

fn scope(value: &Json) -> Scope {
    let (number, text) = (|name| value.number_of(name), |name| value.text_of(name));
    Scope {
        directive: text("directive"),
        place: text("place"),
        limit: number("limit"),
        held: number("held"),
        clients: number("clients"),
        greatest: number("greatest"),
        refused: number("refused"),
        dry_refused: number("dry_refused"),
        uncounted: number("uncounted"),
    }
}

fn transfer(value: &Json) -> Transfer {
    let (number, text) = (|name| value.number_of(name), |name| value.text_of(name));
    Transfer {
        client: text("client"),
        path: text("path"),
        rate: number("rate"),
        now: number("now"),
        bytes: number("bytes"),
        streams: number("streams"),
        how: text("how"),
    }
}

/// As much of JSON as the status needs.
#[derive(Debug)]
enum Json {
    Number(u64),
    Text(String),
    List(Vec<Self>),
    Map(BTreeMap<String, Self>),
}

impl Json {
    fn number(&self) -> u64 {
        if let Self::Number(number) = self { *number } else { panic!("{self:?} is no number") }
    }

    fn map(&self) -> &BTreeMap<String, Self> {
        if let Self::Map(map) = self { map } else { panic!("{self:?} is no object") }
    }

    fn number_of(&self, name: &str) -> u64 {
        self.map().get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).number()
    }

    fn text_of(&self, name: &str) -> String {
        match self.map().get(name) {
            Some(Self::Text(text)) => text.clone(),
            other => panic!("{name} is {other:?}"),
        }
    }
}

fn json(letters: &mut Peekable<Chars<'_>>) -> Json {
    match next(letters) {
        '{' => Json::Map(items(letters, '}', |letters| {
            let Json::Text(name) = json(letters) else { panic!("a name is no string") };
            assert_eq!(next(letters), ':');
            (name, json(letters))
        })),
        '[' => Json::List(items(letters, ']', json)),
        '"' => {
            let mut text = String::new();
            loop {
                match letters.next().unwrap() {
                    '"' => return Json::Text(text),
                    '\\' => match letters.next().unwrap() {
                        'u' => {
                            let code: String = letters.by_ref().take(4).collect();
                            text.extend(char::from_u32(u32::from_str_radix(&code, 16).unwrap()));
                        }
                        letter @ ('"' | '\\' | '/') => text.push(letter),
                        letter => panic!("\\{letter}"),
                    },
                    letter => text.push(letter),
                }
            }
        }
        digit => {
            let mut number =
                u64::from(digit.to_digit(10).unwrap_or_else(|| panic!("JSON: {digit}")));
            while let Some(digit) = letters.peek().and_then(|letter| letter.to_digit(10)) {
                number = number * 10 + u64::from(digit);
                letters.next();
            }
            Json::Number(number)
        }
    }
}

fn items<T, C: FromIterator<T>>(
    letters: &mut Peekable<Chars<'_>>,
    end: char,
    mut item: impl FnMut(&mut Peekable<Chars<'_>>) -> T,
) -> C {
    let mut items = Vec::new();
    while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
    if letters.next_if_eq(&end).is_none() {
        loop {
            items.push(item(letters));
            match next(letters) {
                ',' => {}
                letter if letter == end => break,
                letter => panic!("JSON: {letter}"),
            }
        }
    }
    items.into_iter().collect()
}

fn next(letters: &mut Peekable<Chars<'_>>) -> char {
    letters.find(|letter| !letter.is_whitespace()).expect("the JSON ends early")
}
