//! A browser that plays a video, seeks in it, and downloads it.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::base::{Base, Page};
use super::host::{client, eventually, start};

/// Seconds of sound; a second is 16,000 bytes.
const SECONDS: u32 = 3000;

/// Plays, seeks to and fro, and says at each place where it is; then downloads all of it and says what it got.
const PAGE: &str = "<!DOCTYPE html><title>x</title><video id=v src=/sound.wav preload=metadata muted></video><script>
const video = document.getElementById('v'), say = (what) => fetch('/said/' + what);
const once = (event) => new Promise((done) => video.addEventListener(event, done, { once: true }));
video.addEventListener('error', () => say('error'));
(async () => {
    if (video.readyState < 1) await once('loadedmetadata');
    await say('length-' + Math.round(video.duration));
    for (const place of [2500, 100, 1700]) {
        const seeked = once('seeked');
        video.currentTime = place;
        await seeked;
        if (video.readyState < 3) await once('canplay');
        await say('at-' + Math.round(video.currentTime));
    }
    const bytes = new Uint8Array(await (await fetch('/sound.wav', { cache: 'no-store' })).arrayBuffer());
    let sum = 0;
    for (const byte of bytes) sum = (sum * 31 + byte) % 1000003;
    await say('sum-' + bytes.length + '-' + sum);
})();
</script>";

/// A file of sound, as RIFF/WAVE has it: one channel, 8,000 samples of 16 bits a second.
fn sound() -> Vec<u8> {
    let length = SECONDS * 16_000;
    let mut file = b"RIFF".to_vec();
    file.extend((length + 36).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(8000_u32.to_le_bytes());
    file.extend(16_000_u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend(length.to_le_bytes());
    // Nearly silent, and different everywhere.
    file.extend((0..length / 2).flat_map(|sample| [(sample % 251).to_le_bytes()[0], 0]));
    file
}

#[test]
fn chromium_plays_seeks_and_downloads() {
    let (base, sound) = (Base::start(), sound());
    let typed = |kind: &str, body: Vec<u8>| {
        let mut page = Page::new("\"v1\"", body);
        page.headers = vec![("Content-Type".into(), kind.into())];
        page
    };
    base.put("/page.html", typed("text/html", PAGE.into()));
    base.put("/sound.wav", typed("audio/wav", sound.clone()));
    let daemon = start(&base, "fresh = 1m\nlog = {folder}/log\n");
    let profile = tempfile::tempdir().unwrap();
    let mut browser = client("chromium");
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"])
        .args(["--autoplay-policy=no-user-gesture-required", "--no-proxy-server"])
        // It is to talk to nobody else.
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg("--remote-debugging-port=0")
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(daemon.url("/page.html"))
        .env("HOME", profile.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut browser = browser.spawn().unwrap();
    let sum = sound.iter().fold(0_u64, |sum, byte| (sum * 31 + u64::from(*byte)) % 1_000_003);
    let last = format!("sum-{}-{sum}", sound.len());
    let log = || fs::read_to_string(daemon.path("log")).unwrap_or_default();
    let said = eventually("the browser is through", || {
        let text = log();
        let said = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once("GET /said/")?;
            rest.split(' ').next().map(str::to_owned)
        });
        let said: Vec<String> = said.collect();
        said.last().is_some_and(|word| word.starts_with("sum-") || word == "error").then_some(said)
    });
    killpg(Pid::from_raw(i32::try_from(browser.id()).unwrap()), Signal::SIGKILL).unwrap();
    browser.wait().unwrap();
    assert_eq!(said, ["length-3000", "at-2500", "at-100", "at-1700", last.as_str()]);
    let parts = log()
        .lines()
        .filter(|line| line.contains("/sound.wav") && line.contains("\" 206 "))
        .count();
    assert!(parts > 1, "it has sought without a range: {}", log());
    // Its helpers end when it has ended.
    eventually("nobody uses its profile", || {
        let wanted = profile.path().display().to_string();
        let uses = |entry: fs::DirEntry| {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(&wanted)
        };
        (!fs::read_dir("/proc").unwrap().flatten().any(uses)).then_some(())
    });
}
