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

use offload_tests::{Artifacts, Curl, Httpd, Setup, bytes, same_file};

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
    assert_eq!(names, ["base.conf", "htaccess.example", "offload-cgi.conf"]);
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
