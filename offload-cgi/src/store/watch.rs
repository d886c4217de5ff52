//! Waiting for a folder of the cache: woken by the kernel as bytes land.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// How long one wait lasts at most. An event ends it sooner; this is for the events that are never
/// sent, such as the end of a process that had the folder's lock and nothing open for writing.
const LONGEST: Duration = Duration::from_secs(1);

/// How long one wait lasts where the kernel has no more watches to give (max_user_instances).
const BLIND: Duration = Duration::from_millis(20);

/// A watch on what happens in a folder.
pub(crate) struct Watch(Option<Inotify>);

impl Watch {
    /// Begins to watch: nothing that happens from now on is missed.
    pub(crate) fn new(folder: &Path) -> Self {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE;
        let begin = || {
            let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            watch.add_watch(folder, flags)?;
            nix::Result::Ok(watch)
        };
        Self(begin().ok())
    }

    /// Waits for something to happen, at most for `limit`.
    pub(crate) fn wait(&self, limit: Duration) {
        let Some(watch) = &self.0 else { return std::thread::sleep(limit.min(BLIND)) };
        // Rounded up: a remainder below a millisecond must not become a loop without a pause.
        let limit = limit.min(LONGEST) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        let mut list = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut list, timeout);
        // The events only say "look again".
        while watch.read_events().is_ok() {}
    }
}
