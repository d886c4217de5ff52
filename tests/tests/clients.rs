//! Real clients, cold, warm and in the middle of a file. One that is missing is a failure.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use offload_tests::offload::Pair;
use offload_tests::{Scratch, bytes, same_file};

/// Runs a client twice from nothing and once with the first half already there.
fn downloads_and_resumes(client: impl Fn(&Path, &str) -> Command) {
    let pair = Pair::start();
    let content = bytes(1, 5_000_000);
    let file = pair.base.put("/with space.bin", &content);
    let (scratch, url) = (Scratch::new(), pair.base.url("/with%20space.bin"));
    for (folder, beginning) in [("cold", 0), ("warm", 0), ("resumed", 2_345_678)] {
        let target: PathBuf = scratch.folder(folder).join("with space.bin");
        if beginning > 0 {
            fs::write(&target, &content[..beginning]).unwrap();
        }
        let mut command = client(&target, &url);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", scratch.path());
        let output = command.output().unwrap_or_else(|error| {
            panic!("cannot run {}: {error}; run `make setup`", command.get_program().display())
        });
        assert!(output.status.success(), "{folder}: {output:?}");
        assert!(same_file(&target, &file), "{folder}: other bytes than on the base");
    }
    pair.assert_fetched_once("/with space.bin");
    let sent: u64 = pair.base.entries().iter().map(|entry| entry.sent).sum();
    assert!(
        sent < 5_100_000,
        "the base has sent {sent} bytes: only the offload host may fetch the file"
    );
}

#[test]
fn curl_downloads_and_resumes() {
    downloads_and_resumes(|target, url| {
        let mut command = Command::new("curl");
        command.args(["-q", "-sSfL", "-C", "-", "-o"]).arg(target).arg(url);
        command
    });
}

#[test]
fn wget_downloads_and_resumes() {
    downloads_and_resumes(|target, url| {
        let mut command = Command::new("wget");
        command.args(["--no-config", "-nv", "-c", "-P"]).arg(target.parent().unwrap()).arg(url);
        command
    });
}

#[test]
fn aria2_downloads_and_resumes() {
    downloads_and_resumes(|target, url| {
        let mut command = Command::new("aria2c");
        command.args(["--no-conf", "-x1", "-q", "-c", "-d"]).arg(target.parent().unwrap());
        command.arg("-o").arg(target.file_name().unwrap()).arg(url);
        command
    });
}
