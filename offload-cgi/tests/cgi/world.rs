//! A base whose files change, that counts what it sends, and what its clients may be sent.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub(crate) const PATHS: usize = 3;

/// xorshift64*: the same numbers for the same seed.
#[derive(Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.roll(chances) == 0
    }
}

/// A version of a file, and what the base has sent of it.
pub(crate) struct Version {
    pub(crate) body: Arc<Vec<u8>>,
    /// How often each KiB was sent.
    pub(crate) sent: Vec<u32>,
    /// Whether somebody who fetched it was killed, or the base cut off.
    pub(crate) disturbed: bool,
}

impl Version {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let length = 1 + usize::try_from(dice.roll(5 << 20)).unwrap();
        let mut body = Vec::with_capacity(length + 8);
        while body.len() < length {
            body.extend_from_slice(&dice.roll(u64::MAX).to_le_bytes()[..4]);
        }
        body.truncate(length);
        Self { sent: vec![0; length.div_ceil(1024)], body: Arc::new(body), disturbed: false }
    }
}

#[derive(Default)]
pub(crate) struct World {
    /// The versions of each path; the last is the present one.
    pub(crate) files: Mutex<Vec<Vec<Version>>>,
    pub(crate) streams: Mutex<HashMap<u64, TcpStream>>,
    pub(crate) down: AtomicBool,
    pub(crate) heads: AtomicU64,
    pub(crate) gets: AtomicU64,
}

impl World {
    /// One with its first files.
    pub(crate) fn new(dice: &mut Dice) -> Arc<Self> {
        let world = Self::default();
        let files = (0..PATHS).map(|_| vec![Version::new(dice)]).collect();
        *world.files.lock().unwrap() = files;
        Arc::new(world)
    }

    /// Changes a file. Its fills break off: what was under way is sent again by whoever asks for it next.
    pub(crate) fn change(&self, dice: &mut Dice, disturbed: bool) {
        let path = usize::try_from(dice.roll(PATHS as u64)).unwrap();
        let version = Version::new(dice);
        let mut files = self.files.lock().unwrap();
        files[path].iter_mut().for_each(|version| version.disturbed = true);
        files[path].push(Version { disturbed, ..version });
    }

    fn etag(path: usize, version: usize) -> String {
        format!("\"{path}-{version}\"")
    }

    /// Closes every connection of the base.
    pub(crate) fn cut(&self) {
        for (_, stream) in self.streams.lock().unwrap().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn disturb(&self) {
        for version in self.files.lock().unwrap().iter_mut().flatten() {
            version.disturbed = true;
        }
    }

    fn serve(&self, mut stream: TcpStream, mut dice: Dice) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let field = |name: &str| {
            head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
        };
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let path: usize = target.trim_start_matches('/').parse().unwrap();
        let (version, body) = {
            let files = self.files.lock().unwrap();
            (files[path].len() - 1, Arc::clone(&files[path].last().unwrap().body))
        };
        let etag = Self::etag(path, version);
        let common = format!(
            "Date: Sun, 06 Nov 1994 09:00:00 GMT\r\nETag: {etag}\r\nAccept-Ranges: bytes\r\nConnection: close\r\n"
        );
        if field("if-match").is_some_and(|wanted| wanted != etag) {
            return write!(stream, "HTTP/1.1 412 X\r\n{common}Content-Length: 0\r\n\r\n");
        }
        let (mut first, mut end, mut status, mut extra) = (0, body.len(), 200, String::new());
        if let Some(range) = field("range") {
            let (from, to) = range["bytes=".len()..].split_once('-').unwrap();
            (first, end) = (from.parse().unwrap(), to.parse::<usize>().unwrap() + 1);
            status = 206;
            extra = format!("Content-Range: bytes {first}-{}/{}\r\n", end - 1, body.len());
        }
        write!(
            stream,
            "HTTP/1.1 {status} X\r\n{common}{extra}Content-Length: {}\r\n\r\n",
            end - first
        )?;
        if method == "HEAD" {
            self.heads.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.gets.fetch_add(1, Ordering::Relaxed);
        let slow = dice.roll(4);
        while first < end {
            let next = end.min(first + 1 + usize::try_from(dice.roll(200_000)).unwrap());
            {
                let mut files = self.files.lock().unwrap();
                let version = &mut files[path][version];
                // Pieces of a KiB at the ends of stretches belong to two of them: they are counted at their end.
                for counted in first.div_ceil(1024)..next.div_ceil(1024) {
                    version.sent[counted] += 1;
                }
            }
            stream.write_all(&body[first..next])?;
            first = next;
            thread::sleep(Duration::from_millis(slow));
        }
        Ok(())
    }
}

pub(crate) fn start(world: &Arc<World>, mut dice: Dice) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let world = Arc::clone(world);
    thread::spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming().flatten()) {
            if world.down.load(Ordering::SeqCst) {
                continue;
            }
            let (world, dice) = (Arc::clone(&world), Dice(dice.roll(u64::MAX) | 1));
            world.streams.lock().unwrap().insert(number, stream.try_clone().unwrap());
            thread::spawn(move || {
                let _ = world.serve(stream, dice);
                world.streams.lock().unwrap().remove(&number);
            });
        }
    });
    port
}

/// What a client got: compared with the version that its ETag names. Returns how much it is, and whether it is all.
pub(crate) fn check(
    world: &World,
    path: usize,
    status: &str,
    head: &str,
    body: &[u8],
) -> (u64, bool) {
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    if !matches!(status, "200" | "206") {
        assert!(matches!(status, "416" | "502" | "503" | "504"), "{head}");
        return (0, false);
    }
    let etag = field("ETag").unwrap();
    let (of, version) = etag.trim_matches('"').split_once('-').unwrap();
    assert_eq!(of, path.to_string(), "another file's: {head}");
    let first: usize = field("Content-Range").map_or(0, |range| {
        let numbers = range.strip_prefix("bytes ").unwrap();
        numbers.split('-').next().unwrap().parse().unwrap()
    });
    let wanted =
        Arc::clone(&world.files.lock().unwrap()[path][version.parse::<usize>().unwrap()].body);
    assert!(wanted[first..].starts_with(body), "wrong bytes: {head}");
    let length: usize = field("Content-Length").unwrap().parse().unwrap();
    (body.len() as u64, body.len() == length)
}

/// The bytes of a head and of what follows it.
pub(crate) fn parted(reply: &[u8]) -> Option<(String, &[u8])> {
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((String::from_utf8_lossy(&reply[..end]).into_owned(), &reply[end + 4..]))
}

/// Where nothing was killed, cut off or changed, nothing was fetched twice. Returns the KiB that the base has sent, and
/// how many of them again.
pub(crate) fn fetched(world: &World) -> (u64, u64) {
    let (mut fetched, mut twice) = (0u64, 0u64);
    for (path, versions) in world.files.lock().unwrap().iter().enumerate() {
        for (number, version) in versions.iter().enumerate() {
            let again: u32 = version.sent.iter().map(|times| times.saturating_sub(1)).sum();
            assert!(version.disturbed || again == 0, "{again} KiB of {path}-{number} sent twice");
            twice += u64::from(again);
            fetched += version.sent.iter().map(|times| u64::from(*times)).sum::<u64>();
        }
    }
    (fetched, twice)
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}
