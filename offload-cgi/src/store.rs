//! The objects on disk: where they are, which generation is current, how one replaces another.
//!
//! ```text
//! objects/abc/<key>.current               the generation that the base had last; its time is the last check's
//! objects/abc/<key>.lock                  held while `.current` is replaced, never across the network
//! objects/abc/<key>.check                 held by the one process that asks the base about this object
//! objects/abc/<key>-<generation>.lock     who sets up, fills, wants which blocks: see `locks`
//! objects/abc/<key>-<generation>.meta     the record: what the base said
//! objects/abc/<key>-<generation>.part     the body while it grows: as long as it will be, with holes
//! objects/abc/<key>-<generation>.map      which bytes of it are there: see `progress`
//! objects/abc/<key>-<generation>.extents  which bytes of it survive a power cut: see `extents`
//! objects/abc/<key>-<generation>.body     the body, whole
//! objects/abc/<key>-<generation>.error    why the last fill failed
//! quarantine/                             what was damaged, for a while: see `quarantine`
//! ```
//! A key is SHA-256 of base and path, a generation one of the validators: no byte that a client or a
//! base has sent stands in a file name. `abc` are the first digits of the key.

mod check;
mod extents;
mod files;
mod generation;
mod locks;
mod progress;
mod quarantine;
mod record;
mod slots;
mod space;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

pub(crate) use self::check::{Check, Turn};
pub(crate) use self::extents::{Blocks, Extents};
pub(crate) use self::files::{note, open_lock, read_text, remove};
pub(crate) use self::generation::{
    Flaw, Flush, Generation, Growing, Joined, Stamp, Unkept, is_name,
};
pub(crate) use self::locks::Locks;
pub(crate) use self::progress::Progress;
pub(crate) use self::slots::Slots;
use crate::log;
use crate::options::{Base, Options, Share};
use crate::representation::hex;

/// So many checks are counted, each as a byte of a file that takes a block anyway.
const MOST_CHECKS: u64 = 4096;

/// So many processes may ask the base after their reply is out.
const MOST_REVALIDATIONS: i64 = 64;

/// The cache's folder.
pub(crate) struct Store {
    root: PathBuf,
    cache_max: Share,
    keep_free: Share,
}

/// Why there is no cache, in a sentence.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It cannot be had now: everything is passed through meanwhile.
    Missing(String),
    /// It must not be used: nothing is served.
    Wrong(String),
}

impl Unusable {
    pub(crate) fn sentence(self) -> String {
        match self {
            Self::Missing(sentence) | Self::Wrong(sentence) => sentence,
        }
    }
}

/// So far a check may seem to lie ahead of who looks: it ended after he had looked at his clock.
const SKEW: Duration = Duration::from_secs(5);

/// How old a check is at `now`; `None` when it lies ahead, so that somebody must have set the clock back since.
pub(crate) fn age(checked: SystemTime, now: SystemTime) -> Option<Duration> {
    match now.duration_since(checked) {
        Ok(age) => Some(age),
        Err(ahead) => (ahead.duration() < SKEW).then_some(Duration::ZERO),
    }
}

/// One file of the base, in all its generations.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    folder: PathBuf,
    quarantine: PathBuf,
    key: String,
    /// Base and path: what the key was made of.
    source: String,
}

/// The generation that the base had when it was last asked.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) generation: String,
    pub(crate) checked: SystemTime,
}

impl Store {
    /// Opens the cache, and makes its folder when it is missing.
    ///
    /// # Errors
    /// A sentence, when the folder cannot be had, or others could write to it.
    pub(crate) fn open(options: &Options) -> Result<Self, Unusable> {
        let Some(root) = &options.cache else {
            return Err(Unusable::Missing("OFFLOAD_CACHE is not set".to_owned()));
        };
        let sentence = |what: String| format!("OFFLOAD_CACHE: '{}' {what}", root.display());
        let wrong = |what: String| Unusable::Wrong(sentence(what));
        let missing = |what: &str, error: io::Error| {
            Unusable::Missing(sentence(format!("cannot be {what}: {error}")))
        };
        let found = match fs::metadata(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
                made.map_err(|error| missing("made", error))?;
                fs::metadata(root)
            }
            found => found,
        };
        let found = found.map_err(|error| missing("read", error))?;
        let user = nix::unistd::Uid::effective().as_raw();
        if found.uid() != user && found.uid() != 0 {
            return Err(wrong(format!(
                "belongs to user {}, not to user {user}, who runs this program; change its owner",
                found.uid()
            )));
        }
        if found.mode() & 0o022 != 0 {
            return Err(wrong(format!(
                "can be written by others (mode {:03o}); use chmod 0700",
                found.mode() & 0o777
            )));
        }
        Ok(Self { root: root.clone(), cache_max: options.cache_max, keep_free: options.keep_free })
    }

    /// The object of a path on a base. Touches no disk.
    pub(crate) fn object(&self, base: &Base, path: &str) -> Object {
        let key = hex(&Sha256::digest(format!("{base}\0{path}")));
        Object { source: format!("{base}{path}"), ..self.object_of_key(&key) }
    }

    /// The object whose files have this key; where it comes from is not known.
    fn object_of_key(&self, key: &str) -> Object {
        let folder = self.root.join("objects").join(key.get(..3).unwrap_or_default());
        let quarantine = self.root.join("quarantine");
        Object { folder, quarantine, key: key.to_owned(), source: String::new() }
    }

    /// A place among those who ask the base although no client waits for it; `None` when there are enough.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn revalidation(&self) -> io::Result<Option<File>> {
        check::one_of(&self.root.join("revalidations"), MOST_REVALIDATIONS)
    }

    /// The file in which the circuit breaker of a base keeps what it knows.
    pub(crate) fn breaker(&self, base: &str) -> PathBuf {
        self.root.join(format!("breaker-{}", &hex(&Sha256::digest(base))[..16]))
    }
}

impl Object {
    /// Makes the folder that the object's files are in.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }

    /// One generation, by its name.
    pub(crate) fn generation(&self, name: &str) -> Generation {
        Generation::new(self.clone(), name.to_owned())
    }

    /// Which generation was current at the last check, if the object is known.
    pub(crate) fn current(&self) -> Option<Current> {
        let path = self.file("current");
        let file = files::open(&path).ok()?;
        let checked = file.metadata().and_then(|found| found.modified()).ok()?;
        let text = files::read(file).unwrap_or_default();
        if text.is_empty() {
            // It cannot be read, or a power cut has emptied it: then nothing is known, and nothing is wrong.
            return None;
        }
        // Each line break behind it is a check.
        let name = text.strip_suffix('\n').map(|text| text.trim_end_matches('\n'));
        let name = name.filter(|name| is_name(name));
        let Some(name) = name else {
            log::line(&format!("'{}' is damaged and was put aside", path.display()));
            let _ = files::put_aside(&path, &self.quarantine);
            return None;
        };
        Some(Current { generation: name.to_owned(), checked })
    }

    /// Notes that the base was asked at `checked` and had `generation`.
    ///
    /// Older generations go; a later check wins over an earlier one, whatever finishes first.
    /// Returns whether the generation is the current one now.
    ///
    /// # Errors
    /// When the disk does not take it; what was there before is still there.
    pub(crate) fn confirm(&self, generation: &str, checked: SystemTime) -> io::Result<bool> {
        // What was checked before somebody set the clock back is older than anything.
        let is_older = |known| known < checked || age(known, SystemTime::now()).is_none();
        if let Some(current) = self.current()
            && current.generation == generation
        {
            // Should another process replace the file meanwhile, this touches the old one: harmless.
            if is_older(current.checked) {
                let mut file = files::open_to_touch(&self.file("current"))?;
                if file.metadata()?.len() < MOST_CHECKS {
                    file.write_all(b"\n")?;
                }
                file.set_modified(checked)?;
            }
            return Ok(true);
        }
        self.prepare()?;
        let _lock = self.lock()?;
        let before = self.current();
        if let Some(current) = &before
            && current.generation != generation
            && current.checked > checked
            && !is_older(current.checked)
        {
            return Ok(false);
        }
        let text = format!("{generation}\n");
        files::note_at(&self.file("current"), text.as_bytes(), checked)?;
        if before.is_some_and(|before| before.generation != generation) {
            self.sweep(Some(generation));
        }
        Ok(true)
    }

    /// Makes the next request ask the base, whatever it has said about how long its answer is good.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn doubt(&self) -> io::Result<()> {
        match files::open_to_touch(&self.file("current")) {
            Ok(current) => current.set_modified(SystemTime::UNIX_EPOCH),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes a generation that is not the current one, unless somebody reads or fills it.
    pub(crate) fn leave(&self, generation: &Generation) {
        if self.current().is_none_or(|current| current.generation != generation.name()) {
            let _ = generation.remove();
        }
    }

    /// Removes the object: the base does not have it any more.
    ///
    /// # Errors
    /// When the disk does not let it go.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // Most that the base does not have was never here.
        if self.file("current").try_exists()? {
            self.clear()?;
        }
        Ok(())
    }

    /// Removes whatever there is of the object, be it known or not, but for what somebody reads, fills or asks
    /// about. Returns whether nothing is left.
    ///
    /// # Errors
    /// When the disk does not let it go.
    pub(crate) fn clear(&self) -> io::Result<bool> {
        let lock = self.lock()?;
        remove(&self.file("current"))?;
        remove(&self.file("current.tmp"))?;
        self.sweep(None);
        check::remove_left(&self.file("check"))?;
        remove(&self.file("lock"))?;
        drop(lock);
        let mut left = fs::read_dir(&self.folder)?.flatten();
        Ok(!left.any(|entry| entry.file_name().as_bytes().starts_with(self.key.as_bytes())))
    }

    /// Waits for the turn to ask the base about this object, at most for `patience`.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn turn(&self, patience: Duration) -> io::Result<Turn> {
        self.prepare()?;
        Turn::wait(self.file("check"), patience)
    }

    /// The slots for fills of a base, in the cache that this object is in; holds none of them yet.
    ///
    /// # Errors
    /// When the file cannot be had.
    pub(crate) fn slots(&self, base: &Base) -> io::Result<Slots> {
        let root = self.quarantine.parent().unwrap_or(&self.quarantine);
        Slots::open(root, &base.to_string())
    }

    /// The turn to ask the base about this object, if nobody else has it.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn turn_now(&self) -> io::Result<Option<Check>> {
        self.prepare()?;
        Check::now(self.file("check"))
    }

    /// Serialises the writers of `.current`.
    ///
    /// # Errors
    /// When the lock file cannot be had.
    pub(crate) fn lock(&self) -> io::Result<File> {
        files::lock(&self.file("lock"))
    }

    /// Removes all generations but one; those that somebody reads or fills stay. A whole one that was replaced
    /// goes at once: its readers have it open, and nobody else can ask for it.
    fn sweep(&self, keep: Option<&str>) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let name = name.strip_prefix(&self.key)?.strip_prefix('-')?;
                Some(name.split('.').next()?.to_owned())
            })
            .filter(|name| is_name(name) && keep != Some(name))
            .collect();
        names.sort();
        names.dedup();
        for name in names {
            let generation = self.generation(&name);
            let removed = if keep.is_some() { generation.retire() } else { generation.remove() };
            if let Err(error) = removed {
                log::line(&format!("an old version of {} stays: {error}", self.source));
            }
        }
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.key))
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    /// Base and path; empty where nobody knows.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
