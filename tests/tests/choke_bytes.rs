//! Whatever is throttled, by whichever way and over whichever protocol, arrives as it is.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;

use offload_tests::choke::{Summary, eventually_still, script};
use offload_tests::{Answer, Curl, Mpm, Relay, Site, bytes};

const LENGTH: u64 = 400_013;

const DIRECTIVES: &str = "ChokeRate 2M\nChokeSummary On\nErrorDocument 404 /missing.html\nErrorDocument 403 /cgi/data\n\
    <Location /locked>\nRequire all denied\n</Location>\n\
    <Location /zipped>\nSetOutputFilter DEFLATE\n</Location>\n\
    AddType text/html .shtml\nAddOutputFilter INCLUDES .shtml\n<Directory ${DOCROOT}>\nOptions +Includes\n</Directory>";

/// What the page with includes is made of.
const PAGE: &str =
    "begin\n<!--#include virtual=\"/data.txt\" -->\n<!--#include virtual=\"/cgi/text\" -->\nend\n";

/// A request, and what has to come back.
struct Case {
    path: &'static str,
    arguments: &'static [&'static str],
    status: u16,
    body: Vec<u8>,
}

struct World {
    site: Site,
    plain: Relay,
    cases: Vec<Case>,
}

/// What is in the page's parts.
fn text(seed: u64, length: u64) -> Vec<u8> {
    bytes(seed, length).into_iter().map(|byte| b'a' + byte % 26).collect()
}

/// The programs of the site: one whose answer is long and a failure, one that says how long its answer is,
/// one that sends back what it gets, one for the page.
fn programs(setup: offload_tests::Setup) -> offload_tests::Setup {
    let file = setup.scratch().path().join("www/data").display().to_string();
    let head = "printf 'Content-Type: application/octet-stream\\r\\n";
    script(
        &setup,
        "failure",
        &format!("{head}Status: 404 Gone astray\\r\\n\\r\\n'\nexec cat {file}"),
    );
    let length = format!("Content-Length: {LENGTH}\\r\\n\\r\\n'");
    script(&setup, "known", &format!("{head}{length}\nexec cat {file}"));
    // It has to take everything in first: httpd does not read the answer before that.
    let echo = "file=$(mktemp)\ncat >$file\ncat $file\nrm $file";
    script(&setup, "echo", &format!("{head}\\r\\n'\n{echo}"));
    script(
        &setup,
        "text",
        "printf 'Content-Type: text/plain\\r\\n\\r\\n'\nexec cat \"$DOCUMENT_ROOT\"/other.txt",
    );
    // Little by little, so that the server sees many small pieces.
    script(
        &setup,
        "drops",
        &format!(
            "{head}\\r\\n'\nfor n in 0 1 2 3 4 5 6 7 8 9; do head -c 2000 {file}; sleep 0.02; done"
        ),
    );
    setup.module("deflate").module("include")
}

impl World {
    fn new(mpm: Mpm, directives: &str) -> Self {
        let text_of = format!("{DIRECTIVES}\n{directives}");
        let site = Site::prepared(mpm, LENGTH, &text_of, programs);
        let server = &site.server;
        let (one, other) = (text(1, 150_000), text(2, 120_000));
        server.put("data.txt", &one);
        server.put("other.txt", &other);
        server.put("page.shtml", PAGE);
        server.put("zipped/data.txt", text(3, LENGTH));
        server.put("folder/index.html", &site.data);
        server.put("missing.html", text(4, 200_000));
        server.put("upload", &site.data);
        for length in [0, 1, 49_152, 65_537] {
            server.put(&format!("sizes/{length}"), &site.data[..length]);
        }
        let page = [b"begin\n", &one[..], b"\n", &other, b"\nend\n"].concat();
        let plain = Relay::to(server.address());
        let cases = cases(&site.data, page);
        Self { site, plain, cases }
    }

    /// A request by curl over this protocol.
    fn curl(&self, protocol: &str, path: &str) -> Curl {
        let plain = || {
            let curl = self.site.server.curl(path);
            self.plain.detour().iter().fold(curl, |curl, argument| curl.arg(argument))
        };
        let tls = || self.site.tls.curl(path);
        match protocol {
            "http" => plain().arg("--http1.1"),
            "h2c" => plain().arg("--http2-prior-knowledge"),
            "tls 1.2" => tls().arg("--http1.1").arg("--tls-max").arg("1.2"),
            "tls 1.3" => tls().arg("--http1.1").arg("--tlsv1.3"),
            "h2" => tls().arg("--http2"),
            _ => panic!("{protocol}"),
        }
    }

    fn ask(&self, protocol: &str, case: &Case) {
        let curl = self.curl(protocol, case.path);
        let upload = self.site.server.path("upload");
        let name = |argument: &str| argument.replace("UPLOAD", &upload.display().to_string());
        let curl = case.arguments.iter().fold(curl, |curl, argument| curl.arg(&name(argument)));
        let (answer, what) = (curl.run(), format!("{protocol} {} {:?}", case.path, case.arguments));
        assert_eq!(answer.status(), case.status, "{what}: {answer:?}");
        let body = answer.body();
        assert!(body == case.body, "{what}: {} bytes, not {}", body.len(), case.body.len());
    }

    /// What curl cannot check by itself.
    fn ask_the_rest(&self, protocol: &str) {
        let data = &self.site.data;
        let head = self.curl(protocol, "/data").method("HEAD").run();
        assert_eq!(head.field("content-length"), LENGTH.to_string(), "{protocol}: {head:?}");
        let tag = head.field("etag").to_owned();
        let same = self.curl(protocol, "/data").header(&format!("If-None-Match: {tag}")).run();
        assert_eq!(same.status(), 304, "{protocol}: {same:?}");
        let parts = self.curl(protocol, "/data").range("0-99999,200000-399999,-1").run();
        assert_eq!(parts.status(), 206, "{protocol}: {parts:?}");
        let expected = [(0, 100_000), (200_000, 400_000), (400_012, 400_013)];
        assert_eq!(
            multipart(&parts),
            expected.map(|(from, to)| data[from..to].to_vec()),
            "{protocol}"
        );
        let zipped = self.curl(protocol, "/zipped/data.txt").header("Accept-Encoding: gzip").run();
        assert_eq!(zipped.field("content-encoding"), "gzip", "{protocol}: {zipped:?}");
        let file = fs::File::open(zipped.file()).unwrap();
        let plain = Command::new("gzip").arg("-dc").stdin(file).output().unwrap();
        assert!(plain.stdout == text(3, LENGTH), "{protocol}: other bytes when unzipped");
    }
}

fn cases(data: &[u8], page: Vec<u8>) -> Vec<Case> {
    let case = |path, arguments, status, body: &[u8]| Case {
        path,
        arguments,
        status,
        body: body.to_vec(),
    };
    let drops = data[..2000].repeat(10);
    vec![
        case("/data", &[], 200, data),
        case("/data", &["-r", "100000-299999"], 206, &data[100_000..300_000]),
        case("/data", &["-r", "-200000"], 206, &data[200_013..]),
        case("/cgi/data", &[], 200, data),
        case("/cgi/known", &[], 200, data),
        case("/cgi/failure", &[], 404, data),
        case("/cgi/drops", &[], 200, &drops),
        case("/cgi/echo", &["--data-binary", "@UPLOAD"], 200, data),
        case("/proxy/data", &[], 200, data),
        case("/proxy/data", &["-r", "5-300000"], 206, &data[5..=300_000]),
        case("/proxy/cgi/data", &[], 200, data),
        case("/nothing", &[], 404, &text(4, 200_000)),
        case("/locked", &[], 403, data),
        case("/folder/", &[], 200, data),
        case("/page.shtml", &[], 200, &page),
        case("/sizes/0", &[], 200, b""),
        case("/sizes/1", &[], 200, &data[..1]),
        case("/sizes/49152", &[], 200, &data[..49_152]),
        case("/sizes/65537", &[], 200, &data[..65_537]),
    ]
}

/// The bodies of a multipart answer.
fn multipart(answer: &Answer) -> Vec<Vec<u8>> {
    let kind = answer.field("content-type").to_owned();
    let boundary = kind.split_once("boundary=").expect("no multipart").1;
    let (body, mark) = (answer.body(), format!("\r\n--{boundary}").into_bytes());
    let mut rest = &body[..];
    let mut parts = Vec::new();
    let find =
        |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|at| at == what).unwrap();
    loop {
        rest = &rest[find(rest, &mark) + mark.len()..];
        if rest.starts_with(b"--") {
            return parts;
        }
        rest = &rest[find(rest, b"\r\n\r\n") + 4..];
        parts.push(rest[..find(rest, &mark)].to_vec());
    }
}

/// Every case over every protocol, many of them at a time; they are held in all these ways, and no other.
fn everything_arrives(mpm: Mpm, directives: &str, ways: &[&str]) {
    let world = World::new(mpm, directives);
    let mut protocols = vec!["http", "tls 1.2", "tls 1.3"];
    if mpm != Mpm::Prefork {
        protocols.extend(["h2c", "h2"]);
    }
    thread::scope(|scope| {
        for protocol in protocols {
            let world = &world;
            scope.spawn(move || world.cases.iter().for_each(|case| world.ask(protocol, case)));
            scope.spawn(move || world.ask_the_rest(protocol));
        }
    });
    eventually_still(&world.site.server);
    let said = Summary::all(&world.site.server);
    let seen: BTreeSet<&str> = said.iter().map(|summary| &*summary.how).collect();
    assert_eq!(seen, ways.iter().copied().collect());
    let log = world.site.server.error_log();
    assert!(!log.contains("exit signal") && !log.contains("internal error"), "{log}");
}

#[test]
fn everything_arrives_by_event() {
    everything_arrives(Mpm::Event, "", &["paced", "pulled"]);
}

#[test]
fn everything_arrives_by_worker() {
    everything_arrives(Mpm::Worker, "", &["paced"]);
}

#[test]
fn everything_arrives_by_prefork() {
    everything_arrives(Mpm::Prefork, "", &["paced"]);
}

#[test]
fn everything_arrives_when_a_filter_sleeps() {
    everything_arrives(Mpm::Event, "ChokePacing Off\nChokeMaxHeld 100%", &["slept"]);
}

#[test]
fn everything_arrives_when_a_filter_sleeps_in_prefork() {
    everything_arrives(Mpm::Prefork, "ChokePacing Off\nChokeMaxHeld 100%", &["slept"]);
}

#[test]
fn everything_arrives_without_the_pull() {
    everything_arrives(Mpm::Event, "ChokePull Off\nChokeMaxHeld 100%", &["paced"]);
}

#[test]
fn everything_arrives_by_sendfile() {
    everything_arrives(Mpm::Event, "EnableSendfile On\nEnableMMAP Off", &["paced", "pulled"]);
}

#[test]
fn everything_arrives_behind_a_burst() {
    everything_arrives(Mpm::Event, "ChokeBurst 100K", &["paced", "pulled"]);
}

#[test]
fn everything_arrives_when_it_fits_into_the_spool() {
    everything_arrives(Mpm::Event, "ChokeSpool 8M", &["paced", "pulled", "spooled"]);
}

#[test]
fn everything_arrives_when_the_spool_overflows() {
    everything_arrives(
        Mpm::Event,
        "ChokeSpool 100K\nChokeBurst 50K",
        &["paced", "pulled", "spooled"],
    );
}

#[test]
fn everything_arrives_under_a_shared_rate() {
    everything_arrives(Mpm::Event, "ChokeShare client 20M", &["paced", "pulled"]);
}

#[test]
fn everything_arrives_above_the_held() {
    everything_arrives(
        Mpm::Event,
        "ChokeMaxHeld 1\nChokeBurst 10K",
        &["paced", "pulled", "unthrottled"],
    );
}
