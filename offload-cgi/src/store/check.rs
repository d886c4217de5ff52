//! Whose turn it is to ask the base about an object: simultaneous checks are one.
//!
//! The first takes the lock of a file and asks; the others wait for the lock, and then find in the file what
//! he was told. He removes the file before he lets go of it, so that nothing is left of an object
//! that does not exist, and whoever comes later begins anew. If he dies, the file is empty: the next one asks.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use super::files;

/// Whose turn it is.
pub(crate) enum Turn {
    /// This process's: it is to ask, and to tell.
    Mine(Check),
    /// It was another's, and this is what he told.
    Told(String),
}

/// The right, and the duty, to ask the base.
pub(crate) struct Check {
    file: File,
    path: PathBuf,
}

/// The last line: what ends otherwise was not told to its end.
const END: &str = "\nend\n";

impl Turn {
    /// Waits for the turn.
    ///
    /// # Errors
    /// When the file cannot be had.
    pub(super) fn wait(path: PathBuf) -> io::Result<Self> {
        loop {
            let file = files::open_lock(&path)?;
            if fs2::FileExt::try_lock_exclusive(&file).is_ok() {
                if files::is_there(&file, &path) && file.metadata()?.len() == 0 {
                    return Ok(Self::Mine(Check { file, path }));
                }
            } else {
                fs2::FileExt::lock_shared(&file)?;
            }
            let text = files::read(file.try_clone()?)?;
            if let Some(text) = text.strip_suffix(END) {
                return Ok(Self::Told(text.to_owned()));
            }
            // Whoever asked has died over it, or has just removed the file.
            if files::is_there(&file, &path) {
                files::remove(&path)?;
            }
        }
    }
}

impl Check {
    /// Tells all who wait.
    pub(crate) fn tell(mut self, text: &str) {
        let _ = self.file.write_all(format!("{text}{END}").as_bytes());
        let _ = files::remove(&self.path);
    }
}

/// Who fails to tell anything leaves nothing behind.
impl Drop for Check {
    fn drop(&mut self) {
        let _ = files::remove(&self.path);
    }
}
