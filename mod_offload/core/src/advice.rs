//! Which of httpd's settings stand in the way of many slow downloads, and the numbers to set.
//!
//! The event MPM takes new connections only while a child has fewer than `ThreadsPerChild` + idle workers
//! x `AsyncRequestWorkerFactor` of them (event.c, `connections_above_limit`): however little a paced
//! download costs, with the default of 2 the server stalls at three connections a worker.

use std::time::Duration;

use crate::rate::least_timeout;
use crate::units::Rate;

/// What httpd and the machine are set to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Machine {
    /// The most children.
    pub children: u64,
    /// `ThreadsPerChild`.
    pub threads: u64,
    /// `AsyncRequestWorkerFactor`, in hundredths; `None` if the MPM has none.
    pub factor: Option<u64>,
    /// `ListenBacklog`.
    pub backlog: u64,
    /// The most that the kernel makes of it (`net.core.somaxconn`).
    pub most_backlog: u64,
    /// How many files a process may have open (`ulimit -n`).
    pub files: u64,
    /// How many bytes the kernel gives to TCP before it presses (`net.ipv4.tcp_mem`, the second number).
    pub tcp_memory: u64,
}

/// What a child needs for itself: logs, listeners, pipes, modules.
const OWN_FILES: u64 = 100;
/// A download has a socket, a file, and mostly a second handle of the file, for sendfile.
const FILES_EACH: u64 = 3;
/// What the kernel holds of a paced download, as it was measured.
const TCP_EACH: u64 = 64 << 10;
/// As many are thought of at the most: who wants more knows how.
const ENOUGH: u64 = 10_000;

impl Machine {
    /// How many connections all children together have at the most before new ones wait.
    fn capacity(&self, factor: u64) -> u64 {
        let each = self.threads.saturating_mul(factor) / 100;
        self.children.saturating_mul(self.threads.saturating_add(each))
    }

    /// What the administrator should be told, each with the number to set.
    pub fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let Some(factor) = self.factor else { return advice };
        if self.children == 0 || self.threads == 0 {
            return advice;
        }
        let by_files =
            self.children.saturating_mul(self.files.saturating_sub(OWN_FILES) / FILES_EACH);
        let could = by_files.min(self.tcp_memory / TCP_EACH).min(ENOUGH);
        let capacity = self.capacity(factor);
        // A little more would not be worth a word.
        if capacity.saturating_mul(5) < could.saturating_mul(4) {
            let wanted =
                (could.div_ceil(self.children)).saturating_sub(self.threads).div_ceil(self.threads);
            advice.push(format!(
                "with AsyncRequestWorkerFactor {} new clients wait when there are {capacity} connections, and this \
                 machine could hold {could}: set AsyncRequestWorkerFactor {wanted}",
                hundredths(factor)
            ));
        }
        let capacity = capacity.max(could.min(ENOUGH));
        let each = FILES_EACH * capacity.min(self.capacity(factor)).min(ENOUGH) / self.children;
        let files = OWN_FILES + each;
        if self.files < files {
            advice.push(format!(
                "a child may have {} files open, and its downloads may need {files}: set ulimit -n {files}",
                self.files
            ));
        }
        let backlog = self.most_backlog.min(capacity / 4);
        if self.backlog < backlog {
            advice.push(format!(
                "with ListenBacklog {} a crowd of new clients is turned away: set ListenBacklog {backlog}",
                self.backlog
            ));
        }
        advice
    }
}

fn hundredths(number: u64) -> String {
    if number.is_multiple_of(100) {
        format!("{}", number / 100)
    } else {
        format!("{}.{:02}", number / 100, number % 100)
    }
}

/// What to tell when a download at the lowest rate of a virtual host cannot live with its `Timeout`.
pub fn timeout(rate: Rate, timeout: Duration) -> Option<String> {
    let least = least_timeout(rate);
    (timeout < least).then(|| {
        format!(
            "Timeout {} ends downloads at ChokeRate {rate}: between two writes there may be {} seconds; set Timeout {}",
            timeout.as_secs(),
            least.as_secs() / 2 + 1,
            least.as_secs() + 1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        children: 16,
        threads: 25,
        factor: Some(200),
        backlog: 511,
        most_backlog: 4096,
        files: 8192,
        tcp_memory: 1 << 30,
    };

    #[test]
    fn the_default_factor_is_told_with_the_number_to_set() {
        let advice = MACHINE.advice();
        assert_eq!(advice.len(), 2, "{advice:?}");
        assert!(
            advice[0].contains("there are 1200")
                && advice[0].ends_with("AsyncRequestWorkerFactor 24"),
            "{advice:?}"
        );
        assert!(advice[1].ends_with("ListenBacklog 2500"), "{advice:?}");
    }

    #[test]
    fn who_has_done_it_hears_nothing() {
        let done = Machine { factor: Some(2400), backlog: 2500, ..MACHINE };
        assert_eq!(done.advice(), Vec::<String>::new());
        assert!(Machine { factor: None, ..MACHINE }.advice().is_empty(), "not the event MPM");
        assert!(Machine { children: 0, ..MACHINE }.advice().is_empty());
    }

    #[test]
    fn a_low_file_limit_is_told_and_lowers_what_is_possible() {
        assert!(Machine { files: u64::MAX, tcp_memory: u64::MAX, ..MACHINE }.advice().len() == 2);
        let few = Machine { factor: Some(6400), files: 1024, backlog: 4096, ..MACHINE };
        let advice = few.advice();
        assert!(advice.len() == 1 && advice[0].contains("ulimit -n"), "{advice:?}");
        let number: u64 = advice[0].rsplit(' ').next().unwrap().parse().unwrap();
        assert!(Machine { files: number, ..few }.advice().is_empty());
    }

    #[test]
    fn what_is_told_is_enough() {
        for files in [1024, 4096, 65_536] {
            for threads in [1, 16, 25, 64, u64::MAX / 1000] {
                let mut machine = Machine { files, threads, ..MACHINE };
                for _ in 0..3 {
                    for sentence in machine.advice() {
                        let number: u64 = sentence.rsplit(' ').next().unwrap().parse().unwrap();
                        match () {
                            () if sentence.contains("set Async") => {
                                machine.factor = Some(number * 100)
                            }
                            () if sentence.contains("set ulimit") => machine.files = number,
                            () => machine.backlog = number,
                        }
                    }
                }
                assert!(machine.advice().is_empty(), "{machine:?}: {:?}", machine.advice());
            }
        }
    }

    #[test]
    fn a_timeout_that_ends_downloads_is_told() {
        let rate = Rate::new(1024).unwrap();
        let sentence = timeout(rate, Duration::from_secs(60)).unwrap();
        assert!(
            sentence.contains("ChokeRate 1K") && sentence.ends_with("Timeout 129"),
            "{sentence}"
        );
        assert_eq!(timeout(rate, Duration::from_secs(129)), None);
        assert_eq!(timeout(Rate::new(10 << 10).unwrap(), Duration::from_secs(60)), None);
    }
}
