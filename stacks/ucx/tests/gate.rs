//! The steps of `gate.rs` in one thread, over a fake of the driver. `loom.rs` runs them in several
//! threads.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use regcache::{Cookie, Monitor, VaRange};

#[path = "../src/gate.rs"]
mod gate;

use gate::Gate;

/// A fake of the driver. Tests report changes themselves.
#[derive(Clone, Default)]
struct FakeMonitor(Arc<State>);

#[derive(Default)]
struct State {
    generation: AtomicU64,
    /// The watches, and whether each has an unread report.
    watches: Mutex<BTreeMap<u64, bool>>,
    refuses: Mutex<bool>,
    loses: Mutex<bool>,
}

impl FakeMonitor {
    fn report(&self, cookie: u64) {
        *self.0.watches.lock().unwrap().get_mut(&cookie).unwrap() = true;
        self.0.generation.fetch_add(1, Ordering::Release);
    }

    fn watches(&self, cookie: u64) -> bool {
        self.0.watches.lock().unwrap().contains_key(&cookie)
    }
}

// SAFETY: no registration of these tests reaches memory.
unsafe impl Monitor for FakeMonitor {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn watch(&self, _: VaRange, cookie: Cookie) -> io::Result<()> {
        if *self.0.refuses.lock().unwrap() {
            return Err(io::Error::other("refused"));
        }
        self.0.watches.lock().unwrap().insert(cookie.0, false);
        Ok(())
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let watch = self.0.watches.lock().unwrap().remove(&cookie.0);
        watch
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        if *self.0.loses.lock().unwrap() {
            return Err(io::Error::other("reports were lost"));
        }
        for (&cookie, reported) in self.0.watches.lock().unwrap().iter_mut() {
            if std::mem::take(reported) {
                invalidated(Cookie(cookie));
            }
        }
        Ok(self.generation())
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

fn range(page: usize) -> VaRange {
    VaRange::new((page * 0x1000) as *const u8, 0x1000).unwrap()
}

fn made() -> (FakeMonitor, Gate<FakeMonitor>) {
    let monitor = FakeMonitor::default();
    let gate = Gate::new(monitor.clone()).unwrap();
    (monitor, gate)
}

/// Makes a lookup, whose UCX part is `real`. Returns the ranges that were passed to UCX before.
fn get(gate: &Gate<FakeMonitor>, real: impl FnOnce()) -> Vec<VaRange> {
    let passed = RefCell::new(Vec::new());
    let failed = |_: &io::Error| panic!("the monitor has not failed");
    gate.get(
        |range| passed.borrow_mut().push(range),
        failed,
        || {
            let before = passed.borrow().len();
            real();
            assert_eq!(passed.borrow().len(), before, "a range came too late");
        },
    );
    passed.into_inner()
}

#[test]
fn a_region_is_watched_before_it_is_registered() {
    let (monitor, gate) = made();
    assert!(gate.is_open());
    let (is_watched, was_watched) = gate.register(range(1), 7, || monitor.watches(7));
    assert!(is_watched && was_watched);
    assert!(gate.is_open());
    gate.unwatch(7);
    assert!(!monitor.watches(7));
}

#[test]
fn a_change_closes_the_gate_until_ucx_has_dropped_the_region() {
    let (monitor, gate) = made();
    gate.register(range(1), 7, || ());
    gate.register(range(2), 8, || ());
    monitor.report(8);
    assert!(!gate.is_open());
    let passed = get(&gate, || assert!(!gate.is_open(), "UCX has not yet looked"));
    assert_eq!(passed, [range(2)]);
    assert!(gate.is_open());
}

#[test]
fn a_change_during_the_lookup_leaves_the_gate_closed() {
    let (monitor, gate) = made();
    gate.register(range(1), 7, || ());
    monitor.report(7);
    get(&gate, || monitor.report(7));
    assert!(!gate.is_open());
    assert_eq!(get(&gate, || ()), [range(1)]);
    assert!(gate.is_open());
}

#[test]
fn the_report_of_a_region_that_is_gone_is_ignored() {
    let (monitor, gate) = made();
    gate.register(range(1), 7, || ());
    monitor.report(7);
    gate.unwatch(7);
    gate.unwatch(7);
    assert!(!gate.is_open());
    assert_eq!(get(&gate, || ()), []);
    assert!(gate.is_open());
}

#[test]
fn a_region_at_the_address_of_a_lost_one_has_its_own_watch() {
    let (monitor, gate) = made();
    gate.register(range(1), 7, || ());
    gate.register(range(2), 7, || ());
    monitor.report(7);
    assert_eq!(get(&gate, || ()), [range(2)]);
}

#[test]
fn a_range_that_cannot_be_watched_serves_one_lookup() {
    let (monitor, gate) = made();
    gate.register(range(1), 7, || ());
    *monitor.0.refuses.lock().unwrap() = true;
    monitor.report(7);
    let passed = get(&gate, || {
        assert!(!gate.register(range(2), 8, || ()).0);
    });
    assert_eq!(passed, [range(1)]);
    // The lookup that made the region must not open the gate.
    assert!(!gate.is_open());
    assert_eq!(get(&gate, || ()), [range(2)]);
    assert!(gate.is_open());
}

#[test]
fn lost_reports_drop_everything_and_leave_the_gate_closed() {
    let (monitor, gate) = made();
    gate.register(range(1), 7, || ());
    monitor.report(7);
    *monitor.0.loses.lock().unwrap() = true;
    for _ in 0..2 {
        let mut passed = Vec::new();
        let mut has_failed = false;
        gate.get(
            |range| passed.push(range),
            |_: &io::Error| has_failed = true,
            || (),
        );
        assert!(has_failed && !gate.is_open());
        assert_eq!(passed.len(), 1);
        assert!(passed[0].contains(&range(1)));
    }
    *monitor.0.loses.lock().unwrap() = false;
    assert_eq!(get(&gate, || ()), [range(1)]);
    assert!(gate.is_open());
}

#[test]
fn a_forked_child_finds_the_gate_closed() {
    let (_, gate) = made();
    assert!(gate.is_open() && !gate.in_child());
    // SAFETY: the child calls nothing but `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            let is_right = !gate.is_open() && gate.in_child();
            // SAFETY: the call only ends the child.
            unsafe { libc::_exit(i32::from(!is_right)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the call only waits for the child made above, and writes its status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
    assert!(gate.is_open());
}
