//! Filling the cache: a process that pulls stretches of one generation from the base, whoever comes and
//! goes meanwhile.
//!
//! A reader who finds nobody at work on the byte that it needs takes the locks of a stretch of blocks and
//! hands them to a process of this program. That fetches the stretch, then whatever else is wanted and
//! missing, and ends when nothing is; when nobody wants anything any more, within a budget.

mod stretches;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

pub(crate) use self::stretches::Stretches;
use crate::breaker::Breaker;
use crate::failure::{Failure, Kind};
use crate::http::Part;
use crate::options::Options;
use crate::origin::{Origin, body_failure};
use crate::process;
use crate::store::{Blocks, Generation, Growing, Locks, Store, Unusable};

/// The word that makes this program fill the cache.
pub(crate) const WORD: &str = "fill";

/// After such a time it is made sure that a power cut does not take away what has come.
const CHECKPOINT: Duration = Duration::from_secs(5);

/// What is to be fetched first.
pub(crate) struct Order {
    pub(crate) path: String,
    pub(crate) generation: String,
    /// The first block, and the one behind the last.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Starts the process that fills; it becomes the owner of `locks`.
///
/// They are its standard input: they belong to the open file, so there is no moment without an owner, and
/// the kernel frees them when the process ends. Its other streams are closed, for httpd waits until nobody
/// has a CGI's stderr open.
///
/// # Errors
/// When no process can be started.
pub(crate) fn start(locks: Locks, order: &Order, options: &Options) -> io::Result<()> {
    Command::new("/proc/self/exe")
        .arg(WORD)
        .args(order.words())
        .env_clear()
        .envs(options.written.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::from(locks.into_file()))
        .stdout(Stdio::null())
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
    let locks = io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let locks = Locks::from_file(File::from(locks));
    // From here on they end with the filler, and not with the process.
    let nothing = File::open("/dev/null").map_err(|error| error.to_string())?;
    nix::unistd::dup2_stdin(nothing).map_err(|error| error.to_string())?;
    let growing = match generation.open_growing() {
        Ok(Some(growing)) => growing,
        // It was finished, or given up, before this process came to it.
        Ok(None) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
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
            mine: (order.from, order.to),
            extra: None,
            next: None,
            stretches: Stretches::default(),
            unwatched: 0,
            landed: 0,
            saved: Instant::now(),
            checkpoint: None,
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
    /// The blocks whose locks are held, and one more, when the base sends more than it was asked for.
    mine: (u64, u64),
    extra: Option<u64>,
    /// The blocks that are to be fetched next, when their locks are held already.
    next: Option<(u64, u64)>,
    stretches: Stretches,
    /// Bytes that nobody wanted any more when they came.
    unwatched: u64,
    /// Bytes since the last checkpoint.
    landed: u64,
    saved: Instant,
    checkpoint: Option<JoinHandle<()>>,
}

impl Filler<'_> {
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
            self.locks.end_fill(self.mine.0, self.mine.1);
            if let Some(extra) = self.extra.take() {
                self.locks.end_fill(extra, extra + 1);
            }
            self.growing.progress.announce();
            let Some(next) = next else { return Ok(()) };
            self.mine = next;
        }
    }

    /// Fetches the stretch whose locks are held. False when it was given up, since nobody wants it.
    fn pull(&mut self) -> Result<bool, Failure> {
        let Some(part) = self.narrow() else { return Ok(true) };
        let begun = Instant::now();
        self.reserve(part)?;
        // A base that is down is left in peace by fills as well, however many files have readers who wait.
        let breaker = Breaker::of(self.store, &self.options.base.to_string());
        breaker.allow(SystemTime::now())?;
        let mut incoming = self.origin.get(&self.order.path, &self.growing.record, part)?;
        breaker.close();
        if let Some(why) = incoming.representation.unstorable {
            // Its own headers rule, whatever HEAD has said.
            return Err(Kind::Unstorable.says(format!("the base sends it as {}", why.detail())));
        }
        self.generation.describe(&incoming.representation).map_err(of_cache)?;
        let mut offset = incoming.first;
        // A base that knows no ranges sends everything: then everything that is missing is taken.
        let end = if offset == part.first { part.end() } else { self.blocks.length() };
        let mut buffer = vec![0; 1 << 20];
        let mut asked = offset;
        while offset < end {
            let count = match incoming.read(&mut buffer) {
                Ok(0) => {
                    return Err(Kind::Down.says(format!(
                        "the base promised the bytes up to {end} and sent those up to {offset}"
                    )));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(body_failure(error)),
            };
            if offset.saturating_add(count as u64) >= end {
                // Before anybody sees the last byte: who needs the next one then would start another filler.
                self.stretches.took(begun.elapsed());
                self.next = self.choose()?;
            }
            self.store(offset, &buffer[..count], end)?;
            offset = offset.saturating_add(count as u64);
            self.growing.progress.announce();
            if self.growing.progress.is_given_up() {
                // It was put aside, and its successor waits for these locks.
                return Ok(false);
            }
            self.save()?;
            if self.blocks.of_offset(offset) != self.blocks.of_offset(asked) && offset < end {
                if !self.may_go_on(offset - asked)? {
                    return Ok(false);
                }
                asked = offset;
            }
        }
        Ok(true)
    }

    /// The bytes to ask for: the first of what is missing in the blocks whose locks are held, as far as one
    /// request goes. Who took the locks saw what was missing before that; from then on nobody else fills
    /// them. The locks of the rest are let go.
    fn narrow(&mut self) -> Option<Part> {
        let (from, to) = self.mine;
        let extents = self.growing.progress.extents();
        let run = extents.missing().into_iter().find(|(first, end)| *first < to && *end > from)?;
        let (from, to) = if self.strong {
            let first = run.0.max(from);
            (first, self.stretches.next(&extents, first, to))
        } else {
            (0, self.blocks.count())
        };
        self.locks.end_fill(0, from);
        self.locks.end_fill(to, u64::MAX);
        self.mine = (from, to);
        let landed = u64::from(self.growing.progress.landed(from));
        let first = self.blocks.start(from).saturating_add(landed);
        let length = self.blocks.start(to).checked_sub(first)?;
        Some(Part { first, length })
    }

    /// Writes what has come for `offset` into the blocks that are this filler's, or that it can get.
    fn store(&mut self, mut offset: u64, mut bytes: &[u8], end: u64) -> Result<(), Failure> {
        while !bytes.is_empty() && offset < end {
            let block = self.blocks.of_offset(offset);
            let start = self.blocks.start(block);
            let room = self.blocks.start(block + 1) - offset;
            let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (piece, rest) = bytes.split_at(count);
            bytes = rest;
            let landed = u64::from(self.growing.progress.landed(block));
            let known = start.saturating_add(landed).saturating_sub(offset);
            let known = usize::try_from(known).unwrap_or(usize::MAX);
            if let Some(news @ [_, ..]) = piece.get(known..)
                && self.owns(block)?
            {
                let at = offset.saturating_add(known as u64);
                self.growing.file.write_all_at(news, at).map_err(of_cache)?;
                let landed = at - start + news.len() as u64;
                self.growing.progress.set_landed(block, u32::try_from(landed).unwrap_or(0));
                self.landed += news.len() as u64;
            }
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    fn owns(&mut self, block: u64) -> Result<bool, Failure> {
        if (self.mine.0..self.mine.1).contains(&block) || self.extra == Some(block) {
            return Ok(true);
        }
        if !self.locks.fill(block, block + 1).map_err(of_cache)? {
            return Ok(false);
        }
        self.extra = Some(block);
        Ok(true)
    }

    fn let_go(&mut self) {
        self.locks.end_fill(0, u64::MAX);
        self.mine = (self.mine.1, self.mine.1);
        self.extra = None;
        self.growing.progress.announce();
    }

    /// Takes the locks of what is to be fetched next: of what is wanted, or, when most is there, of what is
    /// missing. `None` when there is nothing.
    fn choose(&self) -> Result<Option<(u64, u64)>, Failure> {
        let (from, to) = self.mine;
        let extents = self.growing.progress.extents();
        let missing = extents.missing();
        // First what follows the stretch that is being fetched, then what lies before it.
        let behind = missing.iter().map(|&(first, end)| (first.max(to), end));
        let before = missing.iter().map(|&(first, end)| (first, end.min(from)));
        let runs: Vec<(u64, u64)> =
            behind.chain(before).filter(|(first, end)| first < end).collect();
        for watched in [true, false] {
            if !watched && !self.is_worth_finishing() {
                return Ok(None);
            }
            for &(first, end) in &runs {
                let wanted = if watched {
                    self.locks.wanted_by_another(first, end).map_err(of_cache)?
                } else {
                    Some((first, end))
                };
                let Some((first, end)) = wanted else { continue };
                let to = self.stretches.next(&extents, first, end);
                let others = self.locks.filled_by_another(first, to).map_err(of_cache)?;
                let to = others.map_or(to, |(other, _)| other);
                if first < to && self.locks.fill(first, to).map_err(of_cache)? {
                    return Ok(Some((first, to)));
                }
            }
        }
        Ok(None)
    }

    /// Whether to go on with a stretch: somebody wants bytes of this file, or it is worth finishing, or
    /// the budget for the time after the last client is not used up by these `count` bytes.
    fn may_go_on(&mut self, count: u64) -> Result<bool, Failure> {
        if self.locks.wanted_by_another(0, self.blocks.count()).map_err(of_cache)?.is_some() {
            self.unwatched = 0;
            return Ok(true);
        }
        self.unwatched = self.unwatched.saturating_add(count);
        Ok(self.unwatched <= self.options.fill_budget.count() || self.is_worth_finishing())
    }

    /// Whether more than half is there.
    fn is_worth_finishing(&self) -> bool {
        self.growing.progress.extents().total() > self.blocks.length() / 2
    }

    /// Takes the disk space now.
    fn reserve(&self, part: Part) -> Result<(), Failure> {
        let take = || match self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, part) {
            // Not every file system can; then the writes will tell.
            Err(Errno::ENOSPC) => Err(Errno::ENOSPC.into()),
            _ => Ok(()),
        };
        let object = self.generation.object();
        if self.store.reserve(object, part.length, take).map_err(of_cache)? {
            return Ok(());
        }
        Err(Kind::NoRoom.says(format!(
            "there is no room for {} bytes in the cache (OFFLOAD_CACHE_MAX, OFFLOAD_KEEP_FREE)",
            part.length
        )))
    }

    fn allocate(&self, how: FallocateFlags, part: Part) -> nix::Result<()> {
        match (i64::try_from(part.first), i64::try_from(part.length)) {
            (Ok(first), Ok(length @ 1..)) => fallocate(&self.growing.file, how, first, length),
            _ => Ok(()),
        }
    }

    /// Gives back the disk space that was taken and not used.
    fn give_back(&self) {
        let (from, to) = self.mine;
        for block in from..to {
            let start = self
                .blocks
                .start(block)
                .saturating_add(u64::from(self.growing.progress.landed(block)));
            let length = self.blocks.start(block + 1).saturating_sub(start);
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = self.allocate(how, Part { first: start, length });
        }
    }

    /// Sees to it, beside the filling, that a power cut takes little away.
    fn save(&mut self) -> Result<(), Failure> {
        let busy = self.checkpoint.as_ref().is_some_and(|thread| !thread.is_finished());
        if self.saved.elapsed() < CHECKPOINT || busy || !self.strong {
            return Ok(());
        }
        (self.landed, self.saved) = (0, Instant::now());
        let file = self.growing.file.try_clone().map_err(of_cache)?;
        let generation = self.generation.clone();
        // What the extents say has been written before; the order is what makes them true.
        let extents = self.growing.progress.extents();
        self.checkpoint = Some(thread::spawn(move || {
            if file.sync_data().is_ok() {
                let _ = generation.keep(&file, &extents);
            }
        }));
        Ok(())
    }

    /// Publishes what is whole, keeps what is not, and notes what went wrong.
    fn end(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        if let Some(checkpoint) = self.checkpoint.take() {
            let _ = checkpoint.join();
        }
        self.give_back();
        let progress = &self.growing.progress;
        let result = result.and_then(|()| {
            if progress.is_whole() {
                let published = self.generation.publish(&self.growing.file);
                return published
                    .map_err(|error| Failure::of_cache("the file cannot be published", &error));
            }
            Ok(())
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
        if progress.is_given_up() {
            // Nobody goes on with it.
        } else if !self.strong && !progress.is_whole() {
            // What another fill would bring need not fit to what is there.
            progress.give_up();
        } else if self.landed > 0 && !progress.is_whole() {
            let extents = progress.extents();
            if self.growing.file.sync_data().is_ok() {
                let _ = self.generation.keep(&self.growing.file, &extents);
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
