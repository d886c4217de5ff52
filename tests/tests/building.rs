//! Building: what is missing is named in one sentence, with the package that brings it.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use offload_tests::{Artifacts, Scratch, workspace};

/// The module's build script, as cargo has compiled it last.
fn build_script() -> PathBuf {
    let builds = fs::read_dir(Artifacts::default().folder().join("build")).unwrap().flatten();
    let scripts = builds
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("mod_offload-"))
        .map(|entry| entry.path().join("build-script-build"));
    let newest =
        scripts.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    newest.expect("run `make build` first").1
}

/// What the build script complains about when these variables are set as they are.
fn complaint(variables: &[(&str, &str)]) -> String {
    let scratch = Scratch::new();
    let output = Command::new(build_script())
        .current_dir(workspace().join("mod_offload"))
        .env("OUT_DIR", scratch.path())
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(complaint.trim_end().lines().count(), 1, "one sentence: {complaint}");
    complaint
}

/// A program that prints this text, whatever it is asked.
fn program(scratch: &Scratch, name: &str, text: &str) -> String {
    let path = scratch.write(name, &format!("#!/bin/sh\necho '{text}'\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_missing_apxs_is_named_with_its_package() {
    let complaint = complaint(&[("APXS", "/nowhere/apxs")]);
    assert!(complaint.contains("apxs") && complaint.contains("apache2-dev"), "{complaint}");
}

#[test]
fn a_missing_apr_config_is_named_with_its_package() {
    let complaint = complaint(&[("APR_CONFIG", "/nowhere/apr-1-config")]);
    assert!(complaint.contains("apr-1-config") && complaint.contains("libapr1-dev"), "{complaint}");
}

#[test]
fn an_apxs_that_fails_is_named_with_what_it_said() {
    let complaint = complaint(&[("APXS", "/bin/false")]);
    assert!(complaint.contains("/bin/false failed"), "{complaint}");
}

#[test]
fn a_missing_header_is_named_with_its_package() {
    let scratch = Scratch::new();
    let apxs = program(&scratch, "apxs", "/nowhere");
    let complaint = complaint(&[("APXS", &apxs)]);
    assert!(complaint.contains("httpd.h") && complaint.contains("apache2-dev"), "{complaint}");
}
