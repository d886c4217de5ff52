//! Load for benchmarks: wrk, and what it costs the server.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;

use crate::Httpd;

/// Requests a second, as wrk counts them, and the microseconds of CPU that a request costs httpd.
///
/// wrk gets these arguments too; there must be no answer but 2xx and 3xx.
pub fn wrk(server: &Httpd, path: &str, seconds: usize, arguments: &[&str]) -> (f64, f64) {
    let before = ticks(server);
    let (rate, count) = wrk_at(&server.url(path), seconds, arguments);
    (rate, (ticks(server) - before) * 1e6 / count)
}

/// Requests a second, as wrk counts them, and how many they were.
///
/// wrk gets these arguments too; there must be no answer but 2xx and 3xx.
pub fn wrk_at(url: &str, seconds: usize, arguments: &[&str]) -> (f64, f64) {
    let output = Command::new("wrk")
        // Fewer connections than threads: httpd ends kept connections when every thread is busy.
        .args(["-t1", "-c8", &format!("-d{seconds}s")])
        .args(arguments)
        .arg(url)
        .output()
        .expect("cannot run wrk: run `make setup`");
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = text.contains("Non-2xx") || text.contains("Socket errors");
    assert!(output.status.success() && !failed, "{text}");
    let number = |before: &str, after: &str| -> f64 {
        let line = text.lines().find(|line| line.contains(before) && line.contains(after));
        let word = line.and_then(|line| line.split_whitespace().find_map(|word| word.parse().ok()));
        word.unwrap_or_else(|| panic!("wrk said: {text}"))
    };
    (number("Requests/sec:", ""), number(" requests in ", ""))
}

/// The one in the middle.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The seconds of CPU that httpd's children have used so far; the kernel counts in hundredths.
fn ticks(server: &Httpd) -> f64 {
    let hundredths = server.children().into_iter().map(|child| {
        let line = fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        // User and system time are the 12th and 13th field after the program's name.
        let fields = line.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<f64>().unwrap()).sum::<f64>()
    });
    hundredths.sum::<f64>() / 100.0
}

/// The processes that this one has started and that run.
pub fn children(parent: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.expect("the server has ended");
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

/// The time that the threads of these processes have spent on a processor.
pub fn processor_time(processes: &[Pid]) -> Duration {
    let threads = processes
        .iter()
        .flat_map(|process| fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten());
    let nanoseconds = threads.map(|thread| {
        // A thread that has ended meanwhile has no time.
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// The memory of these processes in bytes; what several share counts once.
pub fn memory(processes: &[Pid]) -> u64 {
    let kib = processes.iter().map(|process| {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
        let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    });
    kib.sum::<u64>() * 1024
}
