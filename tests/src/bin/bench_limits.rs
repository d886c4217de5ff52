//! `make bench-limits`: what every limit together costs a request for a file of six bytes.
//!
//! First **instructions**, as callgrind counts them in `httpd -X` (prefork MPM): without the module, with
//! it but without a limit, and with six limits that count each request, while the table knows 100
//! addresses and then 1,000,000. The addresses come through mod_remoteip, before callgrind begins to
//! count. httpd has the same modules, the same `<Location>` and no access log each time. There are three
//! loads: one kept connection, a connection for each request, and for comparison a proxy's connection
//! whose requests come from other addresses each. A second table has the same for mod_qos and
//! mod_evasive, and for two limits of ours that ask what mod_qos's two ask.
//!
//! Then **requests a second**: rounds of wrk alternate between httpd without a module, ours, mod_qos and
//! mod_evasive, each with limits that are never reached; and between ours with clients from 100 and from
//! 1,000,000 addresses by chance, for what instructions do not show: memory.
//!
//! `BENCH_ADDRESSES` (1000000), `BENCH_ROUNDS` (7; 0: only instructions) and `BENCH_SECONDS` (3) can be
//! set. Callgrind's files are copied to the folder `BENCH_PROFILE`, if it is set, for callgrind_annotate.

// A benchmark ends where something does not hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use offload_tests::load::{median, wrk};
use offload_tests::{Httpd, Mpm, Setup, eventually, server_user};

/// So much more than httpd without the module a request may cost, in percent.
const WANTED: f64 = 3.0;
/// So much may differ between few addresses and many, in percent.
const FLAT: f64 = 0.5;
const FEW: usize = 100;
/// Requests that are counted.
const REQUESTS: usize = 500;

/// How requests come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    Kept,
    Own,
    /// On one connection of a proxy, each from another one of so many addresses: the connection changes
    /// hands each time, which costs more, but not more with many addresses.
    Proxied(usize),
}

const LOADS: [&str; 3] =
    ["one kept connection", "a connection for each", "a proxy's, many addresses"];

const COMMON: &str = "
RemoteIPHeader X-Forwarded-For
RemoteIPInternalProxy 127.0.0.1
<Location /f.txt>
${SECTION}
</Location>
<Location /choke-status>
${STATUS}
</Location>";

const LIMITS: &str = "
Define SECTION \"MaxConcurrentReqs 1000\"
MaxConnectionsPerIP 1000
MaxConnectionsPerUser 1000
GlobalMaxConnectionsPerIP 1000
GlobalMaxConnectionsPerUser 1000
LoadLimitServer 10000
LoadLimit 10000 /f.txt
LoadLimit1 10000 /page /f.txt
LimitExempt 127.0.0.99
Define STATUS \"SetHandler choke-status\"";

/// What mod_qos is asked for below: connections of an address, and requests of a location.
const TWO_LIMITS: &str = "
MaxConnectionsPerIP 1000
LoadLimit 1000 /f.txt";

const QOS: &str = "
QS_SrvMaxConnPerIP 1000
QS_LocRequestLimit /f.txt 1000";

const EVASIVE: &str = "
DOSHashTableSize 3097
DOSPageCount 1000000000
DOSSiteCount 1000000000
DOSPageInterval 1
DOSSiteInterval 1
DOSBlockingPeriod 1";

fn main() -> ExitCode {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse::<usize>().expect(name))
    };
    let many = number("BENCH_ADDRESSES", 1_000_000);
    assert!((FEW..=1_000_000).contains(&many), "BENCH_ADDRESSES is {FEW} to 1000000");
    let good = instructions(many);
    let (rounds, seconds) = (number("BENCH_ROUNDS", 7), number("BENCH_SECONDS", 3));
    if rounds > 0 {
        peers(rounds, seconds);
        memory(many, rounds, seconds);
    }
    println!(
        "\nwanted: at most {WANTED} % more instructions for a request of a kept connection, and for any load \
         within {FLAT} % the same with {many} addresses: {}",
        if good { "reached" } else { "MISSED" }
    );
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// httpd without the module.
fn without(mpm: Mpm) -> Setup {
    let setup = Setup::default().mpm(mpm).one_child().without_access_log().module("remoteip");
    // A directive that every httpd has, so that there is something in the section.
    setup
        .directives("Define SECTION \"ContentDigest Off\"\nDefine STATUS \"ContentDigest Off\"")
        .directives(COMMON)
}

/// httpd with every limit, and room for so many addresses, each of which has two counters.
fn limited(mpm: Mpm, addresses: usize) -> Setup {
    let setup = Setup::default().mpm(mpm).one_child().without_access_log().module("remoteip");
    setup
        .offload()
        .directives(&format!("LimitTableSize {}", (2 * addresses).clamp(1000, 4_000_000)))
        .directives(LIMITS)
        .directives(COMMON)
}

// ---- instructions

/// Prints the table; whether what is wanted is reached.
fn instructions(many: usize) -> bool {
    println!("instructions a request, by callgrind, over {REQUESTS} requests\n");
    let counts = [
        count("without", without(Mpm::Prefork), 0),
        count("unused", without(Mpm::Prefork).offload(), 0),
        count("few", limited(Mpm::Prefork, many), FEW),
        count("many", limited(Mpm::Prefork, many), many),
    ];
    println!(
        "{:<30} {:>10} {:>18} {:>18} {:>18} {:>8}",
        "",
        "without",
        "no limits",
        format!("{FEW} addresses"),
        format!("{many} addresses"),
        "flat"
    );
    let mut good = true;
    for (load, name) in LOADS.iter().enumerate() {
        let [base, unused, few, many] = counts.map(|count| count[load]);
        let over = |count: f64| 100.0 * (count / base - 1.0);
        let flat = 100.0 * (many / few - 1.0);
        println!(
            "{name:<30} {base:>10.0} {unused:>10.0} {:>+6.2}% {few:>10.0} {:>+6.2}% {many:>10.0} {:>+6.2}% {flat:>+7.2}%",
            over(unused),
            over(few),
            over(many)
        );
        good &= flat.abs() <= FLAT;
        // The others have what the connection itself costs in them: its record, its client's hash, its seats.
        good &= load > 0 || (over(few) <= WANTED && over(many) <= WANTED);
    }
    instructions_of_others(counts[0]);
    good
}

/// Prints the same for what does the same, over `base`.
fn instructions_of_others(base: [f64; 3]) {
    let two_limits = without(Mpm::Prefork).offload().directives(TWO_LIMITS);
    let mut others = vec![("mod_offload, two limits".to_owned(), Ok(two_limits))];
    others.extend(PEERS.map(|peer| (format!("mod_{}", peer.name), peer.setup(Mpm::Prefork))));
    println!("\n{:<30} {:>18} {:>18} {:>18}", "", "one kept", "own connection", "a proxy's");
    for (name, setup) in others {
        match setup {
            Ok(setup) => {
                let cells: String = count("other", setup, 0)
                    .iter()
                    .zip(base)
                    .map(|(count, base)| {
                        format!(" {count:>10.0} {:>+6.2}%", 100.0 * (count / base - 1.0))
                    })
                    .collect();
                println!("{name:<30}{cells}");
            }
            Err(why) => println!("{why}"),
        }
    }
}

/// The instructions of a request under each load.
fn count(name: &'static str, setup: Setup, addresses: usize) -> [f64; 3] {
    eprintln!("callgrind: {name}");
    let httpd = Callgrind::start(name, setup);
    httpd.setup.scratch().write("www/f.txt", "hello\n");
    if addresses > 0 {
        fill(httpd.address(), addresses);
        let known = entries(httpd.address());
        assert!(known >= addresses, "the table knows {known} of {addresses} addresses");
    }
    httpd.say(&["-i", "on"]);
    let loads = [Load::Kept, Load::Own, Load::Proxied(addresses.max(FEW))];
    loads.map(|load| {
        ask(httpd.address(), 100, load);
        httpd.say(&["-z"]);
        ask(httpd.address(), REQUESTS, load);
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let requests = REQUESTS as f64;
        httpd.dump() / requests
    })
}

/// httpd -X under callgrind, which counts when it is told to.
struct Callgrind {
    name: &'static str,
    setup: Setup,
    child: Child,
    dumps: std::cell::Cell<usize>,
}

impl Callgrind {
    fn start(name: &'static str, setup: Setup) -> Self {
        let check = setup.check();
        assert!(check.ok, "{}", check.text);
        // valgrind writes as the user that httpd has become; so it is started as that one.
        let folder = setup.scratch().path().to_owned();
        if let Some(user) = server_user() {
            for path in [folder.clone(), folder.join("run")] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
        let program = Path::new(&apxs("SBINDIR")).join(apxs("PROGNAME"));
        let child = as_server("valgrind")
            .args(["--tool=callgrind", "--instr-atstart=no"])
            .arg(format!("--callgrind-out-file={}/callgrind", folder.display()))
            .arg(program)
            .arg("-f")
            .arg(folder.join("httpd.conf"))
            .arg("-X")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("valgrind.log")).unwrap())
            .spawn()
            .expect("cannot run valgrind");
        let this = Self { name, setup, child, dumps: std::cell::Cell::default() };
        eventually("httpd listens", || TcpStream::connect(this.address()).ok());
        this
    }

    fn address(&self) -> SocketAddr {
        self.setup.authority().parse().unwrap()
    }

    fn say(&self, words: &[&str]) {
        let mut control = as_server("callgrind_control");
        let output = control.args(words).arg(self.child.id().to_string()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("OK"), "callgrind_control: {output:?}");
    }

    /// The instructions since they were set to zero.
    fn dump(&self) -> f64 {
        self.say(&["-d"]);
        self.dumps.set(self.dumps.get() + 1);
        let file = self.setup.scratch().path().join(format!("callgrind.{}", self.dumps.get()));
        let total = |text: &str| {
            let lines = text.lines();
            let mut numbers = lines.filter_map(|line| {
                line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: "))
            });
            numbers.next().map(|number| number.trim().parse().unwrap())
        };
        let total = eventually("callgrind's dump", || total(&fs::read_to_string(&file).ok()?));
        if let Some(folder) = std::env::var_os("BENCH_PROFILE") {
            let name = format!("{}.{}", self.name, self.dumps.get());
            fs::copy(&file, Path::new(&folder).join(name)).unwrap();
        }
        total
    }
}

impl Drop for Callgrind {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A program that runs as httpd's user.
fn as_server(program: &str) -> Command {
    let Some(user) = server_user() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.name, "--regid", &user.gid.to_string(), "--clear-groups"]);
    command.args(["--pdeathsig", "KILL", "--", program]).current_dir("/");
    command
}

fn apxs(name: &str) -> String {
    let apxs = std::env::var_os("APXS").unwrap_or_else(|| "apxs".into());
    let output = Command::new(apxs).args(["-q", name]).output().expect("cannot run apxs");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

// ---- requests

/// A connection whose answers all have the same length.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn receive(&mut self) -> String {
        let (mut text, mut length) = (String::new(), 0);
        while !text.ends_with("\r\n\r\n") {
            let start = text.len();
            assert!(self.0.read_line(&mut text).unwrap() > 0, "no answer: {text:?}");
            if let Some(value) = text[start..].strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}

/// So many requests, one after the other.
fn ask(address: SocketAddr, requests: usize, load: Load) {
    let mut client = Client::connect(address);
    for number in 0..requests {
        if load == Load::Own && number > 0 {
            // httpd closes first; else it would wait for more.
            assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
            client = Client::connect(address);
        }
        let field = match load {
            Load::Kept => String::new(),
            Load::Own => "Connection: close\r\n".to_owned(),
            Load::Proxied(addresses) => forwarded(number * 7919 % addresses),
        };
        client.send(&format!("GET /f.txt HTTP/1.1\r\nHost: base.test\r\n{field}\r\n"));
        assert_eq!(client.receive(), "hello\n");
    }
}

/// The field by which a proxy names the client with this number; always as long.
fn forwarded(number: usize) -> String {
    let [a, b, c] = [number / 10_000, number / 100 % 100, number % 100].map(|part| 100 + part);
    format!("X-Forwarded-For: 10.{a}.{b}.{c}\r\n")
}

/// A request from each of so many addresses, on one connection, without waiting for answers.
fn fill(server: SocketAddr, addresses: usize) {
    let mut client = Client::connect(server);
    let mut out = client.0.get_ref().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for first in (0..addresses).step_by(100) {
                let request = |number| {
                    let field = forwarded(number);
                    format!("GET /f.txt HTTP/1.1\r\nHost: base.test\r\n{field}\r\n")
                };
                let requests: String = (first..addresses.min(first + 100)).map(request).collect();
                out.write_all(requests.as_bytes()).unwrap();
            }
        });
        for number in 0..addresses {
            assert_eq!(client.receive(), "hello\n");
            if number % 100_000 == 99_999 {
                eprint!("{} ", number + 1);
            }
        }
    });
    eprintln!();
}

/// How many counters the table has.
fn entries(server: SocketAddr) -> usize {
    let mut client = Client::connect(server);
    client.send("GET /choke-status?json HTTP/1.1\r\nHost: base.test\r\nConnection: close\r\n\r\n");
    let text = client.receive();
    let (_, rest) = text.split_once("\"entries\":").expect("no entries in the status");
    rest.split(|char: char| !char.is_ascii_digit()).next().unwrap().parse().unwrap()
}

// ---- requests a second

/// A module that does the same.
struct Peer {
    name: &'static str,
    directives: &'static str,
    /// What it may need to be loaded.
    library: Option<&'static str>,
}

const PEERS: [Peer; 2] = [
    Peer { name: "qos", directives: QOS, library: Some("/usr/lib/x86_64-linux-gnu/libpcre.so.3") },
    Peer { name: "evasive20", directives: EVASIVE, library: None },
];

impl Peer {
    /// httpd with it, or why not.
    fn setup(&self, mpm: Mpm) -> Result<Setup, String> {
        let Self { name, directives, library } = self;
        let file = format!("{}/mod_{name}.so", apxs("LIBEXECDIR"));
        if !Path::new(&file).exists() {
            return Err(format!(
                "mod_{name} is missing (Debian: libapache2-mod-qos, libapache2-mod-evasive)"
            ));
        }
        let load = format!("LoadModule {name}_module {file}{directives}");
        let candidates = [Some(String::new()), library.map(|file| format!("LoadFile {file}\n"))];
        let setup = candidates.into_iter().flatten().find_map(|before| {
            let setup = without(mpm).directives(&format!("{before}{load}"));
            setup.check().ok.then_some(setup)
        });
        setup.ok_or_else(|| format!("httpd does not load mod_{name}"))
    }
}

fn peers(rounds: usize, seconds: usize) {
    let mut servers = vec![
        ("without".to_owned(), start(without(Mpm::Event))),
        ("mod_offload, every limit".to_owned(), start(limited(Mpm::Event, 100_000))),
    ];
    for peer in PEERS {
        match peer.setup(Mpm::Event) {
            Ok(setup) => servers.push((format!("mod_{}", peer.name), start(setup))),
            Err(why) => println!("\n{why}"),
        }
    }
    for (load, field) in
        [("kept connections", "X-Kept: 1"), ("a connection for each request", "Connection: close")]
    {
        println!("\nrequests a second, {load}, {rounds} rounds of {seconds} s each");
        let loads: Vec<_> = servers
            .iter()
            .map(|(name, server)| (&**name, server, vec!["-H".to_owned(), field.to_owned()]))
            .collect();
        compare(&loads, rounds, seconds);
    }
}

/// Clients come from few addresses and from many, which are all in the table.
fn memory(many: usize, rounds: usize, seconds: usize) {
    const CHANCE: &str = "
local count = tonumber(os.getenv('ADDRESSES'))
request = function()
    local a = math.random(0, count - 1)
    wrk.headers['X-Forwarded-For'] =
        string.format('10.%d.%d.%d', 100 + math.floor(a / 10000), 100 + math.floor(a / 100) % 100, 100 + a % 100)
    return wrk.format()
end";
    let servers = [
        ("without", start(without(Mpm::Event)), many),
        ("mod_offload", start(limited(Mpm::Event, many)), FEW),
        ("mod_offload", start(limited(Mpm::Event, many)), many),
    ];
    fill(servers[1].1.address(), FEW);
    fill(servers[2].1.address(), many);
    println!("\nrequests a second, clients by chance from as many addresses");
    let mut loads = Vec::new();
    for (name, server, addresses) in &servers {
        let script = CHANCE.replace("os.getenv('ADDRESSES')", &format!("'{addresses}'"));
        let script = server.scratch().write("chance.lua", &script).display().to_string();
        loads.push((format!("{name}, {addresses}"), server, vec!["-s".to_owned(), script]));
    }
    let loads: Vec<_> =
        loads.iter().map(|(name, server, words)| (&**name, *server, words.clone())).collect();
    compare(&loads, rounds, seconds);
}

fn start(setup: Setup) -> Httpd {
    let server = setup.start();
    server.put("f.txt", "hello\n");
    server
}

/// Rounds alternate; the medians count.
fn compare(loads: &[(&str, &Httpd, Vec<String>)], rounds: usize, seconds: usize) {
    let mut rates = vec![Vec::new(); loads.len()];
    let mut costs = vec![Vec::new(); loads.len()];
    for round in 0..rounds {
        // Each round begins with another one.
        for turn in 0..loads.len() {
            let number = (round + turn) % loads.len();
            let (_, server, words) = &loads[number];
            let words: Vec<&str> = words.iter().map(|word| &**word).collect();
            let (rate, cost) = wrk(server, "/f.txt", seconds, &words);
            rates[number].push(rate);
            costs[number].push(cost);
        }
        eprint!(".");
    }
    println!("\n{:<28} {:>10} {:>14} {:>16}", "", "requests/s", "to the first", "CPU us/request");
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    for (((name, ..), median_rate), cost) in loads.iter().zip(&medians).zip(costs) {
        let ratio = median_rate / medians[0];
        println!("{name:<28} {median_rate:>10.0} {ratio:>14.3} {:>16.2}", median(cost));
    }
}
