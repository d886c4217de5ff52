//! Seeing to it that what has come is on the disk, or is not believed.
//!
//! The kernel says once that a disk has lost bytes, to the fsync that comes next; then the pages count as clean,
//! and are read as zeros when they have been dropped. So the first fsync that fails ends the belief in the
//! body: a second one would say that all is well.

use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::store::{Extents, Flush, Generation, Progress, Unkept};

/// After such a time it is made sure that a power cut does not take away what has come.
const CHECKPOINT: Duration = Duration::from_secs(5);

/// Keeps what comes of one growing body.
pub(super) struct Keeper {
    generation: Generation,
    file: File,
    flush: Flush,
    saved: Instant,
    running: Option<JoinHandle<()>>,
}

impl Keeper {
    /// # Errors
    /// When no file can be opened any more.
    pub(super) fn new(generation: &Generation, file: &File) -> io::Result<Self> {
        Ok(Self {
            generation: generation.clone(),
            file: file.try_clone()?,
            flush: File::sync_data,
            saved: Instant::now(),
            running: None,
        })
    }

    /// Sees to it now and then, beside the filling, that a power cut takes little away.
    pub(super) fn checkpoint(&mut self, progress: &Progress) {
        let busy = self.running.as_ref().is_some_and(|thread| !thread.is_finished());
        if self.saved.elapsed() < CHECKPOINT || busy {
            return;
        }
        let Ok(file) = self.file.try_clone() else { return };
        self.saved = Instant::now();
        let (generation, flush) = (self.generation.clone(), self.flush);
        // What the extents say has been written before; the order is what makes them true.
        let extents = progress.extents();
        self.running = Some(thread::spawn(move || keep(&generation, &file, &extents, flush)));
    }

    /// Waits for what is done beside the filling.
    pub(super) fn settle(&mut self) {
        if let Some(thread) = self.running.take() {
            let _ = thread.join();
        }
    }

    /// Sees to it that a power cut does not take away what has come.
    pub(super) fn keep(&self, extents: &Extents) {
        if extents.total() > 0 {
            keep(&self.generation, &self.file, extents, self.flush);
        }
    }

    /// Makes a body that is whole the one that everybody is served from.
    ///
    /// # Errors
    /// `NoRoom`.
    pub(super) fn publish(&self) -> Result<(), Failure> {
        self.generation.publish(&self.file, self.flush).map_err(|unkept| match unkept {
            Unkept::Lost(error) => lose(&self.generation, &self.file, &error),
            Unkept::Other(error) => Failure::of_cache("the file cannot be published", &error),
        })
    }
}

/// That extents cannot be noted costs bytes after a power cut only; that bytes are lost costs the body.
fn keep(generation: &Generation, file: &File, extents: &Extents, flush: Flush) {
    if let Err(Unkept::Lost(error)) = generation.keep(file, extents, flush) {
        lose(generation, file, &error);
    }
}

fn lose(generation: &Generation, file: &File, error: &io::Error) -> Failure {
    let failure = Failure::of_cache("the disk has lost bytes of the file", error);
    let _ = generation.lose(file, &failure);
    failure
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::failure::Kind;
    use crate::http::{EntityTag, Part, Validators};
    use crate::options::Options;
    use crate::representation::Representation;
    use crate::store::{Growing, Joined, Locks, Store};

    fn broken(_: &File) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    /// A body with all of its 4 bytes, in a cache of its own.
    fn body(folder: &std::path::Path) -> (Generation, Growing, Locks) {
        let environment = [
            ("OFFLOAD_BASE".into(), "http://base.test".into()),
            ("OFFLOAD_CACHE".into(), folder.join("cache").into_os_string()),
        ];
        let options = Options::read(environment, &[]).unwrap();
        let version = Representation {
            validators: Validators { etag: EntityTag::parse("\"1\""), ..Validators::default() },
            length: 4,
            ..Representation::default()
        };
        let object = Store::open(&options).unwrap().object(&options.base, "/a");
        let generation = object.generation(&version.generation());
        let Joined::Growing(growing, locks) = generation.join(&version, &[Part::whole(4)]).unwrap()
        else {
            panic!("it is whole")
        };
        growing.file.write_all_at(b"text", 0).unwrap();
        growing.progress.set_landed(0, 4);
        (generation, growing, locks)
    }

    fn is_lost(generation: &Generation, growing: &Growing) {
        assert!(growing.progress.is_given_up(), "its readers stop");
        assert_eq!(generation.failure().unwrap().1.kind, Kind::NoRoom, "and go past the cache");
        assert!(generation.open_growing().unwrap().is_none());
        let version = growing.record.clone();
        let Joined::Growing(again, _) = generation.join(&version, &[Part::whole(4)]).unwrap()
        else {
            panic!("it was published")
        };
        assert_eq!(again.progress.extents().total(), 0);
    }

    #[test]
    fn a_disk_that_loses_bytes_at_the_end_publishes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (generation, growing, _locks) = body(folder.path());
        let mut keeper = Keeper::new(&generation, &growing.file).unwrap();
        keeper.flush = broken;
        assert_eq!(keeper.publish().unwrap_err().kind, Kind::NoRoom);
        is_lost(&generation, &growing);
    }

    #[test]
    fn a_disk_that_has_lost_bytes_in_the_middle_is_not_believed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (generation, growing, _locks) = body(folder.path());
        let mut keeper = Keeper::new(&generation, &growing.file).unwrap();
        keeper.saved -= CHECKPOINT;
        keeper.flush = broken;
        keeper.checkpoint(&growing.progress);
        keeper.settle();
        // As the kernel does it: it says so once.
        keeper.flush = File::sync_data;
        keeper.publish().unwrap();
        is_lost(&generation, &growing);
    }

    #[test]
    fn what_cannot_be_synced_is_not_kept_for_the_time_after_a_reboot() {
        let folder = tempfile::tempdir().unwrap();
        let (generation, growing, _locks) = body(folder.path());
        let mut keeper = Keeper::new(&generation, &growing.file).unwrap();
        keeper.flush = broken;
        keeper.keep(&growing.progress.extents());
        is_lost(&generation, &growing);
    }
}
