//! What the administrator gets: settings, wrong ones, logs, help.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::base::{Base, Page};
use super::host::Host;

#[test]
fn a_query_is_no_command_line() {
    let (base, evil) = (Base::start(), Base::start());
    evil.put("/a", Page::new("\"v1\"", "evil"));
    let mut host = Host::new(&base);
    // What httpd makes of `/a?--base-address=…`.
    host.arguments = vec![format!("--base-address=127.0.0.1:{}", evil.port)];
    assert_eq!(host.ask("GET", "/a?--base-address=x", &[]).end().status, 403);
    let query = [("$QUERY_STRING", "--base-address=x")];
    assert_eq!(host.ask("GET", "/a", &query).end().status, 404);
    assert!(evil.seen().is_empty());
    // Without a query they are the administrator's.
    assert_eq!(host.get("/a").text(), "evil");
    for (words, sentence) in [("--bsae", "--bsae"), ("fill", "settings only"), ("x", "\"x\"")] {
        host.arguments = vec![words.to_owned()];
        let reply = host.get("/a");
        assert!(reply.status == 500 && reply.log.contains(sentence), "{}", reply.log);
    }
}

#[test]
fn under_httpd_the_length_must_be_trusted() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    let httpd = ("$SERVER_SOFTWARE", "Apache/2.4.71 (Debian)");
    let reply = host.get_with("/a", &[httpd]);
    assert_eq!(reply.status, 500);
    assert!(reply.log.contains("SetEnv ap_trust_cgilike_cl 1"), "{}", reply.log);
    assert_eq!(host.get_with("/a", &[httpd, ("$ap_trust_cgilike_cl", "1")]).text(), "text");
}

#[test]
fn a_wrong_setting_is_a_500_and_one_clear_line() {
    let base = Base::start();
    for (name, value, words) in [
        ("OFFLOAD_BASE", "base.test", "OFFLOAD_BASE: 'base.test' is not a base; use http://"),
        ("OFFLOAD_CACHE", "relative", "OFFLOAD_CACHE: 'relative' is not an absolute path"),
        ("OFFLOAD_KEEP_FREE", "200%", "OFFLOAD_KEEP_FREE: '200%'"),
        ("OFFLOAD_TIMEOUT", "soon", "OFFLOAD_TIMEOUT: 'soon' is not a time"),
    ] {
        let mut host = Host::new(&base);
        host.set(name, value);
        let reply = host.get("/a");
        assert_eq!(reply.status, 500);
        assert!(reply.text().contains("its error log says why"));
        assert!(reply.log.contains(words), "{}", reply.log);
        assert_eq!(reply.log.lines().count(), 1, "{}", reply.log);
    }
    let mut host = Host::new(&base);
    host.settings.remove("OFFLOAD_BASE");
    let reply = host.get("/a");
    assert!(reply.status == 500 && reply.log.contains("OFFLOAD_BASE is not set"), "{}", reply.log);

    let host = Host::new(&base);
    fs::create_dir(host.cache()).unwrap();
    fs::set_permissions(host.cache(), fs::Permissions::from_mode(0o777)).unwrap();
    let reply = host.get("/a");
    assert!(reply.status == 500 && reply.log.contains("chmod 0700"), "{}", reply.log);
    assert!(base.seen().is_empty());
}

#[test]
fn the_logs_say_what_happened() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    let log = host.folder.path().join("access.log");
    host.set("OFFLOAD_LOG", log.to_str().unwrap());
    host.set("OFFLOAD_DEBUG", "on");
    host.set("OFFLOAD_TYPO", "x");
    let reply = host.get_with("/a", &[("User-Agent", "curl\"\n")]);
    assert!(reply.log.contains("200 GET /a: offload; fwd=miss; stored"), "{}", reply.log);
    assert!(reply.log.contains("OFFLOAD_TYPO is no setting"), "{}", reply.log);
    let line = fs::read_to_string(log).unwrap();
    assert!(line.starts_with("192.0.2.7 - - ["), "{line}");
    assert!(line.ends_with("\"GET /a HTTP/1.1\" 200 4 \"-\" \"curl\\\"\\x0a\"\n"), "{line}");
}

#[test]
fn by_hand_it_explains_itself() {
    let run = |words: &[&str]| {
        let program = env!("CARGO_BIN_EXE_offload-cgi");
        Command::new(program).env_clear().args(words).output().unwrap()
    };
    for (words, code, text) in [
        (&[][..], 2, "OFFLOAD_BASE"),
        (&["--help"], 0, "OFFLOAD_BASE"),
        (&["--version"], 0, "offload-cgi "),
        (&["--bsae", "x"], 2, "--bsae"),
        (&["fill", "x"], 1, "OFFLOAD_BASE is not set"),
    ] {
        let output = run(words);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(text), "{words:?}: {said}");
    }
}
