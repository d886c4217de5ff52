//! One generation of an object: its record, its body whole or growing, its locks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::extents::Extents;
use super::locks::Locks;
use super::progress::{Identity, Progress};
use super::{Object, files, record};
use crate::failure::Failure;
use crate::http::Part;
use crate::log;
use crate::representation::Representation;

/// Everything that a generation may consist of, in the order in which it is removed: a body without a
/// record would look damaged, extents without a body must never be believed, and the lock goes last.
const KINDS: [&str; 11] = [
    "extents",
    "body",
    "part",
    "map",
    "meta",
    "error",
    "extents.tmp",
    "map.tmp",
    "meta.tmp",
    "error.tmp",
    "lock",
];

/// One version of an object, by the name that its validators give it.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    object: Object,
    name: String,
}

/// A whole body, and what the base said about it.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) file: File,
    pub(crate) record: Representation,
}

/// A body that grows.
#[derive(Debug)]
pub(crate) struct Growing {
    pub(crate) file: File,
    pub(crate) record: Representation,
    pub(crate) progress: Progress,
}

/// A body that a reader has joined: as long as he holds it, nobody removes it.
#[derive(Debug)]
pub(crate) enum Joined {
    Whole(Whole),
    Growing(Growing, Locks),
}

/// Which failure note or record it is: two are never the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp(u64, i64, i64);

impl Stamp {
    fn of(found: &fs::Metadata) -> Self {
        Self(found.ino(), found.mtime(), found.mtime_nsec())
    }
}

/// Whether a text can be the name of a generation.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Generation {
    pub(super) fn new(object: Object, name: String) -> Self {
        Self { object, name }
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the base said about it, if that is known.
    ///
    /// # Errors
    /// What is damaged.
    pub(crate) fn record(&self) -> Result<Option<Representation>, String> {
        let path = self.file("meta");
        let Ok(file) = files::open(&path) else { return Ok(None) };
        let text = files::read(file).map_err(|error| format!("'{}': {error}", path.display()))?;
        record::parse(&text, self.object.source(), &self.name)
            .map(Some)
            .map_err(|error| format!("'{}' is damaged: {error}", path.display()))
    }

    /// Which record there is now, if one.
    pub(crate) fn record_stamp(&self) -> Option<Stamp> {
        fs::symlink_metadata(self.file("meta")).ok().map(|found| Stamp::of(&found))
    }

    /// Where it comes from, as its record says.
    pub(super) fn source(&self) -> Option<String> {
        record::source(&files::read_text(&self.file("meta"))?).map(str::to_owned)
    }

    /// How many of its `length` bytes are there.
    pub(crate) fn there(&self, length: u64) -> u64 {
        match (self.open_whole(), self.open_growing()) {
            (Ok(Some(_)), _) => length,
            (_, Ok(Some(growing))) => growing.progress.extents().total(),
            _ => 0,
        }
    }

    /// Puts aside what is damaged.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn discard(&self, damage: &str) -> io::Result<()> {
        self.with_set_up(|| {
            self.put_aside(damage);
            Ok(())
        })
    }

    /// Opens the whole body, if there is one, so that it is not taken while it is open.
    ///
    /// # Errors
    /// What is damaged. It is for who sets the generation up to put it aside.
    pub(crate) fn open_whole(&self) -> Result<Option<Whole>, String> {
        let Some(file) = self.open_body() else { return Ok(None) };
        let Some(record) = self.record()? else { return Ok(None) };
        let size = file.metadata().map_or(0, |found| found.len());
        if size != record.length {
            let path = self.file("body");
            return Err(format!(
                "'{}' has {size} bytes instead of {}",
                path.display(),
                record.length
            ));
        }
        Ok(Some(Whole { file, record }))
    }

    /// Opens the whole body, if there is one that is sound, of which the record was read just now.
    pub(crate) fn open_whole_of(&self, record: Representation) -> Option<Whole> {
        let file = self.open_body()?;
        let sound = file.metadata().is_ok_and(|found| found.len() == record.length);
        sound.then_some(Whole { file, record })
    }

    fn open_body(&self) -> Option<File> {
        let file = files::open(&self.file("body")).ok()?;
        // Who removes it has it to himself for a moment; it can be read to its end all the same.
        let _ = fs2::FileExt::try_lock_shared(&file);
        Some(file)
    }

    /// Opens the body that grows, if there is one that can be gone on with.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn open_growing(&self) -> io::Result<Option<Growing>> {
        let Ok(file) = files::open_to_write(&self.file("part")) else { return Ok(None) };
        let Ok(Some(record)) = self.record() else { return Ok(None) };
        let Ok(map) = files::open_to_write(&self.file("map")) else { return Ok(None) };
        if file.metadata()?.len() != record.length {
            return Ok(None);
        }
        let progress = Progress::open(map, self.identity(record.length)?)?;
        Ok(progress.filter(|progress| !progress.is_given_up()).map(|progress| Growing {
            file,
            record,
            progress,
        }))
    }

    /// Joins the readers of this generation, which `found` describes: makes what is missing of it, and
    /// says that these parts are wanted.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn join(&self, found: &Representation, wanted: &[Part]) -> io::Result<Joined> {
        self.object.prepare()?;
        let blocks = super::Blocks::of(found.length);
        loop {
            let locks = self.locks()?;
            let mut joined = true;
            for part in wanted {
                let last = blocks.of_offset(part.end().saturating_sub(1));
                joined &= locks.want(blocks.of_offset(part.first), last.saturating_add(1))?;
            }
            if !joined || !locks.is_at(&self.file("lock")) {
                // Somebody removes it, which does not take long.
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            if let Some(joined) = self.look()? {
                return Ok(joined.with(locks));
            }
            locks.set_up()?;
            let made = self.make(found);
            locks.end_set_up();
            made?;
            if let Some(joined) = self.look()? {
                return Ok(joined.with(locks));
            }
        }
    }

    fn look(&self) -> io::Result<Option<Looked>> {
        if let Some(growing) = self.open_growing()? {
            return Ok(Some(Looked::Growing(growing)));
        }
        // What is damaged is put aside by who sets up.
        Ok(self.open_whole().ok().flatten().map(Looked::Whole))
    }

    /// Makes what is missing, or damaged. The caller sets up.
    fn make(&self, found: &Representation) -> io::Result<()> {
        match self.open_whole() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(damage) => self.put_aside(&damage),
        }
        if self.open_growing()?.is_some() {
            return Ok(());
        }
        match self.record() {
            Ok(Some(_)) => {}
            Ok(None) => self.write_record(found)?,
            Err(damage) => {
                self.put_aside(&damage);
                self.write_record(found)?;
            }
        }
        if found.length == 0 {
            return files::create(&self.file("body")).map(drop);
        }
        let path = self.file("part");
        let known = files::open(&path)
            .is_ok_and(|file| file.metadata().is_ok_and(|part| part.len() == found.length));
        let given_up = self.is_given_up(found.length)?;
        let extents = if known && !given_up {
            self.durable(found.length)
        } else {
            // Old extents must not be believed of a new body, not even after a power cut.
            if files::remove_existing(&self.file("extents"))? {
                files::sync_folder_of(&path)?;
            }
            files::remove(&path)?;
            let part = files::create(&path)?;
            if let Err(error) = part.set_len(found.length) {
                files::remove(&path)?;
                return Err(error);
            }
            Extents::none(found.length)
        };
        let map = Progress::print(self.identity(found.length)?, &extents);
        files::note(&self.file("map"), &map)
    }

    fn is_given_up(&self, length: u64) -> io::Result<bool> {
        let Ok(map) = files::open_to_write(&self.file("map")) else { return Ok(false) };
        let progress = Progress::open(map, self.identity(length)?)?;
        Ok(progress.is_some_and(|progress| progress.is_given_up()))
    }

    /// What of the growing body has survived the last reboot.
    fn durable(&self, length: u64) -> Extents {
        let none = Extents::none(length);
        let path = self.file("extents");
        let Ok(file) = files::open(&path) else { return none };
        let text = files::read(file).unwrap_or_default();
        Extents::parse(&text, &self.name, length).unwrap_or_else(|error| {
            log::line(&format!(
                "'{}' is damaged: {error}; the file is fetched anew",
                path.display()
            ));
            none
        })
    }

    /// Notes what the base says about this generation now, if that is news: its headers may change while
    /// its bytes do not (RFC 9111, sections 4.3.4 and 4.3.5).
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn describe(&self, found: &Representation) -> io::Result<()> {
        let mut wanted = Representation { age: Duration::ZERO, ..found.clone() };
        if let Ok(Some(known)) = self.record() {
            // The date that makes Last-Modified strong is that of the first answer.
            wanted.validators.answered = known.validators.answered;
            if known == wanted {
                return Ok(());
            }
        }
        self.object.prepare()?;
        self.with_set_up(|| {
            if let Err(damage) = self.record() {
                // It may be another file's, and then the body beside it is so too.
                self.put_aside(&damage);
            }
            self.write_record(&wanted)
        })
    }

    fn write_record(&self, found: &Representation) -> io::Result<()> {
        let text = record::print(self.object.source(), found);
        files::note(&self.file("meta"), text.as_bytes())
    }

    /// The generation's locks; holds none of them yet.
    ///
    /// # Errors
    /// When the lock file cannot be had.
    pub(crate) fn locks(&self) -> io::Result<Locks> {
        Locks::open(&self.file("lock"))
    }

    /// Why the last fill failed, if one did.
    pub(crate) fn failure(&self) -> Option<(Stamp, Failure)> {
        let file = files::open(&self.file("error")).ok()?;
        let found = file.metadata().ok()?;
        Some((Stamp::of(&found), Failure::parse(&files::read(file).ok()?)?))
    }

    /// Notes why a fill failed. Without fsync: it is for those who wait now.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn fail(&self, failure: &Failure) -> io::Result<()> {
        self.with_set_up(|| files::note(&self.file("error"), failure.to_string().as_bytes()))
    }

    /// Notes for the time after a reboot that `extents` are on the disk.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn keep(&self, extents: &Extents) -> io::Result<()> {
        self.with_set_up(|| {
            // What is whole by now needs no extents any more.
            if self.file("part").try_exists()? {
                files::write(&self.file("extents"), extents.print(&self.name).as_bytes())?;
            }
            Ok(())
        })
    }

    /// Makes a growing body, all of which is there, the one that everybody is served from.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn publish(&self, part: &File) -> io::Result<()> {
        self.with_set_up(|| {
            let path = self.file("part");
            if !files::is_there(part, &path) {
                return Ok(());
            }
            part.sync_all()?;
            files::open(&self.file("meta"))?.sync_all()?;
            files::rename(&path, &self.file("body"))?;
            for kind in ["extents", "map", "error"] {
                files::remove(&self.file(kind))?;
            }
            Ok(())
        })
    }

    fn with_set_up(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        loop {
            let locks = self.locks()?;
            locks.set_up()?;
            if locks.is_at(&self.file("lock")) {
                return act();
            }
        }
    }

    /// Moves what is damaged out of the way. The caller sets up.
    fn put_aside(&self, damage: &str) {
        log::line(&format!("{damage}; it was put aside and is fetched anew"));
        for kind in ["extents", "map", "part"] {
            let _ = files::remove(&self.file(kind));
        }
        for kind in ["body", "meta"] {
            if let Err(error) = files::put_aside(&self.file(kind), &self.object.quarantine) {
                log::line(&format!("'{}' cannot be put aside: {error}", self.file(kind).display()));
            }
        }
    }

    /// Removes everything of this generation, unless somebody reads or fills it. Returns whether it has.
    ///
    /// # Errors
    /// When the disk does not let it go.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        let locks = self.locks()?;
        if !locks.take_all()? || !locks.is_at(&self.file("lock")) {
            return Ok(false);
        }
        let body = files::open(&self.file("body")).ok();
        if let Some(body) = &body
            && fs2::FileExt::try_lock_exclusive(body).is_err()
        {
            return Ok(false);
        }
        for kind in KINDS {
            files::remove(&self.file(kind))?;
        }
        Ok(true)
    }

    fn identity(&self, length: u64) -> io::Result<Identity<'_>> {
        Ok(Identity { generation: &self.name, length, boot: boot()? })
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.object.folder().join(format!("{}-{}.{kind}", self.object.key, self.name))
    }
}

enum Looked {
    Whole(Whole),
    Growing(Growing),
}

impl Looked {
    fn with(self, locks: Locks) -> Joined {
        match self {
            Self::Whole(whole) => Joined::Whole(whole),
            Self::Growing(growing) => Joined::Growing(growing, locks),
        }
    }
}

/// Which boot of the machine this is.
fn boot() -> io::Result<[u32; 4]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let word = |at: usize| {
        let digits = digits.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok()
    };
    match (word(0), word(1), word(2), word(3)) {
        (Some(a), Some(b), Some(c), Some(d)) => Ok([a, b, c, d]),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
