//! Clients: the real curl for most, and a bare connection for what curl cannot or will not send.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use tempfile::NamedTempFile;

use crate::DEADLINE;

/// One head of an answer.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let same = |field: &&(String, String)| field.0.eq_ignore_ascii_case(name);
        self.fields.iter().find(same).map(|field| field.1.as_str())
    }

    fn parse(lines: &str) -> Self {
        let mut lines = lines.lines();
        let first = lines.next().unwrap_or_default();
        let status =
            first.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        };
        Self { status, fields: lines.filter_map(field).collect() }
    }
}

/// What came back to a client.
pub struct Answer {
    /// Every head, in the order of their coming: redirections first, the final one last.
    pub heads: Vec<Head>,
    /// The client's exit code; 0 is success.
    pub exit: i32,
    /// What the client said about its failure.
    pub complaint: String,
    /// Marks the request in the access log.
    pub(crate) id: String,
    body: NamedTempFile,
}

impl Answer {
    /// The last head.
    pub fn head(&self) -> &Head {
        self.heads.last().unwrap_or_else(|| panic!("no answer came: {}", self.complaint))
    }

    /// The last status.
    pub fn status(&self) -> u16 {
        self.head().status
    }

    /// A header field of the last head; empty when it is not there.
    pub fn field(&self, name: &str) -> &str {
        self.head().field(name).unwrap_or_default()
    }

    /// The Location field.
    pub fn location(&self) -> &str {
        self.field("location")
    }

    /// The body.
    pub fn body(&self) -> Vec<u8> {
        fs::read(self.body.path()).unwrap()
    }

    /// The body as a file.
    pub fn file(&self) -> &Path {
        self.body.path()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let beginning = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        write!(
            f,
            "exit {} {:?} {:?} {} bytes: {beginning:?}",
            self.exit,
            self.complaint,
            self.heads,
            body.len()
        )
    }
}

/// A request made by curl; nothing of the user's own configuration counts.
#[derive(Debug)]
pub struct Curl {
    command: Command,
    url: String,
    id: String,
}

impl Curl {
    /// A GET of this URL, without following redirections.
    pub fn new(url: impl Into<String>) -> Self {
        static REQUESTS: AtomicU64 = AtomicU64::new(0);
        let id = format!("{}-{}", std::process::id(), REQUESTS.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("curl");
        // -q must come first.
        command.args([
            "-q",
            "-sS",
            "--globoff",
            "--path-as-is",
            "--noproxy",
            "*",
            "--max-time",
            "120",
        ]);
        command.arg("-H").arg(format!("X-Request: {id}"));
        Self { command, url: url.into(), id }
    }

    /// Follows redirections.
    #[must_use]
    pub fn follow(self) -> Self {
        self.arg("-L")
    }

    /// Another header field, as `Name: value`.
    #[must_use]
    pub fn header(self, field: &str) -> Self {
        self.arg("-H").arg(field)
    }

    /// Comes from this address.
    #[must_use]
    pub fn from(self, address: &str) -> Self {
        self.arg("--interface").arg(address)
    }

    /// Asks with another method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        if method == "HEAD" { self.arg("-I") } else { self.arg("-X").arg(method) }
    }

    /// Asks for a part, as in `0-99`.
    #[must_use]
    pub fn range(self, range: &str) -> Self {
        self.arg("-r").arg(range)
    }

    /// Another argument of curl.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    /// Starts the request; `Running::wait` has the answer. Many of them run at the same time.
    pub fn start(mut self) -> Running {
        let heads = NamedTempFile::new().unwrap();
        let body = NamedTempFile::new().unwrap();
        self.command.arg("-D").arg(heads.path()).arg("-o").arg(body.path()).arg(&self.url);
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = self.command.spawn().expect("cannot start curl: install it");
        Running { child, heads, body, id: self.id }
    }

    /// Makes the request. Whether it went well is in the answer.
    pub fn attempt(self) -> Answer {
        self.start().wait()
    }

    /// Makes the request; it must get an answer.
    pub fn run(self) -> Answer {
        let url = self.url.clone();
        let answer = self.attempt();
        assert!(answer.exit == 0, "curl {url}: {answer:?}");
        answer
    }
}

/// A curl that works.
#[derive(Debug)]
pub struct Running {
    child: Child,
    heads: NamedTempFile,
    body: NamedTempFile,
    id: String,
}

impl Running {
    /// Ends it in the middle, as a user does who has lost patience.
    pub fn abort(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub fn wait(self) -> Answer {
        let output = self.child.wait_with_output().unwrap();
        let heads = fs::read(self.heads.path()).unwrap();
        let heads = String::from_utf8_lossy(&heads).into_owned();
        Answer {
            heads: heads
                .split("\r\n\r\n")
                .filter(|head| !head.is_empty())
                .map(Head::parse)
                .collect(),
            exit: output.status.code().unwrap_or(-1),
            complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            id: self.id,
            body: self.body,
        }
    }
}

/// A connection on which a test writes what it likes.
#[derive(Debug)]
pub struct Raw {
    pub(crate) reader: BufReader<TcpStream>,
    /// What stands between the test and the server.
    _between: Option<Between>,
}

/// A program that speaks TLS for a test, and ends with the connection.
#[derive(Debug)]
pub(crate) struct Between(pub(crate) Child);

impl Drop for Between {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The largest segment of a connection over Ethernet.
pub(crate) const ETHERNET: u32 = 1448;

impl Raw {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address)
            .unwrap_or_else(|error| panic!("connecting to {address}: {error}"))
    }

    /// Connects, if somebody listens.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        Self::over(TcpStream::connect(address)?)
    }

    /// Connects from this address, with a small buffer: what the client does not read stays with the
    /// server.
    pub fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Self {
        Self::connect_with(source, address, 32 << 10)
    }

    /// The same with a buffer of so many bytes.
    pub fn connect_with(source: Ipv4Addr, address: SocketAddr, buffer: usize) -> Self {
        dial(source, address, Some(buffer))
            .and_then(Self::over)
            .unwrap_or_else(|error| panic!("{source} to {address}: {error}"))
    }

    pub(crate) fn over(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream), _between: None })
    }

    /// A connection to a program that stands between the test and the server.
    pub(crate) fn through(stream: TcpStream, program: Between) -> std::io::Result<Self> {
        Ok(Self { _between: Some(program), ..Self::over(stream)? })
    }

    /// Sends these bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends these bytes, if the other side is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    /// Reads one answer: its head, and its body by Content-Length, in chunks, or to the end.
    pub fn receive(&mut self) -> (Head, Vec<u8>) {
        self.try_receive().unwrap_or_else(|error| panic!("reading an answer: {error}"))
    }

    /// Reads one answer, if there is a whole one.
    ///
    /// # Errors
    /// What the kernel said, or that the connection ended too early.
    pub fn try_receive(&mut self) -> std::io::Result<(Head, Vec<u8>)> {
        let head = self.try_receive_head()?;
        let body = self.try_receive_body(&head)?;
        Ok((head, body))
    }

    /// Reads the head of an answer, and nothing of its body.
    ///
    /// # Errors
    /// What the kernel said, or that the connection ended too early.
    pub fn try_receive_head(&mut self) -> std::io::Result<Head> {
        let mut lines = Vec::new();
        while !lines.ends_with(b"\r\n\r\n") {
            if self.reader.read_until(b'\n', &mut lines)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Head::parse(&String::from_utf8_lossy(&lines)))
    }

    /// Reads the body that belongs to a head.
    ///
    /// # Errors
    /// What the kernel said, or that the connection ended too early.
    pub fn try_receive_body(&mut self, head: &Head) -> std::io::Result<Vec<u8>> {
        body_of(&mut self.reader, head)
    }

    /// Reads everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// GETs a path on this connection and keeps the connection.
    pub fn get(&mut self, path: &str) -> (Head, Vec<u8>) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: base.test\r\n\r\n"));
        self.receive()
    }

    /// The Location that a GET of each path leads to, all on this connection.
    pub fn locations(&mut self, paths: &[String]) -> Vec<String> {
        let location = |path: &String| {
            let (head, _) = self.get(path);
            assert_eq!(head.status, 307, "{path}");
            head.field("location").unwrap().to_owned()
        };
        paths.iter().map(location).collect()
    }

    /// Which bytes come next, whatever they are.
    ///
    /// # Errors
    /// What the kernel said, or that the connection ended too early.
    pub fn read_exactly(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// How many bytes have come and were not read, of at most 1 MB; waits for the first one.
    pub fn waiting(&mut self) -> usize {
        let mut bytes = vec![0; 1 << 20];
        let buffered = self.reader.buffer().len();
        buffered + self.reader.get_ref().peek(&mut bytes).unwrap()
    }

    /// Takes in no more than this before it reads, from now on.
    pub fn shrink_buffer(&mut self, bytes: usize) {
        setsockopt(self.reader.get_ref(), sockopt::RcvBuf, &bytes).unwrap();
    }

    /// Tells the other side that nothing more will be sent.
    pub fn say_no_more(&mut self) {
        self.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// Waits no longer than this for more bytes.
    pub fn wait_at_most(&mut self, time: Duration) {
        self.reader.get_ref().set_read_timeout(Some(time)).unwrap();
    }

    /// The client's end of the connection.
    pub fn local(&self) -> SocketAddr {
        self.reader.get_ref().local_addr().unwrap()
    }

    /// Whether the other side has ended the connection; waits until it does or sends something.
    pub fn ended(&mut self) -> bool {
        self.reader.fill_buf().is_ok_and(<[u8]>::is_empty)
    }
}

/// Connects from an address. The segments are as large as on Ethernet: on loopback they have 64 KB, and as
/// the kernel never paces the first ten of a connection, half a megabyte would come at full speed.
pub(crate) fn dial(
    source: Ipv4Addr,
    address: SocketAddr,
    buffer: Option<usize>,
) -> std::io::Result<TcpStream> {
    let SocketAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(buffer) = buffer {
        setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
    }
    setsockopt(&socket, sockopt::TcpMaxSeg, &ETHERNET)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(socket.into())
}

/// Reads the body that belongs to a head: by Content-Length, in chunks, or to the end.
pub(crate) fn body_of(reader: &mut impl BufRead, head: &Head) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if head.status == 304 || head.status == 204 {
    } else if let Some(length) = head.field("content-length") {
        body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body)?;
    } else if head.field("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16)
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))?;
            let read = Read::take(&mut *reader, size).read_to_end(&mut body)?;
            if u64::try_from(read).ok() != Some(size) {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(body)
}
