//! Whose turn it is: so many downloads of a file may a client have at a time.

use std::time::Duration;

use super::connection::{Ask, Connection, State, Waiting};
use super::{Fate, Sender};
use crate::downloads::Place;
use crate::options::DupeMode;
use crate::reply::Reply;

/// Who has the last byte of a download may ask again before its sender has got to give its place back: so long
/// nobody is refused for it.
const MOMENT: Duration = Duration::from_millis(250);

/// Whether a client may download now.
pub(super) enum Turn {
    Now(Option<Place<'static>>),
    /// Not now; nor later, if its turn does not come within this time.
    Later(Duration),
}

impl Sender {
    /// Whether a client may download now; if not, it is told as soon as it may.
    pub(super) fn turn_of(&self, ask: &Ask) -> Turn {
        match self.look_for_place(ask) {
            Turn::Later(_) => {
                self.inbox.set_queue(true);
                // It may have come back before that was said.
                self.look_for_place(ask)
            }
            now => now,
        }
    }

    fn look_for_place(&self, ask: &Ask) -> Turn {
        let (Some(downloads), Some(client)) = (ask.site.downloads(), ask.visit.client) else {
            return Turn::Now(None);
        };
        let options = ask.site.options();
        // What is only asked for on a condition may have no body. Who may have to wait is counted all the same.
        let counted = ask.request.get
            && (options.dupe_mode == DupeMode::Queue || !ask.request.conditions.may_have_no_body());
        if !counted {
            return Turn::Now(None);
        }
        let source = format!("{}{}", options.base, ask.request.path);
        match downloads.take(client, &source, options.max_dupes) {
            Some(place) => Turn::Now(Some(place)),
            None if options.dupe_mode == DupeMode::Queue => Turn::Later(options.timeout.duration()),
            None => Turn::Later(MOMENT),
        }
    }

    pub(super) fn too_many(&mut self, connection: &mut Box<Connection>, ask: Ask) -> Option<Fate> {
        self.common.counters.refused_downloads.add(1);
        let reply = Reply::too_many(ask.site.options().max_dupes);
        self.reply(connection, ask.visit, ask.minor, ask.keep, reply)
    }

    /// Looks whose turn has come.
    pub(super) fn ask_queue(&mut self) {
        if self.queue.is_empty() {
            self.inbox.set_queue(false);
        }
        for number in std::mem::take(&mut self.queue) {
            let Some(mut connection) = self.table.take(number) else { continue };
            let state = std::mem::replace(&mut connection.state, State::Reading);
            let State::Waiting(waiting) = state else {
                connection.state = state;
                self.table.put(number, connection);
                continue;
            };
            let Waiting { ask, until } = *waiting;
            let fate = if self.now >= until {
                self.too_many(&mut connection, ask)
            } else {
                self.ask(&mut connection, number, ask)
            };
            if let State::Waiting(again) = &mut connection.state {
                // It goes on waiting, and not from the beginning.
                again.until = until;
            }
            if fate.is_none() {
                self.again(&mut connection, number);
            }
            self.table.put(number, connection);
        }
    }
}
