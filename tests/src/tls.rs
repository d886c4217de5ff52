//! A server that speaks TLS too, with a certificate of its own making.

use std::process::Command;

use crate::{Port, Scratch, Setup};

/// Makes a certificate for the name `base.test` in the server's folder: `certificate.pem`, `key.pem`.
pub fn certificate(scratch: &Scratch) {
    let folder = scratch.path();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=base.test", "-days", "2", "-keyout"])
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("certificate.pem"))
        .output()
        .expect("cannot start openssl: install it");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// The same server, which also listens for TLS on this port.
pub fn listening(setup: Setup, port: &Port) -> Setup {
    certificate(setup.scratch());
    let address = port.address();
    setup.module("socache_shmcb").module("ssl").directives(&format!(
        "Listen {address} https\nMutex file:${{SCRATCH}}/run\n<VirtualHost {address}>\nServerName base.test\nSSLEngine On\n\
         SSLCertificateFile ${{SCRATCH}}/certificate.pem\nSSLCertificateKeyFile ${{SCRATCH}}/key.pem\n</VirtualHost>"
    ))
}
