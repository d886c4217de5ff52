//! nginx, a peer that is no httpd.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{Port, Scratch, eventually, server_user, tls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An nginx that runs; it ends with this value.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    plain: Port,
    secure: Port,
    _scratch: Scratch,
}

impl Nginx {
    /// Whether it is installed.
    pub fn is_there() -> bool {
        Path::new("/usr/sbin/nginx").exists()
    }

    /// Starts it with these lines in its `http` block, and these in its `server` blocks, one of which listens for
    /// TLS. `{folder}` is one in which it may write.
    ///
    /// It is configured as Debian's is: sendfile and tcp_nopush; and for two cores.
    pub fn start(address: IpAddr, root: &Path, http: &str, locations: &str) -> Self {
        let (scratch, plain, secure) = (Scratch::new(), Port::of(address), Port::of(address));
        let own = scratch.folder_of_server("temp");
        tls::certificate(&scratch);
        let folder = scratch.path().display();
        let http = http.replace("{folder}", &own.display().to_string());
        let mut text = server_user().map_or(String::new(), |user| format!("user {};\n", user.name));
        write!(
            text,
            "worker_processes 2;\ndaemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n\
             events {{ worker_connections 19000; }}\n\
             http {{\nsendfile on;\ntcp_nopush on;\naccess_log off;\nsend_timeout 300;\n{http}\n"
        )
        .unwrap();
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(text, "{kind}_temp_path {folder}/temp/{kind};").unwrap();
        }
        let listeners = [
            format!("listen {} backlog=4096;", plain.address()),
            format!(
                "listen {} ssl;\nssl_certificate {folder}/certificate.pem;\n\
                 ssl_certificate_key {folder}/key.pem;",
                secure.address()
            ),
        ];
        for listener in listeners {
            let root = root.display();
            writeln!(text, "server {{\n{listener}\nroot {root};\n{locations}}}").unwrap();
        }
        let configuration = scratch.write("nginx.conf", &(text + "}\n"));
        // As with httpd: the kernel stops it if this program dies before it can do so itself.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--", "nginx", "-e"])
            .arg(scratch.path().join("error.log"))
            .arg("-c")
            .arg(configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(scratch.path().join("stderr.log")).unwrap())
            .spawn()
            .expect("cannot run setpriv");
        let nginx = Self { child, plain, secure, _scratch: scratch };
        eventually("nginx listens", || TcpStream::connect(nginx.plain.address()).ok());
        nginx
    }

    /// Where it listens: for TLS, or not.
    pub fn address(&self, tls: bool) -> SocketAddr {
        if tls { self.secure.address() } else { self.plain.address() }
    }

    /// Its first process, whose children serve.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
