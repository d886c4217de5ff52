//! From a GET on the base to the bytes from the offload host.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use offload_tests::offload::{HOST_ADDRESS, Pair, PairSetup};
use offload_tests::{Httpd, Mpm, bytes, eventually, same_file, write_bytes};

/// Cold and warm.
fn delivers(pair: &Pair, path: &str, size: u64) {
    let file = pair.base.put(path, "");
    write_bytes(&file, size + 7, size);
    for _ in ["cold", "warm"] {
        let answer = pair.assert_delivers(path, &file);
        assert_eq!(answer.field("content-length"), size.to_string(), "{path}: {answer:?}");
        assert!(!answer.field("cache-status").is_empty(), "{path}: {answer:?}");
    }
    // A large file is fetched in several stretches. httpd does not tell HEAD the length of an empty one:
    // the program asks again with GET.
    match size {
        0 => {}
        1..=0x0800_0000 => pair.assert_fetched_once(path),
        _ => pair.assert_fetched_without_waste(path, size),
    }
}

fn serves_under(mpm: Mpm) {
    let pair = PairSetup::new(mpm).start();
    let file = pair.base.put("/a.bin", bytes(8, 100_000));
    pair.assert_delivers("/a.bin", &file);
    pair.assert_delivers("/a.bin", &file);
    pair.assert_fetched_once("/a.bin");
}

#[test]
fn event_serves_with_mod_cgid() {
    serves_under(Mpm::Event);
}

#[test]
fn worker_serves_with_mod_cgid() {
    serves_under(Mpm::Worker);
}

#[test]
fn prefork_serves_with_mod_cgi() {
    serves_under(Mpm::Prefork);
}

#[test]
fn every_size_arrives_as_it_is_on_the_base() {
    let pair = Pair::start();
    for size in [1, 5119, 5120, 1 << 20, 0] {
        delivers(&pair, &format!("/{size}.bin"), size);
    }
}

#[test]
fn a_file_of_300_mb_arrives_as_it_is_on_the_base() {
    let pair = Pair::start();
    delivers(&pair, "/large.bin", 300 << 20);
}

#[test]
fn names_of_every_kind_arrive() {
    let pair = Pair::start();
    for (number, (name, path)) in (0..).zip([
        ("with space.bin", "/with%20space.bin"),
        ("100%.bin", "/100%25.bin"),
        ("%41.bin", "/%2541.bin"),
        ("a#b.bin", "/a%23b.bin"),
        ("a?b.bin", "/a%3Fb.bin"),
        ("a+b.bin", "/a+b.bin"),
        ("a+c.bin", "/a%2Bc.bin"),
        ("ü.bin", "/%C3%BC.bin"),
        ("ö.bin", "/%c3%b6.bin"),
        ("say \"hi\".bin", "/say%20%22hi%22.bin"),
        ("it's.bin", "/it's.bin"),
        ("a&b=c;d,e@f:g!$(h)*~.bin", "/a&b=c;d,e@f:g!$(h)*~.bin"),
        ("deep/er/than the root/a.bin", "/deep/er/than%20the%20root/a.bin"),
    ]) {
        let file = pair.base.put(name, bytes(number, 6000 + number));
        pair.assert_delivers(path, &file);
    }
}

#[test]
fn spellings_of_one_path_share_one_copy() {
    let pair = Pair::start();
    let file = pair.base.put("/a~b.bin", bytes(1, 6000));
    for path in ["/a~b.bin", "/a%7Eb.bin", "/%61~b.bin", "/./a~b.bin", "//a~b.bin"] {
        pair.assert_delivers(path, &file);
    }
    pair.assert_fetched_once("/a~b.bin");
}

#[test]
fn a_file_that_changed_on_the_base_is_delivered_anew() {
    let pair = Pair::start();
    for (seed, size) in [(1, 50_000), (2, 60_000), (3, 60_000), (4, 60_000), (5, 0)] {
        let file = pair.base.put("/a.bin", bytes(seed, size));
        pair.assert_delivers("/a.bin", &file);
    }
}

#[test]
fn a_file_that_changes_within_a_second_is_delivered_as_it_is_then() {
    let pair = Pair::start();
    for seed in 0..10 {
        let file = pair.base.put_now("/a.bin", bytes(seed, 60_000));
        pair.assert_delivers("/a.bin", &file);
    }
}

#[test]
fn a_file_that_was_deleted_on_the_base_is_a_404_there_and_on_the_offload_host() {
    let pair = Pair::start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    pair.assert_delivers("/a.bin", &file);
    fs::remove_file(file).unwrap();
    assert_eq!(pair.base.curl("/a.bin").follow().run().status(), 404);
    assert_eq!(pair.host.get("/a.bin").status(), 404);
    assert_eq!(pair.host.get("/never-was.bin").status(), 404);
}

#[test]
fn with_the_base_down_what_is_cached_is_served_and_the_rest_is_refused_with_a_time_to_retry() {
    let mut pair = Pair::start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    pair.base.put("/b.bin", bytes(2, 50_000));
    pair.assert_delivers("/a.bin", &file);
    pair.settle();
    pair.base.stop();
    let cached = pair.host.get("/a.bin");
    assert_eq!(cached.status(), 200);
    assert!(same_file(cached.file(), &file));
    let missing = pair.host.get("/b.bin");
    assert!(matches!(missing.status(), 502 | 504), "{missing:?}");
    assert!(missing.field("retry-after").parse::<u32>().is_ok(), "{missing:?}");
    pair.base.start_again();
    pair.assert_delivers("/b.bin", &pair.base.path("/b.bin"));
}

#[test]
fn a_base_that_accepts_and_says_nothing_runs_into_the_time_out() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let pair = PairSetup::new(Mpm::Event)
        .setting("OFFLOAD_BASE", &format!("http://{}", silent.local_addr().unwrap()))
        .setting("OFFLOAD_TIMEOUT", "300ms")
        .start();
    let answer = pair.host.get("/a.bin");
    assert_eq!(answer.status(), 504, "{answer:?}");
    assert!(!answer.field("retry-after").is_empty());
}

#[test]
fn a_part_is_delivered_cold_and_warm() {
    let pair = Pair::start();
    let content = bytes(1, 3_000_000);
    pair.base.put("/a.bin", &content);
    for (range, from, to) in [
        ("2000000-2000999", 2_000_000, 2_001_000),
        ("0-0", 0, 1),
        ("2999999-", 2_999_999, 3_000_000),
        ("-500", 2_999_500, 3_000_000),
        ("2999000-9999999", 2_999_000, 3_000_000),
    ] {
        let answer = pair.base.curl("/a.bin").follow().range(range).run();
        assert_eq!(answer.status(), 206, "{range}: {answer:?}");
        assert!(answer.body() == content[from..to], "{range}");
        assert_eq!(answer.field("content-range"), format!("bytes {from}-{}/3000000", to - 1));
    }
    pair.assert_fetched_without_waste("/a.bin", 3_000_000);
    let beyond = pair.base.curl("/a.bin").follow().range("3000000-").run();
    assert_eq!((beyond.status(), beyond.field("content-range")), (416, "bytes */3000000"));
}

#[test]
fn a_client_that_has_the_file_gets_a_304() {
    let pair = Pair::start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    let first = pair.assert_delivers("/a.bin", &file);
    let (etag, modified) = (first.field("etag"), first.field("last-modified"));
    for condition in [format!("If-None-Match: {etag}"), format!("If-Modified-Since: {modified}")] {
        let answer = pair.base.curl("/a.bin").follow().header(&condition).run();
        assert_eq!((answer.status(), answer.body().len()), (304, 0), "{condition}: {answer:?}");
    }
    let other = pair.base.curl("/a.bin").follow().header("If-None-Match: \"other\"").run();
    assert_eq!(other.status(), 200);
}

#[test]
fn validators_and_content_type_are_the_base_s() {
    let pair = Pair::start();
    pair.base.put("/a.zip", bytes(1, 50_000));
    let (here, there) = (
        pair.download("/a.zip"),
        pair.base.curl("/a.zip").header("X-Mod-Offload-Bypass: true").run(),
    );
    for name in ["etag", "last-modified", "content-type", "content-length"] {
        assert_eq!(here.field(name), there.field(name), "{name}");
    }
    assert_eq!(here.field("accept-ranges"), "bytes");
}

#[test]
fn an_etag_that_mod_headers_sets_is_the_file_s_etag() {
    // httpd itself does not know this ETag: to it, an If-Match with it does not match.
    let rewritten = "Header set ETag '\"of-our-own\"'";
    let pair = PairSetup::new(Mpm::Event).on_base("headers", rewritten).start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    for _ in ["cold", "warm"] {
        assert_eq!(pair.assert_delivers("/a.bin", &file).field("etag"), "\"of-our-own\"");
    }
}

#[test]
fn a_head_has_the_same_fields_as_a_get_and_no_body() {
    let pair = Pair::start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    let cold = pair.host.curl("/a.bin").method("HEAD").run();
    let get = pair.assert_delivers("/a.bin", &file);
    let warm = pair.host.curl("/a.bin").method("HEAD").run();
    for head in [&cold, &warm] {
        assert_eq!(head.status(), 200);
        for name in ["etag", "last-modified", "content-type", "content-length"] {
            assert_eq!(head.field(name), get.field(name), "{name}");
        }
    }
}

#[test]
fn fifty_clients_at_once_on_a_cold_file_cause_one_get_on_the_base() {
    // The base sends slowly, so that all of them come while it does.
    let slow = "<Location />\nSetOutputFilter RATE_LIMIT\nSetEnv rate-limit 4096\n</Location>";
    let mut pair = PairSetup::new(Mpm::Event).on_base("ratelimit", slow).start();
    let file = pair.base.put("/a.bin", bytes(1, 6 << 20));
    let clients: Vec<_> = (0..50).map(|_| pair.base.curl("/a.bin").follow().start()).collect();
    for client in clients {
        let answer = client.wait();
        assert_eq!((answer.exit, answer.status()), (0, 200), "{answer:?}");
        assert!(same_file(answer.file(), &file), "other bytes than on the base");
    }
    pair.assert_fetched_once("/a.bin");
    pair.base.stop();
    pair.assert_fetched_once("/a.bin");
}

#[test]
fn a_client_that_leaves_does_not_stop_the_fill() {
    let slow = "<Location />\nSetOutputFilter RATE_LIMIT\nSetEnv rate-limit 4096\n</Location>";
    let pair = PairSetup::new(Mpm::Event).on_base("ratelimit", slow).start();
    let file = pair.base.put("/a.bin", bytes(1, 4 << 20));
    let left = pair.base.curl("/a.bin").follow().arg("--max-filesize").arg("1000").attempt();
    assert_ne!(left.exit, 0, "curl should have left: {left:?}");
    pair.assert_delivers("/a.bin", &file);
    pair.assert_fetched_once("/a.bin");
}

#[test]
fn the_error_document_way_serves_what_the_host_does_not_have_itself() {
    for mpm in [Mpm::Event, Mpm::Prefork] {
        let pair = PairSetup::new(mpm).by_error_document().start();
        let file = pair.base.put("/with space/a.bin", bytes(1, 50_000));
        pair.base.put("/own.bin", bytes(2, 50_000));
        let own = pair.host.put("/own.bin", bytes(3, 50_000));
        let answer = pair.assert_delivers("/with%20space/a.bin", &file);
        assert_eq!(answer.field("content-length"), "50000");
        pair.assert_delivers("/own.bin", &own);
        let part = pair.base.curl("/with%20space/a.bin").follow().range("10-19").run();
        assert_eq!((part.status(), part.body().len()), (206, 10));
        let head = pair.host.curl("/with%20space/a.bin").method("HEAD").run();
        assert_eq!((head.status(), head.field("content-length")), (200, "50000"));
        assert_eq!(
            pair.host.curl("/with%20space/a.bin").method("POST").arg("-d").arg("x").run().status(),
            403
        );
        assert_eq!(pair.host.get("/missing.bin").status(), 404);
    }
}

#[test]
fn a_base_on_ipv6_is_asked_over_ipv6() {
    let pair = PairSetup::on("::1", HOST_ADDRESS, Mpm::Event).start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    pair.assert_delivers("/a.bin", &file);
    let fetch =
        pair.base.eventually_entry("a GET", |entry| entry.method == "GET" && entry.bypass != "-");
    assert_eq!(fetch.client, "::1");
}

#[test]
fn an_offload_host_on_ipv6_serves_the_clients_of_a_base_on_ipv4() {
    let pair = PairSetup::on("127.0.0.1", "::1", Mpm::Event).start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    let answer = pair.assert_delivers("/a.bin", &file);
    assert!(answer.heads[0].field("location").unwrap().starts_with("http://[::1]:"));
}

#[test]
fn http_2_leads_to_the_same_bytes() {
    let both = "Protocols h2c http/1.1";
    let pair = PairSetup::new(Mpm::Event).on_base("http2", both).on_host("http2", both).start();
    let file = pair.base.put("/a.bin", bytes(1, 1 << 20));
    for _ in ["cold", "warm"] {
        let answer = pair.base.curl("/a.bin").follow().arg("--http2-prior-knowledge").run();
        assert_eq!((answer.heads[0].status, answer.status()), (307, 200), "{answer:?}");
        assert!(same_file(answer.file(), &file));
    }
}

#[test]
fn a_kept_connection_serves_many_downloads_from_the_cache() {
    let pair = Pair::start();
    let content = |number| bytes(number, 10_000);
    for number in 0..10 {
        let file = pair.base.put(&format!("/{number}.bin"), content(number));
        pair.assert_delivers(&format!("/{number}.bin"), &file);
    }
    let mut raw = pair.host.raw();
    for number in (0..10).chain(0..10) {
        let (head, body) = raw.get(&format!("/{number}.bin"));
        assert_eq!(head.status, 200);
        assert!(body == content(number), "{number}");
    }
}

#[test]
fn no_proxy_is_ever_used() {
    let proxy = TcpListener::bind(("127.0.0.4", 0)).unwrap();
    proxy.set_nonblocking(true).unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let mut setup = PairSetup::new(Mpm::Event);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
    {
        setup = setup.setting(name, &url);
    }
    let pair = setup.start();
    let file = pair.base.put("/a.bin", bytes(1, 50_000));
    pair.assert_delivers("/a.bin", &file);
    let httpoxy = pair.host.curl("/a.bin").header(&format!("Proxy: {url}")).run();
    assert!(same_file(httpoxy.file(), &file));
    let connection = proxy.accept();
    assert!(connection.is_err(), "somebody came to the proxy: {connection:?}");
}

#[test]
fn query_strings_and_other_methods_are_refused_with_403() {
    let pair = Pair::start();
    pair.base.put("/a.bin", bytes(1, 6000));
    assert_eq!(pair.host.get("/a.bin?x=1").status(), 403);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"] {
        assert_eq!(pair.host.curl("/a.bin").method(method).run().status(), 403, "{method}");
    }
    assert_eq!(pair.host.curl("/a.bin").arg("--data").arg("x=1").run().status(), 403);
    assert_eq!(pair.fetches("/a.bin"), 0);
}

#[test]
fn what_the_base_protects_or_does_not_vouch_for_is_a_403() {
    let pair = PairSetup::new(Mpm::Event)
        .on_base(
            "headers",
            "<Location /secret>\nAuthType Basic\nAuthName test\nAuthUserFile ${SCRATCH}/users\n\
             Require valid-user\n</Location>\n\
             <Location /unknown>\nFileETag None\nHeader unset Last-Modified\nHeader unset ETag\n</Location>",
        )
        .start();
    pair.base.scratch().write("users", "ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n");
    pair.base.put("/secret/a.bin", bytes(1, 6000));
    pair.base.put("/unknown/a.bin", bytes(1, 6000));
    assert_eq!(pair.host.get("/secret/a.bin").status(), 403);
    assert_eq!(pair.host.curl("/secret/a.bin").arg("-u").arg("ann:secret").run().status(), 403);
    assert_eq!(pair.host.get("/unknown/a.bin").status(), 403);
}

#[test]
fn the_base_s_redirections_are_passed_on_and_not_followed() {
    let elsewhere = "Redirect 302 /moved.bin http://elsewhere.example.org/a.bin";
    let pair = PairSetup::new(Mpm::Event).on_base("alias", elsewhere).start();
    let answer = pair.host.get("/moved.bin");
    assert_eq!((answer.status(), answer.location()), (302, "http://elsewhere.example.org/a.bin"));
}

#[test]
fn bad_paths_get_a_4xx_and_lead_nowhere() {
    let pair = Pair::start();
    let file = pair.base.put("/a.bin", bytes(1, 6000));
    pair.assert_delivers("/a.bin", &file);
    pair.settle();
    let before = (folder(&pair.host, ""), folder(&pair.host, "var"), tree(&pair));
    for path in [
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/../../etc/passwd",
        "/a%2Fb",
        "/a%00b",
        "/a%5Cb",
        "/a%0d%0aX-Injected:%20yes",
        "/a%7f",
        "/a%",
        "/a%zz",
        "/%2e%2e%2f%2e%2e%2fcache",
    ] {
        let answer = pair.host.get(path);
        assert!((400..500).contains(&answer.status()), "{path}: {answer:?}");
        assert!(answer.head().field("x-injected").is_none(), "{path}");
    }
    assert_eq!((folder(&pair.host, ""), folder(&pair.host, "var"), tree(&pair)), before);
    pair.assert_delivers("/a.bin", &file);
}

#[test]
fn a_bad_path_that_reaches_the_program_is_a_400_and_one_log_line() {
    let pair = Pair::start();
    for path in ["/a%2Fb", "/a%5Cb", "/a%7Fb"] {
        let before = pair.host.error_log().lines().count();
        let answer = pair.host.get(path);
        assert_eq!(answer.status(), 400, "{path}: {answer:?}");
        eventually("a log line", || (pair.host.error_log().lines().count() > before).then_some(()));
        assert_eq!(pair.host.error_log().lines().count(), before + 1, "{}", pair.host.error_log());
    }
}

#[test]
fn a_wrong_or_missing_setting_is_a_500_and_a_log_line_that_names_it() {
    let good = || PairSetup::new(Mpm::Event);
    for (setup, words) in [
        (good().without("OFFLOAD_BASE"), ["OFFLOAD_BASE", "OFFLOAD_BASE"]),
        (good().without("OFFLOAD_CACHE"), ["OFFLOAD_CACHE", "OFFLOAD_CACHE"]),
        (good().setting("OFFLOAD_BASE", "ftp://base.test"), ["OFFLOAD_BASE", "ftp://base.test"]),
        (good().setting("OFFLOAD_TIMEOUT", "5y"), ["OFFLOAD_TIMEOUT", "5y"]),
        (good().setting("OFFLOAD_STALE_IF_ERROR", "long"), ["OFFLOAD_STALE_IF_ERROR", "long"]),
        (good().setting("OFFLOAD_CACHE", "nowhere"), ["OFFLOAD_CACHE", "nowhere"]),
    ] {
        let pair = setup.start();
        pair.base.put("/a.bin", bytes(1, 6000));
        let answer = pair.host.get("/a.bin");
        assert_eq!(answer.status(), 500, "{words:?}: {answer:?}");
        pair.host.eventually_logged(&words);
    }
}

#[test]
fn the_cache_is_made_for_its_owner_alone_and_refused_when_others_can_write_to_it() {
    let pair = Pair::start();
    let file = pair.base.put("/a.bin", bytes(1, 6000));
    pair.assert_delivers("/a.bin", &file);
    let mode = |mode| fs::set_permissions(pair.cache(), Permissions::from_mode(mode)).unwrap();
    assert_eq!(fs::metadata(pair.cache()).unwrap().permissions().mode() & 0o777, 0o700);
    for open in [0o777, 0o770, 0o702] {
        mode(open);
        assert_eq!(pair.host.get("/a.bin").status(), 500, "{open:o}");
    }
    pair.host.eventually_logged(&["OFFLOAD_CACHE"]);
    mode(0o700);
    pair.assert_delivers("/a.bin", &file);
}

#[test]
fn the_base_s_address_can_be_given_apart_from_its_name() {
    let setup = PairSetup::new(Mpm::Event);
    let address = setup.base.authority();
    let pair = setup
        .setting("OFFLOAD_BASE", "http://www.example.org")
        .setting("OFFLOAD_BASE_ADDRESS", &address)
        .on_base("rewrite", "RewriteEngine On\nRewriteCond %{HTTP_HOST} !^www.example.org$\nRewriteRule ^/strict - [F]")
        .start();
    let file = pair.base.put("/strict.bin", bytes(1, 6000));
    let answer = pair.host.get("/strict.bin");
    assert_eq!(answer.status(), 200, "the Host that the base sees is www.example.org: {answer:?}");
    assert!(same_file(answer.file(), &file));
}

/// The names in a folder of the server's, except for what httpd itself writes.
fn folder(server: &Httpd, name: &str) -> Vec<String> {
    let path = server.scratch().path().join(name);
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Every file in the cache.
fn tree(pair: &Pair) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![pair.cache()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            found.push(entry.path().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
