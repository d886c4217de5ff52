//! Where those wait who want to hear what the base says about a file while it is being asked: simultaneous
//! requests for a file hold one thread. Checks of other processes are waited for in `store::check`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::ask::Known;
use crate::failure::Failure;

/// What comes out of asking the base about a file.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// What it says.
    Heard(Result<Known, Failure>),
    /// Something that is only for who has asked.
    Private,
    /// Nobody has asked after all.
    None,
}

/// Somebody who wants to hear it.
pub(crate) trait Visitor {
    fn hear(self, news: News);
}

/// Those who wait, by the path that is asked about.
pub(crate) struct Lobby<V: Visitor> {
    waiting: Mutex<HashMap<String, Vec<V>>>,
}

/// The duty to tell those who come meanwhile. Whatever happens to who has it, they are told something.
pub(crate) struct Herald<'a, V: Visitor> {
    lobby: &'a Lobby<V>,
    /// None when all are told.
    path: Option<String>,
}

impl<V: Visitor> Default for Lobby<V> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<V: Visitor> Lobby<V> {
    /// Lets somebody in to hear about a path. The first is to ask, and comes back with the duty to tell.
    pub(crate) fn enter(&self, path: &str, visitor: V) -> Option<(V, Herald<'_, V>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(visitors) = waiting.get_mut(path) {
            visitors.push(visitor);
            return None;
        }
        waiting.insert(path.to_owned(), Vec::new());
        Some((visitor, Herald { lobby: self, path: Some(path.to_owned()) }))
    }
}

impl<V: Visitor> Herald<'_, V> {
    /// Tells all who have come by now. Who comes later begins anew.
    pub(crate) fn tell(mut self, result: &Result<Known, Failure>) {
        let is_for_all = result.as_ref().map_or(true, Known::is_for_all);
        self.let_out(&if is_for_all { News::Heard(result.clone()) } else { News::Private });
    }

    fn let_out(&mut self, news: &News) {
        let Some(path) = self.path.take() else { return };
        let mut waiting = self.lobby.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let visitors = waiting.remove(&path);
        drop(waiting);
        for visitor in visitors.into_iter().flatten() {
            visitor.hear(news.clone());
        }
    }
}

impl<V: Visitor> Drop for Herald<'_, V> {
    fn drop(&mut self) {
        self.let_out(&News::None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::failure::Kind;

    struct Guest(u32, Sender<(u32, News)>);

    impl Visitor for Guest {
        fn hear(self, news: News) {
            self.1.send((self.0, news)).unwrap();
        }
    }

    #[test]
    fn one_asks_and_all_who_came_meanwhile_are_told() {
        let lobby = Lobby::default();
        let (told, hear) = channel();
        let guest = |number| Guest(number, told.clone());
        let (first, herald) = lobby.enter("/a", guest(1)).unwrap();
        assert_eq!(first.0, 1);
        assert!(lobby.enter("/a", guest(2)).is_none());
        let (_, other) = lobby.enter("/b", guest(3)).unwrap();
        assert!(lobby.enter("/a", guest(4)).is_none());
        herald.tell(&Err(Kind::Down.says("no")));
        let heard: Vec<_> = hear.try_iter().collect();
        assert!(matches!(&heard[..], [(2, News::Heard(Err(_))), (4, News::Heard(Err(_)))]));
        // The next one begins anew, and who does not get to ask tells that.
        let (_, herald) = lobby.enter("/a", guest(5)).unwrap();
        assert!(lobby.enter("/a", guest(6)).is_none());
        drop((herald, other));
        assert!(matches!(hear.try_recv(), Ok((6, News::None))));
        assert!(lobby.waiting.lock().unwrap().is_empty());
    }
}
