use super::*;

fn read(lines: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Options, String> {
    let required = [("OFFLOAD_BASE", "http://base.test"), ("OFFLOAD_CACHE", "/var/cache/x")];
    let mut environment: Vec<(OsString, OsString)> = Vec::new();
    for (name, value) in required.iter().chain(lines) {
        environment.retain(|(other, _)| other != name);
        environment.push((name.into(), value.into()));
    }
    let flags: Vec<_> =
        flags.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
    Options::read(environment, &flags)
}

#[test]
fn the_readme_has_the_table_that_the_rows_make() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(file).unwrap();
    let (begin, end) = ("<!-- settings: begin -->\n", "<!-- settings: end -->");
    let (before, rest) = readme.split_once(begin).unwrap();
    let (table, after) = rest.split_once(end).unwrap();
    let mut made = String::from("| variable | flag | meaning [default] |\n| --- | --- | --- |\n");
    for Setting { variable, flag, help, .. } in &SETTINGS {
        writeln!(made, "| `{variable}` | `--{flag}` | {help} |").unwrap();
    }
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(file, format!("{before}{begin}{made}{end}{after}")).unwrap();
    } else {
        assert_eq!(table, made, "run `make readme`");
    }
}

#[test]
fn what_is_not_set_has_its_default() {
    let options = read(&[], &[]).unwrap();
    assert_eq!(options.base.to_string(), "http://base.test:80");
    assert_eq!(options.keep_free, Share::Percent(5));
    assert_eq!(options.stale_if_error, Span::seconds(86_400));
    assert_eq!(options.timeout, Span::seconds(45));
    assert!(!options.debug && options.warnings.is_empty());
}

#[test]
fn a_flag_wins_over_the_environment_and_is_handed_on() {
    let options = read(&[("OFFLOAD_TIMEOUT", "1s")], &[("timeout", "2s")]).unwrap();
    assert_eq!(options.timeout, Span::seconds(2));
    assert!(options.written.contains(&("OFFLOAD_TIMEOUT", "2s".into())));
    assert!(read(&[], &[("tiemout", "2s")]).unwrap_err().contains("--tiemout"));
}

#[test]
fn a_wrong_value_is_named_with_its_setting_and_the_remedy() {
    for (name, value, remedy) in [
        ("OFFLOAD_BASE", "ftp://x", "http://HOST"),
        ("OFFLOAD_BASE_ADDRESS", "[::1", "address[:port]"),
        ("OFFLOAD_CACHE", "cache", "begin it with '/'"),
        ("OFFLOAD_KEEP_FREE", "101%", "0% to 100%"),
        ("OFFLOAD_KEEP_FREE", "+5%", "0% to 100%"),
        ("OFFLOAD_KEEP_FREE", "lots", "0% to 100%"),
        ("OFFLOAD_STALE_IF_ERROR", "1y", "h, d or w"),
        ("OFFLOAD_TIMEOUT", "0", "1s or more"),
        ("OFFLOAD_CA", "ca.pem", "begin it with '/'"),
        ("OFFLOAD_LOG", "log", "begin it with '/'"),
        ("OFFLOAD_DEBUG", "", "on nor off"),
        ("OFFLOAD_MAX_DUPES", "-1", "0 to"),
        ("OFFLOAD_DUPE_MODE", "both", "deny, queue nor share"),
        ("OFFLOAD_MAX_CLIENTS", "0", "1 to"),
        ("OFFLOAD_TRUST", "x", "ADDRESS/BITS"),
        ("OFFLOAD_DOCUMENT_ROOT", "www", "begin it with '/'"),
        ("OFFLOAD_FRESH", "soon", "ms, s, m"),
        ("OFFLOAD_CACHE_MAX", "101%", "0% to 100%"),
        ("OFFLOAD_FILL_BUDGET", "much", "K, M, G or T"),
        ("OFFLOAD_MAX_FILLS", "0", "1 to"),
    ] {
        let error = read(&[(name, value)], &[]).unwrap_err();
        assert!(
            error.starts_with(name)
                && error.contains(&format!("'{value}'"))
                && error.contains(remedy),
            "{error}"
        );
    }
}

#[test]
fn what_is_required_is_asked_for() {
    let error = Options::read([], &[]).unwrap_err();
    assert!(error.contains("OFFLOAD_BASE is not set"), "{error}");
    let base = ("OFFLOAD_BASE".into(), "http://x".into());
    let error = Options::read([base], &[]).unwrap_err();
    assert!(error.contains("OFFLOAD_CACHE is not set"), "{error}");
}

#[test]
fn an_unknown_setting_is_a_warning() {
    let options = read(&[("OFFLOAD_TRUST", "::1"), ("OFFLOAD_TYPO", "x")], &[]).unwrap();
    assert_eq!(options.warnings.len(), 1);
    assert!(options.warnings[0].contains("OFFLOAD_TYPO is no setting"));
}

#[test]
fn a_share_of_any_disk_is_exact() {
    assert_eq!(Share::Percent(5).of(1000), 50);
    assert_eq!(Share::Percent(100).of(u64::MAX), u64::MAX);
    assert_eq!(Share::Percent(0).of(u64::MAX), 0);
    assert_eq!(Share::Bytes(Bytes::new(7)).of(1), 7);
}
