//! Carrying a reply's bytes out: pieces of text, of a file of the cache, whole or growing, of what the base
//! sends past the cache.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;

use crate::failure::{Failure, Kind};
use crate::http::Part;
use crate::log;
use crate::options::Options;
use crate::origin::{Incoming, Origin, body_failure};
use crate::source::{Look, Source};

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

    /// Writes `head` and all of the body to `out`, as it comes; `sent` counts what went out of the body.
    ///
    /// # Errors
    /// `Cut`: the client has got less than the head has promised.
    pub(crate) fn send(
        mut self,
        head: Vec<u8>,
        out: &mut File,
        sent: &AtomicU64,
    ) -> Result<(), Cut> {
        let mut out = Out { file: out, text: head, of_body: 0, sent };
        for piece in &self.pieces {
            match (piece, &mut self.supply) {
                (Piece::Text(text), _) => out.put(text.as_bytes()),
                (Piece::Part(part), Supply::Stored { source, origin, path, options }) => {
                    let pass_on = |failure: &Failure, source: &Source<'_>, rest| {
                        let text =
                            format!("{path}: passed through from here on: {}", failure.sentence);
                        log::rarely(options.notes(), "no-room", &text);
                        origin.get(path, &source.record, rest)
                    };
                    send_stored(source, *part, pass_on, &mut out)?;
                }
                (Piece::Part(part), Supply::Passing(incoming)) => pass(incoming, *part, &mut out)?,
                (Piece::Part(_), Supply::None) => {}
            }
        }
        out.flush()
    }
}

/// Where a reply goes. Text waits for the bytes that follow it, so that whoever reads is woken once for both; but
/// not while these have to be waited for.
struct Out<'a> {
    file: &'a mut File,
    text: Vec<u8>,
    /// So much of the text belongs to the body.
    of_body: u64,
    sent: &'a AtomicU64,
}

impl Out<'_> {
    /// The most that goes out with the text before it.
    const TOGETHER: u64 = 16 << 10;

    fn put(&mut self, text: &[u8]) {
        self.text.extend_from_slice(text);
        self.of_body += text.len() as u64;
    }

    fn flush(&mut self) -> Result<(), Cut> {
        if !self.text.is_empty() {
            self.file.write_all(&self.text).map_err(Cut::Client)?;
            self.text.clear();
            self.sent.fetch_add(std::mem::take(&mut self.of_body), Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        self.put(bytes);
        self.flush()
    }

    /// Writes at most `most` bytes of a file, and returns how many.
    fn copy(&mut self, file: &File, offset: u64, most: u64) -> Result<u64, Cut> {
        let failed =
            |error: io::Error| Cut::Source(Failure::of_cache("the cache cannot be read", &error));
        let count = if self.text.is_empty() {
            self.move_from(file, offset, most)?
        } else {
            let together = usize::try_from(most.min(Self::TOGETHER)).unwrap_or_default();
            let end = self.text.len();
            self.text.resize(end + together, 0);
            let count = file.read_at(&mut self.text[end..], offset);
            self.text.truncate(end + count.as_ref().map_or(0, |count| *count));
            let count = count.map_err(failed)? as u64;
            self.of_body += count;
            self.flush()?;
            count
        };
        if count == 0 {
            let shorter = Kind::NoRoom.says("the cached file is shorter than it was");
            return Err(Cut::Source(shorter));
        }
        Ok(count)
    }

    /// The kernel moves the bytes where it can.
    fn move_from(&mut self, file: &File, offset: u64, most: u64) -> Result<u64, Cut> {
        let mut place = i64::try_from(offset).unwrap_or(i64::MAX);
        let want = usize::try_from(most).unwrap_or(usize::MAX);
        let count = loop {
            match sendfile64(&*self.file, file, Some(&mut place), want) {
                Err(Errno::EINTR) => {}
                // It cannot everywhere: not to a file that is only appended to, for one (sendfile(2)).
                Err(Errno::EINVAL | Errno::ENOSYS) => {
                    let mut file = file;
                    file.seek(SeekFrom::Start(offset)).map_err(Cut::Client)?;
                    break io::copy(&mut file.take(most), self.file).map_err(Cut::Client)?;
                }
                result => break result.map_err(|error| Cut::Client(error.into()))? as u64,
            }
        };
        self.sent.fetch_add(count, Ordering::Relaxed);
        Ok(count)
    }
}

fn send_stored(
    source: &mut Source<'_>,
    part: Part,
    pass_on: impl Fn(&Failure, &Source<'_>, Part) -> Result<Incoming, Failure>,
    out: &mut Out<'_>,
) -> Result<(), Cut> {
    source.begin();
    let mut rest = part;
    while rest.length > 0 {
        let there = match source.look(rest.first) {
            Ok(Look::Bytes(there)) => Ok(there),
            look => {
                out.flush()?;
                look.and_then(|_| source.wait_for(rest.first))
            }
        };
        match there {
            Ok(there) => {
                let copied = out.copy(source.file(), rest.first, there.min(rest.length))?;
                rest.first += copied;
                rest.length -= copied;
            }
            Err(failure)
                if failure.kind.is_of_cache()
                    && (rest.first == 0 || source.record.validators.are_strong()) =>
            {
                let mut incoming = pass_on(&failure, source, rest).map_err(Cut::Source)?;
                return pass(&mut incoming, rest, out);
            }
            Err(failure) => return Err(Cut::Source(failure)),
        }
    }
    Ok(())
}

fn pass(incoming: &mut Incoming, part: Part, out: &mut Out<'_>) -> Result<(), Cut> {
    out.flush()?;
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
            out.write(&buffer[..count])?;
            rest -= count as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;
    use crate::representation::Representation;

    /// Sends a head and pieces of a file that has these bytes, and should have `length`; says how many of the body
    /// went out.
    fn send(
        bytes: &[u8],
        length: u64,
        pieces: Vec<Piece>,
        out: impl Into<File>,
    ) -> (Result<(), Cut>, u64) {
        let variables = [("OFFLOAD_BASE", "http://base.test"), ("OFFLOAD_CACHE", "/var/cache/x")];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let options = Options::read(variables, &[]).unwrap();
        let origin = Origin::new(&options).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let record = Representation { length, ..Representation::default() };
        let source = Box::new(Source::whole(file, record));
        let (origin, options, path) = (&origin, &options, "/a".to_owned());
        let body = Body { pieces, supply: Supply::Stored { source, origin, path, options } };
        let count = AtomicU64::new(0);
        let result = body.send(b"head ".to_vec(), &mut out.into(), &count);
        (result, count.into_inner())
    }

    #[test]
    fn head_text_and_parts_come_out_in_their_order_wherever_they_go() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0] % 251).collect();
        let (whole, folder) = (200_000, tempfile::tempdir().unwrap());
        for (first, length) in [(0, whole), (5, 0), (7, 100), (0, 16 << 10), (100_000, 40_000)] {
            let part = || Piece::Part(Part { first, length });
            let pieces =
                || vec![Piece::Text("a ".into()), part(), Piece::Text(" b".into()), part()];
            let place = |offset: u64| usize::try_from(offset).unwrap();
            let text = &bytes[place(first)..place(first + length)];
            let wanted = [b"head a ".as_slice(), text, b" b", text].concat();
            let body = wanted.len() as u64 - 5;
            let path = folder.path().join("out");
            for appends in [false, true] {
                fs::write(&path, "").unwrap();
                let out = File::options().write(true).append(appends).open(&path).unwrap();
                let (result, count) = send(&bytes, whole, pieces(), out);
                assert!(result.is_ok() && fs::read(&path).unwrap() == wanted, "{first} {length}");
                assert_eq!(count, body);
            }
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let reading = thread::spawn(move || io::read_to_string(File::from(reader)));
            let (result, count) = send(&vec![b'x'; bytes.len()], whole, pieces(), writer);
            let wanted = "head a ".len() + " b".len() + 2 * text.len();
            assert!(result.is_ok() && reading.join().unwrap().unwrap().len() == wanted);
            assert_eq!(count, body);
        }
    }

    #[test]
    fn the_head_of_what_is_cut_off_goes_out() {
        for missing in [false, true] {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let bytes = if missing { "" } else { "four" };
            let pieces = vec![Piece::Part(Part { first: 0, length: 10 })];
            let (result, count) = send(bytes.as_bytes(), 10, pieces, writer);
            assert!(matches!(result, Err(Cut::Source(_))), "{result:?}");
            assert_eq!(io::read_to_string(File::from(reader)).unwrap(), format!("head {bytes}"));
            assert_eq!(count, bytes.len() as u64);
        }
    }
}
