//! Carrying a reply's bytes out: pieces of text, of a file of the cache, whole or growing, of what the base
//! sends past the cache.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::{Failure, Kind};
use crate::http::Part;
use crate::log;
use crate::options::Options;
use crate::origin::{Incoming, Origin, body_failure};
use crate::source::Source;

/// What follows a head: pieces, one after the other.
#[derive(Default)]
pub(crate) struct Body<'a> {
    pub(crate) pieces: Vec<Piece>,
    /// Where the parts are taken from.
    pub(crate) supply: Supply<'a>,
}

/// A piece of a body.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    /// So much of what the supply has.
    Part(Part),
}

/// Where the parts of a body come from.
#[derive(Default)]
pub(crate) enum Supply<'a> {
    #[default]
    None,
    /// The cache; should it fail, the rest comes from the base.
    Stored { source: Box<Source<'a>>, origin: &'a Origin, path: String, options: &'a Options },
    /// The base. There is one part then.
    Passing(Box<Incoming>),
}

/// Why not all of the bytes went out.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The client has gone.
    Client(io::Error),
    /// The bytes did not come.
    Source(Failure),
}

impl<'a> Body<'a> {
    /// A body of text.
    pub(crate) fn text(text: String) -> Self {
        Self { pieces: vec![Piece::Text(text)], supply: Supply::None }
    }

    /// One part of a supply.
    pub(crate) fn part(part: Part, supply: Supply<'a>) -> Self {
        Self { pieces: vec![Piece::Part(part)], supply }
    }

    /// Writes all of it to `out`, as it comes; `sent` counts what went out.
    ///
    /// # Errors
    /// `Cut`: the client has got less than the head has promised.
    pub(crate) fn send(mut self, out: &mut File, sent: &AtomicU64) -> Result<(), Cut> {
        for piece in &self.pieces {
            match (piece, &mut self.supply) {
                (Piece::Text(text), _) => write(out, text.as_bytes(), sent)?,
                (Piece::Part(part), Supply::Stored { source, origin, path, options }) => {
                    let pass_on = |failure: &Failure, source: &Source<'_>, rest| {
                        let text =
                            format!("{path}: passed through from here on: {}", failure.sentence);
                        log::rarely(options.notes(), "no-room", &text);
                        origin.get(path, &source.record, rest)
                    };
                    send_stored(source, *part, pass_on, out, sent)?;
                }
                (Piece::Part(part), Supply::Passing(incoming)) => {
                    pass(incoming, *part, out, sent)?;
                }
                (Piece::Part(_), Supply::None) => {}
            }
        }
        Ok(())
    }
}

fn send_stored(
    source: &mut Source<'_>,
    part: Part,
    pass_on: impl Fn(&Failure, &Source<'_>, Part) -> Result<Incoming, Failure>,
    out: &mut File,
    sent: &AtomicU64,
) -> Result<(), Cut> {
    source.begin();
    let mut rest = part;
    while rest.length > 0 {
        let there = source.wait_for(rest.first).and_then(|there| {
            // The kernel moves the bytes: std copies from file to pipe or socket with sendfile or splice.
            let mut file = source.file();
            file.seek(SeekFrom::Start(rest.first))
                .map_err(|error| Failure::of_cache("the cache cannot be read", &error))?;
            Ok(file.take(there.min(rest.length)))
        });
        match there {
            Ok(mut there) => {
                let copied = io::copy(&mut there, out).map_err(Cut::Client)?;
                if copied == 0 {
                    return Err(Cut::Source(
                        Kind::NoRoom.says("the cached file is shorter than it was"),
                    ));
                }
                sent.fetch_add(copied, Ordering::Relaxed);
                rest.first += copied;
                rest.length -= copied;
            }
            Err(failure)
                if failure.kind.is_of_cache()
                    && (rest.first == 0 || source.record.validators.are_strong()) =>
            {
                let mut incoming = pass_on(&failure, source, rest).map_err(Cut::Source)?;
                return pass(&mut incoming, rest, out, sent);
            }
            Err(failure) => return Err(Cut::Source(failure)),
        }
    }
    Ok(())
}

fn pass(incoming: &mut Incoming, part: Part, out: &mut File, sent: &AtomicU64) -> Result<(), Cut> {
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

fn write(out: &mut File, bytes: &[u8], sent: &AtomicU64) -> Result<(), Cut> {
    out.write_all(bytes).map_err(Cut::Client)?;
    sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Ok(())
}
