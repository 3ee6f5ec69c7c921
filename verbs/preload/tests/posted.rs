//! Deregisters registrations while work with their keys is outstanding. tests/c/posted.c has the
//! parts.
//!
//! Each part runs without the shim and with it. The work completes in the same way, and no byte of
//! the memory's next owner is overwritten or sent.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use preload::{Summary, assert_adds_up, bounded, program, run, under_shim};

/// Runs a part without the shim and with it, and compares the two. Returns the shim's summary.
fn is_the_same(part: &str) -> Summary {
    let without = run(bounded(program("posted")).arg(part)).ok();
    let mut with = run(under_shim(program("posted")).arg(part)).ok();
    assert_eq!(without.stdout, with.stdout);
    with.summary();
    assert_adds_up(&with.summaries);
    let summary = with.summaries.remove(0);
    assert_eq!(summary.number("unseen"), 0, "{summary:?}");
    println!("{}", without.stdout);
    summary
}

/// Checks how many deregistrations of a part kept the registration, and how many ended it because
/// of outstanding work.
fn gives_back(part: &str, kept: u64, outstanding: u64) {
    let summary = is_the_same(part);
    let numbers = ["kept", "outstanding"].map(|name| summary.number(name));
    assert_eq!(numbers, [kept, outstanding], "{summary:?}");
}

macro_rules! parts {
    ($($test:ident: $part:literal, $kept:literal, $outstanding:literal;)*) => {
        $(
            #[test]
            fn $test() {
                gives_back($part, $kept, $outstanding);
            }
        )*
    };
}

parts! {
    a_receive_is_posted: "receive", 0, 1;
    a_receive_is_posted_to_a_shared_queue: "shared-receive", 0, 1;
    a_receive_is_posted_and_the_rest_is_extended: "extended-receive", 0, 1;
    one_receive_of_a_shared_queue_has_completed: "shared", 0, 1;
    the_queue_pair_goes_before_the_registration_and_after_it: "teardown", 2, 1;
    a_read_is_not_answered: "read", 0, 1;
    an_extended_read_is_not_answered: "extended-read", 0, 1;
    a_send_waits_behind_a_read: "behind", 0, 1;
    a_send_waits_behind_an_unsignaled_read: "behind-unsignaled", 0, 1;
    an_extended_send_waits_behind_a_read: "extended-behind", 0, 1;
    a_completion_vouches_for_unsignaled_work_before_it_only: "unsignaled", 5, 1;
    inline_data_needs_no_key: "inline", 2, 0;
    a_queue_pair_is_reset: "reset", 1, 1;
    completions_of_before_a_reset_come_late: "stale", 0, 1;
    another_thread_polls: "polled", 1, 1;
    the_device_refuses_a_part_of_a_list: "refused", 1, 2;
    a_receive_is_posted_with_a_key_that_is_gone: "late-receive", 1, 0;
    a_shared_receive_is_posted_with_a_key_that_is_gone: "shared-late-receive", 1, 0;
    a_send_is_posted_with_a_key_that_is_gone: "late-send", 1, 0;
    an_extended_send_is_posted_with_a_key_that_is_gone: "extended-late-send", 1, 0;
    a_receive_is_posted_with_a_used_key_that_is_gone: "used-late-receive", 1, 0;
    a_shared_receive_is_posted_with_a_used_key_that_is_gone: "used-shared-late-receive", 1, 0;
    a_send_is_posted_with_a_used_key_that_is_gone: "used-late-send", 1, 0;
    queue_pairs_come_and_go_while_the_queue_is_polled: "inside", 2, 0;
    a_registration_is_not_changed_where_the_device_cannot: "moved", 1, 0;
}

/// The cache keeps a registration whose work has completed, as it does in a program that awaits
/// each transfer.
#[test]
fn registrations_around_each_transfer_are_made_once() {
    for part in ["awaits", "shared-awaits", "extended-awaits"] {
        let summary = is_the_same(part);
        assert_eq!(summary.number("made"), 2, "{part}: {summary:?}");
        assert_eq!(summary.number("kept"), 200, "{part}: {summary:?}");
    }
}

#[test]
fn what_is_given_back_too_early_is_reported_if_that_is_wanted() {
    let reports = |part: &str| {
        let mut command = under_shim(program("posted"));
        let ran = run(command.arg(part).env("REGCACHE_DEBUG_OUTSTANDING", "1")).ok();
        ran.stderr.matches("has not completed").count()
    };
    assert_eq!(reports("receive"), 1);
    assert_eq!(reports("awaits"), 0);
}

/// Two processes deregister at random moments. `stress REQUESTS SEED SECONDS` runs longer.
#[test]
fn nothing_is_wrong_at_random_moments() {
    let ran = run(under_shim(program("stress")).args(["30000", "3", "150"])).ok();
    let ends: Vec<_> = ran.stdout.lines().map(Summary::of).collect();
    let said = |name: &str| ends.iter().map(|it| it.number(name)).sum::<u64>();
    assert_eq!(said("wrong"), 0, "{}", ran.stdout);
    assert!(said("early") > 50, "{}", ran.stdout);
    let counted = |name: &str| ran.summaries.iter().map(|it| it.number(name)).sum::<u64>();
    assert_eq!(ran.summaries.len(), 2);
    println!("{}{:?}", ran.stdout, ran.summaries);
    assert!(counted("outstanding") > 30, "{:?}", ran.summaries);
    // Nearly all registrations are kept, since few rounds are rude.
    assert!(
        10 * counted("hits") > 7 * counted("asked"),
        "{:?}",
        ran.summaries
    );
}
