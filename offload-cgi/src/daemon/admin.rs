//! What the daemon shows to who may look: what is running, and what has happened, on addresses of its own.
//!
//! One thread answers, one request after the other, each within a few seconds: nobody else waits for it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Common;
use super::answer::head as write_head;
use super::journal::quoted;
use super::listen::Listener;
use crate::head::Scan;
use crate::reply::Reply;
use crate::sender::{Inbox, Socket, Transfer};
use crate::tally::{Event, Tally};

/// How long a client here may take for everything.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many downloads are shown; all are counted.
const MOST_SHOWN: usize = 1000;

/// The thread.
pub(super) struct Admin(Arc<Shared>);

struct Shared {
    common: Arc<Common>,
    senders: Vec<Arc<Inbox>>,
    state: Mutex<(Vec<Arc<Listener>>, bool)>,
    bell: EventFd,
}

impl Admin {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub(super) fn start(
        common: &Arc<Common>,
        senders: Vec<Arc<Inbox>>,
        listeners: Vec<Arc<Listener>>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            common: Arc::clone(common),
            senders,
            state: Mutex::new((listeners, false)),
            bell: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        });
        let answerer = Arc::clone(&shared);
        thread::Builder::new()
            .name("admin".into())
            .stack_size(512 << 10)
            .spawn(move || answerer.run())?;
        Ok(Self(shared))
    }

    /// Listens there from now on.
    pub(super) fn listen(&self, listeners: Vec<Arc<Listener>>) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).0 = listeners;
        let _ = self.0.bell.write(1);
    }

    /// Ends: another process may be shown there by now.
    pub(super) fn end(&self) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = (Vec::new(), true);
        let _ = self.0.bell.write(1);
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let _ = self.bell.read();
            let (listeners, end) =
                self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if end {
                return;
            }
            let wait_for = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
            let mut waits: Vec<PollFd<'_>> =
                listeners.iter().map(|listener| wait_for(listener.as_fd())).collect();
            waits.push(wait_for(self.bell.as_fd()));
            if poll(&mut waits, PollTimeout::NONE).is_err() {
                continue;
            }
            for listener in &listeners {
                match listener.accept() {
                    Ok(Some(socket)) => {
                        let _ = self.serve(&socket);
                    }
                    Ok(None) => {}
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
            }
        }
    }

    fn serve(&self, socket: &Socket) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut stream = socket.blocking(PATIENCE)?;
        let (mut bytes, mut buffer, mut scan) = (Vec::new(), [0; 4096], Scan::default());
        let reply = loop {
            match scan.find(&bytes) {
                Ok(Some((head, _))) => break self.answer(head.method(), head.target()),
                Err(bad) => break Reply::refused(bad.status(), &bad.to_string()),
                Ok(None) => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if !readable(socket.as_fd(), left) {
                return Ok(());
            }
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        };
        stream.write_all(&write_head(&reply, 1, false))?;
        for piece in &reply.body.pieces {
            if let crate::body::Piece::Text(text) = piece {
                stream.write_all(text.as_bytes())?;
            }
        }
        socket.end();
        Ok(())
    }

    fn answer(&self, method: &str, target: &str) -> Reply<'static> {
        if method != "GET" {
            return Reply::refused(405, "only GET is answered here");
        }
        match target {
            "/.offload/status" | "/.offload/" | "/" => {
                text("text/html; charset=utf-8", self.html())
            }
            "/.offload/status?json" => text("application/json", self.json()),
            "/.offload/metrics" => text("text/plain; version=0.0.4; charset=utf-8", self.metrics()),
            _ => Reply::refused(
                404,
                "there are /.offload/status, /.offload/status?json and /.offload/metrics",
            ),
        }
    }

    /// What is running now, the fastest first.
    fn transfers(&self) -> Vec<Transfer> {
        let (to, from) = sync_channel(self.senders.len().max(1));
        self.senders.iter().for_each(|sender| sender.ask_report(to.clone()));
        drop(to);
        let end = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        for _ in &self.senders {
            let left = end.saturating_duration_since(Instant::now());
            all.extend(from.recv_timeout(left).unwrap_or_default());
        }
        all.sort_by_key(|transfer| std::cmp::Reverse(transfer.rate));
        all
    }

    /// Name, help and number of everything that is counted: of this process, then of the caches that it uses,
    /// since these exist.
    fn counts(&self) -> Vec<(&'static str, String, u64)> {
        let mut counts = self.common.counters.all();
        let (plan, _) = self.common.plan();
        let caches: BTreeSet<&Path> =
            plan.sites.iter().filter_map(|site| site.options().cache.as_deref()).collect();
        let tallies: Vec<Tally> = caches.into_iter().map(|cache| Tally::of(Some(cache))).collect();
        for (name, help, event) in [
            (
                "base_requests",
                "Requests that were sent to bases, by all processes of the caches.",
                Event::BaseRequest,
            ),
            (
                "evictions",
                "Objects that were removed from the caches to make room.",
                Event::Eviction,
            ),
            ("evicted_bytes", "Bytes of these objects.", Event::EvictedByte),
        ] {
            let sum = tallies.iter().map(|tally| tally.now(event)).sum();
            counts.push((name, help.to_owned(), sum));
        }
        counts
    }

    fn html(&self) -> String {
        let transfers = self.transfers();
        let mut page = String::from(
            "<!DOCTYPE html><html><head><meta charset=\"utf-8\"><title>offload</title></head><body>\n",
        );
        let up = self.common.begun.elapsed().as_secs();
        let _ = write!(
            page,
            "<h1>offload</h1>\n<p>Up for {up} s, {} connections, {} downloads.</p>\n<table>\n",
            self.common.doors.total(),
            transfers.len()
        );
        for (name, _, count) in self.counts() {
            let _ = writeln!(page, "<tr><td>{}</td><td>{count}</td></tr>", name.replace('_', " "));
        }
        page.push_str(
            "</table>\n<table>\n<tr><th>client</th><th>request</th><th>status</th><th>cache</th>\
             <th>bytes</th><th>bytes a second</th><th>seconds</th></tr>\n",
        );
        for Transfer { visit, sent, rate } in transfers.iter().take(MOST_SHOWN) {
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{sent}</td><td>{rate}</td><td>{}</td></tr>",
                escaped(&visit.client()),
                escaped(&visit.line),
                visit.code,
                escaped(&visit.cache),
                visit.begun.elapsed().as_secs()
            );
        }
        page.push_str("</table>\n</body></html>\n");
        page
    }

    fn json(&self) -> String {
        let transfers = self.transfers();
        let mut text = format!(
            "{{\"seconds\":{},\"connections_open\":{},\"downloads\":{}",
            self.common.begun.elapsed().as_secs(),
            self.common.doors.total(),
            transfers.len()
        );
        for (name, _, count) in self.counts() {
            let _ = write!(text, ",\"{name}\":{count}");
        }
        text.push_str(",\"transfers\":[");
        for (index, Transfer { visit, sent, rate }) in transfers.iter().take(MOST_SHOWN).enumerate()
        {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(
                text,
                "{comma}{{\"client\":{},\"base\":{},\"request\":{},\"status\":{},\"cache\":{},\
                 \"bytes\":{sent},\"rate\":{rate},\"seconds\":{:.1}}}",
                quoted(&visit.client()),
                quoted(visit.site.unwrap_or_default()),
                quoted(&visit.line),
                visit.code,
                quoted(&visit.cache),
                visit.begun.elapsed().as_secs_f64()
            );
        }
        text.push_str("]}\n");
        text
    }

    /// The text format of Prometheus, version 0.0.4.
    fn metrics(&self) -> String {
        let mut text = String::new();
        let mut add = |name: &str, help: &str, kind: &str, value: u64| {
            let _ = write!(
                text,
                "# HELP offload_{name} {help}\n# TYPE offload_{name} {kind}\noffload_{name} {value}\n"
            );
        };
        for (name, help, count) in self.counts() {
            add(&format!("{name}_total"), &help, "counter", count);
        }
        add(
            "connections_open",
            "Connections that are open.",
            "gauge",
            self.common.doors.total() as u64,
        );
        add(
            "downloads_running",
            "Replies on their way out.",
            "gauge",
            self.transfers().len() as u64,
        );
        add(
            "uptime_seconds",
            "Seconds since the start.",
            "gauge",
            self.common.begun.elapsed().as_secs(),
        );
        text
    }
}

fn text(kind: &str, body: String) -> Reply<'static> {
    Reply::new(200)
        .header("Content-Type", kind)
        .header("Content-Length", &body.len().to_string())
        .header("Cache-Control", "no-store")
        .header("X-Content-Type-Options", "nosniff")
        .header("Content-Security-Policy", "default-src 'none'")
        .body(crate::body::Body::text(body))
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ if character.is_control() => safe.push('?'),
            _ => safe.push(character),
        }
    }
    safe
}

/// Waits until there is something to read.
fn readable(descriptor: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut wait = [PollFd::new(descriptor, PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    poll(&mut wait, limit).is_ok_and(|count| count > 0)
}
