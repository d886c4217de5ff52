//! Load for benchmarks: wrk, and what it costs httpd.

use std::fs;
use std::process::Command;

use crate::Httpd;

/// Requests a second, as wrk counts them, and the microseconds of CPU that a request costs httpd.
///
/// wrk gets these arguments too; there must be no answer but 2xx and 3xx.
pub fn wrk(server: &Httpd, path: &str, seconds: usize, arguments: &[&str]) -> (f64, f64) {
    let before = processor_time(server);
    let output = Command::new("wrk")
        // Fewer connections than threads: httpd ends kept connections when every thread is busy.
        .args(["-t1", "-c8", &format!("-d{seconds}s")])
        .args(arguments)
        .arg(server.url(path))
        .output()
        .expect("cannot run wrk: run `make setup`");
    let spent = processor_time(server) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = text.contains("Non-2xx") || text.contains("Socket errors");
    assert!(output.status.success() && !failed, "{text}");
    let number = |before: &str, after: &str| -> f64 {
        let line = text.lines().find(|line| line.contains(before) && line.contains(after));
        let word = line.and_then(|line| line.split_whitespace().find_map(|word| word.parse().ok()));
        word.unwrap_or_else(|| panic!("wrk said: {text}"))
    };
    (number("Requests/sec:", ""), spent * 1e6 / number(" requests in ", ""))
}

/// The one in the middle.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The seconds of CPU that httpd's children have used so far; the kernel counts in hundredths.
fn processor_time(server: &Httpd) -> f64 {
    let hundredths = server.children().into_iter().map(|child| {
        let line = fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        // User and system time are the 12th and 13th field after the program's name.
        let fields = line.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<f64>().unwrap()).sum::<f64>()
    });
    hundredths.sum::<f64>() / 100.0
}
