//! What was damaged, kept for whoever wants to know why; but not much of it, and not for long.
//!
//! It counts against the cache's limits like everything else, and is the first to go when room is wanted.

use std::cmp::Reverse;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::files;

/// So many files are kept, and so many bytes.
const MOST: usize = 16;
const LARGEST: u64 = 1 << 30;

/// A file that was put aside.
struct Aside {
    path: PathBuf,
    /// Bytes on the disk.
    size: u64,
    /// When it was put aside: moving a file changes its status.
    moved: (i64, i64),
}

/// Moves a file out of the way, under its own name: one damaged file of a name is kept.
///
/// # Errors
/// When the disk does not take it.
pub(super) fn put_aside(path: &Path, folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let Some(name) = path.file_name() else { return Ok(()) };
    match fs::rename(path, folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    trim(folder, MOST, LARGEST)
}

/// Keeps the newest files, so many and so many bytes.
fn trim(folder: &Path, most: usize, largest: u64) -> io::Result<()> {
    let mut size = 0_u64;
    for (number, aside) in newest_first(folder).iter().enumerate() {
        size = size.saturating_add(aside.size);
        if number >= most || size > largest {
            files::remove(&aside.path)?;
        }
    }
    Ok(())
}

/// Bytes on the disk.
pub(super) fn size(folder: &Path) -> u64 {
    newest_first(folder).iter().fold(0, |sum: u64, aside| sum.saturating_add(aside.size))
}

/// Removes what was put aside first. False when there is nothing.
///
/// # Errors
/// When the disk does not let it go.
pub(super) fn remove_oldest(folder: &Path) -> io::Result<bool> {
    match newest_first(folder).last() {
        Some(oldest) => files::remove_existing(&oldest.path),
        None => Ok(false),
    }
}

fn newest_first(folder: &Path) -> Vec<Aside> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<Aside> = entries
        .flatten()
        .filter_map(|entry| {
            let found = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let (size, moved) =
                (found.blocks().saturating_mul(512), (found.ctime(), found.ctime_nsec()));
            Some(Aside { path: entry.path(), size, moved })
        })
        .collect();
    found.sort_by_key(|aside| Reverse(aside.moved));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_the_oldest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let aside = folder.path().join("quarantine");
        assert!(!remove_oldest(&aside).unwrap() && size(&aside) == 0);
        for number in 0..MOST + 3 {
            let path = folder.path().join(format!("{number:02}"));
            fs::write(&path, "x".repeat(5000)).unwrap();
            put_aside(&path, &aside).unwrap();
            // The next one is put aside at another moment, whatever the file system's clock is like.
            let moved = fs::metadata(aside.join(format!("{number:02}"))).unwrap();
            let probe = folder.path().join("probe");
            loop {
                fs::write(&probe, "").unwrap();
                let now = fs::metadata(&probe).unwrap();
                if (now.ctime(), now.ctime_nsec()) > (moved.ctime(), moved.ctime_nsec()) {
                    break;
                }
            }
        }
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(&aside).unwrap().flatten().map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        let kept = names();
        assert_eq!(
            (kept.len(), kept[0].to_str(), kept[15].to_str()),
            (MOST, Some("03"), Some("18"))
        );
        assert!(size(&aside) >= 5000 * MOST as u64);
        assert!(remove_oldest(&aside).unwrap());
        assert_eq!(names()[0].to_str(), Some("04"));
    }

    #[test]
    fn so_many_bytes_are_kept_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(folder.path().join(name), "x".repeat(4096)).unwrap();
        }
        let one = size(folder.path()) / 3;
        trim(folder.path(), MOST, one * 2).unwrap();
        assert_eq!(size(folder.path()), one * 2);
        trim(folder.path(), MOST, one - 1).unwrap();
        assert_eq!(size(folder.path()), 0);
    }
}
