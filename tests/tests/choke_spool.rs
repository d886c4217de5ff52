//! ChokeSpool: a generator ends early, and its output is sent without a worker.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;
use offload_tests::choke::{Summary, about, eventually_still, script, throttled, workers};
use offload_tests::limits::{Client, Status};
use offload_tests::tls::Tls;
use offload_tests::{Download, Httpd, Mpm, Raw, Setup, Site, bytes, eventually};

const LENGTH: u64 = 1_200_000;

/// A server with a program that says which process it is, and then prints what is in a file.
struct World {
    server: Httpd,
    tls: Tls,
    pids: PathBuf,
    data: Vec<u8>,
}

impl World {
    fn new(mpm: Mpm, directives: &str) -> Self {
        let tls = Tls::default();
        let text = format!(
            "ChokeRate 300K\nChokeSummary On\nScriptAlias /cgi/ ${{SCRATCH}}/cgi/\n{directives}"
        );
        let setup = tls.serve(throttled(mpm, &text).module(mpm.cgi_module()));
        let setup = if mpm == Mpm::Prefork { setup } else { setup.one_child() };
        let pids = setup.scratch().folder_of_server("pids");
        programs(&setup);
        let server = setup.start().settled();
        let data = bytes(7, LENGTH);
        server.put("data", &data);
        Self { server, tls, pids, data }
    }

    /// The process that makes the answer to the request with this query.
    fn generator(&self, query: &str) -> Pid {
        eventually("the program has begun", || {
            let text = fs::read_to_string(self.pids.join(query)).ok()?;
            text.trim().parse().ok().map(Pid::from_raw)
        })
    }

    /// Whether it is still there.
    fn works(&self, query: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.generator(query)));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Checks a download whose generator is to have ended long before it.
    fn assert_spooled(&self, raw: Raw, query: &str) {
        let path = format!("/cgi/print?{query}");
        let (client, started) = (Client::of(&self.server), std::time::Instant::now());
        let got = thread::scope(|scope| {
            let download = scope.spawn(|| client.download_on(raw, &path));
            eventually("the program has ended", || (!self.works(query)).then_some(()));
            let early = started.elapsed().as_secs_f64();
            assert!(early < 2.0, "{query}: the program has ended after {early} s");
            eventually("no worker is held", || {
                let status = Status::of(&self.server);
                let ways = status.transfers.iter().map(|one| &*one.how).collect::<Vec<_>>();
                (status.choke["held"] == 0 && ways == ["spooled"]).then_some(())
            });
            assert!(!download.is_finished(), "{query}: it was too fast");
            download.join().unwrap()
        });
        self.assert_whole(query, &got);
        let said = eventually("its summary", || Summary::all(&self.server).pop());
        assert_eq!((&*said.how, said.aborted), ("spooled", false), "{said:?}");
    }

    fn assert_whole(&self, query: &str, got: &Download) {
        assert!(got.body == self.data, "{query}: other bytes");
        let seconds = got.seconds();
        assert!(about(3.9).contains(&seconds), "{query}: {seconds} s instead of 3.9 s");
    }
}

fn programs(setup: &Setup) {
    let folder = setup.scratch().path().display().to_string();
    let head = "printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'";
    let print =
        format!("echo $$ >{folder}/pids/\"$QUERY_STRING\"\n{head}\nexec cat {folder}/www/data");
    script(setup, "print", &print);
    script(setup, "slowly", &format!("{head}\necho one\nsleep 3\necho two"));
}

/// Without a spool the program works nearly as long as the client, and a worker with it.
#[test]
fn without_a_spool_the_generator_waits_for_the_client() {
    let world = World::new(Mpm::Event, "");
    let client = Client::of(&world.server);
    let got = thread::scope(|scope| {
        let download = scope.spawn(|| client.download("/cgi/print?waits"));
        world.generator("waits");
        thread::sleep(Duration::from_millis(1500));
        assert!(world.works("waits"));
        let status = Status::of(&world.server);
        assert_eq!(status.choke["held"], 1, "{status:?}");
        download.join().unwrap()
    });
    world.assert_whole("waits", &got);
    eventually_still(&world.server);
}

#[test]
fn the_generator_ends_early_with_event() {
    let world = World::new(Mpm::Event, "ChokeSpool 4M");
    world.assert_spooled(Client::of(&world.server).connect(), "plain");
    world.assert_spooled(world.tls.connect(&["-tls1_2"]), "tls");
    assert!(workers(&world.server).0 <= 2);
    eventually_still(&world.server);
    no_file_is_left(&world.server);
}

/// Where each connection has a worker of its own, the generator at least has ended.
fn the_generator_ends_early(mpm: Mpm) {
    let world = World::new(mpm, "ChokeSpool 4M");
    let client = Client::of(&world.server);
    let got = thread::scope(|scope| {
        let download = scope.spawn(|| client.download("/cgi/print?early"));
        eventually("the program has ended", || (!world.works("early")).then_some(()));
        assert!(!download.is_finished());
        download.join().unwrap()
    });
    world.assert_whole("early", &got);
    eventually_still(&world.server);
    no_file_is_left(&world.server);
}

#[test]
fn the_generator_ends_early_with_worker() {
    the_generator_ends_early(Mpm::Worker);
}

#[test]
fn the_generator_ends_early_with_prefork() {
    the_generator_ends_early(Mpm::Prefork);
}

/// What is longer than the spool arrives too, and a client that goes leaves nothing behind.
#[test]
fn a_spool_that_overflows_or_is_left_loses_nothing() {
    let world = World::new(Mpm::Event, "ChokeSpool 500K");
    let client = Client::of(&world.server);
    let got = client.download("/cgi/print?long");
    world.assert_whole("long", &got);
    for number in 0..10u32 {
        let seconds = f64::from(number) * 0.05;
        drop(client.sample(client.connect(), &format!("/cgi/print?gone-{number}"), seconds));
    }
    eventually_still(&world.server);
    no_file_is_left(&world.server);
    for number in 0..10 {
        eventually("the program has ended", || {
            (!world.works(&format!("gone-{number}"))).then_some(())
        });
    }
}

/// No child has a deleted file open, but for what it shares with the others all its life.
fn no_file_is_left(server: &Httpd) {
    let scratch = server.scratch().path().display().to_string();
    let shared = ["/dev/", "/SYSV", "/memfd:", &scratch].map(ToOwned::to_owned);
    eventually("no spool is open", || {
        let children = server.children().into_iter();
        let folders = children.filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
        let files = folders.flatten().flatten().filter_map(|file| fs::read_link(file.path()).ok());
        let mut names = files.map(|file| file.display().to_string());
        let left = |name: String| {
            name.ends_with(" (deleted)") && !shared.iter().any(|shared| name.starts_with(shared))
        };
        (!names.any(left)).then_some(())
    });
}

/// A program that has something to say now and then is heard when it says it.
#[test]
fn what_comes_slowly_is_not_kept_back() {
    let world = World::new(Mpm::Event, "ChokeSpool 4M");
    let client = Client::of(&world.server);
    let early = client.sample(client.connect(), "/cgi/slowly", 1.5);
    assert!(!early.body.is_empty(), "nothing came within 1.5 s");
    assert_eq!(client.download("/cgi/slowly").body, b"one\ntwo\n");
    eventually_still(&world.server);
}

/// The server behind a proxy is done early too.
#[test]
fn the_server_behind_a_proxy_ends_early() {
    let site = Site::start(Mpm::Event, LENGTH, "ChokeRate 300K\nChokeSpool 4M");
    let client = Client::of(&site.server);
    for path in ["/proxy/data", "/proxy/cgi/data"] {
        let behind = path.trim_start_matches("/proxy");
        let got = thread::scope(|scope| {
            let download = scope.spawn(|| client.download(path));
            let entry = |entry: &offload_tests::Entry| entry.path == behind;
            site.backend.eventually_entry("the server behind is done", entry);
            eventually("no worker is held", || {
                let status = Status::of(&site.server);
                let ways = status.transfers.iter().map(|one| &*one.how).collect::<Vec<_>>();
                (status.choke["held"] == 0 && ways == ["spooled"]).then_some(())
            });
            assert!(!download.is_finished(), "{path}: it was too fast");
            download.join().unwrap()
        });
        assert!(got.body == site.data, "{path}: other bytes");
        assert!(about(3.9).contains(&got.seconds()), "{path}: {} s", got.seconds());
    }
    eventually_still(&site.server);
}
