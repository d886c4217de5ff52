//! What an administrator does with a cache by hand.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::base::{Base, Page};
use super::host::Host;
use super::pattern;

fn tool(host: &Host, words: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_offload-cgi");
    let output =
        Command::new(program).env_clear().envs(&host.settings).args(words).output().unwrap();
    let mut lines: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    (output.status.code(), lines.join("\n"))
}

#[test]
fn a_cache_is_listed_cleaned_and_verified() {
    let base = Base::start();
    let host = Host::new(&base);
    for name in ["/gone", "/changed", "/same"] {
        base.put(name, Page::new("\"v1\"", "text"));
        host.get(name);
    }
    base.put("/short", Page::new("\"v1\"", pattern(3 << 20)));
    host.get_with("/short", &[("Range", "bytes=0-0")]);
    let (code, list) = tool(&host, &["list"]);
    assert_eq!(
        (code, list.as_str()),
        (
            Some(0),
            "part\t1M\t3M\thttp://base.test:80/short\n\
             whole\t4\t4\thttp://base.test:80/changed\n\
             whole\t4\t4\thttp://base.test:80/gone\n\
             whole\t4\t4\thttp://base.test:80/same"
        )
    );
    base.put("/gone", Page::status(404, &[]));
    base.put("/changed", Page::new("\"v2\"", "text"));
    assert_eq!(tool(&host, &["clean", "--urls", "--younger-than", "0s"]), (Some(0), String::new()));
    let (code, cleaned) = tool(&host, &["clean", "--urls", "--short"]);
    assert_eq!(
        (code, cleaned.as_str()),
        (
            Some(0),
            "changed\thttp://base.test:80/changed\n\
             current\thttp://base.test:80/same\n\
             gone\thttp://base.test:80/gone\n\
             short\thttp://base.test:80/short"
        )
    );
    assert_eq!(tool(&host, &["list"]).1, "whole\t4\t4\thttp://base.test:80/same");
    assert_eq!(tool(&host, &["verify"]), (Some(0), String::new()));
    fs::write(&host.files("body")[0], "tex").unwrap();
    let (code, damage) = tool(&host, &["verify"]);
    assert!(code == Some(1) && damage.contains("3 bytes instead of 4"), "{damage}");
    assert_eq!(tool(&host, &["verify"]), (Some(0), String::new()));
    assert_eq!(host.get("/same").text(), "text");
}

#[test]
fn with_the_base_down_nothing_is_cleaned_away() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let host = Host::new(&base);
    host.get("/a");
    base.go_down();
    let (code, cleaned) = tool(&host, &["clean", "--urls"]);
    assert_eq!((code, cleaned.as_str()), (Some(0), "unknown\thttp://base.test:80/a"));
    assert_eq!(host.files("body").len(), 1);
}

#[test]
fn another_base_s_files_in_the_same_cache_are_left_alone() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "text"));
    let mut host = Host::new(&base);
    host.get("/a");
    host.set("OFFLOAD_BASE", "http://other.test");
    assert_eq!(tool(&host, &["clean", "--urls"]), (Some(0), String::new()));
    assert_eq!(host.files("body").len(), 1);
}

#[test]
fn what_nobody_is_served_from_any_more_is_cleaned_away() {
    let base = Base::start();
    let host = Host::new(&base);
    for name in ["/whole", "/unknown", "/kept"] {
        base.put(name, Page::new("\"v1\"", "text"));
        host.get(name);
        if name != "/kept" {
            fs::remove_file(host.files("current").iter().max_by_key(|path| created(path)).unwrap())
                .unwrap();
        }
    }
    // Of one of them nobody knows either what it was.
    let kept = host.files("current").remove(0);
    let of_kept = |path: &PathBuf| key(path) == key(&kept);
    let lost = host.files("meta").into_iter().find(|path| !of_kept(path)).unwrap();
    fs::remove_file(&lost).unwrap();
    // What is left of somebody who was killed while he asked.
    fs::write(kept.with_file_name(format!("{}{:061}.check", &key(&kept)[..3], 0)), "").unwrap();
    assert_eq!(tool(&host, &["clean"]), (Some(0), String::new()));
    for kind in ["body", "meta", "lock", "check", "part", "map"] {
        assert!(host.files(kind).iter().all(of_kept), "{kind}: {:?}", host.files(kind));
    }
    assert_eq!(host.get("/kept").cache_status(), "offload; hit");
}

fn key(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap()[..64].to_owned()
}

fn created(path: &Path) -> (i64, i64) {
    let found = fs::metadata(path).unwrap();
    (found.ctime(), found.ctime_nsec())
}
