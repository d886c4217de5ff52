//! A folder for one test, which the server's user can reach, and which goes away with the test.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::unistd::{User, chown, geteuid};

/// A folder that everybody may enter.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keeps_texts: bool,
}

impl Scratch {
    /// An empty folder under the system's folder for temporary files; it goes away with this value.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("offload-").tempdir();
        let path = folder.expect("cannot make a temporary folder").keep();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Self { path, keeps_texts: false }
    }

    /// This folder, emptied; configurations and logs stay when this value goes.
    pub fn at(path: &Path) -> Self {
        let _ = fs::remove_dir_all(path);
        fs::create_dir_all(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        Self { path: path.to_owned(), keeps_texts: true }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, made when it is missing.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A folder in it that belongs to the server's user.
    pub fn folder_of_server(&self, name: &str) -> PathBuf {
        let path = self.folder(name);
        if let Some(user) = server_user() {
            chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        }
        path
    }

    /// A text file in it.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A copy of a program or module where the server's user can reach it.
    ///
    /// Another process makes it: had this one the file open for writing while another thread starts a
    /// child, the program could not be executed ("text file busy").
    pub fn install(&self, file: &Path, name: &str) -> PathBuf {
        let path = self.path().join(name);
        let linked = fs::hard_link(file, &path).is_ok();
        if !linked {
            let copied = Command::new("cp").arg("-L").arg(file).arg(&path).status().unwrap();
            assert!(copied.success(), "cannot copy {}", file.display());
        }
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let clear = || {
            if !self.keeps_texts {
                return fs::remove_dir_all(&self.path);
            }
            for entry in fs::read_dir(&self.path)?.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    fs::remove_dir_all(path)?;
                } else if path.extension().is_none_or(|kind| kind != "conf" && kind != "log") {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        // A program that was just stopped may still be writing, so one attempt may not be enough.
        for _ in 0..1000 {
            match clear() {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
        eprintln!("cannot remove {}", self.path.display());
    }
}

/// Whether httpd's children can reach this folder, as far as the permissions of its parents go.
pub fn reachable_by_server(path: &Path) -> bool {
    let Some(user) = server_user() else { return true };
    path.ancestors().filter_map(|folder| folder.metadata().ok()).all(|folder| {
        folder.permissions().mode() & 0o001 != 0
            || (folder.uid() == user.uid.as_raw() && folder.permissions().mode() & 0o100 != 0)
    })
}

/// The user as whom httpd's children run; none when we are not root: then it is ourselves.
pub fn server_user() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    let found = ["www-data", "apache", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten());
    Some(found.expect("there is no user www-data, apache or nobody to run httpd's children as"))
}
