//! The threads that may wait: each carries out one exchange at a time. A download never holds one.

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
    /// So many threads may work for one site while another one waits.
    most: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(usize, Work)>,
    running: HashMap<usize, usize>,
}

impl Pool {
    /// Starts so many threads, at least one.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            come: Condvar::new(),
            most: threads - threads / 4,
        });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name("exchange".into()).stack_size(STACK);
            builder.spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }

    /// Has something done for the site of this number.
    pub(crate) fn give(&self, site: usize, work: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.push_back((site, Box::new(work)));
        drop(state);
        self.shared.come.notify_one();
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some((site, work)) = state.next(self.most) else {
                state = self.come.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            *state.running.entry(site).or_default() += 1;
            drop(state);
            // Whoever waits for the answer is told by the work's own drop; the thread goes on.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                log::line(
                    "an exchange failed in a way that nobody has thought of; please report it",
                );
            }
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = state.running.get_mut(&site) {
                *count -= 1;
            }
            state.running.retain(|_, count| *count > 0);
            // What could not be taken while this site had too many threads.
            if !state.waiting.is_empty() {
                self.come.notify_one();
            }
        }
    }
}

impl State {
    /// The next work: that of a base that does not answer must not hold every thread.
    fn next(&mut self, most: usize) -> Option<(usize, Work)> {
        let mixed = self.running.len() > 1
            || self.waiting.iter().any(|(site, _)| !self.running.contains_key(site));
        let fits = |(site, _): &(usize, Work)| {
            !mixed || self.running.get(site).is_none_or(|count| *count < most)
        };
        let at = self.waiting.iter().position(fits)?;
        self.waiting.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_site_that_hangs_leaves_threads_to_the_others() {
        let pool = Pool::start(4).unwrap();
        let (held, hold) = channel::<()>();
        let hold = Arc::new(Mutex::new(hold));
        let (done, end) = channel();
        for _ in 0..3 {
            let hold = Arc::clone(&hold);
            pool.give(0, move || {
                let _ = hold.lock().unwrap().recv();
            });
        }
        let other = done.clone();
        pool.give(1, move || other.send(1).unwrap());
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(1));
        drop(held);
        for number in 2..20 {
            let done = done.clone();
            pool.give(0, move || done.send(number).unwrap());
        }
        let mut seen: Vec<i32> = (2..20).map(|_| end.recv().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (2..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_costs_no_thread() {
        let pool = Pool::start(1).unwrap();
        let (done, end) = channel();
        pool.give(0, || panic!("on purpose"));
        pool.give(0, move || done.send(()).unwrap());
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(()));
    }
}
