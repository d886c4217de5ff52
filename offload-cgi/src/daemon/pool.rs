//! The threads that carry out exchanges, one step of one at a time. A download never holds one.
//!
//! What may wait for a base never has all of them: a base that hangs must not keep from others what is in the
//! cache, nor what another base has.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::log;

/// The stack of a thread that answers requests.
const STACK: usize = 512 << 10;

type Work = Box<dyn FnOnce() + Send>;

/// A fixed number of threads, and what waits for them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    come: Condvar,
    /// So many threads may wait for bases, and so many of these for one while another one is asked.
    most: usize,
    most_of_one: usize,
}

#[derive(Default)]
struct State {
    /// What waits for nobody.
    quick: VecDeque<Work>,
    /// What asks the base of a site, by the site's number.
    asking: VecDeque<(usize, Work)>,
    /// How many threads are at that now.
    running: HashMap<usize, usize>,
}

impl Pool {
    /// Starts so many threads that may wait for bases, at least one, and some that never do.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            come: Condvar::new(),
            most: threads,
            most_of_one: threads - threads / 4,
        });
        for _ in 0..threads + (threads / 4).max(1) {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name("exchange".into()).stack_size(STACK);
            builder.spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }

    /// Has something done that waits for nobody.
    pub(crate) fn give(&self, work: impl FnOnce() + Send + 'static) {
        self.put(|state| state.quick.push_back(Box::new(work)));
    }

    /// Has the base of the site of this number asked.
    pub(crate) fn ask(&self, site: usize, work: impl FnOnce() + Send + 'static) {
        self.put(|state| state.asking.push_back((site, Box::new(work))));
    }

    fn put(&self, put: impl FnOnce(&mut State)) {
        put(&mut self.shared.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.come.notify_one();
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some((site, work)) = state.next(self.most, self.most_of_one) else {
                state = self.come.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if let Some(site) = site {
                *state.running.entry(site).or_default() += 1;
            }
            drop(state);
            // Whoever waits for the answer is told by the work's own drop; the thread goes on.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                log::line(
                    "an exchange failed in a way that nobody has thought of; please report it",
                );
            }
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(site) = site
                && let Some(count) = state.running.get_mut(&site)
            {
                *count -= 1;
                state.running.retain(|_, count| *count > 0);
                // What could not be taken while too many threads were at it.
                if !state.asking.is_empty() {
                    self.come.notify_one();
                }
            }
        }
    }
}

impl State {
    /// The next work, and the site whose base it asks.
    fn next(&mut self, most: usize, most_of_one: usize) -> Option<(Option<usize>, Work)> {
        if let Some(at) = self.next_to_ask(most, most_of_one) {
            return self.asking.remove(at).map(|(site, work)| (Some(site), work));
        }
        self.quick.pop_front().map(|work| (None, work))
    }

    fn next_to_ask(&self, most: usize, most_of_one: usize) -> Option<usize> {
        if self.running.values().sum::<usize>() >= most {
            return None;
        }
        let mixed = self.running.len() > 1
            || self.asking.iter().any(|(site, _)| !self.running.contains_key(site));
        let fits = |(site, _): &(usize, Work)| {
            !mixed || self.running.get(site).is_none_or(|count| *count < most_of_one)
        };
        self.asking.iter().position(fits)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_site_that_hangs_leaves_threads_to_the_others_and_to_what_asks_nobody() {
        let pool = Pool::start(8).unwrap();
        let (held, hold) = channel::<()>();
        let hold = Arc::new(Mutex::new(hold));
        let (done, end) = channel();
        let hang = |site| {
            let hold = Arc::clone(&hold);
            pool.ask(site, move || {
                let _ = hold.lock().unwrap().recv();
            });
        };
        (0..5).for_each(|_| hang(0));
        let other = done.clone();
        pool.ask(1, move || other.send(1).unwrap());
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(1));
        (0..8).for_each(|_| hang(0));
        (0..8).for_each(|_| hang(1));
        let quick = done.clone();
        pool.give(move || quick.send(0).unwrap());
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(0));
        drop(held);
        for number in 2..20 {
            let done = done.clone();
            pool.ask(0, move || done.send(number).unwrap());
        }
        let mut seen: Vec<i32> = (2..20).map(|_| end.recv().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (2..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_costs_no_thread() {
        let pool = Pool::start(1).unwrap();
        let (done, end) = channel();
        pool.ask(0, || panic!("on purpose"));
        pool.give(|| panic!("on purpose"));
        pool.ask(0, move || done.send(()).unwrap());
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(()));
    }
}
