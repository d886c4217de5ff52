//! Carrying a reply's bytes out: from a whole file, from a growing one, from the base past the cache.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};

use crate::failure::{Failure, Kind};
use crate::follow::Source;
use crate::http::Part;
use crate::log;
use crate::origin::{Incoming, Origin, body_failure};

/// The bytes that follow a head.
pub(crate) enum Body<'a> {
    None,
    Text(String),
    /// A part of a body in the cache; should the cache fail, the rest comes from the base.
    Stored {
        source: Box<Source<'a>>,
        part: Part,
        origin: &'a Origin,
        path: String,
    },
    /// A part of what comes from the base.
    Passing {
        incoming: Box<Incoming>,
        part: Part,
    },
}

/// Why not all of the bytes went out.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The client has gone.
    Client(io::Error),
    /// The bytes did not come.
    Source(Failure),
}

impl Body<'_> {
    /// Writes all of it to `out`, as it comes; `sent` counts what went out.
    ///
    /// # Errors
    /// `Cut`: the client has got less than the head has promised.
    pub(crate) fn send(self, out: &mut File, sent: &mut u64) -> Result<(), Cut> {
        match self {
            Self::None => Ok(()),
            Self::Text(text) => write(out, text.as_bytes(), sent),
            Self::Stored { source, part, .. } if source.whole => {
                send_file(&source, part, out, sent)
            }
            Self::Stored { source, part, origin, path } => {
                send_growing(*source, part, origin, &path, out, sent)
            }
            Self::Passing { incoming, part } => pass(*incoming, part, out, sent),
        }
    }
}

/// The kernel moves the bytes: std copies from file to pipe or socket with sendfile or splice.
fn send_file(source: &Source<'_>, part: Part, out: &mut File, sent: &mut u64) -> Result<(), Cut> {
    let of_cache =
        |error: io::Error| Cut::Source(Failure::of_cache("the cache cannot be read", &error));
    let mut file = source.file();
    file.seek(SeekFrom::Start(part.first)).map_err(of_cache)?;
    let copied = io::copy(&mut file.take(part.length), out).map_err(Cut::Client)?;
    *sent += copied;
    if copied == part.length {
        return Ok(());
    }
    Err(Cut::Source(Kind::Down.says("the cached file is shorter than it was")))
}

fn send_growing(
    mut source: Source<'_>,
    part: Part,
    origin: &Origin,
    path: &str,
    out: &mut File,
    sent: &mut u64,
) -> Result<(), Cut> {
    let mut buffer = vec![0; 64 << 10];
    let mut rest = part;
    while rest.length > 0 {
        let want = usize::try_from(rest.length).unwrap_or(usize::MAX).min(buffer.len());
        match source.read_at(&mut buffer[..want], rest.first) {
            Ok(count) => {
                write(out, &buffer[..count], sent)?;
                rest.first += count as u64;
                rest.length -= count as u64;
            }
            Err(failure)
                if failure.kind == Kind::NoRoom
                    && (rest.first == 0 || source.record.validators.are_strong()) =>
            {
                log::line(&format!("{path}: passed through from here on: {}", failure.sentence));
                let incoming = origin.get(path, &source.record, rest).map_err(Cut::Source)?;
                return pass(incoming, rest, out, sent);
            }
            Err(failure) => return Err(Cut::Source(failure)),
        }
    }
    Ok(())
}

fn pass(mut incoming: Incoming, part: Part, out: &mut File, sent: &mut u64) -> Result<(), Cut> {
    let mut buffer = vec![0; 64 << 10];
    // A base that cannot send a part sends everything.
    let mut skip = part.first.saturating_sub(incoming.first);
    let mut rest = part.length;
    while rest > 0 {
        let wanted = if skip > 0 { skip } else { rest };
        let want = usize::try_from(wanted).unwrap_or(usize::MAX).min(buffer.len());
        let count = match incoming.read(&mut buffer[..want]) {
            Ok(0) => return Err(Cut::Source(Kind::Down.says("the base broke off"))),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Cut::Source(body_failure(error))),
        };
        if skip > 0 {
            skip -= count as u64;
        } else {
            write(out, &buffer[..count], sent)?;
            rest -= count as u64;
        }
    }
    Ok(())
}

fn write(out: &mut File, bytes: &[u8], sent: &mut u64) -> Result<(), Cut> {
    out.write_all(bytes).map_err(Cut::Client)?;
    *sent += bytes.len() as u64;
    Ok(())
}
