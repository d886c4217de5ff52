//! A base behind TLS: only one whose certificate is vouched for is believed.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use offload_tests::offload::{Pair, PairSetup};
use offload_tests::{Mpm, bytes, same_file};

fn openssl(folder: &Path, arguments: &str) {
    let output =
        Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A base that is `base.test` by its certificate, and an offload host that asks it under this name.
fn pair(name: &str, trusted: bool) -> Pair {
    let setup = PairSetup::new(Mpm::Event);
    let folder = setup.base.scratch().path().to_owned();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&folder, &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca -days 2"));
    openssl(&folder, &format!("req {key} -keyout base.key -out base.csr -subj /CN=base.test"));
    setup.base.scratch().write("base.ext", "subjectAltName=DNS:base.test\n");
    openssl(
        &folder,
        "x509 -req -in base.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile base.ext -out base.pem -days 2",
    );
    let authority = setup.base.authority();
    let port = authority.rsplit(':').next().unwrap();
    let pem = setup
        .host
        .scratch()
        .write("ca.pem", &std::fs::read_to_string(folder.join("ca.pem")).unwrap());
    let setup = setup
        .setting("OFFLOAD_BASE", &format!("https://{name}:{port}"))
        .setting("OFFLOAD_BASE_ADDRESS", &authority)
        .on_base(
            "ssl",
            "SSLEngine On\nSSLCertificateFile base.pem\nSSLCertificateKeyFile base.key\nSSLSessionCache none",
        );
    let setup = if trusted { setup.setting("OFFLOAD_CA", pem.to_str().unwrap()) } else { setup };
    setup.start()
}

#[test]
fn a_base_that_the_given_authority_vouches_for_is_asked_over_tls() {
    let pair = pair("base.test", true);
    let file = pair.base.put("/a.bin", bytes(1, 3_000_000));
    let part = pair.host.curl("/a.bin").range("2000000-2000009").run();
    assert_eq!((part.status(), part.body().len()), (206, 10), "{part:?}");
    for _ in ["cold", "warm"] {
        let answer = pair.host.get("/a.bin");
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(same_file(answer.file(), &file));
    }
}

#[test]
fn a_base_that_nobody_vouches_for_is_not_believed() {
    for (name, trusted) in [("base.test", false), ("other.test", true)] {
        let pair = pair(name, trusted);
        pair.base.put("/a.bin", bytes(1, 6000));
        let answer = pair.host.get("/a.bin");
        assert_eq!(answer.status(), 502, "{name}: {answer:?}");
        assert!(!answer.field("retry-after").is_empty());
    }
}
