//! Ours and its peers: how each is configured, and what each costs.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;
use offload_tests::load;
use offload_tests::network::Network;
use offload_tests::{Httpd, Nginx, Port, Setup, modules_folder, tls};

use crate::site::Site;

/// Who throttles.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Peer {
    Ours,
    Ratelimit,
    Bw,
    Qos,
    Nginx,
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "mod_offload",
            Self::Ratelimit => "mod_ratelimit",
            Self::Bw => "mod_bw",
            Self::Qos => "mod_qos",
            Self::Nginx => "nginx",
        }
    }

    /// What it says for a limit.
    fn limit(self, root: &Path, limit: Limit) -> String {
        let Limit { folder, kib, downloads } = limit;
        match self {
            Self::Ours => {
                format!("<Location /{folder}>\nChoke On\nChokeRate {kib}K\n</Location>\n")
            }
            Self::Ratelimit => format!(
                "<Location /{folder}>\nSetOutputFilter RATE_LIMIT\nSetEnv rate-limit {kib}\n</Location>\n"
            ),
            // -1: for each, not for all. For megabits its documentation advises larger packets.
            Self::Bw => format!(
                "<Directory {}/{folder}>\nBandWidth all {}\nMinBandWidth all -1\nBandWidthPacket {}\n\
                 </Directory>\n",
                root.display(),
                kib * 1024,
                if kib < 1024 { 8192 } else { 32768 },
            ),
            // It limits all requests of a location together.
            Self::Qos => format!("QS_LocKBytesPerSecLimit /{folder} {}\n", kib * downloads),
            Self::Nginx => format!("location /{folder}/ {{ limit_rate {kib}k; }}\n"),
        }
    }
}

/// So many KiB a second for each download from this folder, of which there will be so many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) folder: &'static str,
    pub(crate) kib: u64,
    pub(crate) downloads: u64,
}

/// How many workers an httpd has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workers {
    pub(crate) children: usize,
    pub(crate) threads: usize,
    /// AsyncRequestWorkerFactor.
    pub(crate) factor: usize,
}

impl Workers {
    pub(crate) fn all(self) -> usize {
        self.children * self.threads
    }

    fn directives(self) -> String {
        let Self { children, threads, factor } = self;
        let all = self.all();
        format!(
            "StartServers {children}\nServerLimit {children}\nThreadLimit {threads}\n\
             ThreadsPerChild {threads}\nMinSpareThreads 1\nMaxSpareThreads {all}\n\
             MaxRequestWorkers {all}\nAsyncRequestWorkerFactor {factor}\nListenBacklog 4096\nTimeout 300"
        )
    }
}

/// What all servers of a part of the benchmark have in common.
pub(crate) struct Plan<'a> {
    pub(crate) network: &'a Network,
    pub(crate) site: &'a Site,
    pub(crate) workers: Workers,
    /// Whether httpd is told to send files by sendfile. When nobody says anything it does not.
    pub(crate) sendfile: bool,
    pub(crate) limits: &'a [Limit],
    /// More directives for ours.
    pub(crate) ours: &'a str,
}

impl Plan<'_> {
    /// Starts each of these; says which cannot be started, and why.
    pub(crate) fn start(&self, peers: &[Peer]) -> Vec<Server> {
        let start = |peer: &Peer| match self.network.at_server(|| self.start_here(*peer)) {
            Ok(server) => Some(server),
            Err(why) => {
                println!("without {}: {why}", peer.name());
                None
            }
        };
        peers.iter().filter_map(start).collect()
    }

    fn start_here(&self, peer: Peer) -> Result<Server, String> {
        let (address, root) = (IpAddr::V4(Network::SERVER), self.site.root());
        let limits: String = self.limits.iter().map(|limit| peer.limit(&root, *limit)).collect();
        if peer == Peer::Nginx {
            if !Nginx::is_there() {
                return Err("it is missing; run `make setup bench-throttle`".to_owned());
            }
            let nginx = Nginx::start(address, &root, "", &limits);
            return Ok(Server { peer, engine: Engine::Nginx(nginx) });
        }
        let port = Port::of(address);
        let sendfile = if self.sendfile { "EnableSendfile On" } else { "" };
        let setup = httpd(peer)
            .directives(&self.workers.directives())
            .directives(&format!("DocumentRoot {}\n{sendfile}", root.display()))
            .directives("<Location /server-status>\nSetHandler server-status\n</Location>")
            .directives(&limits);
        let setup = if peer == Peer::Ours { setup.directives(self.ours) } else { setup };
        let setup = tls::listening(setup, &port);
        let check = setup.check();
        check
            .ok
            .then(|| Server { peer, engine: Engine::Httpd(setup.start(), port) })
            .ok_or(check.text)
    }
}

/// httpd with a module that throttles; where it is missing, httpd says so.
fn httpd(peer: Peer) -> Setup {
    let setup = Setup::on(&Network::SERVER.to_string()).without_access_log().module("status");
    match peer {
        Peer::Ours => setup.offload(),
        Peer::Ratelimit => setup.module("ratelimit"),
        Peer::Bw => setup.module("bw").directives("BandWidthModule On\nForceBandWidthModule On"),
        Peer::Qos => {
            // Debian's needs a library that it does not name.
            let library = Path::new("/usr/lib/x86_64-linux-gnu/libpcre.so.3");
            let load = library.exists().then(|| format!("LoadFile {}\n", library.display()));
            let module = modules_folder().join("mod_qos.so");
            let load = load.unwrap_or_default();
            setup.directives(&format!("{load}LoadModule qos_module {}", module.display()))
        }
        Peer::Nginx => panic!("nginx is no httpd"),
    }
}

/// A server that throttles.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    engine: Engine,
}

enum Engine {
    Httpd(Httpd, Port),
    Nginx(Nginx),
}

impl Server {
    /// Where it listens.
    pub(crate) fn address(&self, tls: bool) -> SocketAddr {
        match (&self.engine, tls) {
            (Engine::Httpd(httpd, _), false) => httpd.address(),
            (Engine::Httpd(_, port), true) => port.address(),
            (Engine::Nginx(nginx), tls) => nginx.address(tls),
        }
    }

    /// The processes that serve.
    fn processes(&self) -> Vec<Pid> {
        load::children(match &self.engine {
            Engine::Httpd(httpd, _) => httpd.pid(),
            Engine::Nginx(nginx) => nginx.pid(),
        })
    }

    /// The time that its threads have spent on a processor.
    pub(crate) fn processor_time(&self) -> Duration {
        load::processor_time(&self.processes())
    }

    /// The memory of its processes in bytes; what several share counts once.
    pub(crate) fn memory(&self) -> u64 {
        load::memory(&self.processes())
    }
}
