//! One line for the error log, one for the access log; no byte of a client or a base forges another.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Writes one line to stderr, which httpd puts into its error log.
pub(crate) fn line(text: &str) {
    // Nothing is left to be done about a log that cannot be written.
    let _ = std::io::stderr().write_all(of_program(text).as_bytes());
}

/// A line of the error log.
pub(crate) fn of_program(text: &str) -> String {
    format!("offload-cgi: {}\n", escape(text))
}

/// Writes one line, unless one about the same subject was written less than a minute ago. What is written
/// last is noted in `folder`, or where there is none, beside other temporary files.
pub(crate) fn rarely(folder: &Path, subject: &str, text: &str) {
    const PAUSE: Duration = Duration::from_secs(60);
    let user = nix::unistd::Uid::effective();
    let places = [
        folder.join(format!("logged-{subject}")),
        std::env::temp_dir().join(format!("offload-cgi-{user}-logged-{subject}")),
    ];
    for place in places {
        let note = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            // Not for ever, should somebody have put a pipe there that nobody reads.
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(place);
        let Ok(note) = note else { continue };
        let Ok(found) = note.metadata() else { continue };
        if !found.is_file() {
            continue;
        }
        let age = found.modified().ok().and_then(|time| time.elapsed().ok());
        // A new file is empty; one byte says that something was written.
        if found.len() > 0 && age.is_some_and(|age| age < PAUSE) {
            return;
        }
        if (&note).write_all(b".").is_ok() && note.set_modified(SystemTime::now()).is_ok() {
            break;
        }
    }
    line(text);
}

/// Spells control characters and a few others so that a line stays one line.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => safe.push_str("\\\\"),
            _ if character.is_control() => {
                let _ = write!(safe, "\\x{:02x}", u32::from(character));
            }
            _ => safe.push(character),
        }
    }
    safe
}

/// One answered request, for the access log.
pub(crate) struct Access<'a> {
    pub(crate) client: &'a str,
    pub(crate) user: &'a str,
    pub(crate) request: &'a str,
    pub(crate) referer: &'a str,
    pub(crate) agent: &'a str,
    pub(crate) status: u16,
    pub(crate) sent: u64,
}

impl Access<'_> {
    /// Appends one line in Apache's combined format.
    ///
    /// # Errors
    /// When the file cannot be opened or written.
    pub(crate) fn append(&self, path: &Path, now: SystemTime) -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        // One write of a line in append mode: the lines of many processes do not mix.
        file.write_all(self.line(now).as_bytes())
    }

    /// The line itself.
    pub(crate) fn line(&self, now: SystemTime) -> String {
        let field = |text: &str| match text {
            "" => "-".to_owned(),
            _ => escape(text).replace('"', "\\\""),
        };
        let sent = if self.sent == 0 { "-".to_owned() } else { self.sent.to_string() };
        format!(
            "{} - {} [{}] \"{}\" {} {sent} \"{}\" \"{}\"\n",
            field(self.client),
            field(self.user),
            moment(now),
            field(self.request),
            self.status,
            field(self.referer),
            field(self.agent),
        )
    }
}

/// `10/Oct/2000:13:55:36 +0000`, out of HTTP's `Tue, 10 Oct 2000 13:55:36 GMT`.
fn moment(now: SystemTime) -> String {
    let date = httpdate::fmt_http_date(now);
    let mut words = date.split(' ').skip(1);
    let mut word = || words.next().unwrap_or("-");
    let (day, month, year, time) = (word(), word(), word(), word());
    format!("{day}/{month}/{year}:{time} +0000")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(escape("a\r\nb\x1b[0m\\ü\u{85}"), "a\\x0d\\x0ab\\x1b[0m\\\\ü\\x85");
    }

    #[test]
    fn the_access_log_is_apaches_combined_format() {
        let access = Access {
            client: "192.0.2.1",
            user: "",
            request: "GET /a\"b HTTP/1.1",
            referer: "",
            agent: "curl\n",
            status: 200,
            sent: 7,
        };
        assert_eq!(
            access.line(UNIX_EPOCH + Duration::from_secs(971_186_136)),
            "192.0.2.1 - - [10/Oct/2000:13:55:36 +0000] \"GET /a\\\"b HTTP/1.1\" 200 7 \"-\" \"curl\\x0a\"\n"
        );
    }
}
