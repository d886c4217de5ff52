//! Downloads with a watch beside them.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::client::body_of;
use crate::limits::{Client, Opened};
use crate::{Head, Raw};

/// What a client got, and when.
#[derive(Debug)]
pub struct Download {
    /// The head.
    pub head: Head,
    /// The body; of a sample, whatever came behind the head.
    pub body: Vec<u8>,
    /// The connection.
    pub raw: Raw,
    /// How many bytes had come after which time.
    arrivals: Vec<(Duration, usize)>,
}

impl Download {
    /// The time from the request to the last byte.
    pub fn seconds(&self) -> f64 {
        self.arrivals.last().map_or(0.0, |last| last.0.as_secs_f64())
    }

    /// How many bytes had come so many seconds after the request.
    pub fn bytes_at(&self, seconds: f64) -> f64 {
        let before = self.arrivals.partition_point(|(time, _)| time.as_secs_f64() <= seconds);
        let bytes = before.checked_sub(1).map_or(0, |last| self.arrivals[last].1);
        u32::try_from(bytes).unwrap().into()
    }

    /// The bytes a second between two times after the request.
    pub fn rate(&self, from: f64, to: f64) -> f64 {
        (self.bytes_at(to) - self.bytes_at(from)) / (to - from)
    }
}

impl Client<'_> {
    /// GETs a path on a connection of its own.
    pub fn download(&self, path: &str) -> Download {
        self.download_on(self.connect(), path)
    }

    /// GETs a path on this connection, which stays open.
    pub fn download_on(&self, raw: Raw, path: &str) -> Download {
        let start = Instant::now();
        let Opened { head, mut raw } = self.ask(raw, path);
        let mut watched = Watched::new(&mut raw.reader, start);
        let body = if self.is_head() { Vec::new() } else { body_of(&mut watched, &head).unwrap() };
        let arrivals = watched.arrivals;
        Download { head, body, raw, arrivals }
    }

    /// What comes in the first seconds after the request, to which a head of success must have come.
    pub fn sample(&self, raw: Raw, path: &str, seconds: f64) -> Download {
        let start = Instant::now();
        let Opened { head, mut raw } = self.ask(raw, path);
        assert_eq!(head.status, 200, "{path}: {head:?}");
        let stream = raw.reader.get_ref().try_clone().unwrap();
        let mut watched = Watched::new(&mut raw.reader, start);
        let (mut body, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let left = Duration::from_secs_f64(seconds).saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            stream.set_read_timeout(Some(left)).unwrap();
            // What does not come in time is no failure, and the end is the end.
            match watched.read(&mut piece) {
                Ok(length) if length > 0 => body.extend(&piece[..length]),
                Ok(_) => break,
                Err(_) => {}
            }
        }
        let arrivals = watched.arrivals;
        stream.set_read_timeout(Some(crate::DEADLINE)).unwrap();
        Download { head, body, raw, arrivals }
    }
}

/// Notes when bytes were taken from a connection.
struct Watched<'a> {
    reader: &'a mut BufReader<TcpStream>,
    start: Instant,
    arrivals: Vec<(Duration, usize)>,
}

impl<'a> Watched<'a> {
    fn new(reader: &'a mut BufReader<TcpStream>, start: Instant) -> Self {
        // The end of the head is an arrival of nothing.
        Self { reader, start, arrivals: vec![(start.elapsed(), 0)] }
    }

    fn note(&mut self, length: usize) {
        let before = self.arrivals.last().map_or(0, |last| last.1);
        self.arrivals.push((self.start.elapsed(), before + length));
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let length = self.reader.read(bytes)?;
        self.note(length);
        Ok(length)
    }
}

impl BufRead for Watched<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        self.note(length);
        self.reader.consume(length);
    }
}
