//! Checks the protocol of `gate.rs` under loom. A change of the memory, lookups and a registration
//! meet in every order, within the bound of `LOOM_MAX_PREEMPTIONS`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p regcache-ucx --release --test loom`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::io;
use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Mutex, RwLock};
use loom::thread;
use regcache::{Cookie, Monitor, VaRange};

#[path = "../src/gate.rs"]
#[expect(dead_code, reason = "no model forks")]
mod gate;

use gate::Gate;

const COOKIE: u64 = 7;

fn range() -> VaRange {
    VaRange::new(0x1000 as *const u8, 0x1000).unwrap()
}

/// A fake of the driver, with one range. It keeps the rules M1 to M3.
#[derive(Clone)]
struct FakeMonitor(Arc<FakeDriver>);

#[derive(Default)]
struct FakeDriver {
    generation: AtomicU64,
    /// True if the range is watched, and true if the watch has an unread report.
    watch: Mutex<(bool, bool)>,
    refuses: bool,
}

impl FakeDriver {
    /// Reports a change that has been made.
    fn changed(&self) {
        let mut watch = self.watch.lock().unwrap();
        if watch.0 {
            watch.1 = true;
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }
}

// SAFETY: no registration of the models reaches memory.
unsafe impl Monitor for FakeMonitor {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn watch(&self, _: VaRange, _: Cookie) -> io::Result<()> {
        if self.0.refuses {
            return Err(io::Error::other("refused"));
        }
        self.0.watch.lock().unwrap().0 = true;
        Ok(())
    }

    fn unwatch(&self, _: Cookie) -> io::Result<()> {
        *self.0.watch.lock().unwrap() = (false, false);
        Ok(())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        loop {
            let before = self.generation();
            let reported = std::mem::take(&mut self.0.watch.lock().unwrap().1);
            if !reported {
                return Ok(before);
            }
            invalidated(Cookie(COOKIE));
        }
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

/// A fake of UCX's cache, with at most one region. A region is the version of the memory that it
/// was registered for.
struct FakeUcx {
    table: RwLock<Option<u64>>,
    /// The unmapped ranges that UCX has not looked at. `queue_is_empty` is what UCX reads without
    /// the lock.
    queue: Mutex<usize>,
    queue_is_empty: AtomicBool,
    /// libucp's lock, under which it makes all its lookups of a cache.
    libucp: Mutex<()>,
    /// The version of the memory. It rises when the memory changes.
    memory: AtomicU64,
    /// The version of the memory after the last change that has returned.
    over: AtomicU64,
    monitor: FakeMonitor,
    gate: Gate<FakeMonitor>,
}

impl FakeUcx {
    fn new(refuses: bool) -> Arc<Self> {
        let monitor = FakeMonitor(Arc::new(FakeDriver {
            refuses,
            ..FakeDriver::default()
        }));
        Arc::new(Self {
            table: RwLock::new(None),
            queue: Mutex::new(0),
            queue_is_empty: AtomicBool::new(true),
            libucp: Mutex::new(()),
            memory: AtomicU64::new(0),
            over: AtomicU64::new(0),
            gate: Gate::new(monitor.clone()).unwrap(),
            monitor,
        })
    }

    /// Changes the memory, as a system call does: the report is made before the call returns.
    fn change(&self) {
        let version = self.memory.fetch_add(1, Ordering::AcqRel) + 1;
        self.monitor.0.changed();
        self.over.store(version, Ordering::Release);
    }

    /// UCX's callback for unmapped memory. UCX may always queue the range (since 1.17).
    fn callback(&self) {
        let mut queue = self.queue.lock().unwrap();
        *queue += 1;
        self.queue_is_empty.store(false, Ordering::Release);
    }

    /// UCX's own `ucs_rcache_get`. Returns the version that the region was registered for.
    fn ucs_rcache_get(&self) -> u64 {
        {
            let table = self.table.read().unwrap();
            if self.queue_is_empty.load(Ordering::Acquire)
                && let Some(region) = *table
            {
                return region;
            }
        }
        let mut table = self.table.write().unwrap();
        let mut queue = self.queue.lock().unwrap();
        let unmapped = std::mem::take(&mut *queue);
        self.queue_is_empty.store(true, Ordering::Release);
        drop(queue);
        if unmapped > 0 && table.take().is_some() {
            self.gate.unwatch(COOKIE);
        }
        if let Some(region) = *table {
            return region;
        }
        // The kernel pins the pages that are there now. A load could return an older value.
        let pin = || self.memory.fetch_add(0, Ordering::AcqRel);
        let (_, region) = self.gate.register(range(), COOKIE, pin);
        *table = Some(region);
        region
    }

    /// The interposed `ucs_rcache_get`.
    fn get(&self) -> u64 {
        if self.gate.is_open() {
            return self.ucs_rcache_get();
        }
        let failed = |_: &io::Error| unreachable!();
        self.gate
            .get(|_| self.callback(), failed, || self.ucs_rcache_get())
    }

    /// A lookup by libucp, whose quick lookup calls the interposed `ucs_pgtable_lookup`. libucp
    /// releases its lock between the two lookups.
    fn libucp_lookup(&self) -> u64 {
        {
            let _libucp = self.libucp.lock().unwrap();
            if self.queue_is_empty.load(Ordering::Acquire)
                && self.gate.is_open()
                && let Some(region) = *self.table.read().unwrap()
            {
                return region;
            }
        }
        let _libucp = self.libucp.lock().unwrap();
        self.get()
    }

    /// A quick lookup that is made without libucp's lock, as libraries after 1.20 do.
    fn unlocked_lookup(&self) -> u64 {
        if self.queue_is_empty.load(Ordering::Acquire)
            && self.gate.is_open()
            && let Some(region) = *self.table.read().unwrap()
        {
            return region;
        }
        self.get()
    }
}

/// Looks the memory up, and checks that the region is as new as the changes that were over before.
fn check(ucx: &FakeUcx, lookup: impl Fn(&FakeUcx) -> u64) {
    let over = ucx.over.load(Ordering::Acquire);
    let region = lookup(ucx);
    assert!(region >= over, "stale: {region} < {over}");
}

fn race(lookup: fn(&FakeUcx) -> u64) {
    loom::model(move || {
        let ucx = FakeUcx::new(false);
        ucx.get();
        let changer = Arc::clone(&ucx);
        let changer = thread::spawn(move || {
            changer.change();
            check(&changer, lookup);
        });
        check(&ucx, lookup);
        check(&ucx, lookup);
        changer.join().unwrap();
        check(&ucx, lookup);
    });
}

#[test]
fn loom_get_finds_no_stale_region() {
    race(FakeUcx::get);
}

#[test]
fn loom_libucps_lookup_finds_no_stale_region() {
    race(FakeUcx::libucp_lookup);
}

#[test]
fn loom_a_quick_lookup_without_a_lock_finds_no_stale_region() {
    race(FakeUcx::unlocked_lookup);
}

/// No lookup that begins after a registration of unwatched memory finds it.
#[test]
fn loom_a_region_that_is_not_watched_serves_one_lookup() {
    loom::model(|| {
        let ucx = FakeUcx::new(true);
        let other = Arc::clone(&ucx);
        let other = thread::spawn(move || {
            other.get();
            other.change();
            check(&other, FakeUcx::unlocked_lookup);
        });
        check(&ucx, FakeUcx::unlocked_lookup);
        check(&ucx, FakeUcx::unlocked_lookup);
        other.join().unwrap();
        check(&ucx, FakeUcx::unlocked_lookup);
    });
}
