//! A daemon for tests, and bare connections to it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::base::Base;

/// How long a test waits for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_offload-cgi");

/// A daemon, with a folder of its own.
pub(crate) struct Daemon {
    pub(crate) folder: tempfile::TempDir,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    pub(crate) address: SocketAddr,
    /// Where its admin pages are, if they are anywhere.
    pub(crate) admin: Option<SocketAddr>,
}

/// Starts one that serves this base with these lines in its file; `{folder}` is its folder.
pub(crate) fn start(base: &Base, lines: &str) -> Daemon {
    start_in(configured(base, lines), |_| {})
}

/// The same, but unless the lines say otherwise a client has one download of a file at a time.
pub(crate) fn start_counting(base: &Base, lines: &str) -> Daemon {
    start_with(&settings(base, lines))
}

/// The folder of one that would be started with `start`.
pub(crate) fn configured(base: &Base, lines: &str) -> tempfile::TempDir {
    configured_with(&settings(base, &format!("max-dupes = 0\n{lines}")))
}

fn settings(base: &Base, lines: &str) -> String {
    format!(
        "listen = 127.0.0.1:0\nbase = http://base.test\nbase-address = 127.0.0.1:{}\n\
         cache = {{folder}}/cache\nkeep-free = 0\n{lines}",
        base.port
    )
}

/// Starts one with this file.
pub(crate) fn start_with(text: &str) -> Daemon {
    start_in(configured_with(text), |_| {})
}

fn configured_with(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = text.replace("{folder}", &folder.path().display().to_string());
    fs::write(folder.path().join("offload.conf"), text).unwrap();
    folder
}

/// Starts one with the file of a folder; `change` is for what else the command has.
pub(crate) fn start_in(folder: tempfile::TempDir, change: impl FnOnce(&mut Command)) -> Daemon {
    let (child, lines) = spawn(folder.path(), change);
    let mut daemon =
        Daemon { folder, child, lines, address: ([127, 0, 0, 1], 0).into(), admin: None };
    daemon.learn();
    daemon
}

fn spawn(folder: &Path, change: impl FnOnce(&mut Command)) -> (Child, Arc<Mutex<Vec<String>>>) {
    let mut command = Command::new(PROGRAM);
    command
        .args(["serve", "--config"])
        .arg(folder.join("offload.conf"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    change(&mut command);
    let mut child = command.spawn().unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let (errors, all) = (child.stderr.take().unwrap(), Arc::clone(&lines));
    thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            all.lock().unwrap().push(line);
        }
    });
    (child, lines)
}

fn last_address(line: &str) -> Option<SocketAddr> {
    line.split(' ').find_map(|word| word.parse().ok())
}

impl Daemon {
    /// Learns where it is.
    fn learn(&mut self) {
        let serves = eventually("it serves", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {:?}", self.lines());
            }
            self.lines().into_iter().find(|line| line.contains("serves on "))
        });
        self.address = last_address(&serves).unwrap_or(self.address);
        if fs::read_to_string(self.path("offload.conf")).unwrap().contains("admin") {
            self.admin = last_address(&self.wait_for_line("admin on "));
        }
    }

    /// Kills it, and starts another one with the same file.
    pub(crate) fn kill_and_start(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        (self.child, self.lines) = spawn(self.folder.path(), |_| {});
        self.learn();
    }

    /// The first line of its error log with these words.
    pub(crate) fn wait_for_line(&self, words: &str) -> String {
        eventually(words, || self.lines().into_iter().find(|line| line.contains(words)))
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id()), signal).unwrap();
    }

    /// Waits for its end, and says whether it was content.
    pub(crate) fn wait(&mut self) -> bool {
        eventually("the daemon ends", || self.child.try_wait().unwrap()).success()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::new(TcpStream::connect(self.address).unwrap())
    }

    /// A connection with a small buffer: what the client does not read stays with the daemon.
    pub(crate) fn connect_slow(&self) -> Connection {
        let SocketAddr::V4(address) = self.address else { panic!("{}", self.address) };
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(64 << 10))
            .unwrap();
        let address = nix::sys::socket::SockaddrIn::from(address);
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&socket);
        nix::sys::socket::connect(descriptor, &address).unwrap();
        Connection::new(TcpStream::from(socket))
    }

    /// GETs a path over a connection of its own.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.connect().get(path)
    }

    /// What an admin page says.
    pub(crate) fn look(&self, page: &str) -> Answer {
        Connection::new(TcpStream::connect(self.admin.unwrap()).unwrap()).get(page)
    }

    /// A line of /proc/PID/status, as a number.
    pub(crate) fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Changes its file.
    pub(crate) fn configure(&self, change: impl FnOnce(String) -> String) {
        let path = self.path("offload.conf");
        let text = change(fs::read_to_string(&path).unwrap());
        fs::write(path, text).unwrap();
    }

    /// The processes that fill its cache.
    pub(crate) fn fillers(&self) -> Vec<i32> {
        let wanted = format!("OFFLOAD_CACHE={}\0", self.path("cache").display());
        let is_filler = |entry: &fs::DirEntry| {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            words.split(|byte| *byte == 0).nth(1) == Some(b"fill")
                && String::from_utf8_lossy(&environment).contains(&wanted)
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().filter(is_filler);
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Waits until no process fills its cache.
    pub(crate) fn settle(&self) {
        eventually("nobody fills the cache", || self.fillers().is_empty().then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !thread::panicking() {
            self.settle();
        }
    }
}

/// A process that has taken over from a daemon, and goes with its test.
pub(crate) struct Successor(pub(crate) i32);

impl Successor {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0), signal).unwrap();
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // Most have ended by now.
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> &str {
        let found = self.fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// A number of an admin page in JSON.
    pub(crate) fn number(&self, name: &str) -> u64 {
        let text = self.text();
        let (_, rest) =
            text.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{text}"));
        rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
    }
}

/// A connection on which a test writes what it likes.
pub(crate) struct Connection {
    pub(crate) stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(text.as_ref()).unwrap();
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: base.test\r\n\r\n"));
        self.receive()
    }

    /// One head.
    pub(crate) fn head(&mut self) -> Answer {
        self.try_head().expect("no head came")
    }

    pub(crate) fn try_head(&mut self) -> Option<Answer> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines.remove(0).split(' ').nth(1)?.parse().ok()?;
        let field = |line: String| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_owned(), value.to_owned()))
        };
        Some(Answer {
            status,
            fields: lines.into_iter().filter_map(field).collect(),
            body: Vec::new(),
        })
    }

    /// One answer, with a body as long as it says.
    pub(crate) fn receive(&mut self) -> Answer {
        let mut answer = self.head();
        let length = answer.field("Content-Length").parse().unwrap_or(0);
        answer.body = self.read(if answer.status == 304 { 0 } else { length });
        answer
    }

    pub(crate) fn read(&mut self, length: usize) -> Vec<u8> {
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        body
    }

    /// Everything up to the end of the connection.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }

    /// Whether the other side has ended the connection; waits until it has, or has sent something.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.stream.fill_buf().is_ok_and(<[u8]>::is_empty)
    }
}

/// Waits for a condition, and returns what it found.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A command whose process goes with the test's.
pub(crate) fn client(program: &str) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null()).env_clear().env("PATH", "/usr/bin:/bin");
    command
}
