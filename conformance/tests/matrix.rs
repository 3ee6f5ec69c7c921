//! The scenarios on io_uring: with userfaultfd no old page is ever read, with a naive cache they are.
//!
//! One test, so that nobody else is given the addresses.
#![expect(clippy::unwrap_used, reason = "a test")]

use regcache::monitor::{Monitor, Userfaultfd};
use regcache_conformance::remap::{WAYS, Way};
use regcache_conformance::{NeverReports, Outcome, Uring, reuse, scenarios};

fn play<M: Monitor>(monitor: M, way: &Way) -> Option<Outcome> {
    match reuse(&Uring::new(monitor).unwrap(), way) {
        Ok(outcome) => Some(outcome),
        Err(error) if error.to_string() == "unsupported" => None,
        Err(error) => panic!("{}: {error}", way.name),
    }
}

#[test]
#[cfg_attr(
    sanitizer = "address",
    ignore = "of libc's malloc, which is the sanitizer's then"
)]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "ThreadSanitizer stops at a clone that shares the memory"
)]
fn no_scenario_is_stale_with_userfaultfd_and_those_that_replace_pages_are_with_a_naive_cache() {
    for way in WAYS {
        // malloc may keep the memory.
        if way.name != "free_then_malloc" {
            assert_eq!(
                play(NeverReports, way),
                Some(Outcome::Stale),
                "{}",
                way.name
            );
        }
    }
    let mut kept = 0;
    for way in scenarios() {
        let monitor = match Userfaultfd::open() {
            Ok(monitor) => monitor,
            Err(error) => {
                eprintln!("not tested here: {error}");
                return;
            }
        };
        let outcome = play(monitor, way);
        // What the monitor says that it does not see: if this fails one day, it does.
        let is_known = way.name == "guard_pages_there_and_back" && outcome.is_some();
        assert_eq!(outcome == Some(Outcome::Stale), is_known, "{}", way.name);
        kept += u32::from(outcome == Some(Outcome::Fresh));
    }
    assert!(kept >= 10, "only {kept} scenarios had anything cached");
}
