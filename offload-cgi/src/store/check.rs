//! Whose turn it is to ask the base about an object: simultaneous checks are one.
//!
//! The first takes the lock of a file and asks; the others wait for the lock, and then find in the file what
//! he was told. He removes the file before he lets go of it, so that nothing is left of an object
//! that does not exist, and whoever comes later begins anew. If he dies before that, what he leaves is
//! nobody's news: the next one who has the lock alone asks again, whatever stands in the file.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::files;
use super::locks::lock;

/// Whose turn it is.
pub(crate) enum Turn {
    /// This process's: it is to ask, and to tell.
    Mine(Check),
    /// It was another's, and this is what he told.
    Told(String),
    /// It still is another's, who does not get on.
    Late,
}

/// The right, and the duty, to ask the base.
pub(crate) struct Check {
    file: File,
    path: PathBuf,
}

/// The last line: what ends otherwise was not told to its end.
const END: &str = "\nend\n";

impl Turn {
    /// Waits for the turn, at most for `patience`.
    ///
    /// # Errors
    /// When the file cannot be had.
    pub(super) fn wait(path: PathBuf, patience: Duration) -> io::Result<Self> {
        let end = Instant::now().checked_add(patience);
        loop {
            let file = files::open_lock(&path)?;
            if fs2::FileExt::try_lock_exclusive(&file).is_err() {
                if !lock_until(&file, end, fs2::FileExt::lock_shared)? {
                    return Ok(Self::Late);
                }
                if !files::is_there(&file, &path)
                    && let Some(text) = told(&file)?
                {
                    return Ok(Self::Told(text));
                }
                // Whoever asked has died over it: a file that is still there was left by the dead.
                if !lock_until(&file, end, fs2::FileExt::lock_exclusive)? {
                    return Ok(Self::Late);
                }
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

impl Check {
    /// The turn, if nobody else has it.
    ///
    /// # Errors
    /// When the file cannot be had.
    pub(super) fn now(path: PathBuf) -> io::Result<Option<Self>> {
        let file = files::open_lock(&path)?;
        if fs2::FileExt::try_lock_exclusive(&file).is_err() || !files::is_there(&file, &path) {
            return Ok(None);
        }
        file.set_len(0)?;
        Ok(Some(Self { file, path }))
    }

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

/// Takes a lock, and waits for it until `end` at most, if there is one. Returns whether it was taken.
///
/// Another thread waits, for such a lock knows no limit; when it comes too late, it goes with that thread.
fn lock_until(
    file: &File,
    end: Option<Instant>,
    lock: impl FnOnce(&File) -> io::Result<()> + Send + 'static,
) -> io::Result<bool> {
    let Some(end) = end else { return lock(file).map(|()| true) };
    let (tell, hear) = mpsc::channel();
    let same = file.try_clone()?;
    thread::Builder::new().spawn(move || {
        let result = lock(&same);
        drop(same);
        // Nobody may be waiting any more.
        let _ = tell.send(result);
    })?;
    match hear.recv_timeout(end.saturating_duration_since(Instant::now())) {
        Ok(result) => result.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// One of `most` places in a file, as long as the result is open; `None` when all are taken.
///
/// # Errors
/// When the file cannot be had, or the kernel has no locks left.
pub(super) fn one_of(path: &Path, most: i64) -> io::Result<Option<File>> {
    let file = files::open_lock(path)?;
    for place in 0..most {
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK, place, 1))) {
            Ok(_) => return Ok(Some(file)),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Removes what the dead have left, unless somebody asks just now.
///
/// # Errors
/// When the disk does not let it go.
pub(super) fn remove_left(path: &Path) -> io::Result<()> {
    let Ok(file) = files::open(path) else { return Ok(()) };
    if fs2::FileExt::try_lock_exclusive(&file).is_ok() && files::is_there(&file, path) {
        files::remove(path)?;
    }
    Ok(())
}

/// What stands in the file, if it was told to its end.
fn told(mut file: &File) -> io::Result<Option<String>> {
    file.rewind()?;
    let text = files::read(file.try_clone()?)?;
    Ok(text.strip_suffix(END).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn mine(path: &Path) -> Check {
        match Turn::wait(path.to_owned(), LONG).unwrap() {
            Turn::Mine(check) => check,
            Turn::Told(text) => panic!("it was told {text}"),
            Turn::Late => panic!("it is another's"),
        }
    }

    #[test]
    fn nobody_waits_for_ever_for_somebody_who_does_not_get_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("check");
        let check = mine(&path);
        let turn = Turn::wait(path.clone(), Duration::from_millis(20)).unwrap();
        assert!(matches!(turn, Turn::Late));
        check.tell("news");
        mine(&path).tell("news");
    }

    #[test]
    fn who_waits_hears_what_was_told_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("check");
        let check = mine(&path);
        let waiting = thread::spawn({
            let path = path.clone();
            move || Turn::wait(path, LONG)
        });
        thread::sleep(Duration::from_millis(50));
        check.tell("news");
        assert!(matches!(waiting.join().unwrap().unwrap(), Turn::Told(text) if text == "news"));
        assert!(!path.exists());
    }

    #[test]
    fn what_the_dead_have_told_is_not_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("check");
        fs::write(&path, format!("old{END}")).unwrap();
        // Somebody had the turn, and dies before he asks.
        let dying = files::open_lock(&path).unwrap();
        fs2::FileExt::lock_exclusive(&dying).unwrap();
        let waiting = thread::spawn({
            let path = path.clone();
            move || Turn::wait(path, LONG)
        });
        thread::sleep(Duration::from_millis(50));
        drop(dying);
        assert!(matches!(waiting.join().unwrap().unwrap(), Turn::Mine(_)));
    }

    #[test]
    fn so_many_places_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("places");
        let places: Vec<_> = (0..3).map(|_| one_of(&path, 3).unwrap().unwrap()).collect();
        assert!(one_of(&path, 3).unwrap().is_none());
        drop(places);
        assert!(one_of(&path, 3).unwrap().is_some());
    }

    #[test]
    fn who_has_told_does_not_remove_the_next_one_s_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("check");
        let first = mine(&path);
        fs::remove_file(&path).unwrap();
        let second = mine(&path);
        first.tell("news");
        assert!(path.exists());
        second.tell("other news");
        assert!(!path.exists());
    }
}
