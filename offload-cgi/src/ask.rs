//! What the base says about a file: from the cache while that is good, else by one HEAD for all who ask at
//! the same time.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::breaker::Breaker;
use crate::failure::{Contact, Failure};
use crate::freshness::{Defaults, Freshness};
use crate::log;
use crate::options::Options;
use crate::origin::{Answer, Origin, Other};
use crate::representation::Representation;
use crate::store::{Object, Store, Turn, age};

/// What is known of a file now.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// The base has it, in this version.
    File(Found),
    /// The base answers with something else.
    Other(Other),
}

/// A version, and how well it is known that the base has it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) representation: Representation,
    /// When the base said so.
    pub(crate) checked: SystemTime,
    pub(crate) certainty: Certainty,
    /// Whether the cache knows this, too.
    noted: bool,
}

/// How well something is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Certainty {
    /// The base has just said so.
    Asked,
    /// It has said so before, and that is still good.
    Fresh,
    /// It has said so before; it should be asked again, but nobody need wait for that.
    Stale,
}

impl Found {
    /// What the base has said just now, and no cache knows.
    pub(crate) fn unnoted(representation: Representation, checked: SystemTime) -> Self {
        Self { representation, checked, certainty: Certainty::Asked, noted: false }
    }
}

impl Known {
    /// Whether others who have asked at the same time may be told this: of what cannot be noted, everybody
    /// asks for himself.
    pub(crate) fn is_for_all(&self) -> bool {
        match self {
            Self::File(found) => found.noted,
            Self::Other(_) => true,
        }
    }

    /// Whether the base has just said it.
    pub(crate) fn is_asked(&self) -> bool {
        match self {
            Self::File(found) => found.certainty == Certainty::Asked,
            Self::Other(_) => true,
        }
    }
}

/// So much longer than the base is waited for, whoever asks it is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// Who asks.
pub(crate) struct Asker<'a> {
    pub(crate) options: &'a Options,
    pub(crate) origin: &'a Origin,
    pub(crate) store: &'a Store,
    pub(crate) object: &'a Object,
    pub(crate) path: &'a str,
    /// Whether other files may go so that there is room to note this one: not for a mere look at it.
    pub(crate) makes_room: bool,
}

impl Asker<'_> {
    /// What the cache knows of the file, if nobody need wait for more.
    pub(crate) fn known(&self, now: SystemTime) -> Option<Found> {
        let (found, freshness) = self.recall()?;
        // Of what was checked before somebody set the clock back nobody knows how old it is.
        let age = age(found.checked, now).unwrap_or(Duration::MAX);
        if age < freshness.lifetime {
            return Some(Found { certainty: Certainty::Fresh, ..found });
        }
        let usable = freshness.lifetime.saturating_add(freshness.stale_while_revalidate);
        (age < usable).then_some(Found { certainty: Certainty::Stale, ..found })
    }

    /// What the cache knows, and how long that is good.
    pub(crate) fn recall(&self) -> Option<(Found, Freshness)> {
        let current = self.object.current()?;
        let representation = self.object.generation(&current.generation).record().ok()??;
        let freshness = representation.freshness(defaults(self.options));
        let (checked, certainty) = (current.checked, Certainty::Asked);
        Some((Found { representation, checked, certainty, noted: true }, freshness))
    }

    /// What the base says: this process asks it, unless another one does so at the same time.
    ///
    /// # Errors
    /// `Down`, `TimedOut`, or `Refused` when the file is not one to serve.
    pub(crate) fn ask(&self, arrival: SystemTime) -> Result<Known, Failure> {
        // Whoever asks has two requests to make at most, and is stopped if he is not done by then.
        let patience = self.origin.patience().saturating_mul(2).saturating_add(GRACE);
        // Who has heard nothing of use twice does not wait a third time.
        for _ in 0..2 {
            match self.object.turn(patience) {
                Ok(Turn::Mine(check)) => {
                    let result = self.ask_alone();
                    check.tell(&spell(&result));
                    return result;
                }
                Ok(Turn::Told(text)) => match self.hear(&text, arrival) {
                    Some(known) => return known,
                    // Nothing that could be told on.
                    None if text.ends_with("\nown") => break,
                    // Told too early.
                    None => {}
                },
                Ok(Turn::Late) => break,
                Err(error) => {
                    self.complain(&error);
                    break;
                }
            }
        }
        self.ask_alone()
    }

    /// The same, but where another process asks at this time, that is as good.
    ///
    /// # Errors
    /// As `ask`.
    pub(crate) fn ask_if_nobody_does(&self) -> Result<Option<Known>, Failure> {
        let check = match self.object.turn_now() {
            Ok(Some(check)) => check,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.complain(&error);
                return Ok(None);
            }
        };
        let result = self.ask_alone();
        check.tell(&spell(&result));
        result.map(Some)
    }

    /// The same, whoever else asks.
    ///
    /// # Errors
    /// As `ask`.
    pub(crate) fn ask_alone(&self) -> Result<Known, Failure> {
        let checked = SystemTime::now();
        let is_known = || self.object.current().is_some();
        let breaker = Breaker::of(self.store, &self.options.base.to_string());
        breaker.allow(checked, is_known)?;
        let answer = self.origin.head(self.path);
        match answer.as_ref().map_or_else(|failure| failure.contact, |_| Contact::Made) {
            Contact::Made => breaker.close(SystemTime::now()),
            Contact::Missing => breaker.count(SystemTime::now()),
            // Whoever likes can ask for something that the base never answers.
            Contact::Mute if is_known() => breaker.count_silence(checked, SystemTime::now()),
            Contact::Mute => {}
        }
        let representation = match answer? {
            Answer::File(representation) => representation,
            Answer::Other(other) => return Ok(Known::Other(other)),
        };
        // As old as it was when it came (RFC 9111, section 4.2.3).
        let checked = checked.checked_sub(representation.age).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH);
        let noted = match representation.unstorable {
            None => self.note(&representation, checked),
            Some(_) => self.object.remove().map(|()| false),
        };
        let noted = noted.unwrap_or_else(|error| {
            self.complain(&error);
            false
        });
        Ok(Known::File(Found { representation, checked, certainty: Certainty::Asked, noted }))
    }

    /// Notes what the base says. False when there is no room for it, or somebody knows better by now.
    fn note(&self, found: &Representation, checked: SystemTime) -> io::Result<bool> {
        if self.object.current().is_none() && !self.store.admit(self.object, self.makes_room)? {
            return Ok(false);
        }
        let generation = self.object.generation(&found.generation());
        generation.describe(found)?;
        self.object.confirm(generation.name(), checked)
    }

    /// The answer serves this request all the same.
    fn complain(&self, error: &io::Error) {
        let text = format!("{}: what the base says cannot be kept: {error}", self.path);
        log::rarely(self.options.notes(), "check", &text);
    }

    /// What another process has told, if it was asked for after `arrival` or still open then, and not before
    /// somebody set the clock back.
    fn hear(&self, text: &str, arrival: SystemTime) -> Option<Result<Known, Failure>> {
        let (moment, rest) = text.split_once('\n')?;
        let told = UNIX_EPOCH.checked_add(Duration::from_micros(moment.parse().ok()?))?;
        if told < arrival || age(told, SystemTime::now()).is_none() {
            return None;
        }
        let (word, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        match word {
            // Perhaps it has been replaced since.
            "file" => {
                let (found, _) = self.recall()?;
                let same = found.representation.generation() == rest;
                same.then_some(Ok(Known::File(found)))
            }
            "failure" => Failure::parse(rest).map(Err),
            "other" => {
                let mut lines = rest.split('\n');
                let status = lines.next()?.parse().ok()?;
                let mut line = || lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
                let (location, retry_after) = (line(), line());
                Some(Ok(Known::Other(Other { status, location, retry_after })))
            }
            _ => None,
        }
    }
}

/// The settings that hold where the base says nothing.
pub(crate) fn defaults(options: &Options) -> Defaults {
    Defaults { fresh: options.fresh.duration(), stale_if_error: options.stale_if_error.duration() }
}

/// What to tell those who wait; header values have no line breaks in them.
fn spell(result: &Result<Known, Failure>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    match result {
        Ok(Known::File(found)) if !found.noted => format!("{now}\nown"),
        Ok(Known::File(found)) => format!("{now}\nfile\n{}", found.representation.generation()),
        Ok(Known::Other(other)) => {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let (location, retry) = (text(&other.location), text(&other.retry_after));
            format!("{now}\nother\n{}\n{location}\n{retry}", other.status)
        }
        Err(failure) => format!("{now}\nfailure\n{failure}"),
    }
}
