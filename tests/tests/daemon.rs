//! A base that redirects to an offload host without a web server.

use std::process::{Command, Stdio};

use offload_tests::{
    Artifacts, DaemonSetup, Mpm, Port, Scratch, Setup, bytes, eventually, same_file, server_user,
};

#[test]
fn the_base_redirects_and_the_daemon_serves_what_the_base_has() {
    let host = DaemonSetup::within(Scratch::new());
    let base = Setup::on("127.0.0.1").mpm(Mpm::Event).offload().directives(&format!(
        "OffloadEngine On\nOffloadMinSize 0\nOffloadHost {}",
        host.authority()
    ));
    let base = base.start();
    let host = host.start(&base.authority(), "log = {folder}/access.log\n");
    let file = base.put("files/a b#c.bin", bytes(1, 3_000_000));
    let path = "/files/a%20b%23c.bin";
    for _ in 0..3 {
        let answer = base.curl(path).follow().run();
        assert_eq!(answer.heads.first().map(|head| head.status), Some(307), "{answer:?}");
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(same_file(answer.file(), &file));
    }
    // A change on the base is a change for the next client.
    base.put("files/a b#c.bin", bytes(2, 2_000_000));
    let answer = base.curl(path).follow().run();
    assert!(same_file(answer.file(), &file));
    let fetches = || {
        base.entries().iter().filter(|entry| entry.method == "GET" && entry.bypass != "-").count()
    };
    eventually("both fetches are in the base's log", || (fetches() >= 2).then_some(()));
    assert_eq!(fetches(), 2);
    let log = eventually("its log has all four", || {
        let text = std::fs::read_to_string(host.scratch().path().join("var/access.log")).ok()?;
        (text.lines().count() == 4).then_some(text)
    });
    assert!(log.lines().all(|line| line.contains("\"GET /files/a%20b%23c.bin HTTP/1.1\" 200 ")));
}

/// The program is linked statically as it is shipped, and so must not ask libc who somebody is.
#[test]
fn the_program_as_it_is_shipped_stops_being_root() {
    let Some(user) = server_user() else {
        // Only root can stop being root.
        return;
    };
    let scratch = Scratch::new();
    let port = Port::of([127, 0, 0, 3].into());
    let mut child = Command::new(scratch.install(&Artifacts::default().cgi(), "offload-cgi"))
        .args(["serve", "--base", "http://base.test", "--user", &user.name, "--listen"])
        .arg(port.address().to_string())
        .arg("--cache")
        .arg(scratch.path().join("cache"))
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it serves", || {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::net::TcpStream::connect(port.address()).ok()
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let wanted = user.uid.to_string();
    assert!(uid.split_whitespace().all(|word| word == wanted), "{status}");
}
