//! Tests on io_uring, on any machine, that the benchmark measures the transfers that it claims to
//! measure. Also tests that results are saved, reported and compared.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::time::Duration;

use regcache::monitor::auto;
use regcache_bench_transfer::results::{Machine, Run};
use regcache_bench_transfer::rounds::{Effort, measure_cell};
use regcache_bench_transfer::{
    Error, Op, Strategy, Uring, Variant, Workload, compare, registration_cost, report, table,
    variant,
};

const EFFORT: Effort = Effort {
    cell: Duration::from_millis(20),
    rounds: 3,
    sample: Duration::from_millis(1),
};

fn on_uring(strategy: Strategy, workload: Workload) -> Box<dyn Variant> {
    let uring = Uring::open().unwrap();
    variant(&uring, || Ok(auto()), strategy, workload).unwrap()
}

#[test]
fn a_cache_that_is_told_nothing_is_found_out_and_the_others_are_not() {
    for op in [Op::Write, Op::Read] {
        let workload = Workload::plain(op, 9000).unmap_every(3);
        for strategy in [
            Strategy::Regcache,
            Strategy::PerTransfer,
            Strategy::Copy,
            Strategy::Naive,
        ] {
            let mut one = on_uring(strategy, workload);
            one.run(12).unwrap();
            let wrong = one.tally().unwrap().wrong_bytes;
            assert_eq!(wrong > 0, strategy == Strategy::Naive, "{op} {strategy:?}");
        }
    }
}

#[test]
fn stale_bytes_end_a_measurement() {
    // The buffer is registered once, and unmapped later. So its registration becomes stale.
    let workload = Workload::plain(Op::Write, 4096).unmap_every(2);
    let mut variants = [on_uring(Strategy::PreRegistered, workload)];
    let taken = measure_cell(workload, EFFORT, &mut variants, &mut |_| {});
    assert!(matches!(taken, Err(Error::Stale { .. })), "{taken:?}");
}

#[test]
fn a_run_is_saved_reported_and_compared() {
    let dir = std::env::temp_dir().join(format!("regcache-transfer-{}", std::process::id()));
    let mut run = Run::new(Machine::here("io_uring", "io_uring", "userfaultfd"));
    let sizes = [64, 4096];
    let each = Duration::ZERO;
    run.costs = registration_cost::measure(&Uring::open().unwrap(), auto(), &sizes, each).unwrap();
    for size in sizes {
        let workload = Workload::plain(Op::Write, size);
        let mut variants = Strategy::ALL.map(|strategy| on_uring(strategy, workload));
        run.cells
            .push(measure_cell(workload, EFFORT, &mut variants, &mut |_| {}).unwrap());
    }
    let json = dir.join("run.json");
    run.save(&json).unwrap();
    let loaded = Run::load(&json).unwrap();
    assert_eq!(loaded.cells.len(), 2);

    report::report(std::slice::from_ref(&loaded), "a test", &dir).unwrap();
    let html = fs::read_to_string(dir.join("report.html")).unwrap();
    assert_eq!(html.matches("<svg").count(), 2);
    let markdown = fs::read_to_string(dir.join("report.md")).unwrap();
    for line in markdown.lines().filter(|line| line.starts_with("![")) {
        let name = line.rsplit_once('(').unwrap().1.trim_end_matches(')');
        assert!(dir.join(name).exists(), "{name}");
    }

    let compared = compare::rows(&run, &loaded);
    assert_eq!(compared.len(), 1 + 2 * Strategy::ALL.len());
    assert!(compared[1..].iter().all(|row| row[5] == "1.000"));

    let lines = table::lines("io_uring", &loaded.cells[1]);
    let line = lines.lines().next().unwrap();
    assert!(
        line.starts_with("io_uring write 4096 pre-registered "),
        "{line}"
    );
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_file_of_another_format_is_refused() {
    let path = std::env::temp_dir().join(format!("regcache-other-{}.json", std::process::id()));
    fs::write(&path, "{\"format\": 0}").unwrap();
    assert!(Run::load(&path).is_err());
    fs::remove_file(&path).unwrap();
}
