//! The access log, written by a thread of its own: a slow disk slows no download.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::counters::Count;
use crate::log::{self, Access};

/// So many bytes may wait for the disk; what comes then is counted and thrown away.
const MOST: usize = 16 << 20;

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Format {
    /// Apache's combined format.
    #[default]
    Combined,
    /// An object a line.
    Json,
}

impl Format {
    /// Reads the word for it.
    ///
    /// # Errors
    /// A sentence with the words that there are.
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_str() {
            "combined" => Ok(Self::Combined),
            "json" => Ok(Self::Json),
            _ => Err(format!("'{word}' is neither combined nor json; use one of these")),
        }
    }
}

/// What JSON has more than the combined format.
pub(crate) struct More<'a> {
    pub(crate) host: &'a str,
    pub(crate) base: &'a str,
    pub(crate) cache: &'a str,
    pub(crate) time: Duration,
    /// Whether all of the reply went out.
    pub(crate) whole: bool,
}

/// Lines on their way to the disk.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    come: Condvar,
}

#[derive(Default)]
struct State {
    lines: HashMap<PathBuf, Vec<u8>>,
    bytes: usize,
    reopen: bool,
    end: bool,
}

impl Journal {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub(crate) fn start() -> std::io::Result<(Self, JoinHandle<()>)> {
        let shared = Arc::new(Shared { state: Mutex::default(), come: Condvar::new() });
        let writer = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("log".into())
            .stack_size(256 << 10)
            .spawn(move || writer.write())?;
        Ok((Self(shared), thread))
    }

    /// Adds a line to a file's; waits for nothing.
    pub(crate) fn add(&self, path: &Path, line: &str, lost: &Count) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.bytes + line.len() > MOST {
            lost.add(1);
            return;
        }
        state.bytes += line.len();
        match state.lines.get_mut(path) {
            Some(lines) => lines.extend_from_slice(line.as_bytes()),
            None => {
                state.lines.insert(path.to_owned(), line.as_bytes().to_vec());
            }
        }
        drop(state);
        self.0.come.notify_one();
    }

    /// Writes a line to stderr, which may be as slow as any file.
    pub(crate) fn tell(&self, text: &str) {
        self.add(Path::new(""), &log::of_program(text), &Count::default());
    }

    /// Opens the files anew, for they may have been moved away.
    pub(crate) fn reopen(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).reopen = true;
        self.0.come.notify_one();
    }

    /// Lets the thread end when everything is written.
    pub(crate) fn end(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).end = true;
        self.0.come.notify_one();
    }
}

impl Shared {
    fn write(&self) {
        let mut files: HashMap<PathBuf, File> = HashMap::new();
        loop {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            while state.lines.is_empty() && !state.reopen && !state.end {
                state = self.come.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let lines = std::mem::take(&mut state.lines);
            let (reopen, end) = (std::mem::take(&mut state.reopen), state.end);
            state.bytes = 0;
            drop(state);
            for (path, lines) in &lines {
                if let Err(error) = append(&mut files, path, lines) {
                    log::line(&format!("log: '{}' cannot be written: {error}", path.display()));
                    files.remove(path);
                }
            }
            if reopen {
                files.clear();
            }
            if end && lines.is_empty() {
                return;
            }
        }
    }
}

fn append(files: &mut HashMap<PathBuf, File>, path: &Path, lines: &[u8]) -> std::io::Result<()> {
    if path.as_os_str().is_empty() {
        let _ = std::io::stderr().write_all(lines);
        return Ok(());
    }
    if let Some(file) = files.get_mut(path) {
        return file.write_all(lines);
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    file.write_all(lines)?;
    files.insert(path.to_owned(), file);
    Ok(())
}

/// A line of the access log.
pub(crate) fn line(
    format: Format,
    access: &Access<'_>,
    more: &More<'_>,
    now: SystemTime,
) -> String {
    match format {
        Format::Combined => access.line(now),
        Format::Json => {
            let mut text = String::from("{");
            for (name, value) in [
                ("time", date(now).as_str()),
                ("client", access.client),
                ("host", more.host),
                ("base", more.base),
                ("request", access.request),
                ("referer", access.referer),
                ("agent", access.agent),
                ("cache", more.cache),
            ] {
                let _ = write!(text, "\"{name}\":{},", quoted(value));
            }
            let _ = writeln!(
                text,
                "\"status\":{},\"bytes\":{},\"whole\":{},\"seconds\":{:.3}}}",
                access.status,
                access.sent,
                more.whole,
                more.time.as_secs_f64()
            );
            text
        }
    }
}

/// RFC 9110's date, which every program reads.
fn date(now: SystemTime) -> String {
    httpdate::fmt_http_date(now)
}

/// A JSON string (RFC 8259, section 7).
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() || ('\u{2028}'..='\u{2029}').contains(&character) => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn no_byte_of_a_client_forges_a_line_or_a_field() {
        let access = Access {
            client: "192.0.2.1",
            user: "",
            request: "GET /\"\n\u{2028} HTTP/1.1",
            referer: "\\",
            agent: "",
            status: 200,
            sent: 7,
        };
        let more = More {
            host: "h",
            base: "b",
            cache: "offload; hit",
            time: Duration::from_millis(1500),
            whole: true,
        };
        assert_eq!(
            line(Format::Json, &access, &more, UNIX_EPOCH),
            "{\"time\":\"Thu, 01 Jan 1970 00:00:00 GMT\",\"client\":\"192.0.2.1\",\"host\":\"h\",\"base\":\"b\",\
             \"request\":\"GET /\\\"\\u000a\\u2028 HTTP/1.1\",\"referer\":\"\\\\\",\"agent\":\"\",\
             \"cache\":\"offload; hit\",\"status\":200,\"bytes\":7,\"whole\":true,\"seconds\":1.500}\n"
        );
    }

    #[test]
    fn lines_go_to_the_file_and_to_a_new_one_after_a_reopen() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let (journal, thread) = Journal::start().unwrap();
        let lost = Count::default();
        let wait = |path: &Path, wanted: &str| {
            while std::fs::read_to_string(path).unwrap_or_default() != wanted {
                thread::yield_now();
            }
        };
        journal.add(&path, "one\n", &lost);
        wait(&path, "one\n");
        std::fs::rename(&path, &moved).unwrap();
        journal.reopen();
        // Until the thread has noticed, lines may still go to the old file.
        while !path.exists() {
            journal.add(&path, "two\n", &lost);
            thread::sleep(Duration::from_millis(1));
        }
        journal.end();
        thread.join().unwrap();
        assert_eq!(lost.now(), 0);
    }
}
