//! An offload host for tests: a cache folder, settings, and one process of the program per request.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::base::Base;

pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) settings: BTreeMap<String, String>,
    /// What a shell does before it becomes the program.
    pub(crate) wrapper: Option<&'static str>,
    /// The program's arguments.
    pub(crate) arguments: Vec<String>,
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_offload-cgi");

/// A reply as the CGI wrote it, and what became of the process.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) log: String,
    pub(crate) success: bool,
}

/// A request under way.
pub(crate) struct Running {
    child: Child,
    out: ChildStdout,
}

impl Host {
    pub(crate) fn new(base: &Base) -> Self {
        Self::of(base.port)
    }

    /// A host of the base that listens on this port.
    pub(crate) fn of(port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache").display().to_string();
        let settings = [
            ("OFFLOAD_BASE", "http://base.test".to_owned()),
            ("OFFLOAD_BASE_ADDRESS", format!("127.0.0.1:{port}")),
            ("OFFLOAD_CACHE", cache),
            ("OFFLOAD_KEEP_FREE", "0".to_owned()),
            ("OFFLOAD_FRESH", "0".to_owned()),
            ("OFFLOAD_MAX_DUPES", "0".to_owned()),
            ("OFFLOAD_TIMEOUT", "20s".to_owned()),
        ];
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { folder, settings, wrapper: None, arguments: Vec::new() }
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let reply = self.ask("GET", path, headers).end();
        self.settle();
        reply
    }

    pub(crate) fn head(&self, path: &str) -> Reply {
        self.ask("HEAD", path, &[]).end()
    }

    /// Starts a request, as httpd does.
    pub(crate) fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Running {
        let mut command = match &self.wrapper {
            None => Command::new(PROGRAM),
            Some(script) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("{script}; exec \"$0\""), PROGRAM]);
                shell
            }
        };
        command
            .args(&self.arguments)
            .env_clear()
            .env("GATEWAY_INTERFACE", "CGI/1.1")
            .env("REQUEST_METHOD", method)
            .env("REQUEST_URI", target)
            .env("SERVER_PROTOCOL", "HTTP/1.1")
            .env("REMOTE_ADDR", "192.0.2.7")
            .envs(&self.settings)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in headers {
            match name.strip_prefix('$') {
                Some(variable) => command.env(variable, value),
                None => {
                    command.env(format!("HTTP_{}", name.to_uppercase().replace('-', "_")), value)
                }
            };
        }
        let mut child = command.spawn().unwrap();
        let out = child.stdout.take().unwrap();
        Running { child, out }
    }

    /// The files of the cache with this ending.
    pub(crate) fn files(&self, ending: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.cache(), &mut found);
        found.retain(|path| path.extension() == Some(OsStr::new(ending)));
        found
    }

    /// Waits until nobody fills this cache: a client has its last byte before the filler has published.
    pub(crate) fn settle(&self) {
        while !self.fillers().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The processes that fill this cache.
    pub(crate) fn fillers(&self) -> Vec<i32> {
        let wanted = format!("OFFLOAD_CACHE={}\0", self.cache().display());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| {
                let id = entry.file_name().to_str()?.parse().ok()?;
                let words = fs::read(entry.path().join("cmdline")).ok()?;
                let environment = fs::read(entry.path().join("environ")).ok()?;
                let is_filler = words.split(|byte| *byte == 0).nth(1) == Some(b"fill");
                let ours = String::from_utf8_lossy(&environment).contains(&wanted);
                (is_filler && ours).then_some(id)
            })
            .collect()
    }
}

/// Before the folder is removed, nobody may write into it any more.
impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            self.fillers().into_iter().for_each(|filler| kill(filler, Signal::SIGKILL));
        }
        self.settle();
    }
}

impl Running {
    /// Reads until the head and `count` bytes of the body are there.
    pub(crate) fn read_body(&mut self, count: usize) -> Vec<u8> {
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(b"\r\n\r\n") {
            self.out.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        let mut body = vec![0; count];
        self.out.read_exact(&mut body).unwrap();
        body
    }

    /// Reads `count` bytes more of the body; the head comes before the first.
    pub(crate) fn read_body_more(&mut self, count: usize, first: bool) {
        if first {
            self.read_body(count);
        } else {
            self.out.read_exact(&mut vec![0; count]).unwrap();
        }
    }

    /// The process, and what it writes.
    pub(crate) fn take_apart(self) -> (Child, ChildStdout) {
        (self.child, self.out)
    }

    /// Kills the process, which can do nothing about it.
    pub(crate) fn kill(mut self) {
        kill(i32::try_from(self.child.id()).unwrap(), Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Stops the process, which does not know.
    pub(crate) fn stop(&self) {
        kill(i32::try_from(self.child.id()).unwrap(), Signal::SIGSTOP);
    }

    /// Ends the process as httpd does when the client has gone.
    pub(crate) fn abort(mut self) {
        kill(i32::try_from(self.child.id()).unwrap(), Signal::SIGTERM);
        self.child.wait().unwrap();
    }

    /// The rest of what the process writes, until it ends, and whether it was content.
    pub(crate) fn rest(mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        self.out.read_to_end(&mut bytes).unwrap();
        (bytes, self.child.wait().unwrap().success())
    }

    /// The rest as `rest` has it, of a process that ends within `limit`; `None` when it had to be killed.
    pub(crate) fn rest_within(mut self, limit: Duration) -> Option<(Vec<u8>, bool)> {
        let (pid, begun) = (i32::try_from(self.child.id()).unwrap(), Instant::now());
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            self.out.read_to_end(&mut bytes).unwrap();
            (bytes, self.child.wait().unwrap().success())
        });
        while !reader.is_finished() && begun.elapsed() < limit {
            thread::sleep(Duration::from_millis(5));
        }
        let in_time = reader.is_finished();
        if !in_time {
            kill(pid, Signal::SIGKILL);
        }
        let rest = reader.join().unwrap();
        in_time.then_some(rest)
    }

    /// The whole reply. A process that hangs is killed, which shows.
    pub(crate) fn end(mut self) -> Reply {
        const LIMIT: Duration = Duration::from_secs(100);
        let id = i32::try_from(self.child.id()).unwrap();
        let (done, wait) = mpsc::channel::<()>();
        thread::spawn(move || {
            if wait.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                kill(id, Signal::SIGKILL);
            }
        });
        let mut bytes = Vec::new();
        self.out.read_to_end(&mut bytes).unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        drop(done);
        let success = self.child.wait().unwrap().success();
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect(&log);
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut headers: Vec<(String, String)> = head
            .split("\r\n")
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap();
                (name.to_owned(), value.to_owned())
            })
            .collect();
        let (name, status) = headers.remove(0);
        assert_eq!(name, "Status");
        let status = status.parse().unwrap();
        Reply { status, headers, body: bytes[end + 4..].to_vec(), log, success }
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} twice in {:?}", self.headers);
        value
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn cache_status(&self) -> &str {
        self.header("Cache-Status").unwrap_or("")
    }
}

/// Sends a signal; to a process that has ended meanwhile it is too late, which is no failure.
pub(crate) fn kill(id: i32, signal: Signal) {
    match nix::sys::signal::kill(Pid::from_raw(id), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("cannot signal {id}: {error}"),
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}
