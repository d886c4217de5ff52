//! How it starts: as what, from whom it has its sockets, with which settings.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use super::base::{Base, Page};
use super::host::{Connection, DEADLINE, Daemon, PROGRAM, Successor, eventually, start, start_in};

/// What systemd hears.
struct Told(UnixDatagram);

impl Told {
    fn hear(&self) -> String {
        let mut bytes = [0; 200];
        let count = self.0.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }
}

/// A daemon that has its socket, at this address, from what could be systemd.
fn start_under_systemd(base: &Base, lines: &str) -> (Daemon, Told, SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "base = http://base.test\nbase-address = 127.0.0.1:{}\ncache = {}/cache\nkeep-free = 0\n{lines}",
        base.port,
        folder.path().display()
    );
    fs::write(folder.path().join("offload.conf"), text).unwrap();
    let notify = folder.path().join("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(DEADLINE)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // A shell puts the socket where systemd does, and says whom it is for.
    let configuration = folder.path().join("offload.conf");
    let daemon = start_in(folder, |command| {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!(
            "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec {PROGRAM} serve --config {}",
            configuration.display()
        ));
        shell
            .env_clear()
            .env("NOTIFY_SOCKET", notify)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        *command = shell;
    });
    let told = Told(told);
    assert_eq!(daemon.address, address);
    assert_eq!(told.hear(), "READY=1");
    (daemon, told, address)
}

#[test]
fn systemd_is_told_and_may_pass_the_sockets() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let (mut daemon, told, _) = start_under_systemd(&base, "");
    assert_eq!(daemon.get("/a").text(), "text");
    // A reload keeps its socket, also when the settings name another one.
    daemon.configure(|text| text + "listen = 127.0.0.2:0\n");
    daemon.signal(Signal::SIGHUP);
    assert!(told.hear().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(told.hear(), "READY=1");
    assert_eq!(daemon.get("/a").text(), "text");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(told.hear(), "STOPPING=1");
    assert!(daemon.wait());
}

#[test]
fn an_upgrade_keeps_the_sockets_of_systemd_and_does_not_say_that_it_stops() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let (mut daemon, told, address) = start_under_systemd(&base, "");
    daemon.signal(Signal::SIGUSR2);
    assert_eq!(told.hear(), "READY=1");
    let main = told.hear();
    let successor = Successor(main.strip_prefix("MAINPID=").unwrap().parse().unwrap());
    assert!(daemon.wait());
    assert_eq!(Connection::new(TcpStream::connect(address).unwrap()).get("/a").status, 200);
    // What systemd would hear first now: the unit would be stopping otherwise.
    successor.signal(Signal::SIGHUP);
    assert!(told.hear().starts_with("RELOADING=1"));
    assert_eq!(told.hear(), "READY=1");
    successor.signal(Signal::SIGTERM);
    assert_eq!(told.hear(), "STOPPING=1");
    eventually("the new process ends", || TcpStream::connect(address).is_err().then_some(()));
}

#[test]
fn a_unix_socket_is_for_everybody_who_reaches_it_and_goes_with_its_daemon() {
    let base = Base::start();
    let mut daemon = start(&base, "listen = unix:{folder}/socket\nlisten = unix:{folder}/other\n");
    let (socket, other) = (daemon.path("socket"), daemon.path("other"));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    daemon.configure(|text| text.replace(&format!("listen = unix:{}\n", other.display()), ""));
    daemon.signal(Signal::SIGHUP);
    eventually("the name that is of no use is gone", || (!other.exists()).then_some(()));
    assert!(socket.exists());
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait());
    assert!(!socket.exists());
}

#[test]
fn root_becomes_another_user_after_the_start() {
    if !geteuid().is_root() {
        // Nobody else can change who he is; that it says so is checked below.
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(PROGRAM)
            .args(["serve", "--listen", "127.0.0.1:0", "--base", "http://x", "--user", "root"])
            .arg("--cache")
            .arg(folder.path().join("cache"))
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot become 'root'"));
        return;
    }
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // Somewhere that the user can reach it.
    let program = folder.path().join("offload-cgi");
    let copied = Command::new("cp").arg(PROGRAM).arg(&program).status().unwrap();
    assert!(copied.success());
    let text = format!(
        "listen = 127.0.0.1:0\nbase = http://base.test\nbase-address = 127.0.0.1:{}\n\
         cache = {}/cache\nkeep-free = 0\nuser = nobody\n",
        base.port,
        folder.path().display()
    );
    let configuration = folder.path().join("offload.conf");
    fs::write(&configuration, text).unwrap();
    let daemon = start_in(folder, |command| {
        let mut other = Command::new(program);
        other.args(["serve", "--config"]).arg(configuration).env_clear();
        other.stdin(Stdio::null()).stderr(Stdio::piped());
        *command = other;
    });
    assert_eq!(daemon.get("/a").text(), "text");
    assert_ne!(daemon.status("Uid"), 0);
    let owner = fs::metadata(daemon.path("cache")).unwrap().uid();
    assert_eq!(u64::from(owner), daemon.status("Uid"));
}

#[test]
fn check_names_the_line_and_serve_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("offload.conf");
    fs::write(&path, "listen = 127.0.0.1:0\nbase = http://x\ncache = relative\n").unwrap();
    for word in ["check", "serve"] {
        let output =
            Command::new(PROGRAM).args([word, "--config"]).arg(&path).env_clear().output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(&format!("{}:3: cache: 'relative'", path.display())), "{text}");
    }
    fs::write(&path, "listen = 127.0.0.1:0\nbase = http://x\ncache = /nowhere\n").unwrap();
    let output =
        Command::new(PROGRAM).args(["check", "--config"]).arg(&path).env_clear().output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"The configuration is good"));
    let mut command = Command::new(PROGRAM);
    command.args(["check", "--user", "no such user", "--config"]).arg(&path).env_clear();
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("user: there is no user 'no such user'")
    );
}

#[test]
fn the_example_is_a_configuration_that_serves() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf-examples/offload.conf");
    let output =
        Command::new(PROGRAM).args(["check", "--config", example]).env_clear().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (www, videos) = (Base::start(), Base::start());
    www.put("/a", Page::new("\"v1\"", "of www"));
    videos.put("/a", Page::new("\"v1\"", "of videos"));
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display().to_string();
    let address = |base: &Base| format!("base-address = 127.0.0.1:{}\n", base.port);
    let text = fs::read_to_string(example)
        .unwrap()
        .replace("0.0.0.0:80", "127.0.0.1:0")
        .replace("[::]:80", "[::1]:0")
        .replace("127.0.0.1:8081", "127.0.0.1:0")
        .replace("/var/cache/offload", &format!("{here}/cache"))
        .replace("/var/log/offload/access.log", &format!("{here}/log"))
        .replace("keep-free = 5%", "keep-free = 0")
        .replace("[base www]\n", &format!("[base www]\n{}", address(&www)))
        // The test has no certificate.
        .replace("https://", "http://")
        .replace("[base videos]\n", &format!("[base videos]\n{}", address(&videos)));
    fs::write(folder.path().join("offload.conf"), text).unwrap();
    let daemon = start_in(folder, |_| {});
    let mut connection = daemon.connect();
    for (host, text) in [("offload1.example.org", "of www"), ("other", "of videos")] {
        connection.send(format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(connection.receive().text(), text);
    }
    eventually("a line of the log", || {
        fs::read_to_string(daemon.path("log")).ok().filter(|text| text.contains("GET /a"))
    });
    assert_eq!(daemon.look("/.offload/metrics").status, 200);
}

#[test]
fn the_unit_starts_this_program_with_words_that_it_knows() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf-examples/offload.service");
    let text = fs::read_to_string(unit).unwrap();
    let commands = ["ExecStartPre=", "ExecStart="].map(|key| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.strip_prefix("/usr/lib/offload/offload-cgi ").unwrap().to_owned()
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("offload.conf");
    fs::write(&path, "base = nonsense\n").unwrap();
    for command in commands {
        let words = command.replace("/etc/offload.conf", &path.display().to_string());
        let output = Command::new(PROGRAM).args(words.split(' ')).env_clear().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // It has understood the words, for it has read the file.
        assert!(said.contains("offload.conf:1: base: 'nonsense'"), "{command}: {said}");
    }
}
