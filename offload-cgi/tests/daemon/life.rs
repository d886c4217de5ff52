//! Start, reload, upgrade, end: no download is lost.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::base::{Base, Page};
use super::host::{Connection, Daemon, PROGRAM, eventually, start, start_in};
use super::pattern;

const LENGTH: usize = 20_000_000;

/// A daemon with a file, and downloads of it that have begun and go on as the test reads.
fn with_downloads(lines: &str) -> (Base, Daemon, Vec<u8>, Vec<Connection>) {
    let (base, body) = (Base::start(), pattern(LENGTH));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    let daemon = start(&base, lines);
    assert!(daemon.get("/a").body == body);
    let connections = (0..10)
        .map(|_| {
            let mut connection = daemon.connect_slow();
            connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(connection.head().status, 200);
            connection
        })
        .collect();
    (base, daemon, body, connections)
}

#[test]
fn a_term_lets_downloads_finish_and_nobody_new_in() {
    let (_base, mut daemon, body, connections) = with_downloads("");
    let mut idle = daemon.connect();
    assert_eq!(idle.get("/robots.txt").status, 200);
    daemon.signal(Signal::SIGTERM);
    assert!(idle.has_ended(), "a connection without a request ends at once");
    eventually("no new connections", || {
        std::net::TcpStream::connect(daemon.address).is_err().then_some(())
    });
    assert!(!daemon.has_ended());
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
        assert!(connection.has_ended());
    }
    assert!(daemon.wait());
}

#[test]
fn a_drain_has_an_end() {
    let (_base, mut daemon, _, connections) = with_downloads("drain = 300ms\n");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait());
    daemon.wait_for_line("cut off at the end of the drain");
    drop(connections);
}

#[test]
fn a_reload_changes_settings_and_drops_no_download() {
    let (_base, daemon, body, connections) = with_downloads("");
    daemon.configure(|text| text + "burst = x\n");
    daemon.signal(Signal::SIGHUP);
    let line = daemon.wait_for_line("not reloaded");
    assert!(line.contains("offload.conf:7: burst:"), "{line}");
    daemon.configure(|text| {
        text.replace("burst = x\n", "max-client-connections = 11\nlisten = 127.0.0.2:0\n")
    });
    daemon.signal(Signal::SIGHUP);
    eventually("reloaded", || {
        let line = daemon.lines().into_iter().find(|line| line.ends_with(": reloaded"));
        line.map(drop)
    });
    let mut more = daemon.connect();
    assert_eq!(more.get("/robots.txt").status, 200);
    let mut refused = daemon.connect();
    assert_eq!(refused.receive().status, 503);
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
    }
}

#[test]
fn a_reload_opens_the_log_anew() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let daemon = start(&base, "log = {folder}/log\n");
    let (log, old) = (daemon.path("log"), daemon.path("log.1"));
    daemon.get("/a");
    eventually("a line", || fs::read_to_string(&log).ok().filter(|text| text.contains("GET /a")));
    fs::rename(&log, &old).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_line("reloaded");
    eventually("a line in the new file", || {
        daemon.get("/b");
        log.exists().then_some(())
    });
}

#[test]
fn an_upgrade_refuses_no_connection_and_cuts_no_download() {
    let (_base, mut daemon, body, connections) = with_downloads("admin = 127.0.0.1:0\n");
    let address = daemon.address;
    // Somebody who connects all the time.
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let end = std::sync::Arc::clone(&ended);
    let visitor = std::thread::spawn(move || {
        let mut count = 0;
        while !end.load(std::sync::atomic::Ordering::SeqCst) {
            let stream = std::net::TcpStream::connect(address).expect("a connection is refused");
            let mut connection = Connection::new(stream);
            connection.send("GET /robots.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            assert_eq!(connection.receive().status, 200);
            count += 1;
        }
        count
    });
    daemon.signal(Signal::SIGUSR2);
    let line = daemon.wait_for_line("takes over");
    let successor: i32 =
        line.split(' ').find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"));
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
    }
    assert!(daemon.wait(), "the old process ends when its downloads have");
    assert!(daemon.get("/a").body == body, "the new one has the cache");
    assert_eq!(daemon.look("/.offload/status?json").status, 200);
    ended.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(visitor.join().unwrap() > 0);
    kill(Pid::from_raw(successor), Signal::SIGTERM).unwrap();
    eventually("the new process ends", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let (_base, daemon, body, connections) = with_downloads("");
    daemon.configure(|text| text + "nonsense\n");
    daemon.signal(Signal::SIGUSR2);
    daemon.wait_for_line("no upgrade");
    assert!(daemon.get("/a").body == body);
    for mut connection in connections {
        assert!(connection.read(LENGTH) == body);
    }
}

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
fn start_under_systemd(base: &Base, lines: &str) -> (Daemon, Told, std::net::SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "base = http://base.test\nbase-address = 127.0.0.1:{}\ncache = {}/cache\nkeep-free = 0\n{lines}",
        base.port,
        folder.path().display()
    );
    fs::write(folder.path().join("offload.conf"), text).unwrap();
    let notify = folder.path().join("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(super::host::DEADLINE)).unwrap();
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
            .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
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
    let successor: i32 = main.strip_prefix("MAINPID=").unwrap().parse().unwrap();
    assert!(daemon.wait());
    assert_eq!(
        Connection::new(std::net::TcpStream::connect(address).unwrap()).get("/a").status,
        200
    );
    // What systemd would hear first now: the unit would be stopping otherwise.
    kill(Pid::from_raw(successor), Signal::SIGHUP).unwrap();
    assert!(told.hear().starts_with("RELOADING=1"));
    assert_eq!(told.hear(), "READY=1");
    kill(Pid::from_raw(successor), Signal::SIGTERM).unwrap();
    assert_eq!(told.hear(), "STOPPING=1");
    eventually("the new process ends", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
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
fn a_base_that_is_not_served_any_more_keeps_no_file_open() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", pattern(1000)));
    let daemon = start(&base, "fresh = 10s\n");
    let open = || {
        let files = fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().flatten();
        let names = files.filter_map(|file| fs::read_link(file.path()).ok());
        names.filter(|name| name.extension().is_some_and(|end| end == "body")).count()
    };
    eventually("a file is kept open", || {
        assert_eq!(daemon.get("/a").status, 200);
        (open() > 0).then_some(())
    });
    let change = |from: &str, to: &str| {
        daemon.configure(|text| text.replace(from, to));
        let before = daemon.lines().len();
        daemon.signal(Signal::SIGHUP);
        eventually("reloaded", || {
            daemon.lines()[before..].iter().any(|line| line.ends_with(": reloaded")).then_some(())
        });
    };
    change("fresh = 10s", "fresh = 11s");
    eventually("it is closed", || (open() == 0).then_some(()));
    // The first settings again: the site that is there already.
    change("fresh = 11s", "fresh = 10s");
    eventually("a file is kept open again", || {
        assert_eq!(daemon.get("/a").status, 200);
        (open() > 0).then_some(())
    });
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
        other.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        *command = other;
    });
    assert_eq!(daemon.get("/a").text(), "text");
    assert_ne!(daemon.status("Uid"), 0);
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(daemon.path("cache")).unwrap());
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
}

#[test]
fn a_filler_that_ends_leaves_no_zombie() {
    let (base, daemon, ..) = with_downloads("");
    for name in 0..10 {
        base.put(&format!("/{name}"), Page::new("\"x\"", pattern(1000)));
        daemon.get(&format!("/{name}"));
    }
    eventually("no child is left", || {
        let path = format!("/proc/{0}/task/{0}/children", daemon.id());
        fs::read_to_string(path).unwrap().is_empty().then_some(())
    });
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
