//! What an administrator does with a cache: list it, verify it, clean it.

use std::io::{self, Write as _};
use std::time::SystemTime;

use offload_core::units::{Bytes, Span};

use crate::ask::{Asker, Known};
use crate::options::Options;
use crate::origin::Origin;
use crate::store::{Flaw, Object, Store, Unusable};

/// Which tool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tool {
    Clean,
    List,
    Verify,
}

/// What `clean` is to do besides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    /// Print the URL of each file that is looked at.
    pub(crate) urls: bool,
    /// Remove what is not whole, too.
    pub(crate) short: bool,
    /// Look only at what was checked less long ago.
    pub(crate) younger_than: Option<Span>,
}

impl Tool {
    /// The tool of this name.
    pub(crate) fn of(word: &str) -> Option<Self> {
        match word {
            "clean" => Some(Self::Clean),
            "list" => Some(Self::List),
            "verify" => Some(Self::Verify),
            _ => None,
        }
    }

    /// Does it, and says on stdout what was found. False when something was wrong with the cache.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn run(self, options: &Options, wishes: Wishes) -> Result<bool, String> {
        let store = Store::open(options).map_err(Unusable::sentence)?;
        let origin = Origin::new(options)?;
        let job = Job { options, wishes, store: &store, origin: &origin };
        let mut sound = true;
        let mut failed = None;
        store
            .every(|object, generations| {
                let result = match self {
                    Self::Clean => job.clean(&object),
                    Self::List => job.list(&object, &generations),
                    Self::Verify => job.verify(&object, &generations).map(|good| sound &= good),
                };
                failed = failed.take().or(result.err());
            })
            .map_err(|error| format!("the cache cannot be read: {error}"))?;
        match failed {
            // Whoever reads this has seen enough, as with `| head`.
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(sound),
            Some(error) => Err(error.to_string()),
            None => Ok(sound),
        }
    }
}

struct Job<'a> {
    options: &'a Options,
    wishes: Wishes,
    store: &'a Store,
    origin: &'a Origin,
}

impl Job<'_> {
    /// One line an object: state, size, URL.
    fn list(&self, object: &Object, generations: &[String]) -> io::Result<()> {
        for name in generations {
            let generation = object.generation(name);
            let Ok(Some(record)) = generation.record() else { continue };
            let there = generation.there(record.length);
            let state = if there == record.length { "whole" } else { "part" };
            let current = object.current().is_some_and(|current| current.generation == *name);
            let state = if current { state } else { "old" };
            let (there, length) = (Bytes::new(there), Bytes::new(record.length));
            writeln!(io::stdout(), "{state}\t{there}\t{length}\t{}", object.source())?;
        }
        Ok(())
    }

    /// Reads everything of an object, and puts aside what is damaged.
    fn verify(&self, object: &Object, generations: &[String]) -> io::Result<bool> {
        let mut sound = true;
        for name in generations {
            let generation = object.generation(name);
            let flaw = match generation.open_whole() {
                Ok(None) => generation.record().err(),
                Err(flaw) => Some(flaw),
                Ok(Some(mut whole)) => {
                    let read = io::copy(&mut whole.file, &mut io::sink());
                    let damage = |error| Flaw::Damaged(format!("{}: {error}", object.source()));
                    read.err().map(damage)
                }
            };
            match flaw {
                None => {}
                Some(Flaw::Damaged(damage)) => {
                    sound = false;
                    writeln!(io::stdout(), "{damage}")?;
                    generation.discard(&damage)?;
                }
                Some(Flaw::Unreadable(error)) => {
                    sound = false;
                    writeln!(io::stdout(), "{} cannot be read: {error}", object.source())?;
                }
            }
        }
        Ok(sound)
    }

    /// Asks the base about an object, and removes what is not its own any more.
    fn clean(&self, object: &Object) -> io::Result<()> {
        let base = self.options.base.to_string();
        let path = object.source().strip_prefix(&base).filter(|path| path.starts_with('/'));
        let Some(current) = object.current() else {
            // Nobody is served from it any more. What does not say whose it is, is nobody's.
            return match path {
                None if !object.source().is_empty() => Ok(()),
                _ => object.clear().map(drop),
            };
        };
        let Some(path) = path else { return Ok(()) };
        let age = SystemTime::now().duration_since(current.checked).unwrap_or_default();
        if self.wishes.younger_than.is_some_and(|span| age >= span.duration()) {
            return Ok(());
        }
        let generation = object.generation(&current.generation);
        let record = generation.record().ok().flatten();
        let short =
            record.as_ref().is_none_or(|record| generation.there(record.length) < record.length);
        let asker = Asker {
            options: self.options,
            origin: self.origin,
            store: self.store,
            object,
            path,
            makes_room: false,
        };
        // A version that has changed goes by being asked about: see `Object::confirm`.
        let what = match asker.ask(SystemTime::now()) {
            Ok(Known::Other(other)) if matches!(other.status, 404 | 410) => "gone",
            Ok(Known::Other(_)) | Err(_) => "unknown",
            Ok(Known::File(found)) if found.representation.unstorable.is_some() => "private",
            Ok(Known::File(found)) if found.representation.generation() != current.generation => {
                "changed"
            }
            Ok(Known::File(_)) if short && self.wishes.short => "short",
            Ok(Known::File(_)) => "current",
        };
        if self.wishes.urls {
            writeln!(io::stdout(), "{what}\t{}", object.source())?;
        }
        match what {
            "gone" | "changed" | "short" => object.remove(),
            _ => Ok(()),
        }
    }
}
