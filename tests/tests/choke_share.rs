//! ChokeShare: all connections of a client, of a user or of a virtual host have one rate together, over
//! all children, and each its fair part of it.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use offload_tests::choke::{about, eventually_still, throttled};
use offload_tests::crowd::{Crowd, Downloads, Rates};
use offload_tests::limits::{Client, put_big};
use offload_tests::{Httpd, Mpm, Setup, Site, eventually};

const RATE: f64 = 1_228_800.0;
const SHARE: &str = "ChokeShare client 1200K";

/// Until the shares are settled: an ended download's is to be the others' within two seconds.
const SETTLE: Duration = Duration::from_millis(1600);
const WINDOW: Duration = Duration::from_millis(2200);

fn started(setup: Setup) -> Httpd {
    let event = "<IfModule mpm_event_module>\nAsyncRequestWorkerFactor 20\n</IfModule>";
    let server = setup.directives(event).start().settled();
    put_big(&server, "big");
    server
}

fn event(directives: &str) -> Httpd {
    started(throttled(Mpm::Event, directives).directives("StartServers 4"))
}

fn crowd(server: &Httpd) -> Crowd {
    Crowd::of(server.address(), "/big").ethernet()
}

/// The settled rates of several crowds at the same time.
fn rates<const N: usize>(crowds: [&Downloads; N]) -> [Rates; N] {
    for one in crowds {
        one.eventually_started(one.each().len());
    }
    thread::sleep(SETTLE);
    crowds.iter().for_each(|one| one.begin());
    thread::sleep(WINDOW);
    crowds.map(Downloads::end)
}

fn near(what: &str, found: f64, expected: f64, tolerance: f64) {
    let ratio = found / expected;
    let fine = (1.0 - tolerance..1.0 + tolerance).contains(&ratio);
    assert!(fine, "{what}: {found:.0} B/s instead of {expected:.0} B/s");
}

/// These are all that share a rate.
fn fair(rates: &Rates, rate: f64) {
    let count = f64::from(u32::try_from(rates.each.len()).unwrap());
    near("the sum", rates.total(), rate, 0.15);
    for one in &rates.each {
        near("one of them", *one, rate / count, 0.25);
    }
}

/// The children that serve a crowd.
fn homes(server: &Httpd) -> usize {
    // Each child that sends has the file open.
    let file = server.path("big");
    let open = |pid: &nix::unistd::Pid| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|to| to == file)
    };
    server.children().iter().filter(|pid| open(pid)).count()
}

fn a_client_has_one_rate(server: &Httpd, counts: &[usize], most_homes: usize) {
    for &count in counts {
        let downloads = crowd(server).open(count);
        let [rates] = rates([&downloads]);
        fair(&rates, RATE);
        assert!(homes(server) >= count.min(most_homes), "{} children", homes(server));
        drop(downloads);
        eventually_still(server);
    }
}

#[test]
fn a_client_has_one_rate_over_all_children_of_event() {
    // Which child accepts a connection is not for a test to say.
    a_client_has_one_rate(&event(SHARE), &[1, 10], 1);
}

#[test]
fn a_client_has_one_rate_over_all_children_of_prefork() {
    a_client_has_one_rate(&started(throttled(Mpm::Prefork, SHARE)), &[1, 3, 10], 10);
}

/// Two clients do not concern each other, nor what is not throttled.
#[test]
fn each_client_has_a_rate_of_its_own() {
    let server = event(SHARE);
    put_big(&server, "off/big");
    let one = crowd(&server).open(2);
    let other = crowd(&server).from("127.0.0.2").open(3);
    let [ones, others] = rates([&one, &other]);
    fair(&ones, RATE);
    fair(&others, RATE);
    let free = Client::of(&server).download("/off/big").seconds();
    assert!(free < 6.0, "{free} s where nothing is throttled");
}

/// What a slow reader leaves goes to the others.
#[test]
fn a_slow_reader_leaves_the_rest_to_the_others() {
    let server = event(SHARE);
    let (slow, fast) = (crowd(&server).reading(60_000).open(1), crowd(&server).open(2));
    let [slows, fasts] = rates([&slow, &fast]);
    near("the slow one", slows.total(), 60_000.0, 0.35);
    near("all together", slows.total() + fasts.total(), RATE, 0.15);
    for one in &fasts.each {
        near("a fast one", *one, (RATE - 60_000.0) / 2.0, 0.25);
    }
}

/// Whose rate is lower for another reason takes no more than that, and the others take the rest.
#[test]
fn a_lower_rate_leaves_the_rest_to_the_others() {
    let server = event(&format!("{SHARE}\n<Location /low>\nChokeRate 200K\n</Location>"));
    put_big(&server, "low/big");
    let low = Crowd::of(server.address(), "/low/big").ethernet().open(2);
    let rest = crowd(&server).open(2);
    let [lows, rests] = rates([&low, &rest]);
    fair(&lows, 409_600.0);
    fair(&rests, RATE - 409_600.0);
}

/// A download that ends leaves its share to the others, however it ends, within two seconds.
#[test]
fn the_others_take_over_what_has_ended() {
    let server = started(throttled(Mpm::Prefork, SHARE));
    let (stays, goes) = (crowd(&server).open(1), crowd(&server).open(3));
    let [staying, going] = rates([&stays, &goes]);
    near("before", staying.total(), RATE / 4.0, 0.25);
    near("all of them", staying.total() + going.total(), RATE, 0.15);
    // The client goes.
    goes.leave(0);
    let [staying] = rates([&stays]);
    near("when one has left", staying.total(), RATE / 3.0, 0.25);
    drop(goes);
    let [staying] = rates([&stays]);
    near("when all have left", staying.total(), RATE, 0.2);
    // Others come.
    let more = crowd(&server).open(1);
    let [staying, coming] = rates([&stays, &more]);
    near("when another one has come", staying.total(), RATE / 2.0, 0.25);
    near("the other one", coming.total(), RATE / 2.0, 0.25);
}

#[test]
fn the_others_take_over_what_a_killed_child_had() {
    let server = started(throttled(Mpm::Prefork, SHARE));
    let client = Client::of(&server);
    let (stays, killed) = (crowd(&server).open(1), client.hold("/big"));
    let home = server.server_of(killed.raw.local());
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut raw = killed.raw;
            while raw.read_exactly(1 << 12).is_ok() {}
        });
        let [staying] = rates([&stays]);
        near("before", staying.total(), RATE / 2.0, 0.25);
        kill(home, Signal::SIGKILL).unwrap();
        reader.join().unwrap();
    });
    let [staying] = rates([&stays]);
    near("after", staying.total(), RATE, 0.2);
}

const USERS: &str = "<Location />\nAuthType Basic\nAuthName members\nAuthUserFile ${SCRATCH}/users\n\
     AuthBasicProvider file\nRequire user anna bert\nRequire ip 127.0.0.99\n</Location>";

#[test]
fn a_user_has_one_rate_from_everywhere() {
    let setup = throttled(Mpm::Event, &format!("ChokeShare user 1200K\n{USERS}"));
    setup.scratch().write(
        "users",
        "anna:{SHA}K8HstBDhQrzoO85vIStB4XgVNtw=\nbert:{SHA}e5ZM2TOyzJEG3qvUZBERgmz7wJQ=\n",
    );
    let server = started(setup);
    let anna = crowd(&server).field("Authorization: Basic YW5uYTphbm5h");
    let anna = anna.from("127.0.0.1").from("127.0.0.2").from("127.0.0.3").open(3);
    let bert = crowd(&server).field("Authorization: Basic YmVydDpiZXJ0").open(2);
    let [annas, berts] = rates([&anna, &bert]);
    fair(&annas, RATE);
    fair(&berts, RATE);
}

#[test]
fn a_virtual_host_has_one_rate_and_may_forget_it() {
    let text = "<VirtualHost ${ADDRESS}:${PORT}>\nServerName base.test\nChokeShare vhost 1200K\n\
         ChokeShare client 300K\n</VirtualHost>\n\
         <VirtualHost ${ADDRESS}:${PORT}>\nServerName other.test\nChokeShare none\n</VirtualHost>";
    let server = event(&format!("ChokeShare client 100K\n{text}"));
    put_big(&server, "free");
    // One client has less than its part of the virtual host's rate, and leaves the rest to the others.
    let one = crowd(&server).from("127.0.0.1").open(3);
    let others = crowd(&server).from("127.0.0.2").from("127.0.0.3").from("127.0.0.4");
    let others = others.from("127.0.0.5").open(4);
    let [ones, all] = rates([&one, &others]);
    near("all together", ones.total() + all.total(), RATE, 0.15);
    assert!(ones.total() < 307_200.0 * 1.2, "{} B/s for a client of 300 KB/s", ones.total());
    assert!(all.each.iter().all(|&rate| rate < 307_200.0 * 1.25), "{:?}", all.each);
    let free = Client::of(&server).host("other.test").download("/free").seconds();
    assert!(free < 6.0, "{free} s in a virtual host that shares nothing");
}

/// What is shared holds for every content, over TLS and without.
#[test]
fn everything_that_a_client_gets_is_shared() {
    let site = Site::start(Mpm::Event, 600_000, "ChokeShare client 800K\nChokeMaxHeld 100%");
    let client = Client::of(&site.server);
    thread::scope(|scope| {
        let (site, client) = (&site, &client);
        for path in ["/data", "/cgi/data", "/proxy/data"] {
            scope.spawn(move || {
                let got = client.download(path);
                assert!(got.body == site.data, "{path}");
                // Four times 600 KB at 800 KB/s; what ends first leaves more for the last one.
                assert!(about(2.9).contains(&got.seconds()), "{path}: {} s", got.seconds());
            });
        }
        scope.spawn(move || {
            let got = client.download_on(site.tls.connect(&[]), "/data");
            assert!(got.body == site.data);
            assert!(about(2.9).contains(&got.seconds()), "TLS: {} s", got.seconds());
        });
    });
    eventually("nothing is left", || {
        offload_tests::limits::Status::of(&site.server).transfers.is_empty().then_some(())
    });
}
