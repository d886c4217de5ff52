//! A base and an offload host that know each other.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use crate::{Answer, Artifacts, Entry, Httpd, Mpm, Setup, eventually};

/// Where offload hosts listen: not where clients come from, for an offload host is never redirected.
pub const HOST_ADDRESS: &str = "127.0.0.2";

/// Two servers; a GET on the base leads to the host.
#[derive(Debug)]
pub struct Pair {
    /// Has the files and the module.
    pub base: Httpd,
    /// Has a cache and the program.
    pub host: Httpd,
}

/// A pair before its start; change what a test is about.
#[derive(Debug)]
pub struct PairSetup {
    /// The base, as it will be.
    pub base: Setup,
    /// The offload host, as it will be.
    pub host: Setup,
    vhost: String,
    settings: Vec<(String, String)>,
}

impl PairSetup {
    /// Both under this MPM, every file offloaded, the host's virtual host mapped to the program.
    pub fn new(mpm: Mpm) -> Self {
        Self::on("127.0.0.1", HOST_ADDRESS, mpm)
    }

    /// The same on other addresses.
    pub fn on(base: &str, host: &str, mpm: Mpm) -> Self {
        Self::of(Setup::on(base), Setup::on(host), mpm)
    }

    /// The same from two servers about which nothing was said yet.
    pub fn of(base: Setup, host: Setup, mpm: Mpm) -> Self {
        let host = host.mpm(mpm).module(mpm.cgi_module());
        host.scratch().folder("bin");
        host.scratch().folder_of_server("var");
        host.scratch().install(&Artifacts::default().cgi(), "bin/offload-cgi");
        let base = base.mpm(mpm).offload();
        let base = base.directives(&format!(
            "OffloadEngine On\nOffloadMinSize 0\nOffloadHost {}",
            host.authority()
        ));
        let settings = vec![
            ("OFFLOAD_BASE".to_owned(), format!("http://{}", base.authority())),
            ("OFFLOAD_CACHE".to_owned(), "${SCRATCH}/var/cache".to_owned()),
            // Tests change files within a second, and all clients have one address.
            ("OFFLOAD_FRESH".to_owned(), "0".to_owned()),
            ("OFFLOAD_MAX_DUPES".to_owned(), "0".to_owned()),
        ];
        Self { base, host, vhost: ALIAS_MATCH.into(), settings }
    }

    /// A setting of the offload host's program, instead of what it was.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The offload host's program does not get this setting.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.settings.retain(|setting| setting.0 != name);
        self
    }

    /// One more of httpd's modules, and more lines, for the base.
    #[must_use]
    pub fn on_base(mut self, module: &'static str, directives: &str) -> Self {
        self.base = self.base.module(module).directives(directives);
        self
    }

    /// One more of httpd's modules, and more lines, for the offload host.
    #[must_use]
    pub fn on_host(mut self, module: &'static str, directives: &str) -> Self {
        self.host = self.host.module(module).directives(directives);
        self
    }

    /// The host answers only what is not in its document root.
    #[must_use]
    pub fn by_error_document(mut self) -> Self {
        self.vhost = ERROR_DOCUMENT.into();
        self
    }

    /// Starts both.
    pub fn start(self) -> Pair {
        let settings: Vec<String> = self
            .settings
            .iter()
            .map(|(name, value)| format!("SetEnv {name} \"{value}\""))
            .collect();
        let host = self.host.directives(&settings.join("\n")).directives(&self.vhost).start();
        Pair { base: self.base.start(), host }
    }
}

// httpd throws a program's Content-Length away unless it is told to trust it (2.4.59 and later); without
// it a client sees no difference between a whole file and one that was cut off.
const ALIAS_MATCH: &str = r#"
SetEnv ap_trust_cgilike_cl 1
AllowEncodedSlashes NoDecode
AliasMatch "^.*$" "${SCRATCH}/bin/offload-cgi"
<Directory "${SCRATCH}/bin">
    SetHandler cgi-script
    Options +ExecCGI
</Directory>"#;

const ERROR_DOCUMENT: &str = r#"
SetEnv ap_trust_cgilike_cl 1
ScriptAlias "/cgi-bin/" "${SCRATCH}/bin/"
ErrorDocument 404 /cgi-bin/offload-cgi"#;

impl Pair {
    /// A pair under the event MPM.
    pub fn start() -> Self {
        PairSetup::new(Mpm::Event).start()
    }

    /// Downloads a path from the base through the redirection, as every client does.
    pub fn download(&self, path: &str) -> Answer {
        let answer = self.base.curl(path).follow().run();
        assert_eq!(answer.heads.first().map(|head| head.status), Some(307), "{path}: {answer:?}");
        answer
    }

    /// Downloads a path and compares it with a file.
    pub fn assert_delivers(&self, path: &str, file: &Path) -> Answer {
        let answer = self.download(path);
        assert_eq!(answer.status(), 200, "{path}: {answer:?}");
        assert!(crate::same_file(answer.file(), file), "{path}: other bytes than on the base");
        answer
    }

    /// How many GETs of this path the offload host has sent to the base so far.
    pub fn fetches(&self, path: &str) -> usize {
        let fetch =
            |entry: &&Entry| entry.method == "GET" && entry.path == path && entry.bypass != "-";
        self.base.entries().iter().filter(fetch).count()
    }

    /// The offload host has fetched this path from the base, and only once.
    pub fn assert_fetched_once(&self, path: &str) {
        eventually("the fetch is in the base's log", || (self.fetches(path) > 0).then_some(()));
        assert_eq!(self.fetches(path), 1, "GETs of {path} on the base");
    }

    /// The offload host has fetched `size` bytes of this path, and none of them twice.
    pub fn assert_fetched_without_waste(&self, path: &str, size: u64) {
        let fetched = || {
            let ours =
                |entry: &&Entry| entry.method == "GET" && entry.path == path && entry.bypass != "-";
            self.base.entries().iter().filter(ours).map(|entry| entry.sent).sum::<u64>()
        };
        eventually("the fetches are in the base's log", || (fetched() >= size).then_some(()));
        // Heads are sent too.
        assert!(fetched() < size + 50_000, "{} bytes of {path} for {size}", fetched());
    }

    /// The processes of the offload host's program.
    pub fn programs(&self) -> Vec<Pid> {
        let program = self.host.scratch().path().join("bin/offload-cgi");
        let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
        let number = |entry: fs::DirEntry| {
            let same = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program);
            same.then(|| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))?
        };
        processes.flatten().filter_map(number).collect()
    }

    /// Waits until no process of the program is at work: what was fetched is in the cache by then.
    pub fn settle(&self) {
        eventually("the offload host is idle", || self.programs().is_empty().then_some(()));
    }

    /// The cache's folder.
    pub fn cache(&self) -> PathBuf {
        self.host.scratch().path().join("var/cache")
    }
}
