//! A base that redirects to an offload host without a web server.

use offload_tests::{DaemonSetup, Mpm, Scratch, Setup, bytes, eventually, same_file};

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
