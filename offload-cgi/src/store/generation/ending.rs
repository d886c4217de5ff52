//! What becomes of a generation: published, kept for later, failed, put aside, removed.

use std::fs::File;
use std::io;

use super::Generation;
use crate::failure::Failure;
use crate::log;
use crate::store::extents::Extents;
use crate::store::files;
use crate::store::progress::Progress;

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

/// What is asked to write a file's bytes to the disk: `File::sync_data`, except in tests.
pub(crate) type Flush = fn(&File) -> io::Result<()>;

/// Why a body is not kept.
#[derive(Debug)]
pub(crate) enum Unkept {
    /// The disk has lost bytes of it.
    Lost(io::Error),
    /// It is as it was before.
    Other(io::Error),
}

impl From<io::Error> for Unkept {
    fn from(error: io::Error) -> Self {
        Self::Other(error)
    }
}

impl Generation {
    /// Notes why the fill of a growing body failed, if it still is the one that grows here. Without fsync:
    /// it is for those who wait now.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn fail(&self, part: &File, failure: &Failure) -> io::Result<()> {
        self.with_set_up(|| {
            if !files::is_there(part, &self.file("part")) {
                return Ok(());
            }
            files::note(&self.file("error"), failure.to_string().as_bytes())
        })
    }

    /// Notes for the time after a reboot that `extents` of a growing body are on the disk.
    ///
    /// # Errors
    /// `Unkept`.
    pub(crate) fn keep(&self, part: &File, extents: &Extents, flush: Flush) -> Result<(), Unkept> {
        flush(part).map_err(Unkept::Lost)?;
        Ok(self.with_set_up(|| {
            // What is whole by now needs no extents any more, and those of a body that was put aside are not
            // those of its successor.
            if !files::is_there(part, &self.file("part")) {
                return Ok(());
            }
            // Without its record a body is worth nothing.
            files::open(&self.file("meta"))?.sync_all()?;
            let text = extents.print(self.extents_of(&part.metadata()?));
            files::write(&self.file("extents"), text.as_bytes())
        })?)
    }

    /// Makes a growing body, all of which is there, the one that everybody is served from.
    ///
    /// # Errors
    /// `Unkept`.
    pub(crate) fn publish(&self, part: &File, flush: Flush) -> Result<(), Unkept> {
        // It may take long, and then nobody is to wait for the set-up meanwhile.
        flush(part).map_err(Unkept::Lost)?;
        Ok(self.with_set_up(|| {
            let path = self.file("part");
            if !files::is_there(part, &path) {
                return Ok(());
            }
            files::open(&self.file("meta"))?.sync_all()?;
            files::rename(&path, &self.file("body"))?;
            for kind in ["extents", "map", "error"] {
                files::remove(&self.file(kind))?;
            }
            Ok(())
        })?)
    }

    /// Ends the belief in a growing body of which the disk has lost bytes, and notes why.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn lose(&self, part: &File, failure: &Failure) -> io::Result<()> {
        self.with_set_up(|| {
            if !files::is_there(part, &self.file("part")) {
                return Ok(());
            }
            // Those who wait are told by the map: what they find then is the note.
            let noted = files::note(&self.file("error"), failure.to_string().as_bytes());
            self.end_growing()?;
            noted
        })
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

    /// Removes the body that grows. Those who fill or read it are told first: they would go on for nobody,
    /// and their successors would wait for them. The caller sets up.
    pub(super) fn end_growing(&self) -> io::Result<()> {
        if let Ok(map) = files::open_to_write(&self.file("map")) {
            Progress::give_up_file(&map)?;
        }
        let part = self.file("part");
        // Extents must not be believed of another body, not even after a power cut.
        if files::remove_existing(&self.file("extents"))? {
            files::sync_folder_of(&part)?;
        }
        files::remove(&self.file("map"))?;
        files::remove(&part)
    }

    /// Moves what is damaged out of the way. The caller sets up.
    pub(super) fn put_aside(&self, damage: &str) {
        log::line(&format!("{damage}; it was put aside and is fetched anew"));
        if let Err(error) = self.end_growing() {
            log::line(&format!("'{}' cannot be removed: {error}", self.file("part").display()));
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
        self.remove_if(|body| fs2::FileExt::try_lock_exclusive(body).is_ok())
    }

    /// The same, though somebody reads it when it is whole: who has it open reads it to its end.
    ///
    /// # Errors
    /// When the disk does not let it go.
    pub(crate) fn retire(&self) -> io::Result<bool> {
        self.remove_if(|_| true)
    }

    fn remove_if(&self, may_go: impl FnOnce(&File) -> bool) -> io::Result<bool> {
        let locks = self.locks()?;
        if !locks.take_all()? || !locks.is_at(&self.file("lock")) {
            return Ok(false);
        }
        let body = files::open(&self.file("body")).ok();
        if body.as_ref().is_some_and(|body| !may_go(body)) {
            return Ok(false);
        }
        for kind in KINDS {
            files::remove(&self.file(kind))?;
        }
        Ok(true)
    }
}
