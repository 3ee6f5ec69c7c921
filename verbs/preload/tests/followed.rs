//! Checks which devices the shim follows. The devices are fakes from tests/c, because the shim
//! recognizes a device by the name of its library.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use preload::{Ran, bounded, on_fake_device, run, shim, under_shim};

/// Posts twenty times on a fake device of that driver, with a new registration for each post.
fn posts(driver: &str, suite: &str, needs: Option<&str>, looks_up: Option<&str>) -> Ran {
    let program = on_fake_device("post-poll", driver, suite, needs);
    run(under_shim(program)
        .args(["20", "1", "register"])
        .args(looks_up))
    .ok()
}

fn is_not_cached(ran: &Ran, why: &str) {
    let summary = ran.summary();
    assert_eq!(summary.number("asked"), 24, "{summary:?}");
    assert_eq!(summary.number("unseen"), 24, "{summary:?}");
    let said = ran
        .stderr
        .matches("registrations end with ibv_dereg_mr")
        .count();
    assert_eq!(said, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(why), "{}", ran.stderr);
}

#[test]
fn known_devices_are_followed() {
    for driver in ["rxe", "mlx5"] {
        let ran = posts(driver, "known", None, None);
        let summary = ran.summary();
        assert_eq!(summary.number("unseen"), 0, "{driver}: {summary:?}");
        // If there is a monitor, the calls are cached. If there is none, the shim passes the calls
        // on to libibverbs, and the summary counts the calls as `off`.
        let (cached, off) = (summary.number("cached"), summary.number("off"));
        assert_eq!(cached + off, 24, "{driver}: {summary:?}");
        assert_eq!(summary.number("kept"), cached, "{driver}: {summary:?}");
    }
}

#[test]
fn unknown_devices_are_not_cached() {
    is_not_cached(
        &posts("efa", "unknown", None, None),
        "is not known to the shim",
    );
}

#[test]
fn devices_that_a_program_is_linked_with_are_not_cached() {
    let ran = posts("mlx5", "linked", Some("libmlx5.so.1"), None);
    is_not_cached(&ran, "directly");
    // The device is rxe, so linking with the library of mlx5 does not matter.
    let ran = posts("rxe", "linked", Some("libmlx5.so.1"), None);
    assert_eq!(ran.summary().number("unseen"), 0);
}

#[test]
fn devices_whose_functions_a_program_looks_up_are_not_cached() {
    let ran = posts("mlx5", "looked-up", None, Some("mlx5dv_init_obj"));
    is_not_cached(&ran, "directly");
}

/// The program's data file has the number 2 before the shim has anything to print. The shim was
/// loaded before.
#[test]
fn notices_do_not_go_into_a_file_of_the_program() {
    let program = on_fake_device("post-poll", "rxe", "reopens", None);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (library, data) = (directory.join("libreopens.so"), directory.join("reopens"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/reopens.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"]);
    assert!(gcc.arg(&library).arg(source).status().unwrap().success());
    // The loader calls the constructor of the library that it loaded first last.
    let preload = format!("LD_PRELOAD={}:{}", library.display(), shim().display());
    let mut command = bounded("env");
    command.arg(preload).arg(format!("DATA={}", data.display()));
    command.args(["REGCACHE_SUMMARY=1", "REGCACHE_MONITOR=nonsense"]);
    command.arg(program).args(["20", "1", "register"]);
    let ran = command.stdin(Stdio::null()).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(fs::read_to_string(&data).unwrap(), "record\n");
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
}
