//! A real httpd with a configuration written for one test.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, thread};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{Answer, Artifacts, Curl, DEADLINE, Port, Raw, Scratch, age, eventually, server_user};

/// How httpd spreads its work over processes and threads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mpm {
    /// Threads; idle connections hold none.
    Event,
    /// Threads.
    Worker,
    /// A process a connection.
    Prefork,
}

impl Mpm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Event, Self::Worker, Self::Prefork];

    fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Worker => "worker",
            Self::Prefork => "prefork",
        }
    }

    /// The module that runs CGI programs under this MPM.
    pub fn cgi_module(self) -> &'static str {
        if self == Self::Prefork { "cgi" } else { "cgid" }
    }
}

/// What a server will be.
///
/// The text given to [`directives`](Self::directives) may use `${DOCROOT}`, `${SCRATCH}`, `${ADDRESS}`
/// and `${PORT}`.
#[derive(Debug)]
pub struct Setup {
    scratch: Scratch,
    port: Port,
    mpm: Mpm,
    one_child: bool,
    access_log: bool,
    modules: Vec<&'static str>,
    directives: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self::on("127.0.0.1")
    }
}

impl Setup {
    /// A server on any free port of this address: event MPM, static files, without our module.
    pub fn on(address: &str) -> Self {
        Self::within(Scratch::new(), address)
    }

    /// The same with everything about it in this folder.
    pub fn within(scratch: Scratch, address: &str) -> Self {
        let address: IpAddr = address.parse().expect("not an address");
        for folder in ["www", "run"] {
            scratch.folder(folder);
        }
        scratch.write(
            "mime.types",
            "text/plain txt\ntext/html html\nimage/jpeg jpg\napplication/zip zip\n",
        );
        Self {
            scratch,
            port: Port::of(address),
            mpm: Mpm::Event,
            one_child: false,
            access_log: true,
            modules: vec![
                "authz_core",
                "authz_host",
                "authn_core",
                "authn_file",
                "auth_basic",
                "authz_user",
                "mime",
                "alias",
                "dir",
                "env",
                "setenvif",
            ],
            directives: String::new(),
        }
    }

    /// Another MPM.
    #[must_use]
    pub fn mpm(mut self, mpm: Mpm) -> Self {
        self.mpm = mpm;
        self
    }

    /// One process serves every request.
    #[must_use]
    pub fn one_child(mut self) -> Self {
        self.one_child = true;
        self
    }

    /// Does not write an access log, for a benchmark.
    #[must_use]
    pub fn without_access_log(mut self) -> Self {
        self.access_log = false;
        self
    }

    /// Loads one more of httpd's own modules, by its short name such as `headers`.
    #[must_use]
    pub fn module(mut self, name: &'static str) -> Self {
        self.modules.push(name);
        self
    }

    /// Loads the module under test.
    #[must_use]
    pub fn offload(self) -> Self {
        let module = Artifacts::default().module();
        self.load_offload(&module)
    }

    /// Loads the build of the module that panics when a request asks for it.
    #[must_use]
    pub fn faulty_offload(self) -> Self {
        let module = Artifacts::default().faulty_module();
        self.load_offload(&module)
    }

    fn load_offload(self, module: &Path) -> Self {
        let installed = self.scratch.install(module, "mod_offload.so");
        let line = format!("LoadModule offload_module {}\n", installed.display());
        self.scratch.write("offload.load", &line);
        self
    }

    /// More lines of configuration; they are numbered from 1 in a file of their own.
    #[must_use]
    pub fn directives(mut self, text: &str) -> Self {
        self.directives.push_str(text.trim_end());
        self.directives.push('\n');
        self
    }

    /// Where the server will listen, as `host:port`.
    pub fn authority(&self) -> String {
        self.port.address().to_string()
    }

    /// The folder that everything about the server lies in.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Starts the server and waits until it answers.
    pub fn start(self) -> Httpd {
        let configuration = self.write_configuration();
        let mut server = Httpd { setup: self, configuration, child: None };
        server.start_again();
        server
    }

    /// What `httpd -t` says about this configuration.
    pub fn check(&self) -> Check {
        self.ask(&["-t"])
    }

    /// What httpd says to these arguments.
    pub fn ask(&self, arguments: &[&str]) -> Check {
        let configuration = self.write_configuration();
        let output = httpd().arg("-f").arg(configuration).args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        Check { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    fn write_configuration(&self) -> PathBuf {
        let folder = self.scratch.path().display().to_string();
        let address = self.port.address();
        let mut text = format!(
            "ServerRoot \"{folder}\"\nServerName base.test\nDefaultRuntimeDir \"{folder}/run\"\n\
             PidFile \"{folder}/run/httpd.pid\"\nErrorLog \"{folder}/error.log\"\nLogLevel warn\nMaxKeepAliveRequests 0\n\
             Define SCRATCH \"{folder}\"\nDefine DOCROOT \"{folder}/www\"\n\
             Define ADDRESS \"{}\"\nDefine PORT {}\nListen {address}\n",
            address.ip(),
            address.port(),
        );
        for name in [&format!("mpm_{}", self.mpm.name())[..]].iter().chain(&self.modules) {
            let file = installation().modules.join(format!("mod_{name}.so"));
            // What is not there as a file is compiled in.
            if file.exists() {
                writeln!(text, "LoadModule {name}_module {}", file.display()).unwrap();
            }
        }
        text += match (self.mpm, self.one_child) {
            (Mpm::Prefork, false) => {
                "StartServers 4\nMinSpareServers 4\nMaxSpareServers 8\nMaxRequestWorkers 100\n"
            }
            (Mpm::Prefork, true) => {
                "StartServers 1\nMinSpareServers 1\nMaxSpareServers 1\nMaxRequestWorkers 1\nServerLimit 1\n"
            }
            (_, false) => {
                "StartServers 2\nServerLimit 8\nThreadLimit 16\nThreadsPerChild 16\n\
                 MinSpareThreads 16\nMaxSpareThreads 64\nMaxRequestWorkers 128\n"
            }
            (_, true) => {
                "StartServers 1\nServerLimit 1\nThreadLimit 16\nThreadsPerChild 16\n\
                 MinSpareThreads 1\nMaxSpareThreads 16\nMaxRequestWorkers 16\n"
            }
        };
        if let Some(user) = server_user() {
            let group = nix::unistd::Group::from_gid(user.gid).unwrap().unwrap();
            writeln!(text, "User {}\nGroup {}", user.name, group.name).unwrap();
        }
        if self.modules.contains(&"cgid") {
            writeln!(text, "ScriptSock \"{folder}/run/cgid\"").unwrap();
        }
        if self.scratch.path().join("offload.load").exists() {
            text += "Include offload.load\n";
        }
        text += "TypesConfig mime.types\n";
        if self.access_log {
            writeln!(text, "LogFormat \"{ACCESS}\" entry\nCustomLog access.log entry").unwrap();
        }
        text += "DocumentRoot \"${DOCROOT}\"\n<Directory />\nRequire all granted\nAllowOverride None\n</Directory>\n\
                 Include directives.conf\n";
        self.scratch.write("directives.conf", &self.directives);
        self.scratch.write("httpd.conf", &text)
    }
}

/// What `httpd -t` or its like said.
#[derive(Debug)]
pub struct Check {
    /// Whether it was content.
    pub ok: bool,
    /// Everything it printed.
    pub text: String,
}

/// A server that runs. It ends with this value; when the test failed, the end of its log is shown.
#[derive(Debug)]
pub struct Httpd {
    setup: Setup,
    configuration: PathBuf,
    child: Option<Child>,
}

impl Httpd {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.setup.port.address()
    }

    /// Where it listens, as `host:port`.
    pub fn authority(&self) -> String {
        self.setup.authority()
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority())
    }

    /// The folder that everything about the server lies in.
    pub fn scratch(&self) -> &Scratch {
        &self.setup.scratch
    }

    /// A file name in the document root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch().path().join("www").join(name.trim_start_matches('/'))
    }

    /// A file in the document root, as if it were old; its folders are made.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.put_now(name, content);
        age(&path);
        path
    }

    /// A file in the document root, written at this moment; its folders are made.
    pub fn put_now(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A client that is going to GET this path.
    pub fn curl(&self, path: &str) -> Curl {
        Curl::new(self.url(path))
    }

    /// GETs this path and does not follow redirections.
    pub fn get(&self, path: &str) -> Answer {
        self.curl(path).run()
    }

    /// A connection to it.
    pub fn raw(&self) -> Raw {
        Raw::connect(self.address())
    }

    /// What the module said in the access log about this request.
    pub fn verdict(&self, answer: &Answer) -> String {
        self.entry(answer).verdict
    }

    /// The line about this request in the access log.
    pub fn entry(&self, answer: &Answer) -> Entry {
        self.eventually_entry("the request is in the access log", |entry| entry.id == answer.id)
    }

    /// Waits for a line in the access log.
    pub fn eventually_entry(&self, what: &str, wanted: impl Fn(&Entry) -> bool) -> Entry {
        eventually(what, || self.entries().into_iter().find(|entry| wanted(entry)))
    }

    /// Every request so far.
    pub fn entries(&self) -> Vec<Entry> {
        let text = fs::read(self.scratch().path().join("access.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        // The last line may be half written.
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(Entry::parse).collect()
    }

    /// How many requests of this method for this path were answered so far.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.entries().iter().filter(|entry| entry.method == method && entry.path == path).count()
    }

    /// The error log so far.
    pub fn error_log(&self) -> String {
        let text = fs::read(self.scratch().path().join("error.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits for a line in the error log that contains all these words.
    pub fn eventually_logged(&self, words: &[&str]) -> String {
        eventually(&format!("a line with {words:?} in the error log"), || {
            let log = self.error_log();
            log.lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(ToOwned::to_owned)
        })
    }

    /// Reads its configuration anew without losing a request, and waits until it has.
    pub fn graceful(&self) {
        let before = self.beginnings();
        kill(self.pid(), Signal::SIGUSR1).unwrap();
        eventually("httpd resumes after a graceful restart", || {
            (self.beginnings() > before).then_some(())
        });
    }

    /// How often its parent process has said that it is ready.
    fn beginnings(&self) -> usize {
        self.error_log().matches("resuming normal operations").count()
    }

    /// Stops it and waits for its end.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if child.try_wait().unwrap().is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = killpg(pid, Signal::SIGKILL);
        child.wait().unwrap();
    }

    /// Starts it again with what is the same configuration, on the same port.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let before = self.beginnings();
        let complaints = self.scratch().path().join("stderr.log");
        let mut command = httpd();
        command.arg("-f").arg(&self.configuration).args(["-D", "FOREGROUND"]).process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&complaints).unwrap());
        let child = self.child.insert(command.spawn().unwrap());
        let start = Instant::now();
        loop {
            if Raw::try_connect(self.setup.port.address()).is_ok() {
                break;
            }
            let ended = child.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > DEADLINE {
                let said = fs::read_to_string(&complaints).unwrap_or_default();
                panic!("httpd did not start ({ended:?}): {said}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        // The parent listens before it is ready for signals.
        eventually("httpd is ready", || (self.beginnings() > before).then_some(()));
    }

    /// Waits until its first children have all their threads: before that event may close connections
    /// that are kept alive, for want of a thread, and that is no failure.
    #[must_use]
    pub fn settled(self) -> Self {
        let (children, threads) = match (self.setup.mpm, self.setup.one_child) {
            (Mpm::Prefork, _) => return self,
            (_, true) => (1, 16),
            (_, false) => (2, 16),
        };
        let complete = |pid: &Pid| {
            fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > threads)
        };
        eventually("the children have their threads", || {
            (self.children().into_iter().filter(complete).count() >= children).then_some(())
        });
        self
    }

    /// The processes that it has made and that still live.
    pub fn children(&self) -> Vec<Pid> {
        let parent = self.pid().to_string();
        let child = |entry: fs::DirEntry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // pid (name) state parent ...
            let mut after = stat.rsplit_once(") ")?.1.split(' ');
            let (state, of) = (after.next()?, after.next()?);
            let living = of == parent && state != "Z";
            living.then(|| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))?
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(child).collect()
    }

    /// The process that serves the connection whose other end is this one.
    pub fn server_of(&self, client: SocketAddr) -> Pid {
        let SocketAddr::V4(client) = client else { panic!("{client} is no IPv4 address") };
        let SocketAddr::V4(server) = self.address() else { panic!("{self:?} is not on IPv4") };
        let [local, remote] = [server, client].map(|address| {
            format!("{:08X}:{:04X}", address.ip().to_bits().swap_bytes(), address.port())
        });
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[1] == local && words[2] == remote).then(|| format!("socket:[{}]", words[9]))
        };
        let socket = table.lines().find_map(line).expect("nobody serves this connection");
        let serves = |pid: &Pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files
                .filter_map(|file| fs::read_link(file.path()).ok())
                .any(|to| to.as_os_str() == &*socket)
        };
        self.children().into_iter().find(serves).expect("no child serves this connection")
    }

    /// The process that all others come from.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("it does not run");
        Pid::from_raw(i32::try_from(child.id()).unwrap())
    }
}

impl Drop for Httpd {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            let (log, name) = (self.error_log(), self.authority());
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("--- the end of the error log of {name}");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            eprintln!("--- the end of the access log of {name}");
            self.entries().iter().rev().take(10).rev().for_each(|entry| eprintln!("{entry:?}"));
        }
    }
}

/// The access log has one field between two tabs.
const ACCESS: &str = "%{X-Request}i\\t%m\\t%U%q\\t%>s\\t%{offload-verdict}n\\t%{X-Mod-Offload-Bypass}i\\t%P\\t%O\\t%a\\t%{offload-refused}n";

/// One line of the access log. A `-` stands for what was not there.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    id: String,
    /// The method.
    pub method: String,
    /// The path as httpd understood it, and the query.
    pub path: String,
    /// The final status.
    pub status: u16,
    /// What the module decided.
    pub verdict: String,
    /// The request's `X-Mod-Offload-Bypass`.
    pub bypass: String,
    /// The process that answered.
    pub pid: u32,
    /// The bytes sent, heads included.
    pub sent: u64,
    /// The client's address.
    pub client: String,
    /// The limit that refused it.
    pub refused: String,
}

impl Entry {
    fn parse(line: &str) -> Self {
        let mut fields = line.trim_end().split('\t').map(ToOwned::to_owned);
        let mut next = || fields.next().unwrap_or_default();
        Self {
            id: next(),
            method: next(),
            path: next(),
            status: next().parse().unwrap_or(0),
            verdict: next(),
            bypass: next(),
            pid: next().parse().unwrap_or(0),
            sent: next().parse().unwrap_or(0),
            client: next(),
            refused: next(),
        }
    }
}

/// httpd, which is stopped by the kernel if this program dies before it can do so itself.
fn httpd() -> Command {
    let program = &installation().program;
    let guard = Path::new("/usr/bin/setpriv");
    let mut command = if guard.exists() {
        let mut command = Command::new(guard);
        command.args(["--pdeathsig", "TERM", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // Nothing of the user's environment may decide what a test sees.
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C");
    command
}

/// The folder of httpd's modules.
pub fn modules_folder() -> &'static Path {
    &installation().modules
}

struct Installation {
    program: PathBuf,
    modules: PathBuf,
}

/// The httpd that apxs (or `$APXS`) belongs to.
fn installation() -> &'static Installation {
    static FOUND: OnceLock<Installation> = OnceLock::new();
    FOUND.get_or_init(|| {
        let apxs = env::var_os("APXS").unwrap_or_else(|| "apxs".into());
        let query = |name: &str| {
            let output = Command::new(&apxs).args(["-q", name]).output();
            let output = output.unwrap_or_else(|error| {
                panic!("cannot run {}: {error}; install apache2-dev or set APXS", apxs.display())
            });
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        Installation {
            program: Path::new(&query("SBINDIR")).join(query("PROGNAME")),
            modules: query("LIBEXECDIR").into(),
        }
    })
}
