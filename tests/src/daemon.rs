//! An offload host without a web server: the program as a daemon.

use std::env;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Artifacts, Port, Scratch, eventually, server_user};

/// Where it listens: neither where clients come from nor where the other offload host is.
const DAEMON_ADDRESS: [u8; 4] = [127, 0, 0, 3];

/// A daemon before its start; its address is known.
#[derive(Debug)]
pub struct DaemonSetup {
    scratch: Scratch,
    port: Port,
}

/// A daemon that serves.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    setup: DaemonSetup,
}

impl DaemonSetup {
    /// One in this folder.
    pub fn within(scratch: Scratch) -> Self {
        Self { scratch, port: Port::of(DAEMON_ADDRESS.into()) }
    }

    /// Address and port.
    pub fn authority(&self) -> String {
        self.port.address().to_string()
    }

    /// Starts it for this base, with these lines in its file beside what it must have; `{folder}` is one in which
    /// it may write.
    pub fn start(self, base: &str, lines: &str) -> Daemon {
        let folder = self.scratch.path().to_owned();
        let program = self.scratch.install(&Artifacts::default().cgi(), "offload-cgi");
        let own = self.scratch.folder_of_server("var");
        let lines = lines.replace("{folder}", &own.display().to_string());
        let fresh = if lines.contains("fresh =") { "" } else { "fresh = 0\n" };
        let text = format!(
            "listen = {}\nbase = http://{base}\ncache = {}\nmax-dupes = 0\n{fresh}{lines}",
            self.authority(),
            own.join("cache").display()
        );
        let configuration = self.scratch.write("offload.conf", &text);
        let log = folder.join("error.log");
        let mut command = as_server(&program);
        command
            .args(["serve", "--config"])
            .arg(configuration)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let child = command.spawn().unwrap();
        let mut daemon = Daemon { child, setup: self };
        eventually("the daemon serves", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon has not started: {text}");
            text.contains("serves on").then_some(())
        });
        daemon
    }
}

impl Daemon {
    /// Address and port.
    pub fn authority(&self) -> String {
        self.setup.authority()
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority())
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// The folder that everything about it lies in.
    pub fn scratch(&self) -> &Scratch {
        &self.setup.scratch
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGINT);
            // Who asks twice is in a hurry.
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// A program as the user that servers run as, which the kernel stops if this program dies before it can do so itself.
pub fn as_server(program: &Path) -> Command {
    let guard = Path::new("/usr/bin/setpriv");
    if !guard.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(guard);
    if let Some(user) = server_user() {
        command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
        command.arg("--clear-groups");
    }
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command.env("PATH", env::var_os("PATH").unwrap_or_default());
    command
}
