//! Who waits for more of a growing body: inotify says when there is some.

use std::os::fd::AsRawFd as _;

use nix::sys::inotify::{AddWatchFlags, Inotify, WatchDescriptor};

use super::Sender;
use super::connection::{Bytes, Sending, State};

/// So many are looked at in one go.
const MOST_LOOKS: usize = 256;

impl Sender {
    /// A reply is not waited for any more.
    pub(super) fn forget(&mut self, sending: &Sending, number: u64) {
        let Some(watch) = sending.watch else { return };
        if let Some(numbers) = self.watches.get_mut(&watch) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.watches.remove(&watch);
                let _ = self.news.rm_watch(watch);
            }
        }
    }

    /// Looks at some of those who wait, in turn: one is enough to see that a filler has died, and thousands may
    /// wait for the same bytes.
    pub(super) fn look_at_waiting(&mut self) {
        for _ in 0..self.waiting.len().min(MOST_LOOKS) {
            let Some(number) = self.waiting.pop_front() else { return };
            if let Some(connection) = self.table.get_mut(number) {
                connection.listed = false;
                let is_waiting =
                    matches!(&connection.state, State::Sending(sending) if sending.is_waiting);
                if is_waiting {
                    self.turn(number);
                }
            }
        }
    }

    /// There is news of growing bodies.
    pub(super) fn hear(&mut self) {
        let mut numbers: Vec<u64> = Vec::new();
        while let Ok(events) = self.news.read_events() {
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    numbers.extend(self.watches.values().flatten());
                } else if let Some(waiting) = self.watches.get(&event.wd) {
                    numbers.extend(waiting);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let is_waiting = self.table.get(number).is_some_and(
                |connection| matches!(&connection.state, State::Sending(sending) if sending.is_waiting),
            );
            if is_waiting {
                self.turn(number);
            }
        }
    }
}

/// Watches what a growing body says.
pub(super) fn watch(news: &Inotify, sending: &Sending) -> Option<WatchDescriptor> {
    let Bytes::Stored { source, .. } = &sending.supply else { return None };
    let file = source.news()?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
    // Without a watch it is looked at often enough.
    news.add_watch(path.as_str(), flags).ok()
}
