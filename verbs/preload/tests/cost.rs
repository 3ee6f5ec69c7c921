//! The instructions that the shim adds to posting and polling, on a fake device under callgrind. It
//! is the cost where no VM and no device are needed: tests/c/fake-device.c completes work at once.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::path::{Path, PathBuf};
use std::process::Command;

use preload::{bounded, preloading, shim};

/// A post and a poll may add so many, in the profile of tests. docs/guide/preload.md has the figures
/// of a release build.
const MOST: f64 = 360.0;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// Compiles the fake device and the program that uses it.
fn post_poll() -> PathBuf {
    let source = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c");
        path.join(name).display().to_string()
    };
    let gcc = |arguments: &[String]| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]);
        let built = gcc.args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{stderr}");
    };
    let (fake, program) = (
        directory().join("librxe-fake.so"),
        directory().join("post-poll"),
    );
    let map = format!("-Wl,--version-script={}", source("fake-device.map"));
    let to = |path: &Path| format!("-o{}", path.display());
    let shared = ["-shared", "-fPIC", "-Wl,-soname,librxe-fake.so"].map(str::to_owned);
    gcc(&[&shared[..], &[map, to(&fake), source("fake-device.c")]].concat());
    let path = format!("-Wl,-rpath,{}", directory().display());
    gcc(&[
        to(&program),
        source("post-poll.c"),
        fake.display().to_string(),
        path,
    ]);
    program
}

/// Instructions of so many posts and polls, from the start of the program to its end.
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
    let program = post_poll();
    for what in ["send", "receive"] {
        let without = each(|| bounded("valgrind"), &program, what);
        let with = each(|| preloading(&[shim()], "valgrind"), &program, what);
        println!("{what}: {without:.0} without the shim, {with:.0} with it");
        assert!(with > without + 50.0, "the shim is not in the way");
        assert!(with < without + MOST, "{what}: {without:.0}, {with:.0}");
    }
}
