//! Runs the C programs of the suite `c` under the sanitizer that this test is built with. The
//! programs and the library are built with the sanitizer, too. `cargo xtask sanitize` runs this
//! suite.
//!
//! The programs are linked with the static library and with the compiler's own runtime of the
//! sanitizer, which also serves the code of the library.
#![cfg(any(sanitizer = "address", sanitizer = "thread"))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod site;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use site::{newest_library, succeeds};

const SANITIZER: &str = if cfg!(sanitizer = "address") {
    "address"
} else {
    "thread"
};

/// Compiles the program with the sanitizer. Returns the command that runs the program.
fn program(source: &str) -> Command {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sanitized");
    fs::create_dir_all(&out).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-g", "-O1", "-pthread", "-Wall", "-Wextra"]);
    gcc.arg(format!("-fsanitize={SANITIZER}"));
    gcc.arg(concat!(
        "-DREGCACHE_VERSION_EXPECTED=\"",
        env!("CARGO_PKG_VERSION"),
        "\""
    ));
    gcc.arg("-I").arg(here);
    gcc.arg("-o").arg(out.join(source));
    gcc.arg(here.join(format!("tests/c/{source}.c")));
    if SANITIZER == "thread" {
        gcc.arg(here.join("tests/sanitized/thread.c"));
    }
    gcc.arg(newest_library());
    succeeds(gcc.args(["-libverbs", "-lrdmacm", "-lgcc_s", "-ldl", "-lm"]));
    Command::new(out.join(source))
}

/// Runs the program, which exits with an error if the sanitizer reports anything.
fn is_clean(source: &str, arguments: &[&str]) {
    let said = succeeds(program(source).args(arguments));
    assert!(said.contains(&format!("{source}: ok")), "{said}");
}

/// If the library were not built with the sanitizer, the other tests would check only the programs.
#[test]
fn the_library_calls_the_sanitizer() {
    let symbols = succeeds(Command::new("nm").arg(newest_library()));
    let check = if SANITIZER == "address" {
        "U __asan_report_load8"
    } else {
        "U __tsan_read8"
    };
    assert!(symbols.contains(check));
}

#[test]
fn bad_input_is_an_errno_and_a_message() {
    is_clean("bad_input", &[]);
}

#[test]
fn a_device_of_callbacks_is_served() {
    is_clean("device", &[]);
}

#[test]
fn lookups_search_or_do_not_retain_and_limits_hold() {
    is_clean("limits", &[]);
}

#[test]
fn threads_put_each_guard_once_and_none_uses_a_cache_that_is_gone() {
    is_clean("threads", &["20000"]);
}

#[test]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "in the child, a new thread can have the number of a thread of the parent, at which \
              the runtime of ThreadSanitizer ends the process"
)]
fn forked_children_are_refused_and_have_caches_of_their_own() {
    is_clean("forks", &[]);
}

/// The frames of a cancelled thread stay marked on its stack. So at the end of such a thread, the
/// runtime of AddressSanitizer reports its own access for the alternate stack of signals. It does
/// so for every program that cancels threads.
#[test]
fn threads_that_are_cancelled_and_signals_leave_nothing_behind() {
    let mut options = env::var_os("ASAN_OPTIONS").unwrap_or_default();
    options.push(OsString::from(":use_sigaltstack=0"));
    let said = succeeds(program("endings").arg("200").env("ASAN_OPTIONS", options));
    assert!(said.contains("endings: ok"), "{said}");
}

#[test]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "ThreadSanitizer takes each use of a descriptor after its number was given to another \
              file for a race, and the library does this to find out that its descriptor is gone"
)]
fn a_program_that_closes_all_descriptors_has_its_own_to_itself() {
    is_clean("descriptors", &[]);
}
