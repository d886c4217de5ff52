//! What all servers of a run serve: one large file under many names, and a small one.

use std::fs::{self, File};
use std::path::PathBuf;

use offload_tests::{Scratch, age};

/// A document root that the servers share, so that each finds the file in memory.
pub(crate) struct Site {
    scratch: Scratch,
}

impl Site {
    /// Has a file of so many zeros, which takes no room on the disk, as `big` in each of these folders, and
    /// one of six bytes, `/small`.
    pub(crate) fn new(size: u64, folders: &[&str]) -> Self {
        let site = Self { scratch: Scratch::new() };
        let big = site.scratch.path().join("big");
        File::create(&big).unwrap().set_len(size).unwrap();
        age(&big);
        std::io::copy(&mut File::open(&big).unwrap(), &mut std::io::sink()).unwrap();
        for folder in folders {
            fs::create_dir_all(site.root().join(folder)).unwrap();
            fs::hard_link(&big, site.root().join(folder).join("big")).unwrap();
        }
        fs::write(site.root().join("small"), "hello\n").unwrap();
        age(&site.root().join("small"));
        site
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.scratch.path().join("www")
    }
}
