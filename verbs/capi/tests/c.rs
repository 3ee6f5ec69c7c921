//! Runs C programs that use the installed C library, first directly and then under valgrind.
//! valgrind must find no error and no leak.
//!
//! The device is implemented by callbacks, and the monitor is the best available one. Under
//! valgrind there is no monitor, because valgrind does not support userfaultfd. The suite `rxe`
//! tests the driver.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod site;

use std::process::Command;
use std::sync::LazyLock;

use regcache_test_support::fake_driver;

use site::{Site, clean_under_valgrind, succeeds};

static SITE: LazyLock<Site> = LazyLock::new(|| Site::install("c"));

fn runs(source: &str, arguments: &[&str], fewer: &[&str]) {
    let shared = SITE.program(source);
    let said = succeeds(Command::new(&shared).args(arguments));
    assert!(said.contains(&format!("{source}: ok")), "{said}");
    let said = clean_under_valgrind(&shared, fewer);
    assert!(said.contains(&format!("{source}: ok")), "{said}");
}

/// Runs a program with the replaced driver. Then its hits go the short way through the library.
fn runs_with_driver(source: &str, arguments: &[&str]) {
    let mut program = Command::new(SITE.program(source));
    let said = succeeds(program.args(arguments).env("LD_PRELOAD", fake_driver()));
    assert!(said.contains(&format!("{source}: ok")), "{said}");
}

#[test]
fn hits_go_the_short_way_with_all_checks() {
    runs_with_driver("at_once", &[]);
}

#[test]
fn with_the_short_way_bad_input_is_an_errno_as_well() {
    runs_with_driver("bad_input", &[]);
}

#[test]
fn with_the_short_way_guards_are_put_once_and_no_cache_is_used_that_is_gone() {
    runs_with_driver("threads", &["20000"]);
}

#[test]
fn with_the_short_way_forked_children_are_refused_as_well() {
    runs_with_driver("forks", &[]);
}

#[test]
fn with_the_short_way_endings_leave_nothing_behind_either() {
    runs_with_driver("endings", &["200"]);
}

#[test]
fn bad_input_is_an_errno_and_a_message() {
    runs("bad_input", &[], &[]);
}

#[test]
fn a_device_of_callbacks_is_served() {
    runs("device", &[], &[]);
}

#[test]
fn lookups_search_or_do_not_retain_and_limits_hold() {
    runs("limits", &[], &[]);
}

#[test]
fn threads_put_each_guard_once_and_none_uses_a_cache_that_is_gone() {
    runs("threads", &["20000"], &["256"]);
}

#[test]
fn forked_children_are_refused_and_have_caches_of_their_own() {
    runs("forks", &[], &[]);
}

#[test]
fn threads_that_are_cancelled_and_signals_leave_nothing_behind() {
    runs("endings", &["200"], &["20"]);
}

/// This program closes descriptors that valgrind uses, so it does not run under valgrind.
#[test]
fn a_program_that_closes_all_descriptors_has_its_own_to_itself() {
    let said = succeeds(&mut Command::new(SITE.program("descriptors")));
    assert!(said.contains("descriptors: ok"), "{said}");
}

#[test]
fn the_static_library_does_as_well() {
    let program = SITE.program("static");
    let needed = succeeds(Command::new("readelf").arg("-d").arg(&program));
    assert!(!needed.contains("libregcache"), "{needed}");
    succeeds(&mut Command::new(program));
}

#[test]
fn exported_is_what_is_declared_under_a_version_and_nothing_else() {
    let library = SITE.file("lib/libregcache.so");
    let dynamic = succeeds(Command::new("readelf").arg("-dW").arg(&library));
    assert!(dynamic.contains("soname: [libregcache.so.0]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    assert!(!dynamic.contains("librdmacm"), "{dynamic}");
    let symbols = succeeds(
        Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(&library),
    );
    let mut names: Vec<_> = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| *name != "REGCACHE_0.1")
        .collect();
    names.sort_unstable();
    let map = include_str!("../regcache.map");
    let mut expected: Vec<_> = map
        .lines()
        .filter_map(|line| line.trim().strip_suffix(';'))
        .filter(|name| name.starts_with("regcache_"))
        .map(|name| format!("{name}@@REGCACHE_0.1"))
        .collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn the_manual_page_has_no_mistakes_in_it() {
    let page = SITE.file("share/man/man3/regcache.3");
    let mut groff = Command::new("groff");
    groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(page);
    let said = groff.output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said, "");
}
