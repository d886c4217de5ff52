//! One generation of an object: its record, its body whole or growing, its lock.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use super::{Object, Watch, files, record};
use crate::failure::Failure;
use crate::log;
use crate::representation::Representation;

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

/// A body that another process is writing.
#[derive(Debug)]
pub(crate) struct Growing {
    pub(crate) file: File,
    pub(crate) record: Representation,
}

/// Which failure note it is: two are never the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp(u64, i64, i64);

/// Whether a text can be the name of a generation.
pub(super) fn is_name(text: &str) -> bool {
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

    /// Opens the whole body, if there is one.
    ///
    /// # Errors
    /// What is damaged. It is for the holder of the lock to put it aside.
    pub(crate) fn open_whole(&self) -> Result<Option<Whole>, String> {
        let Ok(file) = files::open(&self.file("body")) else { return Ok(None) };
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

    /// Opens the body that is being written, if it has begun.
    pub(crate) fn open_growing(&self) -> Option<Growing> {
        // In this order: the record is there before the body is.
        let file = files::open(&self.file("part")).ok()?;
        let record = self.record().ok()??;
        Some(Growing { file, record })
    }

    /// Takes the right to fill this generation, unless another process has it.
    ///
    /// # Errors
    /// When the lock file cannot be had.
    pub(crate) fn try_lock(&self) -> io::Result<Option<File>> {
        files::try_lock(&self.file("lock"))
    }

    /// Begins to watch for news of this generation.
    pub(crate) fn watch(&self) -> Watch {
        Watch::new(self.object.folder())
    }

    /// Why the last fill failed, if one did.
    pub(crate) fn failure(&self) -> Option<(Stamp, Failure)> {
        let file = files::open(&self.file("error")).ok()?;
        let found = file.metadata().ok()?;
        let stamp = Stamp(found.ino(), found.mtime(), found.mtime_nsec());
        Some((stamp, Failure::parse(&files::read(file).ok()?)?))
    }

    /// Moves what is damaged out of the way. The caller holds the lock.
    pub(crate) fn put_aside(&self, damage: &str) {
        log::line(&format!("{damage}; it was put aside and is fetched anew"));
        for kind in ["body", "meta"] {
            if let Err(error) = files::put_aside(&self.file(kind), &self.object.quarantine) {
                log::line(&format!("'{}' cannot be put aside: {error}", self.file(kind).display()));
            }
        }
    }

    /// Removes everything of this generation, unless it is being filled.
    pub(super) fn remove(&self) {
        let Ok(Some(_lock)) = self.try_lock() else { return };
        // The body first: a body without a record would look damaged. The lock last, and while it
        // is held: who waits for it sees that it is gone and makes a new one.
        for kind in ["body", "part", "meta", "error", "meta.tmp", "error.tmp", "lock"] {
            if let Err(error) = files::remove(&self.file(kind)) {
                log::line(&format!("'{}' cannot be removed: {error}", self.file(kind).display()));
            }
        }
    }

    /// Begins a fill: what an earlier one has left goes. The caller holds the lock.
    ///
    /// The file that is returned rings when this process ends, whatever ends it: it is open for
    /// writing, and all who watch the folder are told when it is closed.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn begin(&self) -> io::Result<File> {
        files::remove(&self.file("part"))?;
        files::remove(&self.file("error"))?;
        files::open_to_touch(&self.file("lock"))
    }

    /// Writes the record and makes the empty body. The caller holds the lock.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn create(&self, representation: &Representation) -> io::Result<File> {
        let text = record::print(self.object.source(), representation);
        files::write(&self.file("meta"), text.as_bytes(), None)?;
        files::create(&self.file("part"))
    }

    /// Makes the body, all of which is in `part`, the one that everybody is served from, unless the
    /// base was found to have a later generation since `checked`. The caller holds the lock.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn publish(&self, part: &File, checked: SystemTime) -> io::Result<()> {
        part.sync_all()?;
        files::rename(&self.file("part"), &self.file("body"))?;
        if !self.object.confirm(&self.name, checked)? {
            files::remove(&self.file("body"))?;
            files::remove(&self.file("meta"))?;
        }
        Ok(())
    }

    /// Notes why the fill failed, and removes what there is of it. The caller holds the lock.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn fail(&self, failure: &Failure) -> io::Result<()> {
        // Without fsync, for the note is for those who wait now; after the note, so that they find it.
        let noted = files::note(&self.file("error"), failure.to_string().as_bytes());
        files::remove(&self.file("part"))?;
        noted
    }

    fn record(&self) -> Result<Option<Representation>, String> {
        let path = self.file("meta");
        let Ok(file) = files::open(&path) else { return Ok(None) };
        let text = files::read(file).map_err(|error| format!("'{}': {error}", path.display()))?;
        record::parse(&text, self.object.source(), &self.name)
            .map(Some)
            .map_err(|error| format!("'{}' is damaged: {error}", path.display()))
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.object.folder().join(format!("{}-{}.{kind}", self.object.key, self.name))
    }
}
