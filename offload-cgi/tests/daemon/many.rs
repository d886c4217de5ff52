//! Many downloads at a time: what they cost, and that nobody waits for them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::base::{Base, Page};
use super::host::{Connection, Daemon, PROGRAM, configured, eventually, start, start_in};
use super::pattern;
use super::world::number;

const IDLE: usize = 10_000;

fn hold(daemon: &Daemon, count: usize) -> Vec<Connection> {
    let mut connections: Vec<_> = (0..count).map(|_| daemon.connect_slow()).collect();
    for connection in &mut connections {
        connection
            .send("GET /large HTTP/1.1\r\nHost: x\r\nUser-Agent: a client like any other\r\n\r\n");
    }
    for connection in &mut connections {
        assert_eq!(connection.head().status, 200);
        connection.read(100);
    }
    connections
}

/// `HELD=10000` holds more than the 2,000 of every day.
#[test]
fn two_thousand_slow_downloads_cost_a_record_each_and_no_thread() {
    let (base, large) = (Base::start(), pattern(16_000_000));
    base.put("/large", Page::new("\"v1\"", large.clone()));
    base.put("/small", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "fresh = 10s\nadmin = 127.0.0.1:0\n");
    assert_eq!(daemon.get("/large").body.len(), large.len());
    let first = hold(&daemon, 10);
    let (threads, memory) = (daemon.status("Threads"), daemon.status("VmRSS"));
    let many = usize::try_from(number("HELD").unwrap_or(2000)).unwrap();
    let mut others = hold(&daemon, many);
    assert_eq!(daemon.status("Threads"), threads);
    let each = (daemon.status("VmRSS").saturating_sub(memory)) * 1024 / many as u64;
    assert!(each <= 8192, "{each} bytes a download");
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(daemon.get("/small").text(), "text");
            begun.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("{many} downloads, {each} bytes each; a hit meanwhile: {:?}", times[50]);
    let mut last = others.pop().unwrap();
    assert!(last.read(large.len() - 100) == large[100..], "each goes on when it wants to");
    drop((first, others));
    eventually("all have gone", || {
        // The one that has all of its file is still connected.
        (daemon.look("/.offload/status?json").number("connections_open") <= 1).then_some(())
    });
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_delay_nobody() {
    let base = Base::start();
    base.put("/small", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "fresh = 10s\nadmin = 127.0.0.1:0\n");
    assert_eq!(daemon.get("/small").text(), "text");
    let (threads, before) = (daemon.status("Threads"), daemon.status("VmRSS"));
    // All tests of this process share its descriptors; `make test` may have been started with few.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let room = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(5000);
    let idle = IDLE.min(room);
    assert!(idle >= 1000, "{most} descriptors: raise `ulimit -Hn`");
    let mut connections: Vec<_> = (0..idle).map(|_| daemon.connect()).collect();
    let round = |connections: &mut Vec<Connection>| {
        for connection in connections {
            assert_eq!(connection.get("/robots.txt").status, 200);
        }
    };
    round(&mut connections);
    let memory = daemon.status("VmRSS");
    let open = daemon.look("/.offload/status?json").number("connections_open");
    assert!(open >= idle as u64, "{open} are open");
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(daemon.get("/small").text(), "text");
            begun.elapsed()
        })
        .collect();
    times.sort();
    eprintln!(
        "{} bytes an idle connection; a hit meanwhile: {:?}",
        memory.saturating_sub(before) * 1024 / idle as u64,
        times[50]
    );
    round(&mut connections);
    let more = daemon.status("VmRSS").saturating_sub(memory);
    assert!(more < 1024, "{more} KB more after the second round: something leaks");
    assert_eq!(daemon.status("Threads"), threads);
}

#[test]
fn downloads_of_a_growing_file_cost_no_more_and_none_takes_the_last_descriptor() {
    let (base, large) = (Base::start(), pattern(4_000_000));
    let mut page = Page::new("\"v1\"", large.clone());
    page.pause_at = Some(100_000);
    base.put("/large", page);
    let folder = configured(&base, "fresh = 10s\nadmin = 127.0.0.1:0\n");
    let daemon = start_in(folder, |command| {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "ulimit -n 2000; exec \"$0\" \"$@\""])
            .arg(PROGRAM)
            .args(command.get_args());
        shell.env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
        *command = shell;
    });
    let mut connections: Vec<_> = (0..600).map(|_| daemon.connect_slow()).collect();
    let (mut loading, mut refused, mut memory) = (Vec::new(), 0_u64, 0);
    for mut part in [connections.drain(..100).collect::<Vec<_>>(), connections] {
        // The first ones touch what is there once, such as stacks.
        memory = daemon.status("VmRSS");
        for connection in &mut part {
            connection.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        for mut connection in part {
            match connection.head().status {
                200 => loading.push(connection),
                status => {
                    assert_eq!(status, 503);
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 100 && loading.len() > 300, "{refused} refused, {} not", loading.len());
    let each = daemon.status("VmRSS").saturating_sub(memory) * 1024 / (loading.len() as u64 - 100);
    // Of that, a page is the map of the file's bytes, which all of them share.
    assert!(each <= 8192 + 4096, "{each} bytes a download");
    eprintln!("{} downloads of a growing file, {each} bytes each", loading.len());
    assert_eq!(daemon.get("/robots.txt").status, 200, "others are served meanwhile");
    base.release();
    for mut connection in loading {
        assert!(connection.read(large.len()) == large);
    }
    assert!(daemon.get("/large").body == large);
    let lines = daemon.lines();
    assert!(!lines.iter().any(|line| line.contains("Too many open files")), "{lines:?}");
}

#[test]
fn a_crowd_that_comes_at_once_is_divided_among_the_senders() {
    let base = Base::start();
    let daemon = start(&base, "senders = 4\n");
    let mut connections: Vec<_> = (0..400).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        assert_eq!(connection.get("/robots.txt").status, 200);
    }
    // What each epoll instance watches (proc(5)): a line a descriptor.
    let folder = format!("/proc/{}", daemon.id());
    let files = std::fs::read_dir(format!("{folder}/fd")).unwrap().flatten();
    let mut watched: Vec<usize> = files
        .filter(|file| {
            let name = std::fs::read_link(file.path()).unwrap_or_default();
            name.to_string_lossy().contains("[eventpoll]")
        })
        .map(|file| {
            let number = file.file_name().into_string().unwrap();
            let text = std::fs::read_to_string(format!("{folder}/fdinfo/{number}")).unwrap();
            text.lines().filter(|line| line.starts_with("tfd:")).count()
        })
        .collect();
    watched.sort_unstable();
    assert!(watched.len() == 4 && watched[0] > 50, "{watched:?}");
}
