//! A site that throttles, with content of every kind.

use crate::choke::{script, throttled};
use crate::tls::Tls;
use crate::{Httpd, Mpm, Setup, bytes};

/// The server, its port for TLS, and the server that it is a proxy for.
#[derive(Debug)]
pub struct Site {
    /// The server.
    pub server: Httpd,
    /// Its port for TLS.
    pub tls: Tls,
    /// The server behind it.
    pub backend: Httpd,
    /// What every kind of content consists of.
    pub data: Vec<u8>,
}

/// `/cgi/data` is a program that prints the data in a response of unknown length, and `/proxy/` is the
/// other server, where `/cgi/data` is another such program.
const CONTENT: &str = "ScriptAlias /cgi/ ${SCRATCH}/cgi/\n<Directory ${DOCROOT}>\nAllowOverride Options\n</Directory>";

/// Prints the data.
fn data_script(setup: &Setup) {
    let file = setup.scratch().path().join("www/data");
    let text = format!(
        "printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'\nexec cat {}",
        file.display()
    );
    script(setup, "data", &text);
}

impl Site {
    /// Starts both with these directives too, and so much data.
    pub fn start(mpm: Mpm, length: u64, directives: &str) -> Self {
        Self::prepared(mpm, length, directives, |setup| setup)
    }

    /// The same, after something was done to the server's setup.
    pub fn prepared(
        mpm: Mpm,
        length: u64,
        directives: &str,
        prepare: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        let backend = Setup::default().module("cgid").directives(CONTENT);
        data_script(&backend);
        let backend = backend.start();
        let tls = Tls::default();
        let proxy = format!("ProxyPass /proxy/ {}/", backend.url(""));
        // HTTP/2 needs threads.
        let protocols = if mpm == Mpm::Prefork { "" } else { "Protocols h2 h2c http/1.1" };
        let mut setup = throttled(mpm, CONTENT)
            .module(mpm.cgi_module())
            .module("proxy")
            .module("proxy_http")
            .module("headers")
            .directives(&format!("{proxy}\n{protocols}\n{directives}"));
        if mpm != Mpm::Prefork {
            setup = setup.module("http2");
        }
        data_script(&setup);
        let setup = prepare(tls.serve(setup));
        let server = setup.start().settled();
        let data = bytes(length, length);
        for place in [&server, &backend] {
            place.put("data", &data);
        }
        Self { server, tls, backend, data }
    }

    /// The data under more names, on both servers.
    pub fn name(&self, names: &[&str]) {
        for place in [&self.server, &self.backend] {
            names.iter().for_each(|name| drop(place.put(name, &self.data)));
        }
    }
}
