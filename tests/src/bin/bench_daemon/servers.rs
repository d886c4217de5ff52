//! Ours and its peers, each on an address of its own.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use offload_tests::{
    Curl, Daemon, DaemonSetup, Nginx, Port, Scratch, as_server, eventually, load, same_file,
};

use crate::Bench;

/// Who serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Peer {
    Ours,
    Caching,
    Static,
    Varnish,
}

impl Peer {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Caching, Self::Static, Self::Varnish];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "offload-cgi serve",
            Self::Caching => "nginx proxy_cache",
            Self::Static => "nginx, files on its disk",
            Self::Varnish => "Varnish, in memory",
        }
    }
}

/// One that runs; it ends with this value.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    pub(crate) address: SocketAddr,
    engine: Engine,
}

enum Engine {
    Daemon(Daemon),
    Nginx(Nginx),
    Varnish(Varnish),
}

impl Server {
    /// Starts it before the base; what is not installed is named.
    pub(crate) fn start(bench: &Bench, peer: Peer) -> Option<Self> {
        let base = bench.base.authority();
        let kept = if bench.tuned { "open_file_cache max=1000 inactive=20s;" } else { "" };
        let engine = match peer {
            Peer::Ours => {
                let setup = DaemonSetup::within(Scratch::new());
                Engine::Daemon(setup.start(&base, "fresh = 1s\nmax-connections = 0\n"))
            }
            Peer::Caching | Peer::Static if !Nginx::is_there() => {
                println!("without {}: run `make setup`", peer.name());
                return None;
            }
            Peer::Caching => {
                let http = format!(
                    "keepalive_requests 100000000;\n{kept}\n\
                     proxy_cache_path {{folder}}/cache levels=1:2 keys_zone=files:10m max_size=4g inactive=1h \
                     use_temp_path=off;\nupstream base {{ server {base}; keepalive 32; }}"
                );
                let location = "location / {\nproxy_pass http://base;\nproxy_http_version 1.1;\n\
                     proxy_set_header Connection \"\";\nproxy_cache files;\nproxy_cache_valid 200 1s;\n\
                     proxy_cache_revalidate on;\nproxy_cache_lock on;\n}\n";
                Engine::Nginx(Nginx::start(
                    [127, 0, 0, 4].into(),
                    Path::new("/var/empty"),
                    &http,
                    location,
                ))
            }
            Peer::Static => {
                let http = format!("keepalive_requests 100000000;\n{kept}");
                Engine::Nginx(Nginx::start([127, 0, 0, 4].into(), &bench.base.path(""), &http, ""))
            }
            Peer::Varnish => match Varnish::start([127, 0, 0, 5].into(), &base) {
                Ok(varnish) => Engine::Varnish(varnish),
                Err(why) => {
                    println!("without Varnish: {why}");
                    return None;
                }
            },
        };
        let address = match &engine {
            Engine::Daemon(daemon) => daemon.authority().parse().unwrap(),
            Engine::Nginx(nginx) => nginx.address(false),
            Engine::Varnish(varnish) => varnish.port.address(),
        };
        let server = Self { peer, address, engine };
        server.fill(bench);
        Some(server)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Has it take the files from the base, and sees whether it serves what the base has.
    fn fill(&self, bench: &Bench) {
        for path in ["/large", "/small/1"] {
            let answer = Curl::new(self.url(path)).run();
            assert_eq!(answer.status(), 200, "{path} of {}", self.peer.name());
            let same = same_file(answer.file(), &bench.base.path(path.trim_start_matches('/')));
            assert!(same, "{} serves another {path}", self.peer.name());
        }
    }

    /// The processes that serve.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        match &self.engine {
            Engine::Daemon(daemon) => vec![daemon.pid()],
            Engine::Nginx(nginx) => load::children(nginx.pid()),
            Engine::Varnish(varnish) => load::children(varnish.pid()),
        }
    }

    /// The time that its threads have spent on a processor.
    pub(crate) fn processor_time(&self) -> Duration {
        load::processor_time(&self.processes())
    }
}

/// Varnish as Debian configures it, but for a time to live of a second.
struct Varnish {
    child: Child,
    port: Port,
    _scratch: Scratch,
}

/// Where Debian has it.
const PROGRAM: &str = "/usr/sbin/varnishd";

impl Varnish {
    fn start(address: IpAddr, base: &str) -> Result<Self, String> {
        if !Path::new(PROGRAM).exists() {
            return Err("it is not installed".to_owned());
        }
        let (scratch, port) = (Scratch::new(), Port::of(address));
        let log = scratch.path().join("varnishd.log");
        // As root it would change its user, and the kernel would not stop it with this program any more.
        let child = as_server(Path::new(PROGRAM))
            .args(["-F", "-t", "1", "-s", "malloc,1G", "-b", base])
            .args(["-a", &port.address().to_string(), "-n"])
            .arg(scratch.folder_of_server("work"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .map_err(|error| format!("cannot run setpriv: {error}"))?;
        let mut varnish = Self { child, port, _scratch: scratch };
        let listens = eventually("Varnish listens or has ended", || {
            let ended = varnish.child.try_wait().unwrap().is_some();
            let listens = TcpStream::connect(varnish.port.address()).is_ok();
            (ended || listens).then_some(listens)
        });
        listens.then_some(varnish).ok_or_else(|| std::fs::read_to_string(log).unwrap_or_default())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Varnish {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
