//! libregcache-ucx.so under UCX's registration cache, with the driver.
//!
//! `tests/c/traps.c` uses the cache as UCX's transports do. Each of its tests fails with UCX's own
//! monitor, or is a situation that this library must survive.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regcache_test_support::{built_library, ld_preload};

const PROGRAMS: &str = env!("PROGRAMS");

/// Returns the value of `LD_PRELOAD` that loads this library, and then the others.
fn preloading(others: &[PathBuf]) -> OsString {
    let library = built_library("libregcache_ucx.so").unwrap();
    ld_preload(&[&[library], others].concat())
}

/// Returns the argument of `env` that loads this library, and then the others.
fn setting(others: &[PathBuf]) -> OsString {
    let mut setting = OsString::from("LD_PRELOAD=");
    setting.push(preloading(others));
    setting
}

/// Returns the command that runs a test of `traps.c`, for at most a minute.
fn traps(test: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", "env"]);
    command.arg(setting(&[]));
    command.arg(Path::new(PROGRAMS).join("runner"));
    command.arg(Path::new(PROGRAMS).join("libtraps.so"));
    command.arg(test);
    command
}

/// Runs the command. Returns what it wrote to stderr.
fn passes(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{said}");
    said
}

macro_rules! traps {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                assert_eq!(passes(&mut traps(stringify!($name))), "");
            }
        )*
    };
}

traps! {
    unchanged_memory_is_registered_once
    changed_memory_is_registered_again
    a_change_before_the_registration_costs_no_correctness
    a_change_right_after_the_registration_is_seen
    a_region_in_use_is_not_found_after_a_change
    each_cache_sees_a_change_of_shared_memory
    a_failed_registration_is_reported_and_may_be_repeated
    memory_that_cannot_be_watched_is_registered_for_each_lookup
    evicted_regions_are_no_longer_watched
    parts_and_sizes_are_served
    a_forked_child_has_caches_of_its_own
    a_fork_while_other_threads_look_up_does_not_hang
    threads_and_caches_find_no_stale_registration
    exit_with_a_cache_open
}

/// Without this library, UCX returns stale registrations. So the tests above test something.
#[test]
fn ucx_alone_returns_stale_registrations() {
    let mut command = Command::new(Path::new(PROGRAMS).join("runner"));
    command.arg(Path::new(PROGRAMS).join("libtraps.so"));
    let output = command.arg("changed_memory_is_registered_again").output();
    let said = output.unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("lookup(&device, memory) is false"), "{said}");
}

#[test]
fn caches_beyond_the_limit_keep_ucxs_monitor_with_one_notice() {
    let said = passes(&mut traps("more_caches_than_there_is_room_for_work"));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("too many caches"), "{said}");
}

/// Runs a test of `traps.c` that UCX's own monitor passes, after a command of the shell. Checks
/// that the library says once why it does nothing.
fn stands_back(prepare: &str, run: &str, expected: &str) {
    let mut traps = traps("works");
    traps.env("REGCACHE_SUMMARY", "1");
    let mut words = vec![traps.get_program().to_owned()];
    words.extend(traps.get_args().map(ToOwned::to_owned));
    let script = format!("{prepare}\nexec {run} \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &script, "sh"]);
    command.args(words);
    let said = passes(&mut command);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(expected), "{said}");
    assert!(said.contains("UCX keeps its own monitor"), "{said}");
}

#[test]
fn without_the_driver_ucx_keeps_its_own_monitor() {
    stands_back(
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3",
        "",
        "modprobe ummunotify",
    );
}

#[test]
fn without_permission_ucx_keeps_its_own_monitor() {
    stands_back(
        "mknod -m 600 /tmp/ummunotify c 1 3; mount --bind /tmp/ummunotify /dev/ummunotify; rm /tmp/ummunotify",
        "setpriv --reuid=65534 --clear-groups",
        "no permission",
    );
}

#[test]
fn another_device_in_the_drivers_place_is_noticed() {
    stands_back(
        "mount --bind /dev/null /dev/ummunotify",
        "",
        "not the ummunotify driver",
    );
}

#[test]
fn an_unknown_version_of_ucx_is_left_alone() {
    let said = passes(&mut with_unknown_version("works"));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("UCX 1.99.7 is unknown"), "{said}");
    assert!(said.contains("UCX_RCACHE_ENABLE=n"), "{said}");
}

/// Returns the command that runs a test with a libucp of an unknown version.
fn with_unknown_version(test: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", "env"]);
    let unknown = Path::new(PROGRAMS).join("libunknown.so");
    command.arg(setting(&[unknown]));
    command.arg(Path::new(PROGRAMS).join("runner"));
    command.arg(Path::new(PROGRAMS).join("libtraps.so"));
    command.arg(test);
    command
}

/// A program that does not use UCX runs as before.
#[test]
fn a_program_without_ucx_is_left_alone() {
    let mut command = Command::new("true");
    command.env("LD_PRELOAD", preloading(&[]));
    command.env("REGCACHE_SUMMARY", "1");
    assert_eq!(passes(&mut command), "");
}

#[test]
fn the_summary_counts_lookups_and_registrations() {
    let mut command = traps("changed_memory_is_registered_again");
    command.env("REGCACHE_SUMMARY", "1");
    let said = passes(&mut command);
    for count in [
        "caches=1",
        "closed=99",
        "reported=99",
        "registered=100",
        "refused=0",
    ] {
        assert!(said.contains(count), "{count}: {said}");
    }
}
