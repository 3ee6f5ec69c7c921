//! Checks the protocol of the watches under loom: every interleaving, within the bound of
//! `LOOM_MAX_PREEMPTIONS`, of libfabric's calls, a change of memory and the thread that reads
//! reports.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p regcache-fi --release --test loom`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test")]

mod fake;

use std::sync::Arc;

use fake::FakeMonitor;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;
use regcache::VaRange;
use regcache_fi::watches::{Ends, Note, Watches};

fn range(number: usize) -> VaRange {
    let address = std::ptr::without_provenance(0x10000 * (number + 1));
    VaRange::new(address, 0x1000).unwrap()
}

/// The watches, and memory whose version a change raises.
struct Model {
    watches: Watches<FakeMonitor>,
    version: AtomicU64,
    /// True once the call that changes the memory has returned.
    returned: AtomicBool,
}

impl Model {
    fn new(ends: Ends) -> Arc<Self> {
        Arc::new(Self {
            watches: Watches::new(FakeMonitor::new(usize::MAX), ends).unwrap(),
            version: AtomicU64::new(0),
            returned: AtomicBool::new(false),
        })
    }

    /// Changes the pages of the range, and returns to the program.
    fn change(&self, changed: VaRange) {
        self.version.fetch_add(1, Ordering::Relaxed);
        self.watches.monitor().change(changed);
        self.returned.store(true, Ordering::Release);
    }

    /// Makes the range cached, as a thread that has used it before has it.
    fn cache(&self, cached: VaRange) -> Note {
        let mut note = Note::NONE;
        self.watches.begin(cached, &mut note);
        self.watches.subscribe(cached, &mut note).unwrap();
        note
    }
}

/// A lookup that begins after the change has returned finds the registration stale, although the
/// thread reads the report at the same time.
#[test]
fn loom_a_lookup_after_a_change_is_answered_with_false() {
    loom::model(|| {
        let model = Model::new(Ends::Unsaid);
        let mut note = model.cache(range(0));
        let changing = Arc::clone(&model);
        let changer = thread::spawn(move || changing.change(range(0)));
        let reading = Arc::clone(&model);
        let reader = thread::spawn(move || assert!(reading.watches.drain()));
        let returned = model.returned.load(Ordering::Acquire);
        let valid = model.watches.valid(range(0), &mut note);
        assert!(!(returned && valid), "stale");
        changer.join().unwrap();
        reader.join().unwrap();
        if valid {
            assert!(!model.watches.valid(range(0), &mut note));
        }
    });
}

/// Trap 1 under concurrency: the report of one range is read by the lookup of another.
#[test]
fn loom_a_report_that_another_lookup_reads_closes_the_gate_first() {
    loom::model(|| {
        let model = Model::new(Ends::Unsubscribed);
        model.cache(range(1));
        let mut note = model.cache(range(0));
        model.change(range(0));
        // `begin` holds no lock of libfabric, so it runs at the same time as a lookup.
        let other = Arc::clone(&model);
        let beginner = thread::spawn(move || other.watches.begin(range(1), &mut { Note::NONE }));
        assert!(!model.watches.valid(range(0), &mut note), "stale");
        beginner.join().unwrap();
    });
}

/// A registration whose pages change at any moment is refused, or found stale later.
#[test]
fn loom_a_registration_that_changes_meanwhile_is_never_used_again() {
    for preloaded in [false, true] {
        loom::model(move || {
            let model = Model::new(Ends::Unsubscribed);
            let mut note = Note::NONE;
            if !preloaded {
                // The range was registered once, and that registration was refused.
                let refused = model.watches.subscribe(range(0), &mut note);
                assert!(refused.is_err());
                model.watches.unsubscribe(range(0));
            }
            let changing = Arc::clone(&model);
            let changer = thread::spawn(move || changing.change(range(0)));
            if preloaded {
                model.watches.begin(range(0), &mut note);
            }
            let registered = model.version.load(Ordering::Relaxed);
            let accepted = model.watches.subscribe(range(0), &mut note).is_ok();
            changer.join().unwrap();
            if accepted && registered != model.version.load(Ordering::Relaxed) {
                assert!(!model.watches.valid(range(0), &mut note), "stale");
            }
        });
    }
}

/// Two threads register the same range while it changes, each for its own domain.
#[test]
fn loom_of_two_registrations_under_way_none_is_used_stale() {
    loom::model(|| {
        let model = Model::new(Ends::Unsaid);
        let mut notes = [Note::NONE; 2];
        for note in &mut notes {
            assert!(model.watches.subscribe(range(0), note).is_err());
        }
        let [mut here, mut there] = notes;
        // The other thread's registration began before the change. libfabric's lock orders the two
        // subscriptions.
        let registered = model.version.load(Ordering::Relaxed);
        let changing = Arc::clone(&model);
        let changer = thread::spawn(move || changing.change(range(0)));
        let first = model.watches.subscribe(range(0), &mut here).is_ok();
        let second = model.watches.subscribe(range(0), &mut there).is_ok();
        changer.join().unwrap();
        let stale = registered != model.version.load(Ordering::Relaxed);
        if stale && (first || second) {
            assert!(!model.watches.valid(range(0), &mut here), "stale");
        }
        if stale && first && second {
            assert!(!model.watches.valid(range(0), &mut there), "stale");
        }
    });
}

/// The thread notifies while lookups and subscriptions go on. Its end of subscriptions must not
/// reach newer ones. The lock is libfabric's, and it protects the version of the memory that the
/// cached registration has pinned.
#[test]
fn loom_a_notification_ends_only_what_it_was_about() {
    loom::model(|| {
        let model = Model::new(Ends::Unsaid);
        let mut note = model.cache(range(0));
        let cached = Arc::new(Mutex::new(Some(0)));
        model.change(range(0));
        assert!(model.watches.drain());
        let (notifying, of_libfabric) = (Arc::clone(&model), Arc::clone(&cached));
        let notifier = thread::spawn(move || {
            if let Some(stale) = notifying.watches.stale() {
                *of_libfabric.lock().unwrap() = None;
                notifying.watches.notified(stale);
            }
        });
        // The thread looks up, registers, changes the memory and looks up again.
        let register = |note: &mut Note| {
            let now = model.version.load(Ordering::Relaxed);
            let mut locked = cached.lock().unwrap();
            if let Some(version) = *locked {
                if model.watches.valid(range(0), note) {
                    assert_eq!(version, now, "stale");
                    return;
                }
                *locked = None;
            }
            // libfabric does not hold its lock during the registration.
            drop(locked);
            let mut locked = cached.lock().unwrap();
            let accepted = model.watches.subscribe(range(0), note).is_ok();
            *locked = accepted.then_some(now);
        };
        register(&mut note);
        model.change(range(0));
        register(&mut note);
        notifier.join().unwrap();
    });
}
