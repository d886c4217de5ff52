//! Which rate and burst a request has: sections, `.htaccess`, virtual hosts, environment variables.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;

use offload_tests::choke::{Summary, about, throttled};
use offload_tests::limits::Client;
use offload_tests::{Httpd, Mpm, Setup, eventually};

const VARIABLES: &str = "
ChokeSummary On
ChokeRate 200K
ChokeBurst 5K
ChokeRateEnv MY_RATE
ChokeBurstEnv MY_BURST
SetEnvIf X-Rate ^(.+)$ MY_RATE=$1
SetEnvIf X-Burst ^(.+)$ MY_BURST=$1
SetEnvIf X-KiB ^(.+)$ rate-limit=$1
SetEnvIf X-KiB-Burst ^(.+)$ rate-initial-burst=$1
<Location /fixed>
SetEnv MY_RATE 300K
</Location>
<Location /rewritten>
RewriteEngine On
RewriteRule . - [E=MY_RATE:400K]
</Location>
<Location /nothing>
ChokeRate 0
ChokeBurst 0
</Location>";

const K: u64 = 1024;

fn started(setup: Setup) -> Httpd {
    let server = setup.start().settled();
    server.put("data", vec![b'x'; 20_000]);
    server
}

/// A row: the path, what the client says, and the rate and burst that then hold.
type Row = (&'static str, &'static [&'static str], u64, u64);

const ROWS: [Row; 27] = [
    ("/", &[], 200 * K, 5 * K),
    ("/", &["X-Rate: 400K"], 400 * K, 5 * K),
    ("/", &["X-Rate: 400k"], 400 * K, 5 * K),
    ("/", &["X-Rate: 400Kb"], 400 * K, 5 * K),
    ("/", &["X-Rate: 300000"], 300_000, 5 * K),
    ("/", &["X-Rate: 2M"], 2048 * K, 5 * K),
    ("/", &["X-Rate: 0"], 0, 5 * K),
    ("/", &["X-KiB: 300"], 300 * K, 5 * K),
    ("/", &["X-Rate: 700K", "X-KiB: 300"], 700 * K, 5 * K),
    ("/", &["X-Burst: 8K"], 200 * K, 8 * K),
    ("/", &["X-Burst: 0"], 200 * K, 0),
    ("/", &["X-KiB-Burst: 9"], 200 * K, 9 * K),
    ("/", &["X-Burst: 7000", "X-KiB-Burst: 9"], 200 * K, 7000),
    ("/", &["X-Rate: 1M", "X-Burst: 3K"], 1024 * K, 3 * K),
    // What cannot be understood is as if it were not there.
    ("/", &["X-Rate: swift"], 200 * K, 5 * K),
    ("/", &["X-Rate: -1"], 200 * K, 5 * K),
    ("/", &["X-Rate: 10X", "X-KiB: 300"], 300 * K, 5 * K),
    ("/", &["X-Rate: 99999999999999999999"], 200 * K, 5 * K),
    ("/", &["X-KiB: much"], 200 * K, 5 * K),
    ("/", &["X-KiB: 18446744073709551615"], 200 * K, 5 * K),
    ("/", &["X-Burst: early"], 200 * K, 5 * K),
    ("/", &["X-KiB-Burst: -5"], 200 * K, 5 * K),
    // A fixup says it later than SetEnvIf.
    ("/fixed/", &[], 300 * K, 5 * K),
    ("/rewritten/", &[], 400 * K, 5 * K),
    ("/nothing/", &[], 0, 0),
    ("/nothing/", &["X-Rate: 600K"], 600 * K, 0),
    ("/nothing/", &["X-KiB: 500", "X-KiB-Burst: 2"], 500 * K, 2 * K),
];

#[test]
fn variables_have_their_precedence() {
    let server = started(throttled(Mpm::Event, VARIABLES).module("rewrite"));
    for (number, (folder, fields, set, burst)) in ROWS.into_iter().enumerate() {
        let path = format!("{folder}row-{number}");
        server.put(&path, vec![b'x'; 20_000]);
        let client = fields.iter().fold(Client::of(&server), |client, field| client.field(field));
        assert_eq!(client.download(&path).body.len(), 20_000, "{path}");
        let said = Summary::of(&server, &path);
        assert_eq!((said.set, said.burst), (set, burst), "{path} {fields:?}: {said:?}");
    }
    // Where nothing is throttled, nothing is said, and no variable counts.
    server.put("off/data", vec![b'x'; 2_000_000]);
    let free = Client::of(&server).field("X-KiB: 100").field("X-Rate: 100K").download("/off/data");
    assert!(free.seconds() < 2.0, "{} s where Choke is Off", free.seconds());
    assert!(Summary::all(&server).iter().all(|summary| summary.path != "/off/data"));
}

#[test]
fn a_variable_that_cannot_be_understood_is_complained_about_once() {
    let server = started(throttled(Mpm::Event, VARIABLES).module("rewrite").one_child());
    for (field, variable, value) in [
        ("X-Rate", "MY_RATE", "swift"),
        ("X-KiB", "rate-limit", "plenty"),
        ("X-Burst", "MY_BURST", "early"),
        ("X-KiB-Burst", "rate-initial-burst", "first"),
    ] {
        let client = Client::of(&server).field(&format!("{field}: {value}"));
        assert_eq!(client.status("/data"), 200);
        let line = server.eventually_logged(&[variable, value]);
        assert!(line.contains(":warn]"), "{line}");
        let log = server.error_log();
        let lines = log.lines().filter(|line| line.contains(value)).count();
        assert_eq!(lines, 1, "lines about {variable} {value}: {log}");
    }
}

/// Variables and rates of mod_ratelimit do what they say, not only in the log.
#[test]
fn variables_are_obeyed() {
    let server = throttled(Mpm::Event, VARIABLES).module("rewrite").start().settled();
    server.put("data", vec![b'x'; 600_000]);
    let client = Client::of(&server);
    thread::scope(|scope| {
        // A burst is exact to 64 KB, which take this long.
        for (fields, seconds, early) in [
            (&[][..], 2.9, 0.0),
            (&["X-Rate: 600K"], 0.97, 0.0),
            (&["X-KiB: 400"], 1.45, 0.0),
            (&["X-Burst: 300000"], 1.46, 0.32),
            (&["X-KiB-Burst: 400", "X-KiB: 100"], 1.86, 0.64),
        ] {
            let client = fields.iter().fold(client.clone(), |client, field| client.field(field));
            scope.spawn(move || {
                let took = client.download("/data").seconds();
                let fine = *about(seconds - early).start()..=*about(seconds).end();
                assert!(fine.contains(&took), "{fields:?}: {took} s, not {seconds}");
            });
        }
        let quick = client.clone().field("X-Rate: 0").download("/data");
        assert!(quick.seconds() < 0.7, "{} s without a rate", quick.seconds());
    });
}

const SECTIONS: &str = "
ChokeSummary On
ChokeRate 200K
<Location /a>
ChokeRate 300K
ChokeBurst 4K
</Location>
<Location /a/off>
Choke Off
</Location>
<Location /a/off/on>
Choke On
</Location>
<Location /a/free>
ChokeRate 0
</Location>
<Location /quiet>
ChokeSummary Off
</Location>
<Files *.mp3>
ChokeRate 250K
</Files>
<If \"%{HTTP_USER_AGENT} =~ /Robot/\">
ChokeRate 150K
</If>
<Directory ${DOCROOT}/own>
AllowOverride Options
</Directory>
<Directory ${DOCROOT}/strict>
AllowOverride Limit
</Directory>
<VirtualHost ${ADDRESS}:${PORT}>
ServerName base.test
</VirtualHost>
<VirtualHost ${ADDRESS}:${PORT}>
ServerName other.test
ChokeRate 350K
</VirtualHost>
<VirtualHost ${ADDRESS}:${PORT}>
ServerName free.test
Choke Off
</VirtualHost>";

/// The rate and burst of a path, or nothing where nothing is throttled.
fn setting(server: &Httpd, client: &Client<'_>, path: &str) -> Option<(u64, u64)> {
    server.put(path, vec![b'x'; 20_000]);
    let lines = || Summary::all(server);
    let before = lines().len();
    let said = || lines()[before..].iter().find(|said| said.path == path).cloned();
    assert_eq!(client.download(path).body.len(), 20_000, "{path}");
    // What comes later has its line later: the marker's line says that there is none of this one.
    server.put("marker", vec![b'x'; 20_000]);
    Client::of(server).download("/marker");
    eventually("the marker's line", || {
        lines()[before..].iter().any(|said| said.path == "/marker").then_some(())
    });
    said().map(|said| (said.set, said.burst))
}

#[test]
fn the_innermost_section_decides() {
    let server = started(throttled(Mpm::Event, SECTIONS));
    server.put("own/.htaccess", "ChokeRate 110K\nChokeBurst 2K");
    server.put("own/deep/.htaccess", "Choke Off");
    server.put("own/deep/er/.htaccess", "Choke On\nChokeRateEnv ANY");
    let client = Client::of(&server);
    let setting = |client: &Client<'_>, path: &str| setting(&server, client, path);
    assert_eq!(setting(&client, "/b"), Some((200 * K, 0)));
    assert_eq!(setting(&client, "/a/b"), Some((300 * K, 4 * K)));
    assert_eq!(setting(&client, "/a/off/b"), None);
    assert_eq!(setting(&client, "/a/off/on/b"), Some((300 * K, 4 * K)));
    assert_eq!(setting(&client, "/a/free/b"), Some((0, 4 * K)));
    assert_eq!(setting(&client, "/quiet/b"), None);
    assert_eq!(setting(&client, "/b.mp3"), Some((250 * K, 0)));
    assert_eq!(setting(&client, "/own/b"), Some((110 * K, 2 * K)));
    assert_eq!(setting(&client, "/own/deep/b"), None);
    assert_eq!(setting(&client, "/own/deep/er/b"), Some((110 * K, 2 * K)));
    let robot = client.clone().field("User-Agent: Robot/1");
    assert_eq!(setting(&robot, "/c"), Some((150 * K, 0)));
    assert_eq!(setting(&client.clone().host("other.test"), "/d"), Some((350 * K, 0)));
    assert_eq!(setting(&client.clone().host("free.test"), "/e"), None);
}

#[test]
fn htaccess_needs_allow_override_options() {
    let server = started(throttled(Mpm::Event, SECTIONS));
    server.put("strict/data", "hello");
    server.put("strict/.htaccess", "ChokeRate 10K");
    assert_eq!(Client::of(&server).status("/strict/data"), 500);
    server.eventually_logged(&["ChokeRate", "not allowed here"]);
}

#[test]
fn a_mistake_names_line_word_and_what_would_be_accepted() {
    for (line, word, accepted) in [
        ("Choke Maybe", "Maybe", "On or Off"),
        ("ChokePull Maybe", "Maybe", "On or Off"),
        ("ChokePacing 1", "'1'", "On or Off"),
        ("ChokeSummary loud", "loud", "On or Off"),
        ("ChokeRate fast", "fast", "K, M"),
        ("ChokeRate -5", "-5", "K, M"),
        ("ChokeBurst 5X", "5X", "K, M"),
        ("ChokeSpool big", "big", "K, M"),
        ("ChokeSpool", "ChokeSpool", "SIZE"),
        ("ChokeMaxHeld many", "many", "%"),
        ("ChokeMaxHeld 101%", "101", "%"),
        ("ChokeMaxHeld", "ChokeMaxHeld", "%"),
        ("ChokeOverflow wait", "wait", "refuse"),
        ("ChokeShare everybody 1M", "everybody", "vhost"),
        ("ChokeShare client", "ChokeShare", "RATE"),
        ("ChokeShare client fast", "fast", "K, M"),
        ("<Location />\nChokeMaxHeld 5\n</Location>", "ChokeMaxHeld", "not allowed"),
        ("<Location />\nChokeShare client 1M\n</Location>", "ChokeShare", "not allowed"),
    ] {
        let check = Setup::default().offload().directives(line).check();
        assert!(!check.ok, "accepted: {line}");
        for part in [word, accepted] {
            assert!(check.text.contains(part), "{line}: no {part:?} in {}", check.text);
        }
    }
}

#[test]
fn what_the_manual_shows_is_accepted() {
    for line in [
        "Choke on",
        "ChokeRate 0",
        "ChokeRate 10kB",
        "ChokeRate 1G",
        "ChokeMaxHeld 25%",
        "ChokeMaxHeld 12",
        "ChokeOverflow refuse",
        "ChokeOverflow unthrottled",
        "ChokeShare client 1M\nChokeShare user 2M\nChokeShare vhost 10M",
        "ChokeShare none",
        "ChokeSpool 16M",
        "ChokeSpool Off",
        "ChokeSpool 0",
        "<Location />\nChokePull Off\nChokePacing Off\nChokeOverflow refuse\nChokeSpool 1M\n</Location>",
    ] {
        let check = Setup::default().offload().directives(line).check();
        assert!(check.ok, "{line}: {}", check.text);
    }
}
