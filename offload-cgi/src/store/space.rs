//! Room for what is to be fetched: counted before it is taken, made by removing what is worth least.
//!
//! How much each folder of objects takes is a word in a mapped file that all processes share, so that
//! nothing is scanned at a start, be there ten objects or a million. To look whether there is room, to make
//! some, and to take it (fallocate) is one act under one lock: several fills that begin at once cannot all find
//! the same room. What the words say is put right whenever a folder is looked through; each fill ends with
//! its own.
//!
//! What is worth least is found among a few dozen objects of folders drawn by lot: see `worth`. What somebody
//! reads or fills is never removed.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::statvfs;

use super::{Generation, Object, Store, age, files, is_name, quarantine};
use crate::log;
use crate::options::Share;
use crate::shared::Shared;
use crate::tally::{Event, Tally};

/// One folder for each beginning of three hexadecimal digits.
const FOLDERS: usize = 1 << 12;
/// Objects to choose from, and folders to find them in.
const SAMPLE: usize = 32;
const MOST_FOLDERS: usize = 64;
/// What the files beside a body take.
const BESIDE: u64 = 32 << 10;
/// What is noted about an object takes: what is current, and the record.
const NOTES: u64 = 8 << 10;
/// Objects that one fill may remove before it gives up.
const MOST_REMOVED: usize = 10_000;

/// The words that say how much each folder takes, and the lock of whoever changes them.
pub(super) struct Usage {
    words: Shared,
    _lock: File,
}

impl Usage {
    /// Opens the file, which is made when it is missing, and waits for its lock.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let length = FOLDERS * 8;
        let file = files::open_lock(path)?;
        fs2::FileExt::lock_exclusive(&file)?;
        if file.metadata()?.len() < length as u64 {
            // Written and not only made longer: what is mapped must have its place on the disk.
            file.write_all_at(&vec![0; length], 0)?;
        }
        Ok(Self { words: Shared::map(&file, 0, length)?, _lock: file })
    }

    /// What all folders take together.
    fn total(&self) -> u64 {
        let words = self.words.long_words().iter();
        words.fold(0, |sum: u64, word| sum.saturating_add(word.load(Ordering::Relaxed)))
    }

    fn change(&self, folder: usize, change: impl Fn(u64) -> u64) {
        if let Some(word) = self.words.long_words().get(folder) {
            word.store(change(word.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }
}

/// An object as a look through its folder finds it.
#[derive(Debug)]
struct Found {
    key: String,
    /// The generations of which there is anything.
    generations: Vec<String>,
    /// Bytes on the disk.
    size: u64,
    /// When the base was last asked about it, or a client last asked for it.
    used: SystemTime,
    /// How often the base was asked: about the seconds in which somebody wanted it.
    uses: u64,
}

/// What an object is worth: how often it was wanted, for each byte and each second since then. (In the
/// manner of hyperbolic caching, Blankstein et al., USENIX ATC 2017, which was made for choosing among a
/// sample, and forgets by itself.) What was used just now, `idle` seconds ago, is worth most.
pub(crate) fn worth(uses: u64, size: u64, idle: f64) -> f64 {
    // Exact enough: these are estimates.
    #[allow(clippy::cast_precision_loss)]
    let (uses, size) = (uses.max(1) as f64, size.max(4096) as f64);
    uses / (size * idle.max(1.0))
}

impl Store {
    /// Makes sure that `length` more bytes of an object have room, removes others for that, and has the
    /// room taken by `take`. False when there is none.
    ///
    /// # Errors
    /// When the disk does not tell, or `take` fails.
    pub(crate) fn reserve(
        &self,
        object: &Object,
        length: u64,
        take: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        self.take(object, length.saturating_add(BESIDE), true, take)
    }

    /// Makes sure that there is room for what is noted about an object that is not known yet. Others are
    /// removed for that only if `makes_room`. False when there is none.
    ///
    /// # Errors
    /// When the disk does not tell.
    pub(crate) fn admit(&self, object: &Object, makes_room: bool) -> io::Result<bool> {
        self.take(object, NOTES, makes_room, || Ok(()))
    }

    fn take(
        &self,
        object: &Object,
        length: u64,
        makes_room: bool,
        take: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        let usage = self.usage()?;
        for _ in 0..MOST_REMOVED {
            if self.has_room(&usage, length)? {
                take()?;
                usage.change(number(&object.key), |bytes| bytes.saturating_add(length));
                return Ok(true);
            }
            let removed = makes_room
                && (quarantine::remove_oldest(&self.quarantine()).unwrap_or(false)
                    || self.remove_least(&usage)?);
            if !removed {
                break;
            }
        }
        Ok(false)
    }

    /// Looks through an object's folder, so that what is counted is what is there.
    pub(crate) fn audit(&self, object: &Object) {
        if let Ok(usage) = self.usage() {
            self.look_through(&usage, number(&object.key));
        }
    }

    fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    fn usage(&self) -> io::Result<Usage> {
        Usage::open(&self.root.join("usage"))
    }

    /// Whether the cache keeps within its limits when `length` bytes are taken.
    fn has_room(&self, usage: &Usage, length: u64) -> io::Result<bool> {
        let disk = statvfs(&self.root)?;
        let unit = disk.fragment_size();
        let total = disk.blocks().saturating_mul(unit);
        let free = disk.blocks_available().saturating_mul(unit);
        let inodes = match self.keep_free {
            // Some file systems have as many as they like, and say 0.
            Share::Percent(_) => self.keep_free.of(disk.files()),
            Share::Bytes(_) => 0,
        };
        let taken = usage.total().saturating_add(quarantine::size(&self.quarantine()));
        Ok(taken.saturating_add(length) <= self.cache_max.of(total)
            && free >= length.saturating_add(self.keep_free.of(total))
            && (disk.files() == 0 || disk.files_available() >= inodes))
    }

    /// Removes the object that is worth least of some, and what the dead have left beside them. False when
    /// none can be removed.
    fn remove_least(&self, usage: &Usage) -> io::Result<bool> {
        let mut sample: Vec<(usize, Found)> = Vec::new();
        let folders = self.folders()?;
        if folders.is_empty() {
            return Ok(false);
        }
        let first = lot(folders.len());
        for &folder in folders.iter().cycle().skip(first).take(folders.len().min(MOST_FOLDERS)) {
            for found in self.look_through(usage, folder) {
                if found.generations.is_empty() {
                    // It takes next to nothing: room is not made by it.
                    let _ = self.object_of_key(&found.key).clear();
                } else {
                    sample.push((folder, found));
                }
            }
            if sample.len() >= SAMPLE {
                break;
            }
        }
        let now = SystemTime::now();
        sample.sort_by(|(_, one), (_, other)| one.worth(now).total_cmp(&other.worth(now)));
        for (folder, found) in sample {
            if self.remove(&found) {
                usage.change(folder, |bytes| bytes.saturating_sub(found.size));
                let tally = Tally::of(Some(&self.root));
                tally.add(Event::Eviction, 1);
                tally.add(Event::EvictedByte, found.size);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes all of an object, unless somebody reads or fills it.
    fn remove(&self, found: &Found) -> bool {
        let object = self.object_of_key(&found.key);
        let removed = found
            .generations
            .iter()
            .all(|name| Generation::new(object.clone(), name.clone()).remove().unwrap_or(false));
        removed && object.clear().unwrap_or(false)
    }

    /// The folders that there are.
    fn folders(&self) -> io::Result<Vec<usize>> {
        let mut folders = Vec::new();
        match fs::read_dir(self.root.join("objects")) {
            Ok(entries) => folders.extend(entries.flatten().filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                (name.len() == 3).then(|| usize::from_str_radix(&name, 16).ok())?
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(folders)
    }

    /// The objects of one folder; puts right what is counted for it.
    fn look_through(&self, usage: &Usage, folder: usize) -> Vec<Found> {
        let found = objects_in(&self.root.join("objects").join(format!("{folder:03x}")));
        let total = found.iter().fold(0, |sum: u64, object| sum.saturating_add(object.size));
        usage.change(folder, |_| total);
        found
    }
}

impl Store {
    /// Calls `each` with every object that knows where it comes from, and its generations.
    ///
    /// # Errors
    /// When the disk does not tell.
    pub(crate) fn every(&self, mut each: impl FnMut(Object, Vec<String>)) -> io::Result<()> {
        for folder in self.folders()? {
            // Looked through before anything is done, so that nobody waits for the lock meanwhile.
            let found = self.look_through(&self.usage()?, folder);
            for Found { key, generations, .. } in found {
                let mut object = self.object_of_key(&key);
                let source = generations
                    .iter()
                    .find_map(|name| Generation::new(object.clone(), name.clone()).source());
                object.source = source.unwrap_or_default();
                each(object, generations);
            }
        }
        Ok(())
    }
}

impl Found {
    fn worth(&self, now: SystemTime) -> f64 {
        // What was used before the clock was set back may have been idle for ever.
        let idle = age(self.used, now).unwrap_or(Duration::MAX);
        worth(self.uses, self.size, idle.as_secs_f64())
    }
}

/// What is in a folder; files that are not this program's are not seen.
fn objects_in(folder: &Path) -> Vec<Found> {
    let digits = folder.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_key = |text: &str| {
        text.starts_with(digits)
            && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<Found> = Vec::new();
    let mut names: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    // All of an object together.
    names.sort();
    for (name, path) in names {
        let Some((key, rest)) = name.split_at_checked(64) else { continue };
        if !is_key(key) || !rest.starts_with(['.', '-']) {
            continue;
        }
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let generation = rest.strip_prefix('-').and_then(|rest| rest.split('.').next());
        let is_current = rest == ".current";
        if found.last().is_none_or(|last| last.key != key) {
            found.push(Found {
                key: key.to_owned(),
                generations: Vec::new(),
                size: 0,
                used: SystemTime::UNIX_EPOCH,
                uses: 0,
            });
        }
        let Some(object) = found.last_mut() else { continue };
        object.size = object.size.saturating_add(metadata.blocks().saturating_mul(512));
        if is_current {
            (object.used, object.uses) = use_of(&metadata);
        }
        if let Some(generation) = generation.filter(|name| is_name(name))
            && object.generations.last().is_none_or(|last| last != generation)
        {
            object.generations.push(generation.to_owned());
        }
    }
    found
}

/// When an object was last used, and how often: its `.current` gets a line break for each check, and the
/// time of the last use as its access time.
fn use_of(current: &Metadata) -> (SystemTime, u64) {
    let checked = current.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let used = current.accessed().unwrap_or(checked).max(checked);
    (used, current.len().saturating_sub(32))
}

/// The number of the folder that an object lies in.
fn number(key: &str) -> usize {
    key.get(..3).and_then(|digits| usize::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// A number below `count`, which is not 0.
fn lot(count: usize) -> usize {
    let random = RandomState::new().hash_one(());
    usize::try_from(random % count.max(1) as u64).unwrap_or(0)
}

impl Object {
    /// Notes that a client has asked for it while the base need not be asked.
    pub(crate) fn touch(&self, now: SystemTime) {
        const PAUSE: Duration = Duration::from_secs(60);
        let Ok(current) = files::open_to_touch(&self.file("current")) else { return };
        let used = current.metadata().and_then(|found| found.accessed());
        if used.is_ok_and(|used| now.duration_since(used).is_ok_and(|idle| idle < PAUSE)) {
            return;
        }
        if let Err(error) = current.set_times(fs::FileTimes::new().set_accessed(now)) {
            log::line(&format!("the last use of {} cannot be noted: {error}", self.source()));
        }
    }
}

#[cfg(test)]
mod tests;
