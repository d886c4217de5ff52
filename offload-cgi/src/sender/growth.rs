//! Who waits for more of a growing body, or for its first byte: inotify says when there is some.

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;

use nix::sys::inotify::{AddWatchFlags, WatchDescriptor};

use super::connection::{Awaiting, Bytes, Connection, State, Watch};
use super::errand::share;
use super::{Fate, Sender};
use crate::source::Look;

/// So many are looked at in one go.
const MOST_LOOKS: usize = 256;

impl Sender {
    /// Looks whether the first byte has come; begins with the reply if it has. `None`: it can go out.
    pub(super) fn see(&mut self, connection: &mut Box<Connection>, number: u64) -> Option<Fate> {
        let State::Awaiting(awaiting) = &mut connection.state else { return Some(Fate::Keep) };
        match awaiting.awaited.look() {
            Ok(Look::Wait) => {
                self.wait(connection, number);
                Some(Fate::Keep)
            }
            Ok(Look::Bytes(_)) => {
                let awaiting = self.take_awaiting(connection, number)?;
                let Awaiting { ask, place, awaited, .. } = awaiting;
                let mut reply = ask.site.exchange().finish(&ask.request, *awaited);
                let body = share(ask.site, &ask.request, &mut reply);
                let supply = body.map_or(Bytes::None, Bytes::Kept);
                self.begin(connection, number, ask, reply, place, supply)
            }
            Err(failure) => {
                let awaiting = self.take_awaiting(connection, number)?;
                self.give_back(connection, number, awaiting, failure);
                Some(Fate::Keep)
            }
        }
    }

    fn take_awaiting(&mut self, connection: &mut Connection, number: u64) -> Option<Awaiting> {
        let state = std::mem::replace(&mut connection.state, State::Asked);
        let State::Awaiting(awaiting) = state else { return None };
        self.forget(awaiting.watch, number);
        Some(*awaiting)
    }

    /// Puts a connection on the list of those who wait for more of a growing body.
    pub(super) fn wait(&mut self, connection: &mut Connection, number: u64) {
        if !std::mem::replace(&mut connection.listed, true) {
            self.waiting.push_back(number);
        }
        let Some((file, bodies)) = connection.state.news() else {
            // It has become whole at this very look.
            self.again(connection, number);
            return;
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let old = connection.state.watch().and_then(|watch| *watch);
        if old.is_some_and(|watch| watch.bodies == bodies) {
            return;
        }
        self.forget(old, number);
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
        // Without a watch it is looked at often enough.
        let descriptor = self.news.add_watch(path.as_str(), flags).ok();
        let watch = descriptor.map(|descriptor| Watch { descriptor, bodies });
        if let Some(watch) = watch {
            self.watches.entry(watch.descriptor).or_default().insert(number);
            // What came before the watch was there.
            self.again(connection, number);
        }
        if let Some(place) = connection.state.watch() {
            *place = watch;
        }
    }

    /// A body is not waited for any more.
    pub(super) fn forget(&mut self, watch: Option<Watch>, number: u64) {
        let Some(Watch { descriptor, .. }) = watch else { return };
        if let Some(numbers) = self.watches.get_mut(&descriptor) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.watches.remove(&descriptor);
                let _ = self.news.rm_watch(descriptor);
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
                if connection.state.is_waiting() {
                    self.turn(number);
                }
            }
        }
    }

    /// There is news of growing bodies.
    pub(super) fn hear(&mut self) {
        // Whether more has come, of each body: that somebody has closed it need not mean more than that a reader
        // has gone, and then one look is enough.
        let mut heard: HashMap<WatchDescriptor, bool> = HashMap::new();
        while let Ok(events) = self.news.read_events() {
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    heard.extend(self.watches.keys().map(|descriptor| (*descriptor, true)));
                } else {
                    *heard.entry(event.wd).or_default() |=
                        event.mask.contains(AddWatchFlags::IN_MODIFY);
                }
            }
        }
        let mut numbers: Vec<u64> = Vec::new();
        for (descriptor, is_news) in heard {
            let waiting = self.watches.get(&descriptor).into_iter().flatten();
            numbers.extend(waiting.take(if is_news { usize::MAX } else { 1 }));
        }
        for number in numbers {
            if self.table.get(number).is_some_and(|connection| connection.state.is_waiting()) {
                self.turn(number);
            }
        }
    }
}
