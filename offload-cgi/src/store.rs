//! The objects on disk: where they are, which generation is current, how one replaces another.
//!
//! ```text
//! objects/ab/<key>.current            the generation that the base had last; its time is the last check's
//! objects/ab/<key>.lock               held while `.current` is replaced, never across the network
//! objects/ab/<key>-<generation>.lock  held by the one process that fills this generation
//! objects/ab/<key>-<generation>.meta  the record: what the base said
//! objects/ab/<key>-<generation>.part  the body while it grows
//! objects/ab/<key>-<generation>.body  the body, whole
//! objects/ab/<key>-<generation>.error why the last fill failed
//! quarantine/                         what was damaged
//! ```
//! A key is SHA-256 of base and path, a generation one of the validators: no byte that a client or a
//! base has sent stands in a file name.

mod files;
mod generation;
mod record;
mod watch;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

pub(crate) use self::generation::{Generation, Stamp, Whole};
pub(crate) use self::watch::Watch;
use crate::log;
use crate::options::{Base, Options, Share};
use crate::representation::hex;

/// The cache's folder.
pub(crate) struct Store {
    root: PathBuf,
    keep_free: Share,
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
    pub(crate) fn open(options: &Options) -> Result<Self, String> {
        let root = &options.cache;
        let wrong = |what: String| format!("OFFLOAD_CACHE: '{}' {what}", root.display());
        match DirBuilder::new().recursive(true).mode(0o700).create(root) {
            Ok(()) => {}
            Err(error) => return Err(wrong(format!("cannot be made: {error}"))),
        }
        let found =
            fs::metadata(root).map_err(|error| wrong(format!("cannot be read: {error}")))?;
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
        Ok(Self { root: root.clone(), keep_free: options.keep_free })
    }

    /// The object of a path on a base. Touches no disk.
    pub(crate) fn object(&self, base: &Base, path: &str) -> Object {
        let key = hex(&Sha256::digest(format!("{base}\0{path}")));
        let folder = self.root.join("objects").join(&key[..2]);
        let source = format!("{base}{path}");
        Object { folder, quarantine: self.root.join("quarantine"), key, source }
    }

    /// Whether `length` more bytes leave as much free as is wanted.
    ///
    /// # Errors
    /// When the disk does not tell.
    pub(crate) fn has_room(&self, length: u64) -> io::Result<bool> {
        let disk = fs2::statvfs(&self.root)?;
        let wanted = length.saturating_add(self.keep_free.of(disk.total_space()));
        Ok(disk.available_space() >= wanted)
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
        let name = text.strip_suffix('\n').filter(|name| generation::is_name(name));
        let Some(name) = name else {
            log::line(&format!("'{}' is damaged and was put aside", path.display()));
            let _ = files::put_aside(&path, &self.quarantine);
            return None;
        };
        Some(Current { generation: name.to_owned(), checked })
    }

    /// Notes that the base was asked at `checked` and had `generation`, which is whole.
    ///
    /// Older generations go; a later check wins over an earlier one, whatever finishes first.
    /// Returns whether the generation is the current one now.
    ///
    /// # Errors
    /// When the disk does not take it; what was there before is still there.
    pub(crate) fn confirm(&self, generation: &str, checked: SystemTime) -> io::Result<bool> {
        if let Some(current) = self.current()
            && current.generation == generation
        {
            // Should another process replace the file meanwhile, this touches the old one: harmless.
            if current.checked < checked {
                files::open_to_touch(&self.file("current"))?.set_modified(checked)?;
            }
            return Ok(true);
        }
        let _lock = self.lock()?;
        if let Some(current) = self.current()
            && current.generation != generation
            && current.checked > checked
        {
            return Ok(false);
        }
        let text = format!("{generation}\n");
        files::write(&self.file("current"), text.as_bytes(), Some(checked))?;
        self.sweep(Some(generation));
        Ok(true)
    }

    /// Removes the object: the base does not have it any more.
    ///
    /// # Errors
    /// When the disk does not let it go.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let path = self.file("current");
        if !path.try_exists()? {
            return Ok(());
        }
        let _lock = self.lock()?;
        files::remove(&path)?;
        self.sweep(None);
        Ok(())
    }

    /// Serialises the writers of `.current`.
    ///
    /// # Errors
    /// When the lock file cannot be had.
    pub(crate) fn lock(&self) -> io::Result<File> {
        files::lock(&self.file("lock"))
    }

    /// Removes all generations but one; those that are being filled stay, for they have readers.
    /// Who has a file open reads it to its end.
    fn sweep(&self, keep: Option<&str>) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let name = name.strip_prefix(&self.key)?.strip_prefix('-')?;
                Some(name.split('.').next()?.to_owned())
            })
            .filter(|name| generation::is_name(name) && keep != Some(name))
            .collect();
        names.sort();
        names.dedup();
        for name in names {
            self.generation(&name).remove();
        }
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.key))
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn source(&self) -> &str {
        &self.source
    }
}

#[cfg(test)]
mod tests;
