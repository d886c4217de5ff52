//! A crowd that waits for one cold file: how often it is fetched, and when each has its first byte.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use offload_tests::load::median;
use offload_tests::{DaemonSetup, Origin, Request, Scratch};

use crate::{number, program};

/// What the base has seen and may do.
#[derive(Default)]
struct Base {
    /// Whether it may send the first bytes.
    released: AtomicBool,
    gets: AtomicUsize,
    sent: Mutex<Option<Instant>>,
}

impl Base {
    /// A base with a file of 100 MB, of which it sends 1,000 bytes when it is released.
    fn start(self: &Arc<Self>) -> Origin {
        let base = Arc::clone(self);
        Origin::start(move |request: &Request, stream| {
            let length = 100 << 20;
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"one\"\r\nConnection: close\r\n\r\n"
            );
            if request.method == "GET" {
                base.gets.fetch_add(1, Ordering::SeqCst);
                while !base.released.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
                *base.sent.lock().unwrap() = Some(Instant::now());
                let _ = stream.write_all(&[b'x'; 1000]);
                // What follows is not what is measured; the clients are gone by then.
                thread::sleep(Duration::from_secs(20));
            }
        })
    }
}

/// What the clients of one round have seen.
struct Seen {
    gets: f64,
    /// Milliseconds from the base's first byte to that of each, in order.
    delays: Vec<f64>,
}

/// What serves the clients, and one round of it.
type Kind = (&'static str, fn(usize) -> Seen);

pub(crate) fn run() {
    let clients = number("BENCH_CLIENTS", 1000);
    println!(
        "\n{clients} clients of a cold file of 100 MB, from the base's first byte to theirs (wanted: 1 GET, 5 ms):"
    );
    let kinds: [Kind; 2] = [("a process each (CGI)", processes), ("the daemon", connections)];
    for (name, kind) in kinds {
        let rounds: Vec<Seen> = (0..number("BENCH_ROUNDS", 5)).map(|_| kind(clients)).collect();
        print(name, &rounds);
    }
    wake(clients);
}

fn print(name: &str, rounds: &[Seen]) {
    let of = |value: &dyn Fn(&Seen) -> f64| median(rounds.iter().map(value).collect());
    println!(
        "{name}: {} GET; the first {:.1} ms, the one in the middle {:.1} ms, the last {:.1} ms",
        of(&|seen| seen.gets),
        of(&|seen| seen.delays[0]),
        of(&|seen| seen.delays[seen.delays.len() / 2]),
        of(&|seen| seen.delays[seen.delays.len() - 1]),
    );
}

/// What it costs to wake so many processes, whatever they are: by a program in C.
fn wake(clients: usize) {
    let scratch = Scratch::new();
    let source = scratch.write("wake.c", include_str!("wake.c"));
    let program = scratch.path().join("wake");
    let compiled = Command::new("cc").arg("-O2").arg("-o").arg(&program).arg(source).status();
    assert!(compiled.unwrap().success());
    let rounds = (0..number("BENCH_ROUNDS", 5)).map(|_| {
        let output = Command::new(&program).arg(clients.to_string()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<f64>>()
    });
    let rounds: Vec<Vec<f64>> = rounds.collect();
    let of = |at: usize| median(rounds.iter().map(|round| round[at]).collect());
    println!(
        "a process each that only waits and writes (C): the first {:.1} ms, the one in the middle {:.1} ms, the \
         last {:.1} ms",
        of(0),
        of(1),
        of(2)
    );
}

/// Each client has a CGI process of its own.
fn processes(clients: usize) -> Seen {
    let base = Arc::new(Base::default());
    let origin = base.start();
    let scratch = Scratch::new();
    let cache = scratch.path().join("cache");
    let mut running: Vec<Child> = (0..clients)
        .map(|_| {
            let mut command = program(&origin.url(), &cache, "/a.bin");
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let outputs = running.iter_mut().map(|child| OwnedFd::from(child.stdout.take().unwrap()));
    let seen = watch(&base, outputs.collect());
    for child in &mut running {
        let _ = child.kill();
        let _ = child.wait();
    }
    seen
}

/// Each client has a connection to the daemon.
fn connections(clients: usize) -> Seen {
    let base = Arc::new(Base::default());
    let origin = base.start();
    let daemon =
        DaemonSetup::within(Scratch::new()).start(origin.url().trim_start_matches("http://"), "");
    let streams = (0..clients).map(|_| {
        let mut stream = TcpStream::connect(daemon.authority()).unwrap();
        stream.write_all(b"GET /a.bin HTTP/1.1\r\nHost: offload.test\r\n\r\n").unwrap();
        OwnedFd::from(stream)
    });
    watch(&base, streams.collect())
}

/// Lets the base send, and notes when what comes from each of these is more than a head.
fn watch(base: &Base, clients: Vec<OwnedFd>) -> Seen {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut files: Vec<File> = clients.into_iter().map(File::from).collect();
    for (at, file) in files.iter().enumerate() {
        fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        epoll.add(file, EpollEvent::new(EpollFlags::EPOLLIN, at as u64)).unwrap();
    }
    // All of them wait.
    thread::sleep(Duration::from_secs(6));
    base.released.store(true, Ordering::SeqCst);
    let mut heads = vec![Vec::new(); files.len()];
    let mut times = Vec::with_capacity(files.len());
    let mut events = [EpollEvent::empty(); 256];
    while times.len() < files.len() {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        let now = Instant::now();
        for event in &events[..count] {
            let at = usize::try_from(event.data()).unwrap();
            let (file, head): (&mut File, &mut Vec<u8>) = (&mut files[at], &mut heads[at]);
            let mut buffer = [0; 2000];
            let count = match file.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => panic!("client {at}: {error}"),
            };
            assert!(count > 0, "client {at} got {:?}", String::from_utf8_lossy(head));
            head.extend_from_slice(&buffer[..count]);
            let end = head.windows(4).position(|window| window == b"\r\n\r\n");
            if end.is_some_and(|end| head.len() > end + 4) {
                times.push(now);
                epoll.delete(file).unwrap();
            }
        }
    }
    let begun = base.sent.lock().unwrap().unwrap();
    let delays = times.into_iter().map(|time| time.duration_since(begun).as_secs_f64() * 1e3);
    #[allow(clippy::cast_precision_loss)] // few
    let gets = base.gets.load(Ordering::SeqCst) as f64;
    Seen { gets, delays: delays.collect() }
}
