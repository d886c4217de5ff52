//! No-cache mode: a folder that somebody else keeps like the base's.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use offload_core::path::CanonicalPath;

use crate::representation::Representation;

/// Opens a file below the folder, if it is the version that `found` describes: as long, and as old.
///
/// Nothing outside of the folder is opened, whatever links there are in it: the kernel sees to that
/// (`RESOLVE_BENEATH`).
pub(crate) fn open(root: &Path, path: &CanonicalPath, found: &Representation) -> Option<File> {
    let file = open_beneath(root, path.as_str()).ok()?;
    let metadata = file.metadata().ok()?;
    let modified = found.validators.modified.as_ref()?.time();
    let same_second = metadata.modified().ok()?.duration_since(modified).ok()?.as_secs() == 0;
    (metadata.is_file() && metadata.size() == found.length && same_second).then_some(file)
}

fn open_beneath(root: &Path, path: &str) -> io::Result<File> {
    let folder = File::open(root)?;
    let name = decode(path.trim_start_matches('/'));
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(File::from(openat2(&folder, name.as_slice(), how)?))
}

/// The bytes that a canonical path stands for: each `%XX` in it is complete.
fn decode(path: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_of_the_folder_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("www");
        fs::create_dir_all(root.join("a b")).unwrap();
        fs::write(root.join("a b/ü"), "in").unwrap();
        fs::write(folder.path().join("secret"), "out").unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("a b", root.join("inner")).unwrap();
        for (path, opens) in [
            ("/a%20b/%C3%BC", true),
            ("/inner/%C3%BC", true),
            ("/up", false),
            ("/absolute", false),
            ("/../secret", false),
            ("/missing", false),
            ("/", false),
        ] {
            assert_eq!(open_beneath(&root, path).is_ok(), opens, "{path}");
        }
    }
}
