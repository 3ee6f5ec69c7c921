//! The watches below the caches of a fake libfabric.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod fake;

use std::sync::atomic::Ordering;

use fake::{FakeLibfabric, FakeMonitor};
use regcache::VaRange;
use regcache_fi::watches::{Ends, IDLE, Note, Refused, SUBSCRIBED, Watches};

const BOTH: [Ends; 2] = [Ends::Unsubscribed, Ends::Unsaid];

fn range(number: usize) -> VaRange {
    let address = std::ptr::without_provenance(0x10000 * (number + 1));
    VaRange::new(address, 0x1000).unwrap()
}

/// Registers until the range is cached.
fn cache(libfabric: &mut FakeLibfabric, domain: usize, range: VaRange, note: &mut Note) {
    for _ in 0..3 {
        assert!(libfabric.register(domain, range, note));
        if libfabric.is_cached(domain, range) {
            return;
        }
    }
    panic!("{range:?} is not cached");
}

#[test]
fn the_second_registration_of_a_range_is_cached_without_ibv_reg_mr() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        for _ in 0..10 {
            assert!(libfabric.register(0, range(0), &mut note));
        }
        assert_eq!(libfabric.registrations, 2);
    }
}

#[test]
fn the_first_registration_of_a_range_is_cached_if_it_began_with_a_watch() {
    let mut libfabric = FakeLibfabric::new(Ends::Unsaid);
    let mut note = Note::NONE;
    for _ in 0..10 {
        libfabric.watches.begin(range(0), &mut note);
        assert!(libfabric.register(0, range(0), &mut note));
    }
    assert_eq!(libfabric.registrations, 1);
}

#[test]
fn a_change_between_registration_and_subscription_is_not_cached() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        for round in 0..10 {
            if round % 2 == 0 {
                libfabric.watches.begin(range(0), &mut note);
            }
            libfabric.register_while(0, range(0), &mut note, |it| it.change(range(0)));
            assert!(!libfabric.is_cached(0, range(0)), "round {round}");
            assert!(libfabric.register(0, range(0), &mut note));
            libfabric.change(range(0));
        }
    }
}

/// The prototype of this protocol noted a report for all threads. Then the subscription that came
/// second was accepted, although its registration began before the change.
#[test]
fn a_change_during_two_registrations_of_one_range_is_cached_by_neither() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let (mut here, mut there) = (Note::NONE, Note::NONE);
        // Both threads know the range.
        libfabric.register(0, range(0), &mut here);
        libfabric.register(1, range(0), &mut there);
        libfabric.register_while(0, range(0), &mut here, |it| {
            it.register_while(1, range(0), &mut there, |it| it.change(range(0)));
        });
        assert!(!libfabric.is_cached(0, range(0)));
        assert!(!libfabric.is_cached(1, range(0)));
        // Without the change, both would be cached.
        libfabric.register(0, range(0), &mut here);
        assert!(libfabric.is_cached(0, range(0)));
    }
}

/// Trap 1: the drain for one range reads the report of another.
#[test]
fn a_report_that_another_lookup_has_read_is_not_forgotten() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        cache(&mut libfabric, 0, range(0), &mut note);
        cache(&mut libfabric, 0, range(1), &mut note);
        libfabric.change(range(1));
        assert!(libfabric.register(0, range(0), &mut note));
        assert!(libfabric.register(0, range(1), &mut note), "stale");
    }
}

/// Trap 2: no call names the domain.
#[test]
fn the_fresh_registration_of_one_domain_does_not_vouch_for_the_stale_one_of_another() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        for domain in 0..2 {
            cache(&mut libfabric, domain, range(0), &mut note);
        }
        libfabric.change(range(0));
        for _ in 0..3 {
            assert!(libfabric.register(0, range(0), &mut note));
        }
        assert!(libfabric.register(1, range(0), &mut note), "stale");
        // Both domains cache the range again, once the stale registration has gone.
        for domain in 0..2 {
            cache(&mut libfabric, domain, range(0), &mut note);
        }
    }
}

/// Trap 3: releases before 2.1 never unsubscribe. If a refused subscription counted there, or an
/// answer of false did not, the range would stay uncached.
#[test]
fn a_range_is_cached_again_after_each_change_without_a_notification() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        for _ in 0..20 {
            cache(&mut libfabric, 0, range(0), &mut note);
            libfabric.change(range(0));
        }
        // One registration begins without a watch. After each change, the lookup that finds the
        // change takes a note, so the next registration is cached.
        assert_eq!(libfabric.registrations, 21);
        let (subscribed, _) = libfabric.watches.counts();
        assert_eq!(subscribed, 1);
    }
}

/// Trap 3, from the other side: releases since 2.1 unsubscribe, so an answer of false must not
/// count.
#[test]
fn an_end_is_not_counted_twice() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        for domain in 0..2 {
            cache(&mut libfabric, domain, range(0), &mut note);
        }
        libfabric.change(range(0));
        // The lookup in the first domain ends one of two subscriptions. If it ended both, the
        // gate would be open for the stale registration of the second domain.
        libfabric.register(0, range(0), &mut note);
        assert!(libfabric.watches.has_stale());
        libfabric.change(range(1));
        assert!(libfabric.register(1, range(0), &mut note), "stale");
    }
}

#[test]
fn a_notification_ends_stale_subscriptions_in_every_domain() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        for domain in 0..2 {
            cache(&mut libfabric, domain, range(0), &mut note);
        }
        libfabric.change(range(0));
        libfabric.notify();
        assert!(!libfabric.is_cached(0, range(0)) && !libfabric.is_cached(1, range(0)));
        assert!(!libfabric.watches.has_stale());
        assert_eq!(libfabric.watches.counts(), (0, 1));
    }
}

/// A notification that comes late must not end the subscriptions that came after a lookup.
#[test]
fn a_late_notification_does_not_end_newer_subscriptions() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        cache(&mut libfabric, 0, range(0), &mut note);
        libfabric.change(range(0));
        assert!(libfabric.watches.drain());
        let late = libfabric.watches.stale().unwrap();
        cache(&mut libfabric, 0, range(0), &mut note);
        libfabric.change(range(0));
        assert!(libfabric.watches.drain());
        libfabric.watches.notified(late);
        assert!(libfabric.register(0, range(0), &mut note), "stale");
    }
}

/// Trap 4, first half: a watch without subscriptions ends when there are too many of them.
#[test]
fn watches_without_subscriptions_are_bounded() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        for number in 0..2 * IDLE {
            libfabric.register(0, range(number), &mut note);
        }
        assert_eq!(libfabric.watches.counts(), (0, IDLE));
        assert_eq!(libfabric.watches.monitor().len(), IDLE);
        // The watch of the first range is gone, so a registration that relied on it is refused.
        assert!(matches!(
            libfabric.watches.subscribe(range(0), &mut note),
            Err(Refused::Unseen)
        ));
    }
}

/// Trap 4, second half: before 2.1 a cache that is full drops registrations without a word.
#[test]
fn registrations_that_are_dropped_without_a_word_leave_no_watch() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        let ranges = SUBSCRIBED + 2000;
        for number in 0..ranges {
            libfabric.watches.begin(range(number), &mut note);
            assert!(libfabric.register(0, range(number), &mut note));
            assert!(libfabric.is_cached(0, range(number)));
            if number >= 1000 {
                let oldest = range(number - 1000);
                if libfabric.is_cached(0, oldest) {
                    libfabric.evict(0, oldest);
                }
            }
            libfabric.notify();
        }
        let (subscribed, idle) = libfabric.watches.counts();
        assert!(
            subscribed <= SUBSCRIBED && idle <= IDLE,
            "{subscribed} {idle}"
        );
        assert!(libfabric.is_cached(0, range(ranges - 1)));
        assert!(libfabric.register(0, range(ranges - 1), &mut note));
    }
}

#[test]
fn an_exhausted_driver_gives_up_watches_without_subscriptions() {
    let mut libfabric = FakeLibfabric::limited(Ends::Unsubscribed, 100);
    let mut note = Note::NONE;
    for number in 0..1000 {
        libfabric.register(0, range(number), &mut note);
    }
    for number in 0..100 {
        cache(&mut libfabric, 0, range(number), &mut note);
    }
    // Every watch has a subscription now.
    assert!(libfabric.register(0, range(500), &mut note));
    assert!(libfabric.register(0, range(500), &mut note));
    assert!(!libfabric.is_cached(0, range(500)));
    assert!(matches!(
        libfabric.watches.subscribe(range(500), &mut note),
        Err(Refused::Unwatchable(_))
    ));
}

#[test]
fn nothing_is_cached_while_reports_cannot_be_read() {
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut note = Note::NONE;
        cache(&mut libfabric, 0, range(0), &mut note);
        libfabric.change(range(0));
        let broken = |it: &FakeLibfabric, is: bool| {
            it.watches.monitor().broken.store(is, Ordering::Relaxed);
        };
        broken(&libfabric, true);
        for _ in 0..3 {
            assert!(libfabric.register(0, range(0), &mut note), "stale");
            assert!(!libfabric.is_cached(0, range(0)));
        }
        broken(&libfabric, false);
        cache(&mut libfabric, 0, range(0), &mut note);
    }
}

/// Trap 5: a forked child has other pages.
#[test]
fn a_forked_child_caches_nothing() {
    let mut libfabric = FakeLibfabric::new(Ends::Unsaid);
    let mut note = Note::NONE;
    cache(&mut libfabric, 0, range(0), &mut note);
    let watches = &libfabric.watches;
    assert!(watches.is_current());
    // SAFETY: the child allocates nothing, takes no lock of another thread, and ends by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let refused = watches.subscribe(range(0), &mut note);
            let right = !watches.is_current()
                && !watches.valid(range(0), &mut note)
                && matches!(refused, Err(Refused::Forked));
            // SAFETY: the call only ends the child.
            unsafe { libc::_exit(i32::from(!right)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the call only waits for the child made above, and writes its status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child used a registration of its parent");
        }
    }
    assert!(watches.valid(range(0), &mut note));
}

/// Random steps against a model: no registration that is used is stale, and an undisturbed range is
/// cached in the end.
#[test]
fn random_steps_never_use_a_stale_registration() {
    let steps = 200_000;
    for ends in BOTH {
        let mut libfabric = FakeLibfabric::new(ends);
        let mut notes = [Note::NONE; 2];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random % below).unwrap()
        };
        for step in 0..steps {
            let (domain, range) = (next(2), range(next(4)));
            let [here, there] = &mut notes;
            let (note, other) = match next(2) {
                0 => (here, there),
                _ => (there, here),
            };
            match next(9) {
                0 | 1 => libfabric.change(range),
                2 => libfabric.notify(),
                3 => libfabric.watches.begin(range, note),
                4 if libfabric.is_cached(domain, range) => libfabric.evict(domain, range),
                5 => {
                    let used = libfabric.register_while(domain, range, note, |it| it.change(range));
                    assert!(used, "{ends:?}, step {step}");
                }
                // Two threads register the range at the same time, and it changes meanwhile.
                6 => {
                    let used = libfabric.register_while(domain, range, note, |it| {
                        it.register_while(1 - domain, range, other, |it| it.change(range));
                    });
                    assert!(used, "{ends:?}, step {step}");
                }
                _ => assert!(
                    libfabric.register(domain, range, note),
                    "{ends:?}, step {step}"
                ),
            }
        }
        libfabric.notify();
        assert!(libfabric.cached > steps / 20, "{}", libfabric.cached);
        for domain in 0..2 {
            cache(&mut libfabric, domain, range(0), &mut notes[0]);
        }
    }
}

#[test]
fn the_gate_is_closed_before_the_first_drain() {
    let watches = Watches::new(FakeMonitor::new(1), Ends::Unsaid).unwrap();
    assert!(!watches.is_current());
    assert!(watches.drain());
    assert!(watches.is_current());
}
