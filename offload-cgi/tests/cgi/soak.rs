//! Clients of every kind while fillers, programs and the base are killed and files change: no wrong byte is
//! served, and none is fetched twice unless something was killed.
//!
//! `SOAK_ROUNDS` (20) is how long it goes on, `SOAK_SEED` repeats a run.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ChildStdout;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::host::{Host, kill};

const PATHS: usize = 3;

/// xorshift64*: the same numbers for the same seed.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.roll(chances) == 0
    }
}

/// A version of a file, and what the base has sent of it.
struct Version {
    body: Arc<Vec<u8>>,
    /// How often each KiB was sent.
    sent: Vec<u32>,
    /// Whether somebody who fetched it was killed, or the base cut off.
    disturbed: bool,
}

impl Version {
    fn new(dice: &mut Dice) -> Self {
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
struct World {
    /// The versions of each path; the last is the present one.
    files: Mutex<Vec<Vec<Version>>>,
    streams: Mutex<HashMap<u64, TcpStream>>,
    down: AtomicBool,
    heads: AtomicU64,
    gets: AtomicU64,
}

impl World {
    fn etag(path: usize, version: usize) -> String {
        format!("\"{path}-{version}\"")
    }

    /// Closes every connection of the base.
    fn cut(&self) {
        for (_, stream) in self.streams.lock().unwrap().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn disturb(&self) {
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

fn start(world: &Arc<World>, mut dice: Dice) -> u16 {
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

/// What a client got: compared with the version that its ETag names.
fn check(world: &World, path: usize, reply: &[u8]) -> (u64, bool) {
    let Some(end) = reply.windows(4).position(|window| window == b"\r\n\r\n") else {
        return (0, false);
    };
    let head = String::from_utf8_lossy(&reply[..end]).into_owned();
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    let status = field("Status").unwrap();
    if !matches!(status.as_str(), "200" | "206") {
        assert!(matches!(status.as_str(), "416" | "502" | "503" | "504"), "{head}");
        return (0, false);
    }
    let body = &reply[end + 4..];
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

/// Reads everything a client is sent, or stops in the middle.
fn read(mut out: ChildStdout, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = out.by_ref().take(limit).read_to_end(&mut bytes);
    bytes
}

#[test]
fn no_wrong_byte_is_served_and_none_is_fetched_twice_whatever_is_killed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let rounds: u64 = number("SOAK_ROUNDS").unwrap_or(20);
    let seed = number("SOAK_SEED").unwrap_or(u64::from(std::process::id()) | 1);
    println!("SOAK_SEED={seed}");
    let mut dice = Dice(seed);
    let world = Arc::new(World::default());
    let files = (0..PATHS).map(|_| vec![Version::new(&mut dice)]).collect();
    *world.files.lock().unwrap() = files;
    let port = start(&world, dice.clone());
    let mut host = Host::of(port);
    host.set("OFFLOAD_TIMEOUT", "5s");
    let (mut clients, mut whole, mut bytes, mut kills, mut cuts) = (0u64, 0u64, 0u64, 0u64, 0u64);
    for round in 0..rounds {
        // Half of the rounds are peaceful, so that what is fetched twice without need is seen.
        let peaceful = round % 2 == 0;
        if !peaceful {
            world.disturb();
        }
        let running: Vec<_> = (0..1 + dice.roll(6))
            .map(|_| {
                let path = usize::try_from(dice.roll(PATHS as u64)).unwrap();
                let length = world.files.lock().unwrap()[path].last().unwrap().body.len() as u64;
                let (one, other) = (dice.roll(length), dice.roll(length));
                let range = format!("bytes={}-{}", one.min(other), one.max(other));
                let tail = format!("bytes=-{}", one + 1);
                let headers: Vec<(&str, &str)> = match dice.roll(3) {
                    0 => vec![],
                    1 => vec![("Range", range.as_str())],
                    _ => vec![("Range", tail.as_str())],
                };
                let (child, out) = host.ask("GET", &format!("/{path}"), &headers).take_apart();
                let limit = if dice.one_in(4) { dice.roll(length) } else { u64::MAX };
                let id = i32::try_from(child.id()).unwrap();
                (path, child, id, thread::spawn(move || read(out, limit)))
            })
            .collect();
        thread::sleep(Duration::from_millis(dice.roll(30)));
        if dice.one_in(3) {
            let path = usize::try_from(dice.roll(PATHS as u64)).unwrap();
            let version = Version::new(&mut dice);
            let mut files = world.files.lock().unwrap();
            // Its fills break off: what was under way is sent again by whoever asks for it next.
            files[path].iter_mut().for_each(|version| version.disturbed = true);
            files[path].push(version);
            files[path].last_mut().unwrap().disturbed = !peaceful;
        }
        if !peaceful {
            match dice.roll(4) {
                0 => {
                    let fillers = host.fillers();
                    kills += fillers.len() as u64;
                    fillers.into_iter().for_each(|id| kill(id, Signal::SIGKILL));
                }
                1 => {
                    let victim = usize::try_from(dice.roll(running.len() as u64)).unwrap();
                    kills += 1;
                    kill(running[victim].2, Signal::SIGKILL);
                }
                2 => {
                    cuts += 1;
                    world.cut();
                }
                _ => {
                    cuts += 1;
                    world.down.store(true, Ordering::SeqCst);
                    world.cut();
                    thread::sleep(Duration::from_millis(dice.roll(300)));
                    world.down.store(false, Ordering::SeqCst);
                }
            }
        }
        for (path, mut child, _, reader) in running {
            let reply = reader.join().unwrap();
            // Whoever is not read from any more ends by itself.
            child.wait().unwrap();
            let (received, complete) = check(&world, path, &reply);
            clients += 1;
            whole += u64::from(complete);
            bytes += received;
        }
        host.settle();
    }
    let (mut fetched, mut twice) = (0u64, 0u64);
    for (path, versions) in world.files.lock().unwrap().iter().enumerate() {
        for (number, version) in versions.iter().enumerate() {
            let again: u32 = version.sent.iter().map(|times| times.saturating_sub(1)).sum();
            assert!(version.disturbed || again == 0, "{again} KiB of {path}-{number} sent twice");
            twice += u64::from(again);
            fetched += version.sent.iter().map(|times| u64::from(*times)).sum::<u64>();
        }
    }
    println!(
        "{rounds} rounds, {clients} clients, {whole} complete, {bytes} bytes served and compared, 0 wrong; \
         {kills} kills, {cuts} cuts of the base, {} HEADs, {} GETs, {fetched} KiB sent by the base, {twice} KiB of \
         them twice, all of these after a kill, a cut or a change",
        world.heads.load(Ordering::Relaxed),
        world.gets.load(Ordering::Relaxed),
    );
}
