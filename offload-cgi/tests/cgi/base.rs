//! A base server for tests: says what its script says, and counts.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// A file of the base, and how it behaves.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// After so many bytes of a GET's body the base waits for `Base::release`.
    pub(crate) pause_at: Option<usize>,
    /// After so many bytes of a GET's body the base closes the connection.
    pub(crate) break_at: Option<usize>,
    /// A pause after each so many bytes of a GET's body.
    pub(crate) slow: Option<(usize, Duration)>,
    /// Whether every GET has other bytes: its number, again and again.
    pub(crate) numbered: bool,
    /// Whether the base understands Range and If-Match.
    pub(crate) simple: bool,
    /// Whether it understands Range and If-Range, but not If-Match.
    pub(crate) no_match: bool,
    /// Whether it understands Range only, and says of no part whose it is.
    pub(crate) forgetful: bool,
    /// Whether it says of a part whose it is, and nothing else (RFC 9110, section 15.3.7).
    pub(crate) terse: bool,
    /// Whether the base takes requests and says nothing until `Base::release`.
    pub(crate) mute: bool,
}

impl Page {
    pub(crate) fn new(etag: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            etag: (!etag.is_empty()).then(|| etag.to_owned()),
            modified: Some("Sun, 06 Nov 1994 08:49:37 GMT".into()),
            headers: vec![("Content-Type".into(), "application/x-test".into())],
            body: body.into(),
            pause_at: None,
            break_at: None,
            slow: None,
            numbered: false,
            simple: false,
            no_match: false,
            forgetful: false,
            terse: false,
            mute: false,
        }
    }

    pub(crate) fn status(status: u16, headers: &[(&str, &str)]) -> Self {
        let mut page = Self::new("", "no");
        page.status = status;
        page.modified = None;
        page.with(headers)
    }

    pub(crate) fn with(mut self, headers: &[(&str, &str)]) -> Self {
        for (name, value) in headers {
            self.headers.push(((*name).to_owned(), (*value).to_owned()));
        }
        self
    }
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) headers: HashMap<String, String>,
}

#[derive(Default)]
struct State {
    pages: HashMap<String, Page>,
    /// What a path becomes when it has been asked with HEAD.
    after_head: HashMap<String, Page>,
    /// What a GET is answered with where it is not what HEAD says.
    gets: HashMap<String, Page>,
    /// What a path becomes when it has been asked with GET.
    after_get: HashMap<String, Page>,
    seen: Vec<Seen>,
    released: bool,
    heads_held: bool,
    down_after_get: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    down: AtomicBool,
    attempts: AtomicUsize,
}

/// The server; it ends with the test's process.
pub(crate) struct Base {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

impl Base {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&server);
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn put(&self, path: &str, page: Page) {
        self.shared.state.lock().unwrap().pages.insert(path.to_owned(), page);
    }

    /// What every GET of `path` is answered with from now on, whatever HEAD says.
    pub(crate) fn put_for_get(&self, path: &str, page: Page) {
        self.shared.state.lock().unwrap().gets.insert(path.to_owned(), page);
    }

    /// What `path` becomes right after the next HEAD.
    pub(crate) fn put_after_head(&self, path: &str, page: Page) {
        self.shared.state.lock().unwrap().after_head.insert(path.to_owned(), page);
    }

    /// What `path` becomes right after the next GET.
    pub(crate) fn put_after_get(&self, path: &str, page: Page) {
        self.shared.state.lock().unwrap().after_get.insert(path.to_owned(), page);
    }

    /// From now on every connection is closed at once.
    pub(crate) fn go_down(&self) {
        self.shared.down.store(true, Ordering::SeqCst);
    }

    /// The next GET is answered, and after it every connection is closed at once.
    pub(crate) fn go_down_after_get(&self) {
        self.shared.state.lock().unwrap().down_after_get = true;
    }

    /// How many connections there were.
    pub(crate) fn attempts(&self) -> usize {
        self.shared.attempts.load(Ordering::SeqCst)
    }

    /// From now on the answer to a HEAD waits for `release_heads`.
    pub(crate) fn hold_heads(&self) {
        self.shared.state.lock().unwrap().heads_held = true;
    }

    pub(crate) fn release_heads(&self) {
        self.shared.state.lock().unwrap().heads_held = false;
        self.shared.changed.notify_all();
    }

    /// Lets all paused answers go on.
    pub(crate) fn release(&self) {
        self.shared.state.lock().unwrap().released = true;
        self.shared.changed.notify_all();
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.state.lock().unwrap().seen.clone()
    }

    pub(crate) fn count(&self, method: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method).count()
    }

    /// Waits until so many requests of a method have come.
    pub(crate) fn wait_for(&self, method: &str, count: usize) {
        let mut state = self.shared.state.lock().unwrap();
        while state.seen.iter().filter(|seen| seen.method == method).count() < count {
            let limit = Duration::from_secs(60);
            let (next, waited) = self.shared.changed.wait_timeout(state, limit).unwrap();
            assert!(!waited.timed_out(), "no {count} of {method}: {:?}", next.seen);
            state = next;
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    shared.attempts.fetch_add(1, Ordering::SeqCst);
    if shared.down.load(Ordering::SeqCst) {
        return;
    }
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let page = {
        let mut state = shared.state.lock().unwrap();
        let for_get = (method == "GET").then(|| state.gets.get(&path)).flatten();
        let page = for_get.or(state.pages.get(&path)).cloned();
        let next = match method.as_str() {
            "HEAD" => state.after_head.remove(&path),
            _ => state.after_get.remove(&path),
        };
        if let Some(next) = next {
            state.pages.insert(path, next);
        }
        if method == "GET" && state.down_after_get {
            shared.down.store(true, Ordering::SeqCst);
        }
        state.seen.push(Seen { method: method.clone(), headers: headers.clone() });
        shared.changed.notify_all();
        let mute = page.as_ref().is_some_and(|page| page.mute);
        while (method == "HEAD" && state.heads_held) || (mute && !state.released) {
            state = shared.changed.wait(state).unwrap();
        }
        let gets = state.seen.iter().filter(|seen| seen.method == "GET").count();
        let mut page = page.unwrap_or_else(|| Page::status(404, &[]));
        if page.numbered {
            page.body.fill(u8::try_from(gets % 256).unwrap());
        }
        page
    };
    // The client may be gone: that is its affair.
    let _ = respond(&mut stream, &page, &method, &headers, shared);
}

fn respond(
    stream: &mut TcpStream,
    page: &Page,
    method: &str,
    headers: &HashMap<String, String>,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut status = page.status;
    let mut body = page.body.as_slice();
    let mut head = String::new();
    let fits = |wanted: &String| Some(wanted) == page.etag.as_ref().or(page.modified.as_ref());
    let condition = |name: &str| headers.get(name).is_none_or(fits);
    let heeds_match = !page.simple && !page.forgetful && !page.no_match;
    if heeds_match && !condition("if-match") {
        (status, body) = (412, b"");
    } else if let Some(range) = headers.get("range")
        && !page.simple
        && (page.forgetful || condition("if-range"))
    {
        let (first, last) = range["bytes=".len()..].split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        status = 206;
        head += &format!("Content-Range: bytes {first}-{last}/{}\r\n", body.len());
        body = &body[first..=last];
    }
    for (name, value) in page.headers.iter().filter(|_| status != 206 || !page.terse) {
        head += &format!("{name}: {value}\r\n");
    }
    let says_whose = status != 206 || !page.forgetful;
    if let Some(etag) = page.etag.as_ref().filter(|_| says_whose) {
        head += &format!("ETag: {etag}\r\n");
    }
    if let Some(modified) = page.modified.as_ref().filter(|_| says_whose) {
        head += &format!("Last-Modified: {modified}\r\n");
    }
    if !page.headers.iter().any(|(name, _)| name == "Transfer-Encoding") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    if !page.headers.iter().any(|(name, _)| name == "Date") {
        head += "Date: Sun, 06 Nov 1994 09:00:00 GMT\r\n";
    }
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\n{head}\r\n")?;
    if method == "HEAD" {
        return Ok(());
    }
    let mut sent = 0;
    if let Some(pause) = page.pause_at.map(|pause| pause.min(body.len())) {
        stream.write_all(&body[..pause])?;
        stream.flush()?;
        sent = pause;
        let mut state = shared.state.lock().unwrap();
        while !state.released {
            state = shared.changed.wait(state).unwrap();
        }
    }
    let end = page.break_at.map_or(body.len(), |end| end.min(body.len()));
    let Some((step, pause)) = page.slow else {
        return stream.write_all(&body[sent..end.max(sent)]);
    };
    for piece in body[sent..end.max(sent)].chunks(step) {
        stream.write_all(piece)?;
        thread::sleep(pause);
    }
    Ok(())
}
