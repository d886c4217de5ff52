//! Files of the cache: opened without following links, written whole or not at all, locked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(super) use super::quarantine::put_aside;

/// The longest text file that is read: records are far shorter.
const LONGEST: u64 = 256 << 10;

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// Opens to read.
pub(super) fn open(path: &Path) -> io::Result<File> {
    options().read(true).open(path)
}

/// Opens to read and to write.
pub(super) fn open_to_write(path: &Path) -> io::Result<File> {
    options().read(true).write(true).open(path)
}

/// Opens to set the time of.
pub(super) fn open_to_touch(path: &Path) -> io::Result<File> {
    options().append(true).open(path)
}

/// Makes a new file, which must not be there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    options().read(true).write(true).create_new(true).open(path)
}

/// Reads a text file: most are short, and then at once.
pub(super) fn read(file: File) -> io::Result<String> {
    read_at_most(file, LONGEST)
}

/// The same, with another longest one.
pub(super) fn read_at_most(mut file: File, longest: u64) -> io::Result<String> {
    let mut bytes = vec![0; 4 << 10];
    let length = file.read(&mut bytes)?;
    let whole = length < bytes.len();
    bytes.truncate(length);
    if !whole {
        file.take(longest).read_to_end(&mut bytes)?;
    }
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Writes a file so that it has either its old content or its new one, also after a power cut.
/// The caller holds the lock that this file belongs to.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    write_new(&temporary, bytes)?.sync_all()?;
    rename(&temporary, path)
}

/// Writes a file at once, but not for ever: a power cut may take it away.
/// Who holds no lock for it may lose it to another who writes at the same time.
pub(crate) fn note(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    write_new(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

/// The same with the time that the file is to have.
pub(super) fn note_at(path: &Path, bytes: &[u8], time: SystemTime) -> io::Result<()> {
    let temporary = temporary(path);
    write_new(&temporary, bytes)?.set_modified(time)?;
    fs::rename(&temporary, path)
}

/// Reads a text file, if there is one.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    read(open(path).ok()?).ok()
}

/// Always the same name, for the lock lets nobody else write: what a crash leaves is found again.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    remove(path)?;
    let mut file = create(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Renames within a folder, to stay.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder_of(to)
}

/// Makes what happened to the names in a file's folder stay.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Removes a file, which need not be there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    remove_existing(path).map(drop)
}

/// Removes a file, and says whether it was there.
pub(super) fn remove_existing(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}

/// Takes a lock, and waits for it. The kernel gives it back when its last holder dies.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = open_lock(path)?;
        fs2::FileExt::lock_exclusive(&file)?;
        if is_there(&file, path) {
            return Ok(file);
        }
    }
}

/// Opens a lock file, and makes it when it is missing.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether an open file is the one that has this name.
pub(super) fn is_there(file: &File, path: &Path) -> bool {
    let number = |found: fs::Metadata| (found.dev(), found.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(locked), Ok(seen)) => number(locked) == number(seen),
        _ => false,
    }
}
