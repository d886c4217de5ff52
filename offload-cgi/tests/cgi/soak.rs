//! Clients of every kind while fillers, programs and the base are killed and files change: no wrong byte is
//! served, and none is fetched twice unless something was killed.
//!
//! `SOAK_ROUNDS` (20) is how long it goes on, `SOAK_SEED` repeats a run.

use std::io::Read as _;
use std::process::ChildStdout;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::host::{Host, kill};
use super::world::{Dice, PATHS, World, check, fetched, number, parted, start};

/// Reads everything a client is sent, or stops in the middle.
fn read(mut out: ChildStdout, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = out.by_ref().take(limit).read_to_end(&mut bytes);
    bytes
}

#[test]
fn no_wrong_byte_is_served_and_none_is_fetched_twice_whatever_is_killed() {
    let rounds: u64 = number("SOAK_ROUNDS").unwrap_or(20);
    let seed = number("SOAK_SEED").unwrap_or(u64::from(std::process::id()) | 1);
    println!("SOAK_SEED={seed}");
    let mut dice = Dice(seed);
    let world = World::new(&mut dice);
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
            world.change(&mut dice, !peaceful);
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
            let (received, complete) = parted(&reply).map_or((0, false), |(head, body)| {
                let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap();
                check(&world, path, status, &head, body)
            });
            clients += 1;
            whole += u64::from(complete);
            bytes += received;
        }
        host.settle();
    }
    let (fetched, twice) = fetched(&world);
    println!(
        "{rounds} rounds, {clients} clients, {whole} complete, {bytes} bytes served and compared, 0 wrong; \
         {kills} kills, {cuts} cuts of the base, {} HEADs, {} GETs, {fetched} KiB sent by the base, {twice} KiB of \
         them twice, all of these after a kill, a cut or a change",
        world.heads.load(Ordering::Relaxed),
        world.gets.load(Ordering::Relaxed),
    );
}
