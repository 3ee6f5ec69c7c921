//! Runs programs on a fake device, with a shim that is built with the sanitizer of this test. The
//! programs are built with the sanitizer, too. `cargo xtask sanitize` runs this suite.
//!
//! Such a shim does not interpose `dlsym` and `dlvsym` (`src/dl.rs`). The monitor is userfaultfd,
//! if the kernel's userfaultfd reports enough changes.
#![cfg(any(sanitizer = "address", sanitizer = "thread"))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::path::PathBuf;
use std::process::Command;

use regcache_test_support::runtime;

use preload::{Ran, SANITIZER, on_fake_device, preloading, run, shim};

/// Runs the command, and returns its output without the end of the line.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Returns the libraries to preload. The programs are linked with ThreadSanitizer's runtime. The
/// runtime of AddressSanitizer refuses to start if another library is before it.
fn libraries() -> Vec<PathBuf> {
    let mut libraries = runtime(SANITIZER.unwrap());
    libraries.push(shim());
    libraries
}

/// Runs the program on the fake device. It exits with an error if the sanitizer reports anything.
fn is_clean(program: &str, arguments: &[&str]) -> Ran {
    let suite = format!("sanitized-{program}");
    let program = on_fake_device(program, "rxe", &suite, None);
    let mut command = preloading(&libraries(), program);
    let command = command.args(arguments).env("REGCACHE_MONITOR", "auto");
    let ran = run(command).ok();
    let summary = ran.summary();
    println!("{summary:?}");
    if summary.text("monitor") != "none" {
        assert!(summary.number("made") > 0, "{summary:?}");
    }
    ran
}

/// If the shim were not built with the sanitizer, the other tests would check only the programs.
#[test]
fn the_shim_calls_the_sanitizer() {
    let symbols = said(Command::new("nm").arg("-D").arg(shim()));
    let check = if SANITIZER == Some("address") {
        "U __asan_report_load8"
    } else {
        "U __tsan_read8"
    };
    assert!(symbols.contains(check));
}

#[test]
fn threads_that_share_registrations_leave_none() {
    let ran = is_clean("together", &["200"]);
    assert_eq!(ran.stdout, "together: ok\n");
    assert_eq!(ran.summary().number("asked"), 800);
}

#[test]
fn registrations_pass_from_thread_to_thread() {
    let ran = is_clean("handover", &["50"]);
    let asked = format!("asked={}\n", ran.summary().number("asked"));
    assert_eq!(ran.stdout, asked);
}

#[test]
fn posts_and_polls_of_each_kind_are_followed() {
    for work in [
        "send",
        "write",
        "receive",
        "shared",
        "list",
        "keys",
        "unsignaled",
        "register",
    ] {
        is_clean("post-poll", &["100", "1", work]);
    }
}

#[test]
fn registrations_of_newer_libibverbs_are_passed_on() {
    assert_eq!(is_clean("newer", &[]).stdout, "9 calls\n");
}
