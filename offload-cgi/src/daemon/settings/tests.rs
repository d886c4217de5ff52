//! Who wins, what is refused, and where it says it stands.

use super::rows::Row;
use super::*;

fn read(
    text: &str,
    variables: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Settings, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("offload.conf");
    std::fs::write(&path, text).unwrap();
    let mut all: Flags =
        flags.iter().map(|(key, value)| ((*key).to_owned(), value.into())).collect();
    all.push(("config".to_owned(), path.clone().into()));
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    Settings::read(variables, &all).map_err(|errors| {
        let prefix = format!("{}:", path.display());
        errors.into_iter().map(|error| error.replace(&prefix, "FILE:")).collect()
    })
}

const ONE: &str = "base = http://a.test\ncache = /c\nlisten = 127.0.0.1:80\n";

#[test]
fn one_base_needs_no_section() {
    let settings = read(&format!("{ONE}rate = 100K\n"), &[], &[]).unwrap();
    assert_eq!(settings.listen, [Address::parse("127.0.0.1:80").unwrap()]);
    assert_eq!(settings.sites.len(), 1);
    assert_eq!(settings.sites[0].options.base.to_string(), "http://a.test:80");
    assert_eq!((settings.sites[0].rate, settings.sites[0].burst), (Some(102_400), 0));
    assert_eq!((settings.workers, settings.drain), (32, Duration::from_secs(300)));
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let variables = [("OFFLOAD_FRESH", "2s"), ("OFFLOAD_DRAIN", "2s")];
    let settings = read(&format!("{ONE}fresh = 1s\ndrain = 1s"), &variables, &[]).unwrap();
    assert_eq!(settings.sites[0].options.fresh, Span::seconds(2));
    assert_eq!(settings.drain, Duration::from_secs(2));
    let flags = [("fresh", "3s"), ("drain", "3s"), ("listen", "[::1]:81"), ("listen", "unix:/s")];
    let settings = read(&format!("{ONE}fresh = 1s"), &variables, &flags).unwrap();
    assert_eq!(settings.sites[0].options.fresh, Span::seconds(3));
    assert_eq!((settings.drain, settings.listen.len()), (Duration::from_secs(3), 2));
}

#[test]
fn a_section_is_about_one_base_and_wins_over_what_stands_above() {
    let text = "listen = 127.0.0.1:80\ncache = /c\nrate = 1K\nfresh = 5s\n\
        [base a]\nbase = http://a.test\nhost = a.test, www.a.test\nhost = A2.test\n\
        [base b]\nbase = http://b.test\nrate = 2K\nfresh = 6s\ncache = /d\n";
    let settings = read(text, &[], &[]).unwrap();
    let [a, b] = &settings.sites[..] else { panic!("{settings:?}") };
    assert_eq!((a.rate, a.options.fresh), (Some(1024), Span::seconds(5)));
    assert_eq!((b.rate, b.options.fresh), (Some(2048), Span::seconds(6)));
    assert_eq!(a.hosts, ["a.test", "www.a.test", "a2.test"]);
    assert!(b.hosts.is_empty() && b.options.cache.as_deref() == Some(Path::new("/d")));
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let text = "listen = nowhere\nlitsen = 1\nbase = http://x\ndrain = soon\ndrain = 1s\nhost = x\n\
        [base a]\nbase = ftp://a\nworkers = 3\nrate = fast\n[base b]\nhost = b.test\n";
    let errors = read(text, &[("OFFLOAD_MIN_RATE", "x")], &[("fresh", "x")]).unwrap_err();
    for (place, word) in [
        ("FILE:1: listen:", "'nowhere'"),
        ("FILE:2:", "'litsen' is no setting"),
        ("FILE:3:", "each section"),
        ("FILE:4: drain:", "'soon'"),
        ("FILE:5:", "set already"),
        ("FILE:6:", "[base NAME]"),
        ("FILE:8: base:", "http://HOST"),
        ("FILE:9:", "above all sections"),
        ("FILE:10: rate:", "'fast'"),
        ("OFFLOAD_MIN_RATE:", "'x'"),
        ("--fresh:", "'x'"),
    ] {
        let found = errors.iter().any(|error| error.starts_with(place) && error.contains(word));
        assert!(found, "{place} {word}: {errors:#?}");
    }
    assert_eq!(errors.len(), 11, "{errors:#?}");
}

#[test]
fn what_is_missing_is_asked_for_where_it_belongs() {
    let errors = read("listen = [::]:80\n[base a]\ncache = /c\n", &[], &[]).unwrap_err();
    assert!(errors[0].starts_with("FILE:2: [base a]: OFFLOAD_BASE is not set"), "{errors:?}");
    let two = "cache = /c\n[base a]\nbase = http://a\n[base b]\nbase = http://b\n";
    let errors = read(two, &[], &[]).unwrap_err();
    assert!(errors[0].contains("only one can take the rest"), "{errors:?}");
    let errors = read(two, &[("OFFLOAD_BASE", "http://c")], &[]).unwrap_err();
    assert!(errors[0].contains("the file has sections"), "{errors:?}");
}

#[test]
fn an_unknown_variable_and_a_share_of_nothing_are_warnings() {
    let settings = read(&format!("{ONE}dupe-mode = share"), &[("OFFLOAD_TYPO", "1")], &[]).unwrap();
    assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
    assert!(settings.warnings[0].contains("OFFLOAD_TYPO"));
}

#[test]
fn the_readme_has_the_table_that_the_rows_make() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(file).unwrap();
    let (begin, end) = ("<!-- daemon: begin -->\n", "<!-- daemon: end -->");
    let (before, rest) = readme.split_once(begin).unwrap();
    let (table, after) = rest.split_once(end).unwrap();
    let mut made =
        String::from("| key and flag | variable | meaning [default] |\n| --- | --- | --- |\n");
    for Row { key, scope, help, .. } in &ROWS {
        let (flag, variable) = match scope {
            Scope::Section => (format!("`{key}`"), String::new()),
            _ => (format!("`{key}`, `--{key}`"), format!("`{}`", variable_of(key))),
        };
        writeln!(made, "| {flag} | {variable} | {help} |").unwrap();
    }
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(file, format!("{before}{begin}{made}{end}{after}")).unwrap();
    } else {
        assert_eq!(table, made, "run `make readme`");
    }
}
