//! Filling the cache: a process that pulls stretches of one generation from the base, whoever comes and
//! goes meanwhile.
//!
//! A reader who finds nobody at work on the byte that it needs takes the locks of a stretch of blocks and
//! hands them to a process of this program. That fetches the stretch, then whatever else is wanted and
//! missing, and ends when nothing is; when nobody wants anything any more, within a budget.

mod choosing;
mod keeping;
mod pulling;
mod stretches;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use self::keeping::Keeper;
pub(crate) use self::stretches::Stretches;
use crate::failure::{Failure, Kind};
use crate::options::Options;
use crate::origin::Origin;
use crate::process;
use crate::store::{Blocks, Generation, Growing, Locks, Slots, Store, Unusable};

/// The word that makes this program fill the cache.
pub(crate) const WORD: &str = "fill";

/// What is to be fetched first.
pub(crate) struct Order {
    pub(crate) path: String,
    pub(crate) generation: String,
    /// The first block, and the one behind the last.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Starts the process that fills; it becomes the owner of `locks` and of the slot.
///
/// They are its standard input and output: they belong to the open file, so there is no moment without an
/// owner, and the kernel frees them when the process ends. Its stderr is closed, for httpd waits until nobody
/// has a CGI's open.
///
/// # Errors
/// When no process can be started.
pub(crate) fn start(
    locks: Locks,
    slots: Slots,
    order: &Order,
    options: &Options,
) -> io::Result<()> {
    Command::new("/proc/self/exe")
        .arg(WORD)
        .args(order.words())
        .env_clear()
        .envs(options.written.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::from(locks.into_file()))
        .stdout(Stdio::from(slots.into_file()))
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

/// The process that fills: `words` are what `start` gave it.
///
/// # Errors
/// A sentence. Those who wait for the file have got it through the cache.
pub(crate) fn run(words: &[OsString], options: &Options) -> Result<(), String> {
    // What ends the CGI's group or terminal does not end this process. It may lead its own already.
    let _ = nix::unistd::setsid();
    let order = Order::read(words).ok_or("this word is for the program itself; see --help")?;
    process::name(&format!("fill {}", order.path.rsplit('/').next().unwrap_or("")));
    let store = Store::open(options).map_err(Unusable::sentence)?;
    let object = store.object(&options.base, &order.path);
    let generation = object.generation(&order.generation);
    let sentence = |error: io::Error| error.to_string();
    let locks = io::stdin().as_fd().try_clone_to_owned().map_err(sentence)?;
    let locks = Locks::from_file(File::from(locks));
    let slots = io::stdout().as_fd().try_clone_to_owned().map_err(sentence)?;
    let slots = Slots::from_file(File::from(slots));
    // From here on they end with the filler, and not with the process.
    let nothing = File::options().read(true).write(true).open("/dev/null").map_err(sentence)?;
    nix::unistd::dup2_stdin(&nothing).map_err(|error| error.to_string())?;
    nix::unistd::dup2_stdout(&nothing).map_err(|error| error.to_string())?;
    let growing = match generation.open_growing() {
        Ok(Some(growing)) => growing,
        // It was finished, or given up, before this process came to it.
        Ok(None) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let keeper = Keeper::new(&generation, &growing.file).map_err(|error| error.to_string())?;
    let result = Origin::new(options).map_err(|error| Kind::Down.says(error)).and_then(|origin| {
        let mut filler = Filler {
            options,
            store: &store,
            origin: &origin,
            order: &order,
            generation: &generation,
            blocks: growing.progress.blocks(),
            strong: growing.record.validators.are_strong(),
            growing,
            locks,
            slots: Some(slots),
            mine: (order.from, order.to),
            extra: None,
            cramped: false,
            next: None,
            stretches: Stretches::default(),
            unwatched: 0,
            is_unwatched: false,
            keeper,
        };
        let result = filler.fill();
        filler.end(result)
    });
    object.leave(&generation);
    store.audit(&object);
    result.map_err(|failure| failure.sentence)
}

struct Filler<'a> {
    options: &'a Options,
    store: &'a Store,
    origin: &'a Origin,
    order: &'a Order,
    generation: &'a Generation,
    growing: Growing,
    blocks: Blocks,
    strong: bool,
    locks: Locks,
    /// The right to have a connection to the base.
    slots: Option<Slots>,
    /// The blocks whose locks are held, and one more, when the base sends more than it was asked for.
    mine: (u64, u64),
    extra: Option<u64>,
    /// Whether there is no room for more than what was asked for.
    cramped: bool,
    /// The blocks that are to be fetched next, when their locks are held already.
    next: Option<(u64, u64)>,
    stretches: Stretches,
    /// Bytes that nobody wanted any more when they came.
    unwatched: u64,
    /// Whether this is one of the few that may go on for nobody.
    is_unwatched: bool,
    keeper: Keeper,
}

impl Filler<'_> {
    /// Fetches one stretch after the other, until nothing is left to do.
    fn fill(&mut self) -> Result<(), Failure> {
        loop {
            if !self.pull()? {
                return Ok(());
            }
            // Perhaps somebody has come meanwhile.
            let next = match self.next.take() {
                None => self.choose()?,
                next => next,
            };
            // The last locks are held until it is published: whoever finds it whole and nobody at work on it
            // takes that for the work of a filler that died.
            let Some(next) = next else { return Ok(()) };
            self.locks.end_fill(0, next.0);
            self.locks.end_fill(next.1, u64::MAX);
            (self.mine, self.extra) = (next, None);
            self.growing.progress.announce();
        }
    }

    fn let_go(&mut self) {
        self.locks.end_fill(0, u64::MAX);
        self.mine = (self.mine.1, self.mine.1);
        self.extra = None;
        self.growing.progress.announce();
    }

    /// Publishes what is whole, keeps what is not, and notes what went wrong.
    fn end(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        // To write to the disk may take long, and no connection.
        self.slots = None;
        self.keeper.settle();
        self.give_back();
        let progress = &self.growing.progress;
        let result = result.and_then(|()| {
            // What was given up is not published, and its successor is none of this filler's business.
            if self.is_spoilt() || !progress.is_whole() {
                return Ok(());
            }
            self.keeper.publish()
        });
        if let Err(failure) = &result {
            if failure.kind == Kind::Changed {
                let _ = self.generation.object().doubt();
            }
            let _ = self.generation.fail(&self.growing.file, failure);
            if failure.kind == Kind::Unstorable {
                // What came before that is not for everybody either.
                progress.give_up();
                let _ = self.generation.object().remove();
            }
        }
        if !progress.is_given_up() && !progress.is_whole() {
            if self.strong {
                self.keeper.keep(&progress.extents());
            } else {
                // What another fill would bring need not fit to what is there.
                progress.give_up();
            }
        }
        self.let_go();
        result
    }
}

fn of_cache(error: io::Error) -> Failure {
    Failure::of_cache("the cache cannot be written", &error)
}

impl Order {
    fn words(&self) -> [String; 4] {
        let (from, to) = (self.from.to_string(), self.to.to_string());
        [self.path.clone(), self.generation.clone(), from, to]
    }

    fn read(words: &[OsString]) -> Option<Self> {
        let [path, generation, from, to] = words else { return None };
        let path = path.to_str().filter(|path| path.starts_with('/'))?.to_owned();
        let generation = generation.to_str().filter(|name| crate::store::is_name(name))?.to_owned();
        let number = |word: &OsString| word.to_str()?.parse().ok();
        Some(Self { path, generation, from: number(from)?, to: number(to)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_back_as_it_was_given() {
        let order = Order { path: "/--a%20b".into(), generation: "0a".repeat(16), from: 3, to: 7 };
        let words: Vec<OsString> = order.words().into_iter().map(Into::into).collect();
        let read = Order::read(&words).unwrap();
        assert_eq!((&read.path, &read.generation), (&order.path, &order.generation));
        assert_eq!((read.from, read.to), (3, 7));
        assert!(Order::read(&[]).is_none());
        let words = ["/a", "../../x", "0", "1"].map(OsString::from);
        assert!(Order::read(&words).is_none());
    }
}
