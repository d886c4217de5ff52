//! Every file in conf-examples is loaded into a real httpd and used.
//!
//! A test puts its own ports and folders in the place of the examples' names, and changes nothing else:
//! `*:80` becomes address and port, `www.example.org` and `offload1.example.org` the authorities of
//! the two servers, and the folders are those of the test. What is a comment beginning with `#` and no
//! space is a line to be taken in, and `uncommented` takes it in.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::thread;

use offload_tests::choke::{Summary, script};
use offload_tests::crowd::raise_file_limit;
use offload_tests::limits::{Client, Status, put_big};
use offload_tests::{Artifacts, Curl, Httpd, Setup, bytes, eventually, same_file};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf-examples")
}

fn example(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// The lines that are commented out between two lines, taken in.
fn uncommented(text: &str) -> String {
    let line = |line: &str| {
        let rest = line.trim_start().strip_prefix('#').filter(|rest| !rest.is_empty());
        match rest {
            Some(rest) if !rest.starts_with(' ') || rest.starts_with("    ") => rest.to_owned(),
            _ => line.to_owned(),
        }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Both servers, before anything was said to them.
struct Servers {
    base: Setup,
    host: Setup,
}

impl Servers {
    fn new() -> Self {
        let host = Setup::on("127.0.0.2").module("cgid");
        host.scratch().folder("bin");
        host.scratch().folder_of_server("var");
        host.scratch().install(&Artifacts::default().cgi(), "bin/offload-cgi");
        Self { base: Setup::default().offload(), host }
    }

    fn placed(&self, text: &str) -> String {
        let (base, host) = (self.base.authority(), self.host.authority());
        text.replace("*:80", "${ADDRESS}:${PORT}")
            .replace("ServerName www.example.org", "ServerName base.test")
            .replace("ServerName offload1.example.org", "ServerName host.test")
            .replace("/var/log/apache2", "${SCRATCH}")
            .replace("/var/cache/offload", "${SCRATCH}/var")
            .replace("/srv/files", "${DOCROOT}")
            .replace("/srv/offload", "${DOCROOT}")
            .replace("/usr/lib/offload", "${SCRATCH}/bin")
            .replace("http://www.example.org", &format!("http://{base}"))
            .replace("http://offload1.example.org", &format!("http://{host}"))
    }

    fn start(self, base: &str, host: &str) -> (Httpd, Httpd) {
        let (base, host) = (self.placed(base), self.placed(host));
        (self.base.directives(&base).start(), self.host.directives(&host).start())
    }
}

fn delivers(base: &Httpd, path: &str, seed: u64) {
    let file = base.put(path, bytes(seed, 2_000_000));
    for _ in ["cold", "warm"] {
        let answer = Curl::new(base.url(path)).follow().run();
        assert_eq!((answer.heads[0].status, answer.status()), (307, 200), "{path}: {answer:?}");
        assert!(same_file(answer.file(), &file), "{path}: other bytes than on the base");
    }
}

#[test]
fn there_is_a_test_for_every_example() {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "base.conf",
            "choke.conf",
            "htaccess.example",
            "limits.conf",
            "offload-cgi.conf",
            // The daemon's: offload-cgi/tests/daemon serves with the one and reads the other.
            "offload.conf",
            "offload.service",
            "throttle.conf",
        ]
    );
}

#[test]
fn base_conf_and_offload_cgi_conf_deliver_a_file() {
    let (base, _host) = Servers::new().start(&example("base.conf"), &example("offload-cgi.conf"));
    delivers(&base, "/pub/a.iso", 1);
    for (path, size) in
        [("/pub/small.iso", 1000), ("/pub/page.html", 2_000_000), ("/elsewhere.iso", 2_000_000)]
    {
        base.put(path, bytes(2, size));
        assert_eq!(base.get(path).status(), 200, "{path} stays on the base");
    }
    let robot = base.curl("/pub/a.iso").arg("-A").arg("Googlebot/2.1").run();
    assert_eq!(robot.status(), 200);
    let log = fs::read_to_string(base.scratch().path().join("www.example.org.log")).unwrap();
    assert!(log.contains("\"offload http://127.0.0.2:"), "{log}");
    assert!(log.contains("\"keep excluded-type\""), "{log}");
}

#[test]
fn offload_cgi_conf_works_in_the_error_document_way() {
    let text = example("offload-cgi.conf");
    let (before, ways) = text.split_once("    # One way:").unwrap();
    let (_, other) = ways.split_once("    # The other way:").unwrap();
    let other = other.split_once('\n').unwrap().1;
    let (base, host) =
        Servers::new().start(&example("base.conf"), &format!("{before}{}", uncommented(other)));
    delivers(&base, "/pub/a.iso", 1);
    host.put("own.txt", "of the host");
    assert_eq!(host.get("/own.txt").body(), b"of the host");
}

#[test]
fn what_base_conf_has_commented_out_is_accepted() {
    let setup = Setup::default().offload().module("alias");
    let text = Servers::new().placed(&uncommented(&example("base.conf")));
    let text =
        text.lines().filter(|line| !line.contains("LoadModule")).collect::<Vec<_>>().join("\n");
    setup.scratch().folder("www");
    let check = setup.directives(&text).check();
    assert!(check.ok, "{}", check.text);
}

#[test]
fn htaccess_example_decides_for_its_folder() {
    let (base, _host) = Servers::new().start(&example("base.conf"), &example("offload-cgi.conf"));
    base.put("downloads/.htaccess", example("htaccess.example"));
    delivers(&base, "/downloads/a.iso", 1);
    base.put("downloads/medium.iso", bytes(2, 200_000));
    assert_eq!(base.get("/downloads/medium.iso").status(), 307);
    base.put("downloads/SHA256SUMS", bytes(3, 2_000_000));
    assert_eq!(base.get("/downloads/SHA256SUMS").status(), 200);
    base.put("downloads/.htaccess", uncommented(&example("htaccess.example")));
    let location = base.get("/downloads/a.iso").location().to_owned();
    assert_eq!(location, "http://offload9.example.org/downloads/a.iso");
}

/// Loads the module under its second name too, for `<IfModule mod_choke.c>`.
const CHOKE: &str = "LoadModule choke_module ${SCRATCH}/mod_offload.so";

const ADDRESS: &str = "Too many connections from your address";

fn placed(text: &str) -> String {
    Servers::new().placed(text)
}

#[test]
fn limits_conf_limits() {
    let setup = Setup::default().offload().directives(&placed(&example("limits.conf")));
    let server = setup.start();
    for name in ["a.zip", "search/a.zip", "pub/iso/a.iso"] {
        put_big(&server, name);
    }
    let client = Client::of(&server);
    let ten = client.hold_all("/a.zip", 10);
    client.assert_refused("/a.zip", ADDRESS);
    client.assert_refused("/choke-status?json", ADDRESS);
    let log = || fs::read_to_string(server.scratch().path().join("www.example.org.log")).unwrap();
    eventually("the log names the limit", || {
        log().contains(" 503 ").then(|| assert!(log().contains("\"MaxConnectionsPerIP\"")))
    });
    let other = client.clone().from("127.0.0.2");
    let four = other.hold_all("/search/a.zip", 4);
    client.clone().from("127.0.0.3").assert_refused("/search/a.zip", "in this part of the server");
    let iso = other.hold("/pub/iso/a.iso");
    let (_, json) = client.clone().from("127.0.0.4").get("/choke-status?json");
    let status = Status::read(&json);
    let says = |directive| {
        let scope = status.scope(directive);
        (scope.limit, scope.held, scope.clients)
    };
    assert_eq!(says("MaxConnectionsPerIP"), (10, 16, 3), "{json}");
    assert_eq!(says("GlobalMaxConnectionsPerIP"), (20, 16, 3), "{json}");
    assert_eq!(says("LoadLimitServer"), (350, 16, 1), "{json}");
    assert_eq!(says("LoadLimit"), (50, 1, 1), "{json}");
    drop((ten, four, iso));
    client.eventually_hold("/a.zip");
}

#[test]
fn what_limits_conf_has_commented_out_is_accepted() {
    let text = placed(&uncommented(&example("limits.conf")));
    let text =
        text.lines().filter(|line| !line.contains("LoadModule")).collect::<Vec<_>>().join("\n");
    let check = Setup::default().offload().directives(&text).check();
    assert!(check.ok, "{}", check.text);
}

const AUTHENTICATION: &str = "
<Location /members>
    AuthType Basic
    AuthName members
    AuthUserFile ${SCRATCH}/users
    AuthBasicProvider file
    Require valid-user
</Location>";

/// The reference configuration of the original, as it is, to the letter.
#[test]
fn choke_conf_loads_as_it_is_and_limits() {
    let text = format!("{CHOKE}\n{}\n{AUTHENTICATION}", example("choke.conf"));
    let setup = Setup::default().offload().directives(&text);
    setup.scratch().write("users", "anna:{SHA}K8HstBDhQrzoO85vIStB4XgVNtw=\n");
    let check = setup.check();
    assert!(check.ok, "{}", check.text);
    let server = setup.start();
    put_big(&server, "big");
    put_big(&server, "members/big");
    let (one, two) = (
        Client::of(&server).host("www.example.com"),
        Client::of(&server).host("www.someothersite.com"),
    );
    let ones = one.hold_all("/big", 10);
    one.assert_refused("/big", ADDRESS);
    let twos = two.hold_all("/big", 10);
    two.assert_refused("/big", ADDRESS);
    let anna = |from| two.clone().from(from).user("anna");
    let users: Vec<_> =
        ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|from| anna(from).hold("/members/big")).into();
    anna("127.0.0.5").assert_refused("/members/big", "Too many connections of your user");
    let (head, json) = two.clone().from("127.0.0.9").get("/choke-status?json");
    assert_eq!(head.status, 200, "{json}");
    let status = Status::read(&json);
    let scopes = |directive| -> Vec<_> {
        let mut scopes = status.scopes_of(directive);
        scopes.sort_by(|one, other| one.place.cmp(&other.place));
        scopes.iter().map(|scope| (scope.limit, scope.held)).collect()
    };
    assert_eq!(scopes("MaxConnectionsPerIP"), [(10, 10), (10, 14)], "{json}");
    assert_eq!(scopes("MaxConnectionsPerUser"), [(3, 0), (3, 3)], "{json}");
    assert_eq!(scopes("GlobalMaxConnectionsPerIP"), [(20, 24)], "{json}");
    assert_eq!(scopes("GlobalMaxConnectionsPerUser"), [(10, 3)], "{json}");
    drop((ones, twos, users));
    one.eventually_hold("/big");
}

/// The rates and bursts of the original's sections, as the client sees them.
#[test]
fn choke_conf_throttles() {
    let text = format!("{CHOKE}\n{}", example("choke.conf"));
    let text = text.replace("/usr/local/apache/htdocs", "${DOCROOT}");
    let server = Setup::default().offload().directives(&text).start();
    const K: f64 = 1024.0;
    let rates = [
        ("/other.bin", 10.0 * K, 50.0 * K),
        ("/big_files/a.bin", 50.0 * K, 500.0 * K),
        ("/song.mp3", 20.0 * K, 30.0 * K),
    ];
    put_big(&server, "images/a.bin");
    let client = Client::of(&server).host("www.example.com");
    thread::scope(|scope| {
        for (path, rate, burst) in rates {
            put_big(&server, path);
            let client = &client;
            scope.spawn(move || {
                let got = client.sample(client.connect(), path, 8.0);
                // At such rates the kernel sends 25 KB at a time to a client that is near.
                let (found, all) = (got.rate(2.0, 8.0), got.bytes_at(8.0));
                assert!((rate * 0.5..rate * 1.5).contains(&found), "{path}: {found} B/s");
                let expected = burst + 8.0 * rate;
                assert!((all - expected).abs() < 64.0 * K, "{path}: {all} of {expected} bytes");
            });
        }
        let free = client.download("/images/a.bin").seconds();
        assert!(free < 6.0, "{free} s for 24 MB where Choke is Off");
    });
    let said = eventually("each has a summary", || {
        let said = Summary::all(&server);
        (said.len() >= 3).then_some(said)
    });
    for (path, rate, burst) in rates {
        let one = said.iter().find(|one| one.path == path).unwrap();
        let set = (one.set as f64, one.burst as f64, one.aborted);
        assert_eq!(set, (rate, burst, true), "{one:?}");
    }
}

/// Without the second name its sections are skipped, and nothing is limited.
#[test]
fn choke_conf_does_nothing_unless_the_module_has_its_name() {
    let server = Setup::default().offload().directives(&example("choke.conf")).start();
    put_big(&server, "big");
    let _held = Client::of(&server).host("www.example.com").hold_all("/big", 25);
    assert_eq!(Client::of(&server).status("/choke-status"), 404);
}

#[test]
fn throttle_conf_throttles() {
    let text =
        format!("ScriptAlias /export ${{SCRATCH}}/cgi/\n{}", placed(&example("throttle.conf")));
    let setup = Setup::default().module("cgid").offload().directives(&text);
    let head = "printf 'Content-Type: text/plain\\r\\n\\r\\n'";
    script(&setup, "list", &format!("{head}\nexec head -c 1000000 /dev/zero"));
    let server = setup.start();
    let client = Client::of(&server);
    let robot = client.clone().field("User-Agent: Examplebot/2");
    let rows = [
        ("/iso/a", &client, 200, "paced"),
        ("/mirror/a", &client, 500, "paced"),
        ("/mirror/b", &robot, 50, "paced"),
        ("/export/list", &client, 200, "spooled"),
    ];
    thread::scope(|scope| {
        for (path, client, ..) in rows {
            if !path.starts_with("/export") {
                put_big(&server, path);
            }
            scope.spawn(move || {
                let got = client.sample(client.connect(), path, 3.0);
                if path == "/iso/a" {
                    let (bytes, expected) = (got.bytes_at(3.0), 1_048_576.0 + 3.0 * 204_800.0);
                    assert!((bytes / expected - 1.0).abs() < 0.2, "{bytes} of {expected} bytes");
                }
            });
        }
        for (path, _, rate, how) in rows {
            eventually(&format!("{path} at {rate}K, {how}"), || {
                let status = Status::read(&client.get("/choke-status?json").1);
                assert_eq!(status.choke["max_held"], 32, "a quarter of 128");
                let one = status.transfers_of(path).first().map(|&one| one.clone())?;
                ((one.rate, &*one.how) == (rate << 10, how)).then_some(())
            });
        }
        put_big(&server, "free");
        assert!(client.download("/free").seconds() < 6.0);
    });
    let said = Summary::of(&server, "/iso/a");
    assert_eq!((said.set, said.burst), (204_800, 1_048_576), "{said:?}");
}

/// Its settings for ten thousand downloads are those that the module would advise.
#[test]
fn what_throttle_conf_says_about_ten_thousand_is_enough() {
    raise_file_limit();
    let text = example("throttle.conf");
    let settings = text.lines().filter_map(|line| line.strip_prefix("#   "));
    let settings = settings.collect::<Vec<_>>().join("\n");
    for name in ["AsyncRequestWorkerFactor", "ListenBacklog", "MaxRequestWorkers"] {
        assert!(settings.contains(name), "{settings}");
    }
    let server =
        Setup::default().offload().directives(&settings).directives(&placed(&text)).start();
    let log = server.error_log();
    assert!(!log.contains("set AsyncRequestWorkerFactor"), "{log}");
    assert!(!log.contains("set ListenBacklog") && !log.contains("set Timeout"), "{log}");
}
