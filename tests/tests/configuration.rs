//! Mistakes in the configuration: httpd does not start and says where, what and how it would be right.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use offload_tests::Setup;

#[test]
fn a_mistake_names_file_line_word_and_what_would_be_accepted() {
    for (line, word, accepted) in [
        ("OffloadEngine Maybe", "Maybe", "On or Off"),
        ("OffloadEngine", "OffloadEngine", "On|Off"),
        ("OffloadEngine On Off", "OffloadEngine", "On|Off"),
        ("OffloadDebug 2", "'2'", "On or Off"),
        ("OffloadHost", "OffloadHost", "HOST[:PORT]"),
        ("OffloadHost ftp://cdn1.example.org", "ftp://cdn1.example.org", "http(s)://"),
        ("OffloadHost cdn1.example.org/pub", "cdn1.example.org/pub", "http(s)://"),
        ("OffloadHost cdn1:0", "'0'", "1 to 65535"),
        ("OffloadHost cdn1:65536", "65536", "1 to 65535"),
        ("OffloadHost cdn1:http", "'http'", "1 to 65535"),
        ("OffloadHost \"cdn 1\"", "cdn 1", "HOST[:PORT]"),
        ("OffloadHost http://cdn1/a?b", "http://cdn1/a?b", "%XX"),
        ("OffloadHost \"http://cdn1/a b\"", "http://cdn1/a b", "%XX"),
        ("OffloadHost [::1", "[::1", "HOST[:PORT]"),
        ("OffloadHost [fe80::zz]", "[fe80::zz]", "HOST[:PORT]"),
        ("OffloadHost cdn1 weight=-1", "weight=-1", "weight=N"),
        ("OffloadHost cdn1 weight=heavy", "weight=heavy", "weight=N"),
        ("OffloadHost cdn1 weight=65536", "weight=65536", "65535"),
        ("OffloadHost cdn1 colour=red", "colour=red", "weight=N"),
        ("OffloadHost cdn1 cdn2", "'cdn2'", "weight=N"),
        ("OffloadHost cdn1 \"if=%{HTTP:X\"", "%{HTTP:X", "if="),
        ("OffloadPolicy best", "'best'", "hash, rotate or random"),
        ("OffloadMinSize 5X", "'5X'", "K, M, G or T"),
        ("OffloadMinSize -1", "'-1'", "K, M, G or T"),
        ("OffloadMinSize 99999999999999999999", "99999999999999999999", "too large"),
        ("OffloadMinSize", "OffloadMinSize", "BYTES"),
        ("OffloadExcludeAddress 10.0.0.0/33", "10.0.0.0/33", "32"),
        ("OffloadExcludeAddress 2001:db8::/129", "2001:db8::/129", "128"),
        ("OffloadExcludeAddress 10.0.0.0/x", "10.0.0.0/x", "10.0.0.0/8"),
        ("OffloadExcludeAddress 300.0.0.0/8", "300.0.0.0/8", "10.0.0.0/8"),
        ("OffloadExcludeMimeType", "OffloadExcludeMimeType", "PATTERN"),
        ("OffloadExcludeUserAgent \"\"", "OffloadExcludeUserAgent", "PATTERN"),
    ] {
        let setup = Setup::default().offload().directives(&format!("\n\n{line}"));
        let check = setup.check();
        assert!(!check.ok, "accepted: {line}");
        let file = setup.scratch().path().join("directives.conf");
        for part in [&format!("line 3 of {}", file.display()), word, accepted] {
            assert!(check.text.contains(part), "{line}: no {part:?} in {}", check.text);
        }
    }
}

#[test]
fn what_the_manual_shows_is_accepted() {
    for line in [
        "OffloadEngine on",
        "OffloadHost cdn1.example.org",
        "OffloadHost cdn1.example.org:8080",
        "OffloadHost https://cdn1.example.org/pub weight=3 \"if=%{HTTP:X-Country} == 'DE'\"",
        "OffloadHost [2001:db8::1]:8080",
        "OffloadHost none",
        "OffloadPolicy Rotate",
        "OffloadMinSize 5K",
        "OffloadMinSize 0",
        "OffloadExcludeMimeType text/* image/*",
        "OffloadExcludeUserAgent *bot* \"Mozilla/4.*\"",
        "OffloadExcludeAddress 10.0.0.0/8 2001:db8::/32 192.168.* 127.0.0.1",
        "OffloadExcludeAddress none",
        "OffloadDebug Off",
    ] {
        let setup = Setup::default()
            .offload()
            .directives(&format!("<IfModule mod_offload.c>\n{line}\n</IfModule>"));
        let check = setup.check();
        assert!(check.ok, "{line}: {}", check.text);
    }
}

#[test]
fn the_original_s_configuration_loads_unchanged() {
    let check = Setup::default()
        .offload()
        .directives(
            "<VirtualHost *>\nServerName base.test\nOffloadEngine On\nOffloadDebug Off\nOffloadMinSize 5120\n\
             OffloadExcludeMimeType text/*\nOffloadExcludeMimeType image/*\nOffloadExcludeUserAgent *Google*\n\
             OffloadExcludeUserAgent *Slurp*\nOffloadExcludeAddress 192.168.1.*\nOffloadHost 127.0.0.2\n\
             OffloadHost 127.0.0.3:9000\n</VirtualHost>",
        )
        .check();
    assert!(check.ok, "{}", check.text);
}

#[test]
fn httpd_lists_every_directive_with_its_help_and_contexts() {
    let listing = Setup::default().offload().ask(&["-L"]);
    assert!(listing.ok, "{}", listing.text);
    for name in [
        "OffloadEngine",
        "OffloadHost",
        "OffloadPolicy",
        "OffloadMinSize",
        "OffloadExcludeMimeType",
        "OffloadExcludeUserAgent",
        "OffloadExcludeAddress",
        "OffloadDebug",
    ] {
        let entry = listing.text.split(&format!("\n{name} (mod_offload.c)\n")).nth(1);
        let entry = entry.unwrap_or_else(|| panic!("{name} is not listed"));
        let lines: Vec<&str> = entry.lines().take_while(|line| line.starts_with('\t')).collect();
        assert!(lines[0].trim().len() > 10, "{name} has no help: {lines:?}");
        assert!(entry.contains("Allowed in *.conf anywhere and in .htaccess"), "{name}: {lines:?}");
        assert!(entry.contains("when AllowOverride includes Options"), "{name}: {lines:?}");
    }
}
