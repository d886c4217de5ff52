//! What the module says when the server starts: what would stall it or end its downloads, with the number
//! that helps; and nothing when all is well.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::thread;

use offload_tests::choke::{about, script, throttled};
use offload_tests::crowd::raise_file_limit;
use offload_tests::limits::Client;
use offload_tests::tls::Tls;
use offload_tests::{Httpd, Mpm, Setup};

/// Enough for everything that the tests' servers could hold.
const FINE: &str = "Timeout 300\nListenBacklog 4096\nAsyncRequestWorkerFactor 100";

/// Choke On, and everything is as it comes.
fn plain(mpm: Mpm, directives: &str) -> Setup {
    Setup::default()
        .mpm(mpm)
        .offload()
        .directives("Choke On\nChokeRate 100K")
        .directives(directives)
}

/// What the module has warned of since its start, or since it was told to begin again.
fn advice(server: &Httpd) -> Vec<String> {
    let log = server.error_log();
    let lines = log.lines().filter(|line| line.contains(":warn]") && line.contains("mod_offload"));
    lines.map(ToOwned::to_owned).collect()
}

fn about_directive(server: &Httpd, directive: &str) -> Vec<String> {
    advice(server).into_iter().filter(|line| line.contains(directive)).collect()
}

/// The last number that a line has behind the name of a directive.
fn number(line: &str, directive: &str) -> u64 {
    let behind = line.split(directive).skip(1).filter_map(|rest| {
        let digits = rest.trim_start().split(|letter: char| !letter.is_ascii_digit()).next()?;
        digits.parse().ok()
    });
    behind.last().unwrap_or_else(|| panic!("no number behind {directive}: {line}"))
}

/// It warns once and names a number, which then is enough.
fn advice_helps(directives: &str, directive: &str) -> u64 {
    let server = plain(Mpm::Event, directives).start();
    let lines = about_directive(&server, directive);
    assert_eq!(lines.len(), 1, "{directive}: {lines:?}");
    let number = number(&lines[0], directive);
    // The last one of a directive counts.
    let better = format!("{directives}\n{directive} {number}");
    let server = plain(Mpm::Event, &better).start();
    let lines = about_directive(&server, directive);
    assert!(lines.is_empty(), "{directive} {number}: {lines:?}");
    number
}

#[test]
fn each_advice_names_the_number_that_helps() {
    // With the default, pacing alone still stalls the server.
    assert!(advice_helps("", "AsyncRequestWorkerFactor") > 2);
    assert!(advice_helps("ListenBacklog 5", "ListenBacklog") > 5);
    // The kernel may take in 64 KB at a time, which at 1 KB/s last 64 s.
    assert!(advice_helps("ChokeRate 1K\nTimeout 60", "Timeout") > 64);
}

#[test]
fn nothing_is_said_when_all_is_well() {
    raise_file_limit();
    for mpm in Mpm::ALL {
        // Only event has connections that hold no worker.
        let fine = if mpm == Mpm::Event { FINE } else { "Timeout 300\nListenBacklog 4096" };
        let server = plain(mpm, fine).start();
        assert!(advice(&server).is_empty(), "{mpm:?}: {:?}", advice(&server));
    }
    let server = Setup::default().offload().start();
    assert!(advice(&server).is_empty(), "without Choke: {:?}", advice(&server));
}

/// A rate that the Timeout is too short for is found wherever it stands.
#[test]
fn a_timeout_that_is_too_short_is_found_wherever_the_rate_stands() {
    let vhost = |text: &str| {
        format!(
            "<VirtualHost ${{ADDRESS}}:${{PORT}}>\nServerName base.test\n{text}\n</VirtualHost>"
        )
    };
    for (text, found) in [
        ("Timeout 5\nChokeRate 10K".to_owned(), true),
        ("Timeout 5\n<Location /slow>\nChokeRate 10K\n</Location>".to_owned(), true),
        ("Timeout 5\n<Directory ${DOCROOT}>\n<Files *.iso>\nChokeRate 10K\n</Files>\n</Directory>".to_owned(), true),
        (vhost("Timeout 5\nChokeRate 10K"), true),
        (vhost("Timeout 5\n<Location /slow>\nChokeRate 10K\n</Location>"), true),
        ("Timeout 5".to_owned(), false),
        ("Timeout 60\nChokeRate 10K".to_owned(), false),
        ("Timeout 5\nChokeRate 0".to_owned(), false),
        ("Timeout 5\nChoke Off\nChokeRate 10K".to_owned(), false),
    ] {
        let server = plain(Mpm::Event, &format!("{FINE}\n{text}")).start();
        let lines = about_directive(&server, "Timeout");
        assert_eq!(!lines.is_empty(), found, "{text}: {lines:?}");
        assert!(lines.iter().all(|line| number(line, "Timeout") > 6), "{lines:?}");
    }
}

/// The number that is advised is enough in truth: downloads at that rate are not cut off.
#[test]
fn the_timeout_that_is_advised_is_long_enough() {
    let text = "ChokeRate 40K\nTimeout 1";
    let timeout = {
        let server = plain(Mpm::Event, text).start();
        number(&about_directive(&server, "Timeout")[0], "Timeout")
    };
    assert!(timeout < 10, "Timeout {timeout} for 40 KB/s");
    let tls = Tls::default();
    let text = format!(
        "{text}\nTimeout {timeout}\nAsyncRequestWorkerFactor 20\nScriptAlias /cgi/ ${{SCRATCH}}/cgi/"
    );
    let setup = tls.serve(throttled(Mpm::Event, &text).module("cgid"));
    let print = "printf 'Content-Type: text/plain\\r\\n\\r\\n'\nexec head -c 400000 /dev/zero";
    script(&setup, "print", print);
    let server = setup.start().settled();
    server.put("data", vec![0; 400_000]);
    let client = Client::of(&server);
    thread::scope(|scope| {
        let (client, tls) = (&client, &tls);
        let check = |name: &str, got: &offload_tests::Download| {
            assert_eq!(got.body.len(), 400_000, "{name}");
            assert!(about(9.4).contains(&got.seconds()), "{name}: {} s", got.seconds());
        };
        for path in ["/data", "/cgi/print"] {
            scope.spawn(move || check(path, &client.download(path)));
        }
        scope.spawn(move || check("TLS", &client.download_on(tls.connect(&[]), "/data")));
    });
}

/// The number of files that a child may have open limits the downloads too.
#[test]
fn a_low_limit_of_open_files_is_found() {
    raise_file_limit();
    let server = plain(Mpm::Event, &format!("{FINE}\nAsyncRequestWorkerFactor 50")).start();
    let limit = |files: u64| {
        let limit = Command::new("prlimit")
            .arg(format!("--pid={}", server.pid()))
            .arg(format!("--nofile={files}:"))
            .status()
            .expect("cannot start prlimit: install util-linux");
        assert!(limit.success());
        let before = about_directive(&server, "ulimit -n").len();
        server.graceful();
        about_directive(&server, "ulimit -n").split_off(before)
    };
    assert!(about_directive(&server, "ulimit -n").is_empty());
    let lines = limit(400);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let enough = number(&lines[0], "ulimit -n");
    // 16 threads and 50 more connections for each: 816, and the file of each.
    assert!((1600..4000).contains(&enough), "{lines:?}");
    assert_eq!(limit(enough), Vec::<String>::new());
}
