//! Whose turn it is to ask the base about an object: simultaneous checks are one.
//!
//! The first takes the lock of a file and asks; the others wait for the lock, and then find in the file what
//! he was told. He removes the file before he lets go of it, so that nothing is left of an object
//! that does not exist, and whoever comes later begins anew. If he dies before that, what he leaves is
//! nobody's news: the next one who has the lock alone asks again, whatever stands in the file.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
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
            if fs2::FileExt::try_lock_exclusive(&file).is_err() {
                fs2::FileExt::lock_shared(&file)?;
                if let Some(text) = told(&file)? {
                    return Ok(Self::Told(text));
                }
                // Whoever asked has died over it.
                fs2::FileExt::lock_exclusive(&file)?;
            }
            if files::is_there(&file, &path) {
                // What stands in it was told by somebody who died before he could remove it.
                file.set_len(0)?;
                (&file).rewind()?;
                return Ok(Self::Mine(Check { file, path }));
            }
            // It was removed just now.
            if let Some(text) = told(&file)? {
                return Ok(Self::Told(text));
            }
        }
    }
}

/// What stands in the file, if it was told to its end.
fn told(mut file: &File) -> io::Result<Option<String>> {
    file.rewind()?;
    let text = files::read(file.try_clone()?)?;
    Ok(text.strip_suffix(END).map(str::to_owned))
}

impl Check {
    /// Tells all who wait.
    pub(crate) fn tell(mut self, text: &str) {
        let _ = self.file.write_all(format!("{text}{END}").as_bytes());
    }
}

/// Nothing is left behind, and once it is gone, the name is another's.
impl Drop for Check {
    fn drop(&mut self) {
        if files::is_there(&self.file, &self.path) {
            let _ = files::remove(&self.path);
        }
    }
}
