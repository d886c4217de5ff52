//! Filling the cache: one process pulls one generation from the base, whoever comes and goes meanwhile.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::failure::{Failure, Kind};
use crate::http::{EntityTag, Modified, Part, Validators};
use crate::options::Options;
use crate::origin::{Origin, body_failure};
use crate::representation::Representation;
use crate::store::{Generation, Store};

/// The word that makes this program fill the cache.
pub(crate) const WORD: &str = "fill";

/// What is to be fetched.
pub(crate) struct Order {
    pub(crate) path: String,
    /// What the base said to HEAD: the GET must find the same.
    pub(crate) wanted: Representation,
    /// When the base said so.
    pub(crate) checked: SystemTime,
}

/// Starts the process that fills; it becomes the owner of `lock`.
///
/// The lock is its standard input: it belongs to the open file, so there is no moment without an owner,
/// and the kernel frees it when the process ends. Its other streams are closed, for httpd waits until
/// nobody has a CGI's stderr open.
///
/// # Errors
/// When no process can be started.
pub(crate) fn start(lock: File, order: &Order, options: &Options) -> io::Result<()> {
    Command::new("/proc/self/exe")
        .arg(WORD)
        .args(order.words())
        .env_clear()
        .envs(options.written.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::from(lock))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

/// The process that fills: `words` are what `start` gave it.
///
/// # Errors
/// A sentence. Those who wait for the file have got it through the cache.
pub(crate) fn run(words: &[OsString], options: &Options) -> Result<(), String> {
    // What ends the CGI's group or terminal does not end this process. It may lead its own already.
    let _ = nix::unistd::setsid();
    let order = Order::read(words).ok_or("this word is for the program itself; see --help")?;
    let store = Store::open(options)?;
    let object = store.object(&options.base, &order.path);
    let generation = object.generation(&order.wanted.generation());
    let _bell = generation.begin().map_err(|error| error.to_string())?;
    let pulled = Origin::new(options).map_err(|error| Kind::Down.says(error)).and_then(|origin| {
        let part = pull(&origin, &order, &generation)?;
        let publish = generation.publish(&part, order.checked);
        publish.map_err(|error| Failure::of_cache("the file cannot be published", &error))
    });
    pulled.map_err(|failure| {
        let _ = generation.fail(&failure);
        failure.sentence
    })
}

fn pull(origin: &Origin, order: &Order, generation: &Generation) -> Result<File, Failure> {
    let mut incoming = origin.get(&order.path, &order.wanted, Part::whole(order.wanted.length))?;
    let of_cache = |error: io::Error| Failure::of_cache("the cache cannot be written", &error);
    let length = incoming.representation.length;
    let mut part = generation.create(&incoming.representation).map_err(of_cache)?;
    reserve(&part, length).map_err(of_cache)?;
    let mut buffer = vec![0; 128 << 10];
    let mut written: u64 = 0;
    loop {
        let count = match incoming.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(body_failure(error)),
        };
        written = written.saturating_add(count as u64);
        if written > length {
            break;
        }
        part.write_all(&buffer[..count]).map_err(of_cache)?;
    }
    if written == length {
        return Ok(part);
    }
    Err(Kind::Down.says(format!("the base promised {length} bytes and sent {written}")))
}

/// Takes the disk space now, without changing the size, by which readers know what there is.
fn reserve(part: &File, length: u64) -> io::Result<()> {
    let Ok(length @ 1..) = i64::try_from(length) else { return Ok(()) };
    match fallocate(part, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        // Not every file system can; then the writes will tell.
        Err(error) if error == nix::errno::Errno::ENOSPC => Err(error.into()),
        _ => Ok(()),
    }
}

impl Order {
    fn words(&self) -> [String; 5] {
        let validators = &self.wanted.validators;
        let since = self.checked.duration_since(UNIX_EPOCH).unwrap_or_default();
        [
            self.path.clone(),
            self.wanted.length.to_string(),
            validators.etag.as_ref().map_or(String::new(), |etag| etag.as_str().to_owned()),
            validators.modified.as_ref().map_or(String::new(), |date| date.as_str().to_owned()),
            format!("{}.{:09}", since.as_secs(), since.subsec_nanos()),
        ]
    }

    fn read(words: &[OsString]) -> Option<Self> {
        let [path, length, etag, modified, checked] = words else { return None };
        let path = path.to_str().filter(|path| path.starts_with('/'))?.to_owned();
        let validators = Validators {
            etag: EntityTag::parse(etag.to_str()?),
            modified: Modified::parse(modified.to_str()?),
            answered: None,
        };
        let (seconds, nanoseconds) = checked.to_str()?.split_once('.')?;
        let since = Duration::new(seconds.parse().ok()?, nanoseconds.parse().ok()?);
        let length = length.to_str()?.parse().ok()?;
        let wanted = Representation { validators, length, headers: Vec::new() };
        Some(Self { path, wanted, checked: UNIX_EPOCH.checked_add(since)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_back_as_it_was_given() {
        for (etag, modified) in [
            ("\"a/../b\"", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("W/\"1\"", ""),
            ("", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            let order = Order {
                path: "/--a%20b".into(),
                wanted: Representation {
                    validators: Validators {
                        etag: EntityTag::parse(etag),
                        modified: Modified::parse(modified),
                        answered: None,
                    },
                    length: 7,
                    headers: Vec::new(),
                },
                checked: UNIX_EPOCH + Duration::new(1_700_000_000, 5),
            };
            let words: Vec<OsString> = order.words().into_iter().map(Into::into).collect();
            let read = Order::read(&words).unwrap();
            assert_eq!(
                (read.path, read.wanted, read.checked),
                (order.path, order.wanted, order.checked)
            );
        }
        assert!(Order::read(&[]).is_none());
    }
}
