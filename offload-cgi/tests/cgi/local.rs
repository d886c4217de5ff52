//! No-cache mode: files of a folder that somebody else keeps like the base's.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use super::base::{Base, Page};
use super::host::Host;

#[test]
fn what_the_folder_has_as_the_base_has_it_is_served_from_there() {
    let base = Base::start();
    let mut host = Host::new(&base);
    let root = host.folder.path().join("www");
    fs::create_dir_all(&root).unwrap();
    host.set("OFFLOAD_DOCUMENT_ROOT", root.to_str().unwrap());
    host.settings.remove("OFFLOAD_CACHE");
    let then = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    let put = |name: &str, text: &str| {
        fs::write(root.join(name), text).unwrap();
        File::options().append(true).open(root.join(name)).unwrap().set_modified(then).unwrap();
    };
    let here = "offload; hit; detail=document-root";
    let there = "offload; fwd=miss; detail=no-cache";
    base.put("/a%20b", Page::new("\"v1\"", "0123456789"));
    // Told apart from the base's own only because this is a test.
    put("a b", "9876543210");
    let reply = host.ask("GET", "/a%20b", &[]).end();
    assert_eq!((reply.text(), reply.cache_status()), ("9876543210", here), "{}", reply.log);
    let reply = host.ask("GET", "/a%20b", &[("Range", "bytes=2-3")]).end();
    assert_eq!((reply.status, reply.text()), (206, "76"));
    // Another length or another date is another version.
    put("a b", "short");
    assert_eq!(host.ask("GET", "/a%20b", &[]).end().text(), "0123456789");
    fs::write(root.join("a b"), "9876543210").unwrap();
    let reply = host.ask("GET", "/a%20b", &[]).end();
    assert_eq!((reply.text(), reply.cache_status()), ("0123456789", there));
    // A link that leads out is none of ours.
    base.put("/link", Page::new("\"v1\"", "base"));
    fs::write(host.folder.path().join("evil"), "evil").unwrap();
    symlink("../evil", root.join("link")).unwrap();
    assert_eq!(host.ask("GET", "/link", &[]).end().text(), "base");
    // What the base does not have is not served, though it is there.
    put("gone", "gone");
    assert_eq!(host.ask("GET", "/gone", &[]).end().status, 404);
    assert!(!host.cache().exists());
}
