//! Which process it is, so that nobody else is taken for it: its id and when it began.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use offload_core::ledger::Identity;

/// This process. Where /proc is not to be seen (ChrootDir), by its id alone.
pub(crate) fn own_identity() -> Identity {
    let pid = std::process::id();
    Identity::new(pid, start(pid).unwrap_or(0))
}

/// Whether the process has ended, for certain: who cannot tell must not give back what it holds.
pub(crate) fn is_dead(identity: Identity) -> bool {
    let pid = identity.pid();
    let Ok(number) = i32::try_from(pid) else { return false };
    if kill(Pid::from_raw(number), None) == Err(Errno::ESRCH) {
        return true;
    }
    let Some(stat) = stat(pid) else { return false };
    // The id may belong to another process by now.
    let is_other = identity != Identity::new(pid, 0) && identity != Identity::new(pid, stat.start);
    // Or nobody has waited for it yet, and no thread of it is left.
    is_other || (stat.is_zombie && stat.threads <= 1)
}

/// When the process began, in ticks since the machine did.
fn start(pid: u32) -> Option<u64> {
    stat(pid).map(|stat| stat.start)
}

/// What proc(5) says of a process.
struct Stat {
    is_zombie: bool,
    threads: u64,
    start: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets with anything in it; behind it the state is the 3rd field, the
    // number of threads the 20th, the start the 22nd.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let is_zombie = fields.next()? == "Z";
    let threads = fields.nth(16)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Stat { is_zombie, threads, start })
}
