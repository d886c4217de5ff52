//! The checklist: each item alone keeps a request on the base; and what an inner section says counts.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use offload_tests::{Answer, Curl, Httpd, Setup, bytes};

/// A base that offloads `/a.zip` to 127.0.0.2, and whatever else these lines say.
fn base(directives: &str) -> Httpd {
    start(Setup::default(), directives)
}

fn start(setup: Setup, directives: &str) -> Httpd {
    let base = setup
        .offload()
        .directives("OffloadEngine On\nOffloadHost 127.0.0.2:9")
        .directives(directives)
        .start();
    base.put("a.zip", bytes(1, 6000));
    base
}

fn offloaded(base: &Httpd, curl: Curl) {
    let answer = curl.run();
    assert_eq!(answer.status(), 307, "{answer:?}");
    assert_eq!(base.verdict(&answer), "offload http://127.0.0.2:9");
}

fn kept(base: &Httpd, curl: Curl, reason: &str) -> Answer {
    let answer = curl.run();
    assert_ne!(answer.status(), 307, "{answer:?}");
    assert_eq!(base.verdict(&answer), format!("keep {reason}"), "{answer:?}");
    answer
}

/// Kept, and served as if the module were not there.
fn served(base: &Httpd, curl: Curl, reason: &str) {
    let answer = kept(base, curl, reason);
    assert_eq!(answer.status(), 200);
    assert!(answer.body() == bytes(1, 6000), "other bytes than in the file");
}

#[test]
fn a_request_that_passes_every_item_is_redirected() {
    let base = base("");
    let answer = base.get("/a.zip");
    assert_eq!((answer.status(), answer.location()), (307, "http://127.0.0.2:9/a.zip"));
    assert_eq!(answer.field("cache-control"), "no-store");
    assert_eq!(base.verdict(&answer), "offload http://127.0.0.2:9");
}

#[test]
fn item_1_the_engine_is_off() {
    let base = base("OffloadEngine Off");
    served(&base, base.curl("/a.zip"), "engine-off");
}

#[test]
fn item_1_the_engine_is_off_when_nobody_says_anything() {
    let base = Setup::default().offload().directives("OffloadHost 127.0.0.2:9").start();
    base.put("a.zip", bytes(1, 6000));
    served(&base, base.curl("/a.zip"), "engine-off");
}

#[test]
fn item_2_there_is_no_host() {
    let base = base("<Location />\nOffloadHost none\n</Location>");
    served(&base, base.curl("/a.zip"), "no-host");
}

#[test]
fn item_3_the_method_is_not_get() {
    let base = base("");
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
        kept(&base, base.curl("/a.zip").method(method), "not-get");
    }
    assert_eq!(kept(&base, base.curl("/a.zip").method("HEAD"), "not-get").status(), 200);
}

#[test]
fn item_4_there_is_a_query_string() {
    let base = base("");
    served(&base, base.curl("/a.zip?version=2"), "query");
}

#[test]
fn item_5_authentication_is_required() {
    let base = base(
        "<Location />\nAuthType Basic\nAuthName test\nAuthUserFile ${SCRATCH}/users\nRequire valid-user\n</Location>",
    );
    base.scratch().write("users", "ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n");
    assert_eq!(base.get("/a.zip").status(), 401);
    served(&base, base.curl("/a.zip").arg("-u").arg("ann:secret"), "authentication");
}

#[test]
fn item_5_an_authentication_type_is_set_though_everybody_may_come_in() {
    let base =
        base("<Location />\nAuthType Basic\nAuthName test\nRequire all granted\n</Location>");
    served(&base, base.curl("/a.zip"), "authentication");
}

#[test]
fn item_6_a_handler_makes_the_answer() {
    let setup = Setup::default().module("asis");
    let base = start(setup, "<Files *.asis>\nSetHandler send-as-is\n</Files>");
    let content = [&b"Status: 200 OK\nContent-Type: text/plain\n\n"[..], &bytes(2, 6000)].concat();
    base.put("b.asis", content);
    let answer = kept(&base, base.curl("/b.asis"), "dynamic");
    assert!(answer.body() == bytes(2, 6000));
}

#[test]
fn item_6_a_path_follows_the_file() {
    let base = base("");
    kept(&base, base.curl("/a.zip/more"), "dynamic");
}

#[test]
fn item_7_the_file_does_not_exist_or_is_a_folder() {
    let base = base("");
    base.put("folder/b.zip", "");
    assert_eq!(kept(&base, base.curl("/missing.zip"), "not-a-file").status(), 404);
    let folder = base.get("/folder/");
    assert!(matches!(folder.status(), 403 | 404), "{folder:?}");
    assert!(["keep not-a-file", "keep dynamic"].contains(&&*base.verdict(&folder)), "{folder:?}");
    assert_eq!(base.get("/folder").status(), 301, "mod_dir adds the slash");
}

#[test]
fn item_8_the_file_is_smaller_than_5_k() {
    let base = base("");
    for (size, status) in [(0, 200), (1, 200), (5119, 200), (5120, 307)] {
        base.put("b.zip", bytes(3, size));
        assert_eq!(base.get("/b.zip").status(), status, "{size} bytes");
    }
    base.put("b.zip", bytes(3, 5119));
    kept(&base, base.curl("/b.zip"), "too-small");
}

#[test]
fn item_8_the_minimum_can_be_set_and_0_means_none() {
    for (minimum, size, status) in
        [("0", 0, 307), ("7", 6, 200), ("7", 7, 307), ("6K", 6000, 200), ("1M", 6000, 200)]
    {
        let base = base(&format!("OffloadMinSize {minimum}"));
        base.put("b.zip", bytes(3, size));
        assert_eq!(base.get("/b.zip").status(), status, "minimum {minimum}, {size} bytes");
    }
}

#[test]
fn item_9_the_client_s_address_is_excluded() {
    let base =
        base("OffloadExcludeAddress 127.0.0.3 127.0.1.0/24\nOffloadExcludeAddress 127.0.2.*");
    for address in ["127.0.0.3", "127.0.1.77", "127.0.2.9"] {
        served(&base, base.curl("/a.zip").from(address), "excluded-address");
    }
    for address in ["127.0.0.1", "127.0.0.33", "127.0.3.1"] {
        offloaded(&base, base.curl("/a.zip").from(address));
    }
}

#[test]
fn item_9_the_address_is_the_one_that_mod_remoteip_vouches_for() {
    let setup = Setup::default().module("remoteip");
    let base = start(
        setup,
        "RemoteIPHeader X-Forwarded-For\nRemoteIPInternalProxy 127.0.0.1\nOffloadExcludeAddress 203.0.113.0/24",
    );
    let forwarded =
        |address: &str| base.curl("/a.zip").header(&format!("X-Forwarded-For: {address}"));
    served(&base, forwarded("203.0.113.9"), "excluded-address");
    served(&base, forwarded("127.0.0.2"), "offload-host");
    offloaded(&base, forwarded("198.51.100.9"));
    offloaded(&base, forwarded("203.0.113.9").from("127.0.0.5"));
}

#[test]
fn item_9_ipv6_networks_can_be_excluded() {
    let base = start(Setup::on("::1"), "OffloadExcludeAddress ::/64");
    served(&base, base.curl("/a.zip"), "excluded-address");
}

#[test]
fn item_10_the_client_is_an_offload_host() {
    let base = base("");
    served(&base, base.curl("/a.zip").from("127.0.0.2"), "offload-host");
    offloaded(&base, base.curl("/a.zip").from("127.0.0.3"));
}

#[test]
fn item_10_an_offload_host_is_known_by_what_its_name_resolves_to() {
    let base = base("OffloadHost none\nOffloadHost https://localhost/pub");
    served(&base, base.curl("/a.zip"), "offload-host");
    let answer = base.curl("/a.zip").from("127.0.0.3").run();
    assert_eq!(answer.location(), "https://localhost/pub/a.zip");
}

#[test]
fn item_11_the_request_asks_to_bypass() {
    let base = base("");
    served(&base, base.curl("/a.zip").header("X-Mod-Offload-Bypass: true"), "bypass");
    served(&base, base.curl("/a.zip").header("x-mod-offload-bypass: 1"), "bypass");
}

#[test]
fn item_12_the_content_type_is_excluded() {
    let base = base("OffloadExcludeMimeType text/* IMAGE/jp?g\nAddDefaultCharset utf-8");
    for name in ["b.txt", "b.html", "b.jpg"] {
        base.put(name, bytes(4, 6000));
        assert_eq!(kept(&base, base.curl(&format!("/{name}")), "excluded-type").status(), 200);
    }
    offloaded(&base, base.curl("/a.zip"));
}

#[test]
fn item_13_the_user_agent_is_excluded() {
    let base = base("OffloadExcludeUserAgent *bot* \"Mozilla/4.? *\"");
    for agent in ["GoogleBot/2.1", "bot", "Mozilla/4.0 (compatible)"] {
        served(&base, base.curl("/a.zip").arg("-A").arg(agent), "excluded-agent");
    }
    for agent in ["curl/8", "Mozilla/5.0 (X11)"] {
        offloaded(&base, base.curl("/a.zip").arg("-A").arg(agent));
    }
    offloaded(&base, base.curl("/a.zip").header("User-Agent:"));
}

#[test]
fn debugging_logs_one_line_a_request_with_the_reason() {
    let base = base("<Location /loud>\nOffloadDebug On\n</Location>");
    base.put("loud/b.zip", bytes(5, 10));
    base.put("loud/c.zip", bytes(5, 6000));
    base.get("/a.zip");
    base.get("/loud/b.zip");
    base.get("/loud/c.zip");
    base.eventually_logged(&["too-small", "/loud/b.zip"]);
    base.eventually_logged(&["/loud/c.zip", "http://127.0.0.2:9"]);
    let log = base.error_log();
    assert_eq!(log.matches("/loud/").count(), 2, "{log}");
    assert!(!log.contains("/a.zip"), "{log}");
}

#[test]
fn a_virtual_host_inherits_from_the_server_and_overrides_it() {
    let base = base(
        "<VirtualHost ${ADDRESS}:${PORT}>\nServerName base.test\n</VirtualHost>\n\
         <VirtualHost ${ADDRESS}:${PORT}>\nServerName off.test\nOffloadEngine Off\n</VirtualHost>\n\
         <VirtualHost ${ADDRESS}:${PORT}>\nServerName other.test\nOffloadHost none\nOffloadHost 127.0.0.4:9\n</VirtualHost>",
    );
    offloaded(&base, base.curl("/a.zip"));
    served(&base, base.curl("/a.zip").header("Host: off.test"), "engine-off");
    let other = base.curl("/a.zip").header("Host: other.test").run();
    assert_eq!(other.location(), "http://127.0.0.4:9/a.zip");
}

#[test]
fn directory_location_and_files_say_their_own_and_inherit_the_rest() {
    let base = base(
        "<Directory ${DOCROOT}/folder>\nOffloadMinSize 7K\n</Directory>\n\
         <Location /folder/inner>\nOffloadMinSize 10\n</Location>\n\
         <Files *.iso>\nOffloadEngine Off\n</Files>\n\
         <If \"%{HTTP:X-Slow} == '1'\">\nOffloadEngine Off\n</If>",
    );
    for name in ["folder/a.zip", "folder/inner/a.zip", "a.iso"] {
        base.put(name, bytes(1, 6000));
    }
    served(&base, base.curl("/folder/a.zip"), "too-small");
    offloaded(&base, base.curl("/folder/inner/a.zip"));
    served(&base, base.curl("/a.iso"), "engine-off");
    served(&base, base.curl("/a.zip").header("X-Slow: 1"), "engine-off");
    offloaded(&base, base.curl("/a.zip"));
}

#[test]
fn lists_add_up_and_none_clears_what_outer_sections_said() {
    let base = base(
        "OffloadExcludeUserAgent one\n\
         <Location /add>\nOffloadExcludeUserAgent two\n</Location>\n\
         <Location /clear>\nOffloadExcludeUserAgent none\nOffloadExcludeUserAgent three\n</Location>",
    );
    base.put("add/a.zip", bytes(1, 6000));
    base.put("clear/a.zip", bytes(1, 6000));
    for (path, agent, keep) in [
        ("/add/a.zip", "one", true),
        ("/add/a.zip", "two", true),
        ("/clear/a.zip", "one", false),
        ("/clear/a.zip", "three", true),
    ] {
        let curl = base.curl(path).arg("-A").arg(agent);
        if keep { served(&base, curl, "excluded-agent") } else { offloaded(&base, curl) }
    }
}

#[test]
fn an_htaccess_file_says_its_own_where_options_may_be_overridden() {
    let base = base("<Directory ${DOCROOT}>\nAllowOverride Options\n</Directory>");
    base.put("a/a.zip", bytes(1, 6000));
    base.put("a/b/a.zip", bytes(1, 6000));
    base.put("a/.htaccess", "OffloadMinSize 1M\n");
    base.put("a/b/.htaccess", "OffloadMinSize 0\nOffloadHost none\nOffloadHost 127.0.0.5:9\n");
    served(&base, base.curl("/a/a.zip"), "too-small");
    assert_eq!(base.get("/a/b/a.zip").location(), "http://127.0.0.5:9/a/b/a.zip");
    base.put("a/.htaccess", "OffloadExcludeAddress 127.0.0.0/8\n");
    served(&base, base.curl("/a/a.zip"), "excluded-address");
}

#[test]
fn a_mistake_in_an_htaccess_file_is_a_500_and_names_file_and_line() {
    let base = base("<Directory ${DOCROOT}>\nAllowOverride Options\n</Directory>");
    for (text, words) in [
        ("\n\nOffloadMinSize 5X\n", ["line 3", "5X", "K, M, G or T"]),
        ("OffloadEngine Perhaps\n", ["line 1", "Perhaps", "On or Off"]),
        ("\nOffloadHost a weight=x\n", ["line 2", "weight=x", "weight=N"]),
    ] {
        let file = base.put("a/.htaccess", text);
        base.put("a/a.zip", bytes(1, 6000));
        assert_eq!(base.get("/a/a.zip").status(), 500, "{text}");
        let line = base.eventually_logged(&words);
        // httpd names the file in the same entry.
        assert!(line.contains(file.to_str().unwrap()), "{line}");
    }
    offloaded(&base, base.curl("/a.zip"));
}

#[test]
fn an_htaccess_file_needs_the_permission_for_options() {
    let base = base("<Directory ${DOCROOT}/a>\nAllowOverride FileInfo\n</Directory>");
    base.put("a/a.zip", bytes(1, 6000));
    base.put("a/.htaccess", "OffloadEngine Off\n");
    assert_eq!(base.get("/a/a.zip").status(), 500);
    base.eventually_logged(&["OffloadEngine not allowed here"]);
}

#[test]
fn a_subrequest_an_error_page_and_a_folder_s_index_are_served_here() {
    let setup = Setup::default().module("include").module("filter");
    let base = start(
        setup,
        "ErrorDocument 404 /error.html\nDirectoryIndex index.html\nOffloadMinSize 0\n\
         <Files *.shtml>\nOptions +Includes\nSetOutputFilter INCLUDES\nOffloadEngine Off\n</Files>",
    );
    base.put("error.html", "sorry");
    base.put("part.txt", "part");
    base.put("page.shtml", "[<!--#include virtual=\"/part.txt\" -->]");
    let missing = base.get("/missing");
    assert_eq!((missing.status(), missing.body()), (404, b"sorry".to_vec()));
    assert_eq!(base.get("/page.shtml").body(), b"[part]");
}
