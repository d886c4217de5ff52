//! `make demo`: a base and two offload hosts on loopback, one a CGI under httpd, the other a daemon, and a 200 MB
//! file downloaded through each.
//!
//! Cold, warm, and the rest of a download that was cut off; each is compared by its SHA-256 with the
//! file on the base. Then the servers stay until Ctrl-C, or end at once with `ONCE=1`.

// A demonstration ends where something does not hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use offload_tests::offload::{HOST_ADDRESS, Pair, PairSetup};
use offload_tests::{
    Daemon, DaemonSetup, Mpm, Scratch, Setup, eventually, reachable_by_server, workspace,
    write_bytes,
};
use sha2::{Digest, Sha256};

const SIZE: u64 = 200 << 20;
const FIRST: &str = "/files/0/200%20MB.bin";
/// A download that is not cold may cost the base a few heads and no more.
const HEADS: u64 = 10_000;

fn main() -> ExitCode {
    let once = std::env::var("ONCE").is_ok_and(|once| once == "1");

    let folder = chosen_folder();
    println!("folder     {} (configurations and logs stay there)", folder.display());
    let (pair, daemon) = start(&folder);
    // From here on a Ctrl-C waits until it is asked for. Not earlier: httpd would inherit the mask and
    // could not be stopped. Until now the kernel stops httpd when this program ends.
    let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    ends.thread_block().unwrap();
    println!("base       {}", pair.base.url("/"));
    println!("offload    {} (CGI)", pair.host.url("/"));
    println!("offload    {} (daemon)", daemon.url("/"));
    let original = pair.base.put("files/0/200 MB.bin", "");
    println!("making     {} of {} MB", original.display(), SIZE >> 20);
    write_bytes(&original, 2026, SIZE);
    let sum = sha256(&original);
    println!("SHA-256    {sum}\n");

    let mut rows = Vec::new();
    let mut good = true;
    for host in [pair.host.authority(), daemon.authority()] {
        let path = path_for(&pair, &original, &host);
        let three = [
            download(&pair, &folder, &path, "cold", &sum),
            download(&pair, &folder, &path, "warm", &sum),
            resume(&pair, &folder, &path, &sum),
        ];
        good &= three.iter().all(|row| row.same && row.server == host)
            && three[0].sent >= SIZE
            && three[1..].iter().all(|row| row.sent < HEADS);
        rows.extend(three);
    }
    println!();
    println!(
        "{:<9} {:<28} {:>14} {:>8}  SHA-256",
        "download", "served by", "sent by base", "seconds"
    );
    rows.iter().for_each(Row::print);
    println!(
        "\n{}",
        if good { "All as it should be." } else { "NOT as it should be; the logs may tell why." }
    );
    if !once {
        println!("\nTry   curl -L -o /dev/null '{}'", pair.base.url(FIRST));
        println!("All servers run until Ctrl-C.");
        ends.wait().unwrap();
        println!();
    }
    println!("stopping");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `target/demo`, or a temporary folder where httpd's children could not reach that.
fn chosen_folder() -> PathBuf {
    let here = workspace().join("target/demo");
    fs::create_dir_all(&here).unwrap();
    if reachable_by_server(&here) {
        return here;
    }
    let there = std::env::temp_dir().join(format!("offload-demo-{}", std::process::id()));
    println!("{} cannot be reached by httpd's user, so it is a folder elsewhere:", here.display());
    fs::create_dir_all(&there).unwrap();
    fs::set_permissions(&there, Permissions::from_mode(0o755)).unwrap();
    there
}

fn start(folder: &Path) -> (Pair, Daemon) {
    let base = Setup::within(Scratch::at(&folder.join("base")), "127.0.0.1");
    let host = Setup::within(Scratch::at(&folder.join("offload-host")), HOST_ADDRESS);
    let daemon = DaemonSetup::within(Scratch::at(&folder.join("offload-daemon")));
    let mut pair = PairSetup::of(base, host, Mpm::Event);
    pair.base = pair.base.directives(&format!("OffloadHost {}", daemon.authority()));
    let pair = pair.start();
    let daemon = daemon.start(&pair.base.authority(), "");
    (pair, daemon)
}

/// The path of a file that the base redirects to this host: each file has one home, which its path decides.
fn path_for(pair: &Pair, original: &Path, host: &str) -> String {
    for number in 0..100 {
        let (name, path) =
            (format!("files/{number}/200 MB.bin"), format!("/files/{number}/200%20MB.bin"));
        let file = pair.base.path(&name);
        if file != original {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::hard_link(original, &file).unwrap();
        }
        let before = pair.base.entries().len();
        let output = Command::new("curl")
            .args(["-q", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{redirect_url}"])
            .arg(pair.base.url(&path))
            .output()
            .unwrap();
        eventually("the redirection is in the base's log", || {
            (pair.base.entries().len() > before).then_some(())
        });
        if String::from_utf8_lossy(&output.stdout).split('/').nth(2) == Some(host) {
            return path;
        }
        if file != original {
            fs::remove_file(file).unwrap();
        }
    }
    panic!("no file's home is {host}")
}

/// One line of the table.
struct Row {
    name: &'static str,
    server: String,
    sent: u64,
    time: Duration,
    same: bool,
}

impl Row {
    fn print(&self) {
        let same = if self.same { "ok" } else { "DIFFERS" };
        let (sent, seconds) = (grouped(self.sent), self.time.as_secs_f64());
        println!("{:<9} {:<28} {sent:>14} {seconds:>8.2}  {same}", self.name, self.server);
    }
}

fn download(pair: &Pair, folder: &Path, path: &str, name: &'static str, sum: &str) -> Row {
    println!("{name:<10} curl -L {}", pair.base.url(path));
    let target = folder.join("offload-host").join(format!("{name}.bin"));
    fetch(pair, path, name, &target, sum)
}

/// Cuts a download off in its middle, then lets curl get the rest.
fn resume(pair: &Pair, folder: &Path, path: &str, sum: &str) -> Row {
    let target = folder.join("offload-host/resumed.bin");
    println!("resume     curl -L {} ... cut off", pair.base.url(path));
    let mut client =
        curl(&target, &pair.base.url(path)).args(["--limit-rate", "100M"]).spawn().unwrap();
    eventually("the middle of the file", || {
        fs::metadata(&target).ok().filter(|about| about.len() > SIZE / 4)
    });
    client.kill().unwrap();
    client.wait().unwrap();
    let there = fs::metadata(&target).unwrap().len();
    println!("resume     curl -L -C - {} from byte {}", pair.base.url(path), grouped(there));
    fetch(pair, path, "resume", &target, sum)
}

fn fetch(pair: &Pair, path: &str, name: &'static str, target: &Path, sum: &str) -> Row {
    let before = pair.base.entries().len();
    let start = Instant::now();
    let output = curl(target, &pair.base.url(path))
        .args(["-C", "-", "-w", "%{http_code} %{url_effective}"])
        .output()
        .unwrap();
    let time = start.elapsed();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let server = said.split('/').nth(2).unwrap_or("nobody").to_owned();
    if !output.status.success() {
        println!("curl failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // The base writes its log after an answer, so a fetch may be in it a moment after the client has all;
    // a large file is fetched in several stretches.
    let least = if name == "cold" { SIZE } else { 0 };
    let sent = eventually("the redirection and the fetches are in the base's log", || {
        let entries = pair.base.entries().split_off(before);
        let redirected = entries.iter().any(|entry| entry.status == 307);
        let sent: u64 = entries.iter().map(|entry| entry.sent).sum();
        (redirected && sent >= least).then_some(sent)
    });
    let same = target.exists() && sha256(target) == sum;
    let _ = fs::remove_file(target);
    Row { name, server, sent, time, same }
}

fn curl(target: &Path, url: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["-q", "-sSfL", "--noproxy", "*", "-o"]).arg(target).arg(url);
    command.stdin(Stdio::null());
    command
}

fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let length = file.read(&mut block).unwrap();
        if length == 0 {
            break;
        }
        hash.update(&block[..length]);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number with a blank between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
