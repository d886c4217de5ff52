//! Other modules of httpd that have a say in what answers, and what must not follow from their presence.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use offload_tests::{Httpd, Raw, Setup, bytes, eventually};

const REDIRECT: &str = "OffloadEngine On\nOffloadHost 127.0.0.2:9\n";

fn base(modules: &[&'static str], directives: &str) -> Httpd {
    let setup = modules.iter().fold(Setup::default(), |setup, module| setup.module(module));
    let base = setup.offload().directives(REDIRECT).directives(directives).start();
    base.put("a.zip", bytes(1, 6000));
    base
}

fn put_script(base: &Httpd, name: &str, text: &str) {
    let path = base.put(name, format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_script_that_redirects_to_a_file_has_made_a_decision() {
    let base = base(&["cgid"], "AddHandler cgi-script .cgi\nOptions +ExecCGI");
    put_script(&base, "door.cgi", "printf 'Location: /a.zip\\r\\n\\r\\n'");
    for curl in [base.curl("/door.cgi"), base.curl("/door.cgi").method("POST").arg("-d").arg("x=1")]
    {
        let answer = curl.run();
        assert_eq!((answer.status(), answer.body() == bytes(1, 6000)), (200, true), "{answer:?}");
        assert_eq!(base.verdict(&answer), "keep dynamic");
    }
    assert_eq!(base.get("/a.zip").status(), 307);
}

#[test]
fn a_script_for_a_content_type_answers_for_its_files() {
    let base = base(
        &["cgid", "actions"],
        "AddHandler cgi-script .cgi\nOptions +ExecCGI\nAction application/zip /packer.cgi",
    );
    put_script(&base, "packer.cgi", "printf 'Content-Type: text/plain\\r\\n\\r\\npacked'");
    let answer = base.get("/a.zip");
    assert_eq!((answer.status(), answer.body()), (200, b"packed".to_vec()), "{answer:?}");
    assert_eq!(base.verdict(&answer), "keep dynamic");
}

#[test]
fn a_rewrite_rule_s_file_is_offloaded_under_the_url_that_the_client_knows() {
    let base = base(
        &["rewrite"],
        "<Directory ${DOCROOT}>\nOptions +FollowSymLinks\nRewriteEngine On\nRewriteRule ^old.zip$ a.zip\n</Directory>",
    );
    let answer = base.get("/old.zip");
    assert_eq!((answer.status(), answer.location()), (307, "http://127.0.0.2:9/old.zip"));
}

#[test]
fn a_negotiated_file_is_kept() {
    let base =
        base(&["negotiation"], "Options +MultiViews\nAddLanguage en .en\nAddLanguage de .de");
    base.put("page.zip.en", bytes(2, 6000));
    base.put("page.zip.de", bytes(3, 6000));
    let answer = base.curl("/page.zip").header("Accept-Language: de").run();
    assert!(answer.status() == 200 && answer.body() == bytes(3, 6000), "{answer:?}");
    assert_eq!(base.verdict(&answer), "keep varies");
}

#[test]
fn what_substitutes_in_the_file_keeps_it_here_also_by_content_type() {
    for directive in
        ["SetOutputFilter SUBSTITUTE", "AddOutputFilterByType SUBSTITUTE application/zip"]
    {
        let base = base(&["substitute", "filter"], directive);
        let answer = base.get("/a.zip");
        assert_eq!(
            (answer.status(), &*base.verdict(&answer)),
            (200, "keep dynamic"),
            "{directive}"
        );
    }
}

#[test]
fn the_redirection_says_nothing_about_the_file() {
    let base = base(
        &["headers"],
        "AddEncoding x-gzip .zip\nAddLanguage de .de\nHeader always set X-Seen yes",
    );
    base.put("b.de.zip", bytes(2, 6000));
    let answer = base.curl("/b.de.zip").arg("--compressed").run();
    assert_eq!(
        (answer.status(), answer.location()),
        (307, "http://127.0.0.2:9/b.de.zip"),
        "{answer:?}"
    );
    for name in ["content-encoding", "content-language", "last-modified", "etag", "accept-ranges"] {
        assert_eq!(answer.head().field(name), None, "{answer:?}");
    }
    assert_eq!(answer.field("x-seen"), "yes", "mod_headers has its say");
    assert_eq!(answer.body(), b"http://127.0.0.2:9/b.de.zip");
}

#[test]
fn the_page_for_an_error_is_never_offloaded() {
    let base = base(&[], "ErrorDocument 404 /a.zip");
    let answer = base.get("/missing");
    assert_eq!((answer.status(), answer.body() == bytes(1, 6000)), (404, true), "{answer:?}");
    assert_eq!(base.verdict(&answer), "keep error-document");
}

#[test]
fn a_client_of_http_0_9_gets_the_file() {
    let base = base(&[], "HttpProtocolOptions Unsafe Allow0.9");
    let mut raw = Raw::connect(base.address());
    raw.send("GET /a.zip\r\n");
    assert!(raw.rest() == bytes(1, 6000));
}

#[test]
fn words_that_httpd_would_drop_are_a_mistake() {
    let words = (0..64).map(|number| format!(" agent{number}")).collect::<String>();
    let check =
        Setup::default().offload().directives(&format!("OffloadExcludeUserAgent{words}")).check();
    assert!(!check.ok && check.text.contains("at most 63 words"), "{check:?}");
}

#[test]
fn an_upgrade_under_another_name_takes_over_by_a_graceful_restart() {
    let base = base(&[], "OffloadPolicy rotate");
    assert_eq!(base.get("/a.zip").status(), 307);
    let load = base.scratch().path().join("offload.load");
    let line = fs::read_to_string(&load).unwrap();
    let old = line.split_whitespace().last().unwrap().trim_matches('"').to_owned();
    let new = base.scratch().install(old.as_ref(), "other.so");
    // A hard link is the same file to the loader: a copy is wanted.
    fs::remove_file(&new).unwrap();
    fs::copy(&old, &new).unwrap();
    fs::write(&load, line.replace(&old, new.to_str().unwrap())).unwrap();
    base.graceful();
    let maps = || {
        let children = format!("/proc/{0}/task/{0}/children", base.pid());
        let child = fs::read_to_string(children).unwrap_or_default();
        let child = child.split_whitespace().next().unwrap_or_default().to_owned();
        fs::read_to_string(format!("/proc/{child}/maps")).unwrap_or_default()
    };
    eventually("the new copy is loaded", || maps().contains("other.so").then_some(()));
    for _ in 0..20 {
        let answer = base.get("/a.zip");
        assert_eq!((answer.status(), answer.location()), (307, "http://127.0.0.2:9/a.zip"));
    }
    let log = base.error_log();
    assert!(!log.contains("exit signal"), "{log}");
}
