//! The crash test of the store, with the daemon as server: clients of every kind while fillers, the daemon and the
//! base are killed, settings are read anew and files change. No wrong byte is served, and none is fetched twice
//! unless something was killed.
//!
//! `SOAK_ROUNDS` (20) is how long it goes on, `SOAK_SEED` repeats a run.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::host::{DEADLINE, Daemon, PROGRAM, eventually, start_with};
use super::world::{Dice, PATHS, World, check, fetched, number, parted, start};

/// A client of the present version of some file. It returns the file's number and what it was sent.
fn client(daemon: &Daemon, world: &World, dice: &mut Dice) -> JoinHandle<(usize, Vec<u8>)> {
    let path = usize::try_from(dice.roll(PATHS as u64)).unwrap();
    let length = world.files.lock().unwrap()[path].last().unwrap().body.len() as u64;
    let (one, other) = (dice.roll(length), dice.roll(length));
    let range = match dice.roll(3) {
        0 => String::new(),
        1 => format!("Range: bytes={}-{}\r\n", one.min(other), one.max(other)),
        _ => format!("Range: bytes=-{}\r\n", one + 1),
    };
    let limit = if dice.one_in(4) { dice.roll(length) } else { u64::MAX };
    let address = daemon.address;
    thread::spawn(move || {
        let mut reply = Vec::new();
        // A daemon that was just killed may refuse it, or break it off.
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let text =
                format!("GET /{path} HTTP/1.1\r\nHost: x\r\n{range}Connection: close\r\n\r\n");
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.take(limit).read_to_end(&mut reply);
        }
        (path, reply)
    })
}

/// Something bad happens. Returns how many processes were killed, and how often the base was cut off.
fn disturb(daemon: &mut Daemon, world: &World, dice: &mut Dice) -> (u64, u64) {
    match dice.roll(4) {
        0 => {
            let fillers = daemon.fillers();
            let count = fillers.len() as u64;
            for id in fillers {
                // One that has ended meanwhile cannot be killed.
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
            (count, 0)
        }
        1 => {
            daemon.kill_and_start();
            (1, 0)
        }
        2 => {
            world.cut();
            (0, 1)
        }
        _ => {
            world.down.store(true, Ordering::SeqCst);
            world.cut();
            thread::sleep(Duration::from_millis(dice.roll(300)));
            world.down.store(false, Ordering::SeqCst);
            (0, 1)
        }
    }
}

#[test]
fn no_wrong_byte_is_served_and_none_is_fetched_twice_whatever_is_killed() {
    let rounds = number("SOAK_ROUNDS").unwrap_or(20);
    let seed = number("SOAK_SEED").unwrap_or(u64::from(std::process::id()) | 1);
    println!("SOAK_SEED={seed}");
    let mut dice = Dice(seed);
    let world = World::new(&mut dice);
    let port = start(&world, dice.clone());
    let mut daemon = start_with(&format!(
        "listen = 127.0.0.1:0\nadmin = 127.0.0.1:0\nbase = http://base.test\n\
         base-address = 127.0.0.1:{port}\ncache = {{folder}}/cache\nkeep-free = 0\nmax-dupes = 0\n\
         fresh = 0\ntimeout = 5s\n"
    ));
    let (mut clients, mut whole, mut bytes, mut kills, mut cuts) = (0u64, 0u64, 0u64, 0u64, 0u64);
    for round in 0..rounds {
        // Half of the rounds are peaceful, so that what is fetched twice without need is seen.
        let peaceful = round % 2 == 0;
        if !peaceful {
            world.disturb();
        }
        let running: Vec<_> =
            (0..1 + dice.roll(12)).map(|_| client(&daemon, &world, &mut dice)).collect();
        thread::sleep(Duration::from_millis(dice.roll(30)));
        if dice.one_in(3) {
            world.change(&mut dice, !peaceful);
        }
        if dice.one_in(3) {
            daemon.signal(Signal::SIGHUP);
        }
        if !peaceful {
            let (killed, cut) = disturb(&mut daemon, &world, &mut dice);
            (kills, cuts) = (kills + killed, cuts + cut);
        }
        for client in running {
            let (path, reply) = client.join().unwrap();
            let (received, complete) = parted(&reply).map_or((0, false), |(head, body)| {
                check(&world, path, head.split(' ').nth(1).unwrap(), &head, body)
            });
            clients += 1;
            whole += u64::from(complete);
            bytes += received;
        }
        daemon.settle();
    }
    eventually("nobody is connected", || {
        (daemon.look("/.offload/status?json").number("connections_open") == 0).then_some(())
    });
    let verified = Command::new(PROGRAM)
        .args(["verify", "--base", "http://base.test", "--cache"])
        .arg(daemon.path("cache"))
        .env_clear()
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let (fetched, twice) = fetched(&world);
    println!(
        "{rounds} rounds, {clients} clients, {whole} complete, {bytes} bytes served and compared, 0 wrong; \
         {kills} kills, {cuts} cuts of the base, {} HEADs, {} GETs, {fetched} KiB sent by the base, {twice} KiB of \
         them twice, all of these after a kill, a cut or a change",
        world.heads.load(Ordering::Relaxed),
        world.gets.load(Ordering::Relaxed),
    );
}
