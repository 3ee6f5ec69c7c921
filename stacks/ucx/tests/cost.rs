//! Compares a hit of UCX's registration cache with this library and without it. The driver is
//! replaced by a fake, so the test runs on any machine.
//!
//! `cargo test --release -p regcache-ucx --features fake-driver --test cost -- --nocapture`
#![expect(clippy::unwrap_used, reason = "a test")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most that a hit, which is a lookup and the return of the region, may cost in multiples of
/// UCX's own.
const MOST: f64 = 1.15;

/// The number of rounds of timings. In each round, both variants run once.
const ROUNDS: usize = 15;

const LIBRARY: &str = "libregcache_ucx.so";

fn library() -> PathBuf {
    env::current_exe().unwrap().with_file_name(LIBRARY)
}

fn hits() -> PathBuf {
    Path::new(env!("PROGRAMS")).join("hits")
}

/// Runs the program for so many hits. Returns the output and stderr.
fn run(mut command: Command, is_with: bool, times: u64, regions: u64) -> (String, String) {
    if is_with {
        command.env("LD_PRELOAD", library());
        command.env("REGCACHE_SUMMARY", "1");
    }
    command.args([times.to_string(), regions.to_string()]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert!(
        !is_with || stderr.contains("caches=1"),
        "the library is not in the way: {stderr}"
    );
    (String::from_utf8_lossy(&output.stdout).into_owned(), stderr)
}

fn instructions(is_with: bool, regions: u64) -> f64 {
    let count = |times| {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command.arg(hits());
        let (_, stderr) = run(command, is_with, times, regions);
        let count = stderr.split("Collected : ").nth(1).unwrap();
        let count = count.split_whitespace().next().unwrap();
        count.parse::<f64>().unwrap()
    };
    let (few, many) = (51 * 100, 51 * 500);
    (count(many) - count(few)) / 51.0 / 400.0
}

fn nanoseconds(is_with: bool, regions: u64) -> f64 {
    let (stdout, _) = run(Command::new(hits()), is_with, 51 * 20_000, regions);
    stdout.trim().parse().unwrap()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

#[test]
fn a_hit_costs_little_more() {
    for regions in [1, 100, 10_000] {
        let [without, with] = [false, true].map(|is_with| instructions(is_with, regions));
        println!(
            "hit/{regions}: {without:.1} instructions, {with:.1} with the library: ratio {:.3}",
            with / without
        );
        assert!(with / without <= MOST);
        let rounds: Vec<_> = (0..ROUNDS)
            .map(|round| {
                let first = round % 2 == 0;
                let [a, b] = [first, !first].map(|is_with| nanoseconds(is_with, regions));
                if first { (b, a) } else { (a, b) }
            })
            .collect();
        let ratio = median(
            rounds
                .iter()
                .map(|(without, with)| with / without)
                .collect(),
        );
        println!(
            "hit/{regions}: {:.1} ns, {:.1} ns with the library: ratio {ratio:.3}",
            median(rounds.iter().map(|it| it.0).collect()),
            median(rounds.iter().map(|it| it.1).collect()),
        );
        assert!(ratio <= MOST);
    }
}
