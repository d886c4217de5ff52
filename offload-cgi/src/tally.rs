//! What all processes of a cache have done so far: one mapped page in its folder.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use crate::shared::Shared;
use crate::store::open_lock;

/// The size of the page.
const LENGTH: usize = 4096;

/// What is counted; the number is its place, and so stays as it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    /// A request was sent to the base.
    BaseRequest = 0,
    /// An object was removed to make room for another one.
    Eviction = 1,
    /// A byte of an object that was removed for that.
    EvictedByte = 2,
}

/// The page, which is opened when it is needed.
pub(crate) struct Tally {
    folder: Option<PathBuf>,
    page: OnceLock<Option<Shared>>,
}

impl Tally {
    /// That of a cache; without one nothing is counted.
    pub(crate) fn of(folder: Option<&Path>) -> Self {
        Self { folder: folder.map(Path::to_owned), page: OnceLock::new() }
    }

    /// Counts something. What cannot be counted is no reason to stop.
    pub(crate) fn add(&self, event: Event, count: u64) {
        let page = self.page.get_or_init(|| self.folder.as_deref().and_then(|at| open(at).ok()));
        if let Some(word) = page.as_ref().and_then(|page| page.long_words().get(event as usize)) {
            word.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What was counted.
    pub(crate) fn now(&self, event: Event) -> u64 {
        self.add(event, 0);
        let page = self.page.get().and_then(Option::as_ref);
        let word = page.and_then(|page| page.long_words().get(event as usize));
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

fn open(folder: &Path) -> io::Result<Shared> {
    let file = open_lock(&folder.join("tally"))?;
    if file.metadata()?.len() < LENGTH as u64 {
        fs2::FileExt::lock_exclusive(&file)?;
        if file.metadata()?.len() < LENGTH as u64 {
            // Written and not only made longer: what is mapped must have its place on the disk.
            file.write_all_at(&[0; LENGTH], 0)?;
        }
        fs2::FileExt::unlock(&file)?;
    }
    Shared::map(&file, 0, LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_counts_in_the_same_page() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Tally::of(Some(folder.path())), Tally::of(Some(folder.path())));
        one.add(Event::Eviction, 2);
        two.add(Event::Eviction, 3);
        two.add(Event::BaseRequest, 1);
        assert_eq!((one.now(Event::Eviction), one.now(Event::BaseRequest)), (5, 1));
        assert_eq!(one.now(Event::EvictedByte), 0);
        let nowhere = Tally::of(None);
        nowhere.add(Event::Eviction, 1);
        assert_eq!(nowhere.now(Event::Eviction), 0);
    }
}
