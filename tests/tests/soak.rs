//! The short form of `make soak-limits`.

use offload_tests::Mpm;
use offload_tests::soak::{Plan, run};

#[test]
fn limits_count_right_while_children_are_killed() {
    let report = run(Plan { mpm: Mpm::Event, kills: 15, seed: 3 });
    println!("{}", report.table);
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
}
