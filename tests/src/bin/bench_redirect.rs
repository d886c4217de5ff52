//! `make bench-redirect`: redirections a second, by our module and by mod_alias, in one run of one httpd.
//!
//! mod_alias stands in three places. At server level and in a `<Location>` it answers before httpd looks
//! for a file; in a `<Directory>` it answers where our module must: for a file that httpd has found and
//! whose sections it has merged. That one is the comparison that counts: the module decides by the file's
//! size, and nobody can know a size without a look. The others show what the look costs. There are two loads: connections that are kept, and one for each
//! request, as people who download have it.
//!
//! Rounds of `wrk` alternate between the four, so that whatever else the machine does hits all alike; the
//! medians count. `BENCH_ROUNDS` (7) and `BENCH_SECONDS` (3) can be set.

// A benchmark ends where something does not hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

use offload_tests::load::{median, wrk};
use offload_tests::{Httpd, Mpm, Setup, bytes};

/// What our module must reach of the speed of mod_alias.
const WANTED: f64 = 0.95;

const CONFIGURATION: &str = "
OffloadHost 127.0.0.2:9
<Location /ours>
    OffloadEngine On
</Location>
Redirect 307 /server http://127.0.0.2:9/server
<Location /location>
    Redirect 307 http://127.0.0.2:9/location/a.bin
</Location>
<Directory ${DOCROOT}/directory>
    Redirect 307 /directory http://127.0.0.2:9/directory
</Directory>";

const SUBJECTS: [(&str, &str); 4] = [
    ("OffloadEngine On", "/ours/a.bin"),
    ("Redirect, server level", "/server/a.bin"),
    ("Redirect in <Location>", "/location/a.bin"),
    ("Redirect in <Directory>", "/directory/a.bin"),
];

/// The subject that does what ours must do too.
const LIKE: usize = 3;

fn main() -> ExitCode {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse::<usize>().expect(name))
    };
    let (rounds, seconds) = (number("BENCH_ROUNDS", 7), number("BENCH_SECONDS", 3));
    let server = Setup::default()
        .mpm(Mpm::Event)
        // httpd closes connections when it ends a child that it has too many of; here there is one.
        .one_child()
        .without_access_log()
        .offload()
        .directives(CONFIGURATION)
        .start();
    for (_, path) in SUBJECTS {
        server.put(path, bytes(1, 6000));
        let answer = server.get(path);
        let location = format!("http://127.0.0.2:9{path}");
        assert_eq!((answer.status(), answer.location()), (307, &*location));
    }
    let mut good = true;
    for (load, field) in
        [("kept connections", "X-Kept: 1"), ("a connection for each request", "Connection: close")]
    {
        println!("\n{load}, {rounds} rounds of {seconds} s each");
        good &= compare(&server, field, rounds, seconds);
    }
    println!(
        "\nwanted: at least {WANTED} of {}: {}",
        SUBJECTS[LIKE].0,
        if good { "reached" } else { "MISSED" }
    );
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the table of one load; whether our module reaches what is wanted.
fn compare(server: &Httpd, field: &str, rounds: usize, seconds: usize) -> bool {
    let mut rates: [Vec<f64>; 4] = Default::default();
    let mut costs: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        // Each round begins with another one.
        for turn in 0..SUBJECTS.len() {
            let subject = (round + turn) % SUBJECTS.len();
            let (rate, cost) = wrk(server, SUBJECTS[subject].1, seconds, &["-H", field]);
            rates[subject].push(rate);
            costs[subject].push(cost);
        }
        eprint!(".");
    }
    let (medians, costs) = (rates.map(median), costs.map(median));
    println!(
        "\n{:<26} {:>10} {:>16} {:>16}",
        "", "requests/s", "ours against it", "CPU us/request"
    );
    for (((name, _), median), cost) in SUBJECTS.iter().zip(medians).zip(costs) {
        println!("{name:<26} {median:>10.0} {:>16.3} {cost:>16.2}", medians[0] / median);
    }
    medians[0] / medians[LIKE] >= WANTED
}
