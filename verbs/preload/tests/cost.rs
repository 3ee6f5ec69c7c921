//! Counts the instructions that the shim adds to posting and polling, under callgrind. No VM and no
//! device are needed, because the fake device of tests/c/fake-device.c completes work at once.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::path::Path;
use std::process::Command;

use preload::{bounded, post_poll, preloading, shim};

/// The maximum number of instructions that the shim may add to a post and a poll, in the profile of
/// tests. docs/guide/preload.md has the figures of a release build.
const MOST: f64 = 360.0;

/// Returns the instructions of `times` posts and polls, from the start of the program to its end.
fn instructions(mut valgrind: Command, program: &Path, times: u32, what: &str) -> f64 {
    let ran = valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([&times.to_string(), "1", what])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{stderr}");
    let count = stderr.split("Collected : ").nth(1).unwrap();
    count.split_whitespace().next().unwrap().parse().unwrap()
}

fn each(command: impl Fn() -> Command, program: &Path, what: &str) -> f64 {
    let [few, many] = [1_000, 11_000].map(|times| instructions(command(), program, times, what));
    (many - few) / 10_000.0
}

#[test]
fn posting_and_polling_cost_some_instructions_more() {
    let program = post_poll("rxe", "cost", None);
    for what in ["send", "receive"] {
        let without = each(|| bounded("valgrind"), &program, what);
        let with = each(|| preloading(&[shim()], "valgrind"), &program, what);
        println!("{what}: {without:.0} without the shim, {with:.0} with it");
        assert!(with > without + 20.0, "the shim is not in the way");
        assert!(with < without + MOST, "{what}: {without:.0}, {with:.0}");
    }
}
