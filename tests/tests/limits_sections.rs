//! Limits on requests in a section, by a method, in a group of paths, on the whole server; and what
//! takes nothing a second time.

// This is test code: what does not hold ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use offload_tests::limits::{
    BIG, Client, Status, eventually_empty, eventually_held, limited, put_big,
};
use offload_tests::{Httpd, Mpm, Setup};

const SECTION: &str = "Too many requests are being answered in this part of the server";

/// A server with these files of [`BIG`] bytes.
fn server(directives: &str, files: &[&str]) -> Httpd {
    started(limited(Mpm::Event, directives), files)
}

fn started(setup: Setup, files: &[&str]) -> Httpd {
    let server = setup.start().settled();
    files.iter().for_each(|name| put_big(&server, name));
    server.put("elsewhere.txt", "hello");
    server
}

#[test]
fn the_section_owns_the_counter_and_not_the_url() {
    let server = server(
        "<Location /a>\nMaxConcurrentReqs 2\n</Location>\n\
         <Directory ${DOCROOT}/b>\nMaxConcurrentReqs 2\n</Directory>\n\
         <Files *.iso>\nMaxConcurrentReqs 2\n</Files>",
        &["a/1", "a/b/2", "b/1", "b/c/2", "one.iso", "c/two.iso"],
    );
    let client = Client::of(&server);
    for (one, other) in [("/a/1", "/a/b/2"), ("/b/1", "/b/c/2"), ("/one.iso", "/c/two.iso")] {
        let held = (client.hold(one), client.hold(other));
        for path in [one, other] {
            client.assert_refused(path, SECTION);
            client.clone().from("127.0.0.2").assert_refused(path, SECTION);
        }
        assert_eq!(client.status("/elsewhere.txt"), 200);
        assert_eq!(Status::of(&server).held("MaxConcurrentReqs"), 2);
        drop(held.0);
        let again = client.eventually_hold(other);
        client.assert_refused(one, SECTION);
        drop((again, held.1));
        eventually_empty(&server);
    }
}

#[test]
fn the_innermost_section_that_covers_the_method_counts() {
    let server = server(
        "<Location />\nMaxConcurrentReqs 3\n</Location>\n\
         <Location /one>\nMaxConcurrentReqs 1\n</Location>\n\
         <Location /free>\nMaxConcurrentReqs 0\n</Location>",
        &["big", "one/big", "free/big"],
    );
    let client = Client::of(&server);
    let one = client.hold("/one/big");
    client.assert_refused("/one/big", SECTION);
    let others = client.hold_all("/big", 3);
    client.assert_refused("/big", SECTION);
    let free = client.hold_all("/free/big", 5);
    drop((one, others, free));
    eventually_empty(&server);
}

#[test]
fn a_limit_may_be_about_some_methods_only() {
    let setup = limited(
        Mpm::Event,
        "ScriptAlias /cgi/ ${SCRATCH}/cgi/\n<Location /cgi>\n\
         <Limit POST>\nMaxConcurrentReqs 1\n</Limit>\n<Limit GET>\nMaxConcurrentReqs 2\n</Limit>\n</Location>",
    )
    .module("cgid");
    setup.scratch().folder("cgi");
    let text = format!(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nexec head -c {BIG} /dev/zero\n"
    );
    let plain = setup.scratch().write("big.sh", &text);
    setup.scratch().install(&plain, "cgi/big");
    let server = started(setup, &[]);
    let get = Client::of(&server);
    let (post, head, put) =
        (get.clone().method("POST"), get.clone().method("HEAD"), get.clone().method("PUT"));
    let posted = post.hold("/cgi/big");
    post.assert_refused("/cgi/big", SECTION);
    let got = get.hold_all("/cgi/big", 2);
    get.assert_refused("/cgi/big", SECTION);
    head.assert_refused("/cgi/big", SECTION);
    drop(put.hold("/cgi/big"));
    drop(posted);
    let posted = post.eventually_hold("/cgi/big");
    get.assert_refused("/cgi/big", SECTION);
    drop((posted, got));
    eventually_empty(&server);
}

#[test]
fn htaccess_may_limit_its_folder() {
    let server = server(
        "<Directory ${DOCROOT}>\nAllowOverride Options Limit\n</Directory>",
        &["a/big", "a/deep/big", "b/big"],
    );
    server.put("a/.htaccess", "MaxConcurrentReqs 2");
    server.put("b/.htaccess", "<Limit GET>\nMaxConcurrentReqs 1\n</Limit>");
    let client = Client::of(&server);
    let held = (client.hold("/a/big"), client.hold("/a/deep/big"));
    client.assert_refused("/a/big", SECTION);
    let other = client.hold("/b/big");
    client.assert_refused("/b/big", SECTION);
    assert_eq!(client.status("/elsewhere.txt"), 200);
    drop(held.0);
    let again = client.eventually_hold("/a/big");
    client.assert_refused("/a/deep/big", SECTION);
    drop((held.1, other, again));
    eventually_empty(&server);
    let client = client.clone();
    drop(client.hold_all("/a/big", 2));
}

#[test]
fn htaccess_needs_leave_to_limit() {
    let server = server("<Directory ${DOCROOT}>\nAllowOverride FileInfo\n</Directory>", &[]);
    server.put("a/.htaccess", "MaxConcurrentReqs 2");
    server.put("a/small", "hello");
    assert_eq!(Client::of(&server).status("/a/small"), 500);
    server.eventually_logged(&["MaxConcurrentReqs", "not allowed here"]);
}

#[test]
fn a_load_limit_is_about_a_group_of_paths_by_whole_segments() {
    let server = server("LoadLimit 2 /a /b/c\nLoadLimit 1 /d", &["a/big", "b/c/big", "d/big"]);
    for name in ["a/small", "ab/small", "b/small", "b/cd/small", "b/c/small", "d/small"] {
        server.put(name, "hello");
    }
    let client = Client::of(&server);
    let held = (client.hold("/a/big"), client.hold("/b/c/big"));
    for path in ["/a/small", "/b/c/small", "/a/", "/b/../a/small", "//a//small", "/%61/small"] {
        client.assert_refused(path, "Too many users are connected to /a");
        client.clone().from("127.0.0.2").assert_refused(path, "Too many users are connected to /a");
    }
    for path in ["/ab/small", "/b/small", "/b/cd/small", "/elsewhere.txt", "/d/small"] {
        assert_eq!(client.status(path), 200, "{path}");
    }
    let other = client.hold("/d/big");
    client.assert_refused("/d/small", "Too many users are connected to /d");
    drop(held.0);
    let again = client.eventually_hold("/b/c/big");
    client.assert_refused("/a/small", "Too many users are connected to /a");
    drop((held.1, other, again));
    eventually_empty(&server);
}

/// A page that was let in must also get its images: they count, and are never refused.
#[test]
fn load_limit_1_refuses_the_page_and_never_its_images() {
    let server = server("LoadLimit1 2 /page /images /css", &["page/big", "images/big", "css/big"]);
    server.put("page/small", "hello");
    server.put("images/small", "hello");
    let client = Client::of(&server);
    let page = client.hold("/page/big");
    let image = client.hold("/images/big");
    let words = "Too many users are connected to /page";
    client.assert_refused("/page/small", words);
    let mut more = client.hold_all("/images/big", 4);
    more.push(client.hold("/css/big"));
    for _ in 0..20 {
        assert_eq!(client.status("/images/small"), 200);
        client.assert_refused("/page/small", words);
    }
    eventually_held(&server, "LoadLimit1", 7);
    drop((page, image));
    eventually_held(&server, "LoadLimit1", 5);
    client.assert_refused("/page/small", words);
    more.truncate(1);
    let page = client.eventually_hold("/page/big");
    client.assert_refused("/page/small", words);
    drop((page, more));
    eventually_empty(&server);
}

#[test]
fn load_limit_server_is_about_every_request() {
    let server = server(
        "LoadLimitServer 3\n<VirtualHost ${ADDRESS}:${PORT}>\nServerName one.test\n</VirtualHost>\n\
         <VirtualHost ${ADDRESS}:${PORT}>\nServerName two.test\n</VirtualHost>",
        &["big"],
    );
    let (one, two) = (
        Client::of(&server).host("one.test"),
        Client::of(&server).host("two.test").from("127.0.0.2"),
    );
    let held = (one.hold_all("/big", 2), two.hold("/big"));
    let words = "Too many users are connected to this server";
    one.assert_refused("/elsewhere.txt", words);
    two.assert_refused("/nowhere", words);
    drop(held.1);
    let again = one.eventually_hold("/big");
    two.assert_refused("/big", words);
    drop((held.0, again));
    eventually_empty(&server);
}

/// With one place everywhere, whatever asks for a second one within a request is refused.
const ONE_PLACE: &str = "MaxConnectionsPerIP 1\nLoadLimitServer 1\nLoadLimit 1 /\n\
                         <Location />\nMaxConcurrentReqs 1\n</Location>";

#[test]
fn internal_redirects_and_subrequests_take_nothing_a_second_time() {
    let text = format!(
        "{ONE_PLACE}\nMaxConnectionsCountIdle Off\nDirectoryIndex nothing.html index.html\n\
         AddType text/html .shtml\nAddOutputFilter INCLUDES .shtml\n\
         <Directory ${{DOCROOT}}>\nOptions +Includes +FollowSymLinks +ExecCGI\nRewriteEngine On\n\
         RewriteRule ^old$ new [L]\n</Directory>\nAddHandler cgi-script .cgi\n\
         RewriteEngine On\nRewriteRule ^/ancient$ /new [PT]\nErrorDocument 404 /missing.html"
    );
    let setup = ["rewrite", "include", "cgid", "negotiation"]
        .iter()
        .fold(limited(Mpm::Event, &text), |setup, module| setup.module(module));
    let door = setup.scratch().write("door", "#!/bin/sh\nprintf 'Location: /new\\r\\n\\r\\n'\n");
    setup.scratch().install(&door, "www/door.cgi");
    let server = started(setup, &["big"]);
    server.put("folder/index.html", "the index");
    server.put("new", "the new one");
    server.put("missing.html", "not there");
    server.put("part.txt", "the part");
    server.put(
        "whole.shtml",
        "<!--#include virtual=\"/part.txt\" --> and <!--#include virtual=\"/new\" -->",
    );
    let client = Client::of(&server);
    for (path, status, body) in [
        ("/folder/", 200, "the index"),
        ("/old", 200, "the new one"),
        ("/ancient", 200, "the new one"),
        ("/door.cgi", 200, "the new one"),
        ("/nowhere", 404, "not there"),
        ("/whole.shtml", 200, "the part and the new one"),
    ] {
        for time in ["first", "second", "third"] {
            eventually_empty(&server);
            let (head, text) = client.get(path);
            assert_eq!((head.status, &*text), (status, body), "{path} for the {time} time");
        }
    }
    eventually_empty(&server);
    let held = client.hold("/big");
    let status = Status::of(&server);
    let all: Vec<u64> = status.scopes.iter().map(|scope| scope.held).collect();
    assert_eq!(all, [1; 4], "{status:?}");
    let _refused = client.get("/whole.shtml");
    drop(held);
    eventually_empty(&server);
}

#[test]
fn an_error_document_is_given_while_the_limit_is_met() {
    let text =
        format!("{ONE_PLACE}\nErrorDocument 503 /busy.html\nErrorDocument 404 /missing.html");
    let server = server(&text, &["big"]);
    server.put("busy.html", "come back later");
    let client = Client::of(&server);
    let held = client.hold("/big");
    for _ in 0..3 {
        let (head, body) = client.get("/elsewhere.txt");
        assert_eq!((head.status, &*body), (503, "come back later"), "{head:?}");
        assert!(head.field("retry-after").is_some(), "{head:?}");
        assert_eq!(head.field("cache-control"), Some("no-store"), "{head:?}");
    }
    assert!(Status::of(&server).scopes.iter().all(|scope| scope.held == 1));
    drop(held);
    eventually_empty(&server);
}
