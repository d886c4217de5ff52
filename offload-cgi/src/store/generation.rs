//! One generation of an object: its record, its body whole or growing, its locks.

mod ending;
mod making;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

pub(crate) use self::ending::{Flush, Unkept};
use super::locks::Locks;
use super::progress::{Identity, Progress};
use super::{Object, files, record};
use crate::failure::Failure;
use crate::representation::Representation;

/// One version of an object, by the name that its validators give it.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    object: Object,
    name: String,
}

/// Why something of a generation cannot be used.
#[derive(Debug)]
pub(crate) enum Flaw {
    /// It is damaged, in a sentence.
    Damaged(String),
    /// It cannot be opened or read now; most likely it is sound.
    Unreadable(io::Error),
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
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
    /// `Flaw`.
    pub(crate) fn record(&self) -> Result<Option<Representation>, Flaw> {
        let Some(file) = self.open_if_there("meta", files::open)? else { return Ok(None) };
        let text = match files::read(file) {
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error.into()),
            text => text.unwrap_or_else(|_| "no text".to_owned()),
        };
        if text.is_empty() {
            // A power cut has taken what it said: it can be said again, and what is beside it is sound.
            return Ok(None);
        }
        record::parse(&text, self.object.source(), &self.name).map(Some).map_err(|error| {
            Flaw::Damaged(format!("'{}' is damaged: {error}", self.file("meta").display()))
        })
    }

    /// Opens one of its files. Only one that is not there is none: that there are too many open files, or that
    /// the disk fails, must not have everything fetched again.
    fn open_if_there(
        &self,
        kind: &str,
        open: fn(&Path) -> io::Result<File>,
    ) -> Result<Option<File>, Flaw> {
        let path = self.file(kind);
        match open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                Err(Flaw::Damaged(format!("'{}' is a link", path.display())))
            }
            Err(error) => Err(Flaw::Unreadable(error)),
        }
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

    /// Opens the whole body, if there is one, so that it is not taken while it is open.
    ///
    /// # Errors
    /// `Flaw`. What is damaged is for who sets the generation up to put aside.
    pub(crate) fn open_whole(&self) -> Result<Option<Whole>, Flaw> {
        let Some(file) = self.open_body()? else { return Ok(None) };
        let Some(record) = self.record()? else { return Ok(None) };
        let size = file.metadata()?.len();
        if size != record.length {
            let (path, length) = (self.file("body"), record.length);
            let damage = format!("'{}' has {size} bytes instead of {length}", path.display());
            return Err(Flaw::Damaged(damage));
        }
        Ok(Some(Whole { file, record }))
    }

    /// Opens the whole body, if there is one that is sound, of which the record was read just now.
    pub(crate) fn open_whole_of(&self, record: Representation) -> Option<Whole> {
        let file = self.open_body().ok()??;
        let sound = file.metadata().is_ok_and(|found| found.len() == record.length);
        sound.then_some(Whole { file, record })
    }

    fn open_body(&self) -> Result<Option<File>, Flaw> {
        let file = self.open_if_there("body", files::open)?;
        if let Some(file) = &file {
            // Who removes it has it to himself for a moment; it can be read to its end all the same.
            let _ = fs2::FileExt::try_lock_shared(file);
        }
        Ok(file)
    }

    /// Opens the body that grows, if there is one that can be gone on with.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn open_growing(&self) -> io::Result<Option<Growing>> {
        let Some(file) = sound(self.open_if_there("part", files::open_to_write))? else {
            return Ok(None);
        };
        let Some(record) = sound(self.record())? else { return Ok(None) };
        let Some(map) = sound(self.open_if_there("map", files::open_to_write))? else {
            return Ok(None);
        };
        let found = file.metadata()?;
        if found.len() != record.length {
            return Ok(None);
        }
        // Somebody may have put others in their place between the two: then the map is not this part's.
        let progress = Progress::open(map, self.identity(&found)?)?;
        Ok(progress.filter(|progress| !progress.is_given_up()).map(|progress| Growing {
            file,
            record,
            progress,
        }))
    }

    /// Notes what the base says about this generation now, if that is news: its headers may change while
    /// its bytes do not (RFC 9111, sections 4.3.4 and 4.3.5).
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn describe(&self, found: &Representation) -> io::Result<()> {
        let mut wanted = Representation { age: Duration::ZERO, ..found.clone() };
        if let Some(known) = sound(self.record())? {
            // The date that makes Last-Modified strong is that of the first answer.
            wanted.validators.answered = known.validators.answered;
            if known == wanted {
                return Ok(());
            }
        }
        self.object.prepare()?;
        self.with_set_up(|| {
            match self.record() {
                Ok(_) => {}
                // It may be another file's, and then the body beside it is so too.
                Err(Flaw::Damaged(damage)) => self.put_aside(&damage),
                Err(Flaw::Unreadable(error)) => return Err(error),
            }
            self.write_record(&wanted)
        })
    }

    /// Writes the record: to stay, where bytes beside it stay that would be worth nothing without it.
    fn write_record(&self, found: &Representation) -> io::Result<()> {
        let text = record::print(self.object.source(), found);
        if self.file("body").try_exists()? || self.file("extents").try_exists()? {
            return files::write(&self.file("meta"), text.as_bytes());
        }
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

    fn with_set_up(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        loop {
            let locks = self.locks()?;
            locks.set_up()?;
            if locks.is_at(&self.file("lock")) {
                return act();
            }
        }
    }

    /// What identifies a growing body.
    fn identity(&self, part: &fs::Metadata) -> io::Result<Identity<'_>> {
        let (length, inode) = (part.len(), part.ino());
        Ok(Identity { generation: &self.name, length, inode, boot: boot()? })
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.object.folder().join(format!("{}-{}.{kind}", self.object.key, self.name))
    }
}

/// What is not damaged; what is counts as not there.
fn sound<T>(found: Result<Option<T>, Flaw>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(found),
        Err(Flaw::Damaged(_)) => Ok(None),
        Err(Flaw::Unreadable(error)) => Err(error),
    }
}

/// Which boot of the machine this is.
fn boot() -> io::Result<[u32; 4]> {
    // A process does not outlive it.
    static KNOWN: OnceLock<[u32; 4]> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let word = |at: usize| {
        let digits = digits.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok()
    };
    match (word(0), word(1), word(2), word(3)) {
        (Some(a), Some(b), Some(c), Some(d)) => Ok(*KNOWN.get_or_init(|| [a, b, c, d])),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
