//! Counts the instructions that the shim adds to posting and polling, and those of registering and
//! deregistering known memory, under callgrind. No VM and no device are needed, because the fake
//! device of tests/c/fake-device.c completes work at once. A fake driver accepts every watch.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::path::Path;
use std::process::Command;

use regcache_test_support::fake_driver;

use preload::{bounded, on_fake_device, preloading, shim};

/// The works of tests/c/post-poll.c, with the maximum number of instructions that a release build
/// of the shim may add to the posts and the poll of one. docs/guide/preload.md has the figures.
const WORKS: &[(&str, f64)] = &[
    ("send", 41.0),
    ("write", 41.0),
    ("receive", 40.0),
    ("shared", 40.0),
    ("keys", 130.0),
    ("list", 620.0),
    ("unsignaled", 720.0),
];

/// A build for tests may add so many instructions to each figure of a release build.
const DEBUG_FACTOR: f64 = if cfg!(debug_assertions) { 3.0 } else { 1.0 };

/// Returns the number of instructions of the whole program, which makes `times` posts and polls.
fn instructions(valgrind: Command, program: &Path, times: u32, what: &str) -> f64 {
    collected(valgrind, program, &[&times.to_string(), "1", what])
}

/// Returns the number of instructions that callgrind counts in the program with these arguments.
fn collected(mut valgrind: Command, program: &Path, arguments: &[&str]) -> f64 {
    let ran = valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(arguments)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{stderr}");
    let count = stderr.split("Collected : ").nth(1).unwrap();
    count.split_whitespace().next().unwrap().parse().unwrap()
}

/// The maximum number of instructions of `ibv_reg_mr` and `ibv_dereg_mr` of known memory, in a
/// release build of the shim.
const PAIR: f64 = 250.0;

#[test]
fn registering_known_memory_costs_few_instructions() {
    let program = on_fake_device("pair", "mlx5", "pair", None);
    let count = |times: u32| {
        let mut valgrind = preloading(&[fake_driver(), shim()], "valgrind");
        valgrind.args([
            "--toggle-collect=ibv_reg_mr",
            "--toggle-collect=ibv_dereg_mr",
        ]);
        collected(valgrind, &program, &[&times.to_string()])
    };
    let pair = (count(2_500) - count(500)) / 2_000.0;
    println!("bench instructions/shim/pair {pair:.0} instructions");
    assert!(pair <= DEBUG_FACTOR * PAIR, "{pair}");
}

/// Returns the time of a pair in ns in each of `threads` threads: the median of several runs.
fn pair_time(program: &Path, threads: u32) -> f64 {
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let mut pair = preloading(&[fake_driver(), shim()], program);
            let ran = pair.args(["2000000", &threads.to_string()]).output();
            let stdout = String::from_utf8(ran.unwrap().stdout).unwrap();
            let each = stdout.lines().map(|line| line.parse::<f64>().unwrap());
            each.sum::<f64>() / f64::from(threads)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
#[ignore = "a benchmark, which `cargo xtask bench` runs"]
fn bench_of_threads_registering_different_memory() {
    let program = on_fake_device("pair", "mlx5", "pair-time", None);
    let [one, two] = [1, 2].map(|threads| pair_time(&program, threads));
    println!("bench shim/pair {one:.1} ns");
    let ratio = two / one;
    println!("bench shim/pair/2threads/different {two:.1} ns ratio_one_thread={ratio:.3}");
}

fn each(command: impl Fn() -> Command, program: &Path, what: &str) -> f64 {
    let [few, many] = [500, 2_500].map(|times| instructions(command(), program, times, what));
    (many - few) / 2_000.0
}

#[test]
fn posting_and_polling_cost_few_instructions_more() {
    let program = on_fake_device("post-poll", "mlx5", "cost", None);
    for &(work, most) in WORKS {
        let without = each(|| bounded("valgrind"), &program, work);
        let with = each(|| preloading(&[shim()], "valgrind"), &program, work);
        println!("{work}: {without:.1} without the shim, {with:.1} with it");
        assert!(with > without + 20.0, "the shim is not in the way");
        assert!(
            with <= without + DEBUG_FACTOR * most + 0.5,
            "{work}: {without}, {with}"
        );
    }
}
