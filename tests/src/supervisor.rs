//! A benchmark that leaves nothing behind, however it ends.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::Scratch;

/// Names the folder that all temporary files lie in to the process that does the work.
const FOLDER: &str = "BENCH_FOLDER";

/// Runs a benchmark, which says whether everything is as it is wanted.
///
/// Another process does the work, and this one clears up after it, however it ends, Ctrl-C too. The servers end with
/// it: the kernel tells them.
pub fn supervised(run: fn() -> Result<bool, String>) -> ExitCode {
    let Some(folder) = env::var_os(FOLDER) else { return supervise() };
    tempfile::env::override_temp_dir(Path::new(&folder)).expect("it is set already");
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> ExitCode {
    let scratch = Scratch::new();
    let program = env::current_exe().unwrap();
    let mut child = Command::new(program).env(FOLDER, scratch.path()).spawn().unwrap();
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD];
    // From here on: what is blocked is blocked for children too, and theirs.
    let signals: SigSet = signals.into_iter().collect();
    signals.thread_block().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if signals.wait() != Ok(Signal::SIGCHLD) {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
        }
    };
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
