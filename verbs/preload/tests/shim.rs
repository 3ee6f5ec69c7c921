//! Tests the behaviour that programs see under the shim, on a real device. tests/c/contract.c
//! describes the behaviour part by part.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use preload::{Ran, bounded, preloading, program, run, shim, under_shim};
use regcache_test_support::SecondDevice;

/// Runs one part of the contract under the shim.
fn part(arguments: &[&str]) -> Ran {
    run(under_shim(program("contract")).args(arguments)).ok()
}

#[test]
fn each_registration_is_an_mr_of_its_own_and_is_given_back_once() {
    let ran = part(&["distinct"]);
    let summary = ran.summary();
    // While contract.c holds the `ibv_mr` named `whole`, it makes 100 others of the same memory.
    // Each needs a key of its own, so the shim passes these calls on and counts them as `in_use`.
    // After contract.c has deregistered `whole`, 100 calls reuse its registration. Each of the 102
    // transfers makes an `ibv_mr` with remote access, and the shim passes that call on.
    assert_eq!(summary.number("made"), 1, "{summary:?}");
    assert_eq!(summary.number("cached"), 101, "{summary:?}");
    assert_eq!(summary.number("kept"), 101, "{summary:?}");
    assert_eq!(summary.number("in_use"), 100, "{summary:?}");
    assert_eq!(summary.number("remote"), 102, "{summary:?}");
    assert_eq!(
        ran.stderr.matches("it was deregistered before").count(),
        100
    );
}

#[test]
fn memory_that_changed_is_registered_again() {
    let ran = part(&["fresh", "50"]);
    let summary = ran.summary();
    // In each round the cache makes two registrations: one of all the memory, and one of a page
    // after the memory has changed. The call between these two counts as `in_use`, because the
    // program holds the registration of all the memory.
    assert_eq!(summary.number("made"), 100, "{summary:?}");
    assert_eq!(summary.number("in_use"), 50, "{summary:?}");
}

#[test]
fn a_peer_that_holds_an_rkey_after_dereg_mr_is_refused() {
    let ran = part(&["revoked", "0"]);
    assert_eq!(ran.summary().number("remote"), 2);
}

/// Without the shim the device refuses a peer that uses the rkey after the deregistration. With
/// `REGCACHE_REMOTE=keep` the device serves that peer.
#[test]
fn a_peer_is_refused_without_the_shim_and_served_if_keys_are_to_be_kept() {
    run(bounded(program("contract")).args(["revoked", "0"])).ok();
    let mut command = under_shim(program("contract"));
    let ran = run(command
        .args(["revoked", "1"])
        .env("REGCACHE_REMOTE", "keep"))
    .ok();
    let summary = ran.summary();
    assert_eq!(summary.number("remote"), 0, "{summary:?}");
    // The program twice holds two registrations at once, and each time only one of the two is
    // cached.
    assert_eq!(summary.number("cached"), 2, "{summary:?}");
    assert_eq!(summary.number("in_use"), 2, "{summary:?}");
}

#[test]
fn a_program_can_tell_no_difference() {
    let without = run(bounded(program("contract")).arg("observe")).ok();
    let with = part(&["observe"]);
    assert!(without.stdout.lines().count() > 150, "{}", without.stdout);
    let pairs = without.stdout.lines().zip(with.stdout.lines());
    let different: Vec<_> = pairs.filter(|(without, with)| without != with).collect();
    assert!(different.is_empty(), "{different:#?}");
    assert_eq!(without.stdout, with.stdout);
    let summary = with.summary();
    for reason in ["remote", "flags", "iova"] {
        assert!(summary.number(reason) > 0, "{reason}: {summary:?}");
    }
    assert!(summary.number("hits") > 0, "{summary:?}");
}

#[test]
fn domains_and_devices_go_when_the_program_holds_nothing_in_them() {
    let ran = part(&["domains"]);
    assert_eq!(ran.summary().number("made"), 45);
    part(&["late"]);
}

#[test]
fn several_devices_have_a_cache_each() {
    let _second = SecondDevice::add();
    let ran = part(&["devices", SecondDevice::NAME]);
    let summary = ran.summary();
    assert_eq!(summary.number("made"), 2, "{summary:?}");
    assert_eq!(summary.number("hits"), 38, "{summary:?}");
}

#[test]
fn threads_share_registrations_while_memory_comes_and_goes() {
    let ran = part(&["threads"]);
    let summary = ran.summary();
    assert_eq!(summary.number("asked"), 1600, "{summary:?}");
    // Two threads that hold an `ibv_mr` of the same memory at once do not share a registration. So
    // one of the two calls counts as `in_use`.
    let (cached, in_use) = (summary.number("cached"), summary.number("in_use"));
    assert_eq!(cached + in_use, 1600, "{summary:?}");
    // In the set of idle keys, several keys share each place, and a place holds one key at a time.
    // So the shim may deregister a few idle registrations, and counts them as `ended`.
    let (kept, ended) = (summary.number("kept"), summary.number("ended"));
    assert_eq!(kept + ended, cached, "{summary:?}");
    assert!(ended < 20, "{summary:?}");
}

#[test]
fn children_start_with_nothing_and_leave_the_parents_registrations_alone() {
    let ran = part(&["forks"]);
    // Twenty children end by _exit, which runs no exit function, so they print no summary. The
    // child that executed another program prints that program's.
    let programs: Vec<_> = ran.summaries.iter().map(|it| it.text("program")).collect();
    assert_eq!(programs, ["contract", "contract"], "{:?}", ran.summaries);
}

#[test]
fn what_the_device_cannot_change_stays_as_it_is() {
    let without = run(bounded(program("contract")).arg("rereg")).ok();
    let with = part(&["rereg"]);
    assert_eq!(without.stdout, with.stdout);
    // The only kept registration is the one that `ibv_rereg_mr` was tried on. The registrations
    // with remote access are not cached.
    assert_eq!(with.summary().number("kept"), 1);
}

#[test]
fn what_is_cached_does_not_count_against_the_program() {
    // Root may exceed the limit, so the program runs without that capability.
    let mut command = preloading(&[shim()], "setpriv");
    command
        .arg("--bounding-set=-ipc_lock")
        .arg(program("contract"));
    let ran = run(command.arg("limit")).ok();
    assert_eq!(ran.summary().number("refused"), 1);
}

#[test]
fn programs_that_load_libibverbs_themselves_are_reached() {
    for how in ["dlsym", "dlvsym"] {
        let ran = run(under_shim(program("dlopened")).arg(how)).ok();
        let summary = ran.summary();
        assert_eq!(summary.number("asked"), 100, "{how}: {summary:?}");
        assert_eq!(summary.number("made"), 1, "{how}: {summary:?}");
        assert_eq!(summary.number("hits"), 99, "{how}: {summary:?}");
    }
}

#[test]
fn constructors_and_destructors_are_served() {
    let early = program("libearly.so");
    for libraries in [[shim(), early.clone()], [early, shim()]] {
        let ran = run(&mut preloading(&libraries, "true")).ok();
        let stderr = &ran.stderr;
        assert!(stderr.contains("early and late"), "{stderr}");
        let summary = ran.summaries.iter().find(|it| it.text("program") == "true");
        let made = summary.map(|it| it.number("made"));
        assert_eq!(made, Some(1), "{:?}\n{stderr}", ran.summaries);
    }
}

#[test]
fn a_wrong_value_is_refused_in_words_and_nothing_is_cached() {
    let mut command = under_shim(program("contract"));
    let ran = run(command.args(["fresh", "2"]).env("REGCACHE_REMOTE", "kept")).ok();
    let stderr = &ran.stderr;
    let said =
        "regcache: REGCACHE_REMOTE=kept is refused, it must be revoke or keep: nothing is cached\n";
    assert_eq!(stderr, said);
    // An invalid value turns the summary off too, because its destination is unknown.
    assert!(ran.summaries.is_empty(), "{:?}", ran.summaries);
}

#[test]
fn without_a_monitor_all_is_passed_on_and_the_reason_is_told_once() {
    let hidden = "mount --bind /dev/null /dev/ummunotify && exec \"$0\" \"$@\"";
    let mut command = bounded("unshare");
    command.args(["-m", "sh", "-c", hidden, "env"]);
    command.arg(format!("LD_PRELOAD={}", shim().display()));
    let ran = run(command.arg(program("contract")).arg("threads")).ok();
    let stderr = &ran.stderr;
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.starts_with("regcache: registrations are not cached: "),
        "{stderr}"
    );
    assert!(stderr.contains("/dev/ummunotify"), "{stderr}");
    assert_eq!(ran.summary().number("off"), 1600);
}

#[test]
fn the_monitor_can_be_chosen() {
    let with = |monitor: &str| {
        let mut command = under_shim(program("dlopened"));
        run(command.arg("dlsym").env("REGCACHE_MONITOR", monitor)).ok()
    };
    let ran = with("auto");
    assert_eq!(ran.summary().text("monitor"), "ummunotify");
    assert_eq!(ran.summary().number("hits"), 99);
    // The monitor is userfaultfd if the kernel's userfaultfd reports enough changes (Linux 6.7 and
    // later). On older kernels there is no monitor.
    let ran = with("userfaultfd");
    let (summary, stderr) = (ran.summary(), &ran.stderr);
    match summary.text("monitor") {
        "userfaultfd" => assert_eq!((summary.number("hits"), stderr.as_str()), (99, "")),
        "none" => {
            assert_eq!(summary.number("off"), 100);
            assert!(stderr.contains("userfaultfd"), "{stderr}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn it_can_be_switched_off() {
    let mut command = under_shim(program("contract"));
    let ran = run(command.arg("threads").env("REGCACHE_PRELOAD", "off")).ok();
    assert_eq!(ran.summary().number("off"), 1600);
    assert_eq!(ran.stderr, "");
}

#[test]
fn limits_are_kept() {
    let mut command = under_shim(program("contract"));
    let ran = run(command.arg("domains").env("REGCACHE_MAX_ENTRIES", "0")).ok();
    assert_eq!(ran.summary().number("hits"), 0);
    let mut command = under_shim(program("dlopened"));
    let ran = run(command.arg("dlsym").env("REGCACHE_MAX_BYTES", "32K")).ok();
    // The program registers two ranges alternately. The larger one exceeds REGCACHE_MAX_BYTES, so
    // only the smaller one is cached.
    assert_eq!(ran.summary().number("hits"), 49);
}

/// memcheck finds no error and no lost memory. Memory that is held only by a pointer to its middle
/// counts as possibly lost. Rust's `Arc`s, hash tables and libibverbs's contexts are held that way,
/// so the test ignores possibly lost memory.
#[test]
fn valgrind_finds_nothing() {
    let mut command = preloading(&[shim()], "valgrind");
    command.args(["--leak-check=full", "--error-exitcode=99"]);
    command.arg("--errors-for-leak-kinds=definite,indirect");
    command.arg("--show-leak-kinds=definite,indirect");
    // Reading inlined functions for stack traces would take a minute.
    command.arg("--read-inline-info=no");
    let ran = run(command.arg(program("contract")).arg("memory")).ok();
    let stderr = &ran.stderr;
    assert!(stderr.contains("ERROR SUMMARY: 0 errors"), "{stderr}");
    // The shim was active, so valgrind has checked its code.
    assert!(ran.summary().number("made") > 0);
}
