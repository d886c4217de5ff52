//! Waiting holds no thread: neither for a file's first byte, nor a second one for what the base says of a file.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::base::{Base, Page};
use super::host::{Connection, Daemon, eventually, start};
use super::pattern;

/// A file whose bytes the base keeps back.
fn held_back(body: &[u8]) -> Page {
    let mut page = Page::new("\"v1\"", body);
    page.pause_at = Some(0);
    page
}

/// A file about which the base says nothing at all.
fn mute(body: &[u8]) -> Page {
    let mut page = Page::new("\"v1\"", body);
    page.mute = true;
    page
}

fn ask(daemon: &Daemon, paths: impl IntoIterator<Item = String>) -> Vec<Connection> {
    let ask = |path| {
        let mut connection = daemon.connect();
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        connection
    };
    paths.into_iter().map(ask).collect()
}

fn times(path: &str, count: usize) -> impl Iterator<Item = String> {
    std::iter::repeat_n(path.to_owned(), count)
}

/// Acts while somebody asks for one more file every 50 ms, about which the base says nothing: all threads that
/// may wait for it are taken.
fn under_load<T: Send>(base: &Base, daemon: &Daemon, act: impl FnOnce() -> T + Send) -> T {
    let over = AtomicBool::new(false);
    let before = base.count("HEAD");
    thread::scope(|scope| {
        let acting = scope.spawn(|| {
            base.wait_for("HEAD", before + 4);
            let result = act();
            over.store(true, Ordering::SeqCst);
            result
        });
        let mut all = Vec::new();
        while !over.load(Ordering::SeqCst) && !acting.is_finished() {
            all.extend(ask(daemon, [format!("/load{}", all.len())]));
            thread::sleep(Duration::from_millis(50));
        }
        acting.join().unwrap()
    })
}

#[test]
fn a_file_whose_first_byte_does_not_come_holds_no_thread() {
    let (base, body) = (Base::start(), pattern(300_000));
    for name in ["/a", "/b", "/c"] {
        base.put(name, held_back(&body));
    }
    base.put("/quick", Page::new("\"v1\"", "quick"));
    let daemon = start(&base, "workers = 1\nfresh = 0\n");
    let mut waiting = ask(&daemon, ["/a", "/b", "/c"].iter().flat_map(|path| times(path, 20)));
    base.wait_for("GET", 3);
    // The only thread is free: for a cold file, and for one that is there.
    for _ in 0..2 {
        assert_eq!(daemon.get("/quick").text(), "quick");
    }
    base.release();
    for connection in &mut waiting {
        assert!(connection.receive().body == body);
    }
    assert_eq!(base.count("GET"), 4);
}

#[test]
fn who_waits_for_the_same_answer_of_the_base_holds_no_thread_but_one() {
    let (base, body) = (Base::start(), pattern(300_000));
    base.put("/a", Page::new("\"v1\"", body.clone()));
    base.put("/quick", Page::new("\"v1\"", "quick"));
    let daemon = start(&base, "workers = 2\nfresh = 0\n");
    assert!(daemon.get("/a").body == body);
    base.put("/a", mute(&body));
    let mut waiting = ask(&daemon, times("/a", 50));
    base.wait_for("HEAD", 2);
    assert_eq!(daemon.get("/quick").text(), "quick");
    let late = ask(&daemon, times("/a", 10));
    base.release();
    for mut connection in waiting.drain(..).chain(late) {
        assert!(connection.receive().body == body);
    }
    // Of /a the first one, one for all who waited then, and perhaps some for those who were late.
    assert!((3..6).contains(&base.count("HEAD")), "{}", base.count("HEAD"));
    assert_eq!(base.count("GET"), 2);
}

#[test]
fn what_is_in_the_cache_is_served_while_a_base_holds_all_threads_that_wait_for_it() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "kept"));
    let mut daemon = start(&base, "workers = 2\nfresh = 1h\n");
    assert_eq!(daemon.get("/a").text(), "kept");
    daemon.settle();
    // It forgets which files are open.
    daemon.kill_and_start();
    let names = || (0..12).map(|number| format!("/mute{number}"));
    names().for_each(|name| base.put(&name, mute(b"late")));
    let mut waiting = ask(&daemon, names());
    base.wait_for("HEAD", 3);
    assert_eq!(daemon.get("/a").text(), "kept");
    base.release();
    for connection in &mut waiting {
        assert_eq!(connection.receive().text(), "late");
    }
}

#[test]
fn what_may_not_be_kept_after_all_is_sent_to_each_who_waits() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "secret"));
    let mut page = held_back(b"secret").with(&[("Cache-Control", "no-store")]);
    page.mute = true;
    base.put_for_get("/a", page);
    let daemon = start(&base, "workers = 2\n");
    let mut waiting = ask(&daemon, times("/a", 5));
    base.wait_for("GET", 1);
    base.release();
    for connection in &mut waiting {
        let answer = connection.receive();
        assert_eq!((answer.status, answer.text().as_str()), (200, "secret"));
        assert!(answer.field("Cache-Status").contains("unstorable"), "{answer:?}");
    }
}

#[test]
fn who_waits_while_the_base_changes_the_file_gets_the_new_one() {
    let base = Base::start();
    let mut old = Page::new("\"v1\"", "old");
    old.mute = true;
    base.put("/a", Page::new("\"v1\"", "old"));
    base.put_for_get("/a", old);
    let daemon = start(&base, "workers = 1\nfresh = 1h\n");
    let mut waiting = ask(&daemon, times("/a", 30));
    base.wait_for("GET", 1);
    base.put("/a", Page::new("\"v2\"", "new one"));
    base.put_for_get("/a", Page::new("\"v2\"", "new one"));
    // The GET that is held answers with what was there; the daemon's next one finds the new file.
    let filler = eventually("somebody fills", || daemon.fillers().first().copied());
    kill(Pid::from_raw(filler), Signal::SIGKILL).unwrap();
    for connection in &mut waiting {
        assert_eq!(connection.receive().text(), "new one");
    }
    base.release();
}

#[test]
fn the_death_of_the_filler_before_the_first_byte_is_not_the_end() {
    let (base, body) = (Base::start(), pattern(300_000));
    base.put("/a", held_back(&body));
    let daemon = start(&base, "");
    let mut waiting = ask(&daemon, times("/a", 30));
    base.wait_for("GET", 1);
    for filler in daemon.fillers() {
        kill(Pid::from_raw(filler), Signal::SIGKILL).unwrap();
    }
    base.wait_for("GET", 2);
    base.release();
    for connection in &mut waiting {
        assert!(connection.receive().body == body);
    }
}

#[test]
fn who_waits_for_the_first_byte_is_answered_when_it_does_not_come() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "late"));
    base.put_for_get("/a", mute(b"late"));
    let daemon = start(&base, "workers = 1\ntimeout = 2s\n");
    let mut waiting = ask(&daemon, times("/a", 20));
    for connection in &mut waiting {
        let answer = connection.receive();
        assert_eq!(answer.status, 504, "{answer:?}");
        assert_eq!(answer.field("Retry-After"), "30");
    }
    base.release();
}

#[test]
fn the_end_lets_those_have_the_file_who_wait_for_its_first_byte() {
    let (base, body) = (Base::start(), pattern(300_000));
    base.put("/a", held_back(&body));
    let mut daemon = start(&base, "");
    let mut waiting = ask(&daemon, times("/a", 10));
    base.wait_for("GET", 1);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_line("ends");
    base.release();
    for connection in &mut waiting {
        assert!(connection.receive().body == body);
    }
    assert!(daemon.wait());
}

#[test]
fn what_is_served_old_is_renewed_by_one_request_to_the_base() {
    let base = Base::start();
    let control = [("Cache-Control", "max-age=0, stale-while-revalidate=3600")];
    base.put("/a", Page::new("\"v1\"", "old").with(&control));
    let daemon = start(&base, "workers = 2\n");
    assert_eq!(daemon.get("/a").text(), "old");
    base.put("/a", mute(b"new").with(&control));
    let mut all = ask(&daemon, times("/a", 40));
    for connection in &mut all {
        let answer = connection.receive();
        assert!(answer.field("Cache-Status").contains("stale-while-revalidate"), "{answer:?}");
    }
    base.wait_for("HEAD", 2);
    assert_eq!(base.count("HEAD"), 2);
    base.release();
}

#[test]
fn what_is_old_is_renewed_although_its_bytes_have_to_be_waited_for() {
    let base = Base::start();
    let control = [("Cache-Control", "max-age=0, stale-while-revalidate=3600")];
    base.put("/a", held_back(b"text").with(&control));
    let daemon = start(&base, "");
    let mut connection = daemon.connect();
    connection.send("HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.head().status, 200);
    assert_eq!(base.count("HEAD"), 1);
    let mut waiting = ask(&daemon, times("/a", 3));
    base.wait_for("HEAD", 2);
    base.release();
    for connection in &mut waiting {
        assert_eq!(connection.receive().text(), "text");
    }
}

#[test]
fn without_a_cache_nobody_waits_for_what_another_one_hears() {
    let base = Base::start();
    base.put("/a", mute(b"text"));
    let daemon = start(&base, "document-root = {folder}\n");
    let mut waiting = ask(&daemon, times("/a", 5));
    base.wait_for("HEAD", 5);
    base.release();
    for connection in &mut waiting {
        assert_eq!(connection.receive().text(), "text");
    }
}

#[test]
fn who_waits_with_others_is_told_in_time_that_nobody_got_to_ask() {
    let base = Base::start();
    base.hold_heads();
    let daemon = start(&base, "workers = 4\ntimeout = 1s\n");
    let longest = under_load(&base, &daemon, || {
        let begun = Instant::now();
        for connection in &mut ask(&daemon, times("/a", 10)) {
            assert_eq!(connection.receive().status, 504);
        }
        begun.elapsed()
    });
    base.release_heads();
    // One after the other they waited 11 s.
    assert!(longest < Duration::from_secs(6), "{longest:?}");
}

#[test]
fn who_waits_in_vain_for_the_first_byte_is_told_so_while_others_are_asked_about() {
    let base = Base::start();
    base.put("/a", Page::new("\"v1\"", "late"));
    base.put_for_get("/a", mute(b"late"));
    let daemon = start(&base, "workers = 4\ntimeout = 4s\n");
    let begun = Instant::now();
    let mut waiting = ask(&daemon, times("/a", 5));
    base.wait_for("GET", 1);
    base.hold_heads();
    under_load(&base, &daemon, || {
        for connection in &mut waiting {
            assert_eq!(connection.receive().status, 504);
        }
    });
    // For a thread they would have waited as long again.
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    base.release_heads();
    base.release();
}

#[test]
fn what_cannot_be_opened_anew_is_fetched_past_the_cache() {
    let (base, body) = (Base::start(), pattern(8_000_000));
    let mut page = Page::new("\"v1\"", body.clone());
    page.pause_at = Some(1_000_000);
    base.put("/a", page);
    let daemon = start(&base, "");
    let mut connection = daemon.connect();
    connection.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.head().status, 200);
    assert!(connection.read(900_000) == body[..900_000]);
    let folders = fs::read_dir(daemon.path("cache").join("objects")).unwrap().flatten();
    let mut files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
    let map = files.find(|file| file.path().extension().is_some_and(|kind| kind == "map"));
    let map = map.unwrap().path();
    // The object's folder is away, and none can be made. Then the body is given up (store/progress.rs).
    let file = fs::File::options().write(true).open(&map).unwrap();
    fs::rename(map.parent().unwrap(), daemon.path("away")).unwrap();
    fs::write(map.parent().unwrap(), "").unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &1_u32.to_ne_bytes(), 15 * 4).unwrap();
    daemon.wait_for_line("passed through from here on");
    base.release();
    assert!(connection.rest() == body[900_000..]);
}

#[test]
fn nothing_is_left_of_those_who_waited() {
    let base = Base::start();
    for number in 0..12 {
        let mut page = Page::new("\"v1\"", pattern(300_000));
        page.pause_at = Some(number % 3 * 10_000);
        base.put(&format!("/f{number}"), page);
    }
    let daemon = start(&base, "fresh = 0\nidle-timeout = 1s\n");
    let folder = format!("/proc/{}", daemon.id());
    let held = || {
        let files = fs::read_dir(format!("{folder}/fd")).unwrap().count();
        let texts = fs::read_dir(format!("{folder}/fdinfo")).unwrap().flatten();
        let texts = texts.map(|file| fs::read_to_string(file.path()).unwrap_or_default());
        let watches: usize = texts.map(|text| text.matches("inotify wd").count()).sum();
        (files, watches)
    };
    let before = held();
    let mut waiting = Vec::new();
    for round in 0..600 {
        waiting.extend(ask(&daemon, [format!("/f{}", round * 7 % 12)]));
        if waiting.len() > 100 {
            // Whoever it is goes.
            drop(waiting.swap_remove(round * 31 % waiting.len()));
        }
        if round % 200 == 150 {
            for filler in daemon.fillers().into_iter().take(3) {
                let _ = kill(Pid::from_raw(filler), Signal::SIGKILL);
            }
        }
    }
    eventually("bodies are watched", || (held().1 > before.1).then_some(()));
    base.release();
    for connection in &mut waiting {
        assert_eq!(connection.receive().body.len(), 300_000);
    }
    drop(waiting);
    // A file may be kept open while its answer is good.
    eventually("nothing is left", || (held().0 <= before.0 && held().1 == before.1).then_some(()));
}
