//! Each of these tests repeats the order of events that led to a bug. The bugs concerned panics,
//! remote keys and shared monitors, and all of them are fixed.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod model;

use model::{Bits, FakeDevice, FakeKernel, FakeMonitor, PAGE, Pinned, page};
use regcache::monitor::{Cookie, Monitor, Shared};
use regcache::{Builder, Cache, Registrar, VaRange};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const READ: Bits = Bits(1);
const REMOTE: Bits = Bits(5);

fn builder<R: Registrar>(device: R, kernel: &Arc<FakeKernel>) -> Builder<R, FakeMonitor> {
    Cache::builder(device).monitor(FakeMonitor(Arc::clone(kernel)))
}

/// A modelled device whose next deregistration panics if the flag is set.
struct Panicky(FakeDevice, AtomicBool);
// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Registrar for Panicky {
    type Access = Bits;
    type Registration = Pinned;
    fn register(&self, r: VaRange, a: Bits) -> io::Result<Pinned> {
        self.0.register(r, a)
    }
    fn deregister(&self, p: Pinned) -> io::Result<()> {
        if self.1.swap(false, Ordering::Relaxed) {
            panic!("registrar");
        }
        self.0.deregister(p)
    }
}

#[test]
fn a_panic_in_deregister_leaves_no_unwatched_entry() {
    let kernel = FakeKernel::new(8);
    let cache = builder(
        Panicky(FakeDevice::new(&kernel), AtomicBool::new(false)),
        &kernel,
    )
    .build()
    .unwrap();
    drop(cache.get(page(0), PAGE, READ).unwrap());
    cache.registrar().1.store(true, Ordering::Relaxed);
    // The wider registration replaces the first one, whose deregistration panics.
    drop(cache.get(page(0), 2 * PAGE, READ).unwrap());
    assert_eq!(cache.stats().leaked, 1);
    kernel.remap(1);
    let guard = cache.get(page(0), 2 * PAGE, READ).unwrap();
    let wanted = VaRange::new(page(0), 2 * PAGE).unwrap();
    assert!(!guard.registration().is_stale(&kernel, wanted), "STALE");
}

/// Repeats the test above, and then makes registrations that may use the same slot. The bug
/// overwrote the content of a live entry.
#[test]
fn a_panic_in_deregister_does_not_recycle_a_live_slot() {
    let kernel = FakeKernel::new(8);
    let cache = builder(
        Panicky(FakeDevice::new(&kernel), AtomicBool::new(false)),
        &kernel,
    )
    .build()
    .unwrap();
    drop(cache.get(page(0), PAGE, READ).unwrap());
    cache.registrar().1.store(true, Ordering::Relaxed);
    drop(cache.get(page(0), 2 * PAGE, READ).unwrap());
    let held = cache.get(page(0), 2 * PAGE, READ).unwrap();
    let (first, id) = (held.registration().first, held.registration().id);
    let other = cache.get(page(5), PAGE, READ).unwrap();
    assert_eq!(
        (held.registration().first, held.registration().id),
        (first, id),
        "the guard's content was overwritten"
    );
    drop(other);
}

/// The bug lost the other entries that the thread had begun to deregister.
#[test]
fn a_panic_in_unwatch_leaves_no_other_registration() {
    let kernel = FakeKernel::new(8);
    let panics = Arc::new(AtomicBool::new(false));
    let panicky = {
        let panics = Arc::clone(&panics);
        move |asked| {
            if asked == Asked::Unwatch && panics.swap(false, Ordering::Relaxed) {
                panic!("monitor");
            }
            Ok(())
        }
    };
    let monitor = Asking(FakeMonitor(Arc::clone(&kernel)), panicky);
    let cache = Cache::builder(FakeDevice::new(&kernel)).monitor(monitor);
    let cache = cache.background_reaper(false).build().unwrap();
    for i in 0..8 {
        drop(cache.get(page(i), PAGE, READ).unwrap());
    }
    panics.store(true, Ordering::Relaxed);
    drop(cache.flush().unwrap());
    assert!(!panics.load(Ordering::Relaxed));
    assert_eq!(cache.stats().entries, 0);
}

#[test]
fn a_revocable_registration_serves_no_local_lookup() {
    let kernel = FakeKernel::new(8);
    let cache = builder(FakeDevice::new(&kernel), &kernel)
        .revoke_remote_keys(true)
        .build()
        .unwrap();
    drop(cache.get(page(0), PAGE, READ).unwrap());
    cache.flush().unwrap();
    let remote = cache.get(page(0), PAGE, REMOTE).unwrap();
    let local = cache.get(page(0), PAGE, READ).unwrap();
    assert_ne!(
        local.registration().id,
        remote.registration().id,
        "local lookup got the remote key's registration"
    );
}

#[test]
fn the_remote_key_ends_with_the_last_remote_guard() {
    let kernel = FakeKernel::new(8);
    let cache = builder(FakeDevice::new(&kernel), &kernel)
        .revoke_remote_keys(true)
        .build()
        .unwrap();
    drop(cache.get(page(0), PAGE, READ).unwrap());
    cache.flush().unwrap();
    let remote = cache.get(page(0), PAGE, REMOTE).unwrap();
    let _local = cache.get(page(0), PAGE, READ).unwrap();
    let before = cache.registrar().live.load(Ordering::Relaxed);
    drop(remote);
    assert_eq!(
        cache.registrar().live.load(Ordering::Relaxed),
        before - 1,
        "the remote key is still valid"
    );
}

#[test]
fn waiting_forever_does_not_panic() {
    let kernel = FakeKernel::new(8);
    let cache = builder(FakeDevice::new(&kernel), &kernel).build().unwrap();
    assert!(cache.flush().unwrap().wait(Duration::MAX));
}

/// A kernel whose invalidations take time. The start of an invalidation marks the watches and
/// raises the generation. The end puts the new page in place, and repeats the reports that were
/// read between start and end. The driver also repeats such reports.
struct Slow {
    k: std::sync::Mutex<SlowState>,
}
#[derive(Default)]
struct SlowState {
    gen_: u64,
    live: std::collections::BTreeMap<u64, VaRange>,
    invalidated: std::collections::BTreeSet<u64>,
    early: std::collections::BTreeSet<u64>,
    in_flight: bool,
    version: u64,
}
impl Slow {
    fn start(&self) {
        let mut s = self.k.lock().unwrap();
        s.in_flight = true;
        let c: Vec<_> = s.live.keys().copied().collect();
        if !c.is_empty() {
            s.invalidated.extend(c);
            s.gen_ += 1;
        }
    }
    /// Ends the invalidation, if one is in flight.
    fn end(&self) {
        let mut s = self.k.lock().unwrap();
        if !s.in_flight {
            return;
        }
        s.version += 1;
        s.in_flight = false;
        let early = std::mem::take(&mut s.early);
        let mut more = false;
        for c in early {
            if s.live.contains_key(&c) && s.invalidated.insert(c) {
                more = true;
            }
        }
        if more {
            s.gen_ += 1;
        }
    }
}
struct SlowMonitor(Arc<Slow>);
// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Monitor for SlowMonitor {
    fn generation(&self) -> u64 {
        self.0.k.lock().unwrap().gen_
    }
    fn watch(&self, r: VaRange, c: Cookie) -> io::Result<()> {
        // At this point, the driver waits until the invalidation has ended. In this model, `watch`
        // itself ends the invalidation.
        self.0.end();
        self.0.k.lock().unwrap().live.insert(c.0, r);
        Ok(())
    }
    fn unwatch(&self, c: Cookie) -> io::Result<()> {
        let mut s = self.0.k.lock().unwrap();
        s.invalidated.remove(&c.0);
        s.early.remove(&c.0);
        s.live.remove(&c.0);
        Ok(())
    }
    fn drain(&self, f: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut s = self.0.k.lock().unwrap();
        let in_flight = s.in_flight;
        for c in std::mem::take(&mut s.invalidated) {
            if in_flight {
                s.early.insert(c);
            }
            f(Cookie(c));
        }
        Ok(s.gen_)
    }
    fn name(&self) -> &'static str {
        "slow"
    }
}
struct SlowDevice(Arc<Slow>);
// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Registrar for SlowDevice {
    type Access = ();
    type Registration = u64;
    fn register(&self, _: VaRange, _: ()) -> io::Result<u64> {
        Ok(self.0.k.lock().unwrap().version)
    }
    fn deregister(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Returns a kernel with slow invalidations, and two shares of its monitor.
fn slow() -> (Arc<Slow>, [Shared<SlowMonitor>; 2]) {
    let kernel = Arc::new(Slow {
        k: Default::default(),
    });
    let one = Shared::new(SlowMonitor(Arc::clone(&kernel))).unwrap();
    let two = one.subscribe().unwrap();
    (kernel, [one, two])
}

fn slow_cache(
    kernel: &Arc<Slow>,
    monitor: Shared<SlowMonitor>,
) -> Cache<SlowDevice, Shared<SlowMonitor>> {
    let builder = Cache::builder(SlowDevice(Arc::clone(kernel))).monitor(monitor);
    builder.build().unwrap()
}

#[test]
fn a_cache_built_during_an_invalidation_on_a_shared_monitor_is_never_stale() {
    let (k, [one, two]) = slow();
    let a = slow_cache(&k, one);
    drop(a.get(page(0), PAGE, ()).unwrap());
    k.start();
    let b = slow_cache(&k, two);
    drop(b.get(page(0), PAGE, ()).unwrap());
    k.end();
    assert_eq!(
        *b.get(page(0), PAGE, ()).unwrap().registration(),
        1,
        "STALE"
    );
}

/// Repeats the test above, as a control, with a second cache that was built before the
/// invalidation.
#[test]
fn control_a_cache_built_before() {
    let (k, [one, two]) = slow();
    let a = slow_cache(&k, one);
    let b = slow_cache(&k, two);
    drop(a.get(page(0), PAGE, ()).unwrap());
    k.start();
    drop(b.get(page(0), PAGE, ()).unwrap());
    k.end();
    assert_eq!(
        *b.get(page(0), PAGE, ()).unwrap().registration(),
        1,
        "STALE"
    );
}

/// A monitor may make its descriptor readable before it raises its counter. A program that then
/// calls `reap` waits for the descriptor again, so `reap` must drain the report.
fn reaps_a_report_before_the_counter<M: Monitor>(kernel: &Arc<Slow>, monitor: M) {
    let builder = Cache::builder(SlowDevice(Arc::clone(kernel))).monitor(monitor);
    let cache = builder.build().unwrap();
    drop(cache.get(page(0), PAGE, ()).unwrap());
    let mut state = kernel.k.lock().unwrap();
    let watched: Vec<_> = state.live.keys().copied().collect();
    state.invalidated.extend(watched);
    drop(state);
    assert_eq!(cache.stats().entries, 1);
    cache.reap().unwrap();
    assert_eq!(cache.stats().entries, 0);
}

#[test]
fn reaping_drains_a_report_that_comes_before_the_counter_is_raised() {
    let (kernel, _) = slow();
    reaps_a_report_before_the_counter(&kernel, SlowMonitor(Arc::clone(&kernel)));
}

#[test]
fn reaping_a_shared_monitor_drains_a_report_that_comes_before_the_counter_is_raised() {
    let (kernel, _) = slow();
    let shared = Shared::new(SlowMonitor(Arc::clone(&kernel))).unwrap();
    reaps_a_report_before_the_counter(&kernel, shared);
}

#[test]
fn reaping_makes_the_descriptor_quiet() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let kernel = FakeKernel::with_descriptor(8);
    let one = Shared::new(FakeMonitor(Arc::clone(&kernel))).unwrap();
    let two = one.subscribe().unwrap();
    let build = |m: Shared<FakeMonitor>| {
        Cache::builder(FakeDevice::new(&kernel))
            .monitor(m)
            .background_reaper(false)
            .build()
            .unwrap()
    };
    let a = build(one);
    drop(a.get(page(0), PAGE, READ).unwrap());
    kernel.remap(0);
    let b = build(two);
    drop(b.get(page(0), PAGE, READ).unwrap());
    a.reap().unwrap();
    for _ in 0..3 {
        b.reap().unwrap();
    }
    let mut fds = [PollFd::new(b.descriptor().unwrap(), PollFlags::POLLIN)];
    assert_eq!(
        poll(&mut fds, PollTimeout::ZERO).unwrap(),
        0,
        "the descriptor stays readable"
    );
}

/// A request to a monitor.
#[derive(Clone, Copy, PartialEq)]
enum Asked {
    Watch(VaRange),
    Unwatch,
    Drain,
}

/// A monitor that passes each request to a function before it serves the request. If the function
/// returns an error, the request fails with that error.
struct Asking<F>(FakeMonitor, F);

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl<F: Fn(Asked) -> io::Result<()> + Send + Sync + 'static> Monitor for Asking<F> {
    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        self.1(Asked::Watch(range))?;
        self.0.watch(range, cookie)
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        self.1(Asked::Unwatch)?;
        self.0.unwatch(cookie)
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        self.1(Asked::Drain)?;
        self.0.drain(invalidated)
    }

    fn name(&self) -> &'static str {
        "asking"
    }
}

#[test]
fn a_childs_own_cache_on_an_inherited_share_keeps_nothing() {
    let kernel = FakeKernel::new(8);
    let owner = std::process::id();
    // The monitor refuses every process except its owner, as the driver does.
    let owned = move |_| match std::process::id() {
        id if id == owner => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    };
    let spare = Shared::new(Asking(FakeMonitor(Arc::clone(&kernel)), owned)).unwrap();
    let a = Cache::builder(FakeDevice::new(&kernel))
        .monitor(spare.subscribe().unwrap())
        .build()
        .unwrap();
    drop(a.get(page(0), PAGE, READ).unwrap());
    // SAFETY: the child touches only its own copy of the model's memory, and ends by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let builder = Cache::builder(FakeDevice::new(&kernel)).monitor(spare);
            let kept = builder.build().is_ok_and(|own| {
                let guard = own.get(page(0), PAGE, READ);
                guard.is_ok_and(|guard| guard.is_cached())
            });
            // SAFETY: `_exit` ends the child, and has no preconditions.
            unsafe { libc::_exit(i32::from(kept)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `waitpid` waits for the child that `fork` made, and writes only `status`.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(
                status, 0,
                "the child keeps a registration of memory that is not watched"
            );
        }
    }
}

#[test]
fn a_panic_while_the_cache_is_dropped_leaks_one_registration() {
    let kernel = FakeKernel::new(8);
    let device = FakeDevice::new(&kernel);
    let live = Arc::clone(&device.live);
    let cache = builder(Panicky(device, AtomicBool::new(false)), &kernel)
        .build()
        .unwrap();
    for i in 0..4 {
        drop(cache.get(page(i), PAGE, READ).unwrap());
    }
    cache.registrar().1.store(true, Ordering::Relaxed);
    drop(cache);
    assert_eq!(
        (
            live.load(Ordering::Relaxed),
            kernel.watches(),
            Arc::strong_count(&kernel)
        ),
        (1, 0, 1)
    );
}

#[test]
fn a_share_does_not_join_a_watch_whose_memory_has_lost_its_backing() {
    let kernel = FakeKernel::new(8);
    let backed = Arc::new(AtomicBool::new(true));
    // The driver refuses a range that is not backed, if the watch requires backed memory.
    let must_be_backed = {
        let backed = Arc::clone(&backed);
        move |asked| match asked {
            Asked::Watch(_) if !backed.load(Ordering::Relaxed) => {
                Err(io::Error::from_raw_os_error(libc::ENXIO))
            }
            _ => Ok(()),
        }
    };
    let one = Shared::new(Asking(FakeMonitor(Arc::clone(&kernel)), must_be_backed)).unwrap();
    let two = one.subscribe().unwrap();
    let [a, b] = [one, two].map(|monitor| {
        let builder = Cache::builder(FakeDevice::new(&kernel)).monitor(monitor);
        builder.background_reaper(false).build().unwrap()
    });
    drop(a.get(page(0), PAGE, READ).unwrap());
    kernel.remap(0);
    backed.store(false, Ordering::Relaxed);
    // Cache `a` has not drained since the change, so its watch still exists although the change has
    // invalidated it. Cache `b` must place a watch of its own.
    drop(b.get(page(0), PAGE, READ).unwrap());
    assert_eq!((b.stats().uncached, kernel.watches()), (1, 1));
}

/// A gate that holds up the call of `watch` for one page.
struct Gate {
    inside: std::sync::Barrier,
    go: AtomicBool,
}

#[test]
fn a_watch_that_waits_does_not_stop_the_lookups_of_other_caches() {
    let kernel = FakeKernel::new(8);
    let gate = Arc::new(Gate {
        inside: std::sync::Barrier::new(2),
        go: AtomicBool::new(false),
    });
    let gated = {
        let gate = Arc::clone(&gate);
        move |asked| {
            if matches!(asked, Asked::Watch(range) if range.start() == page(7).addr()) {
                gate.inside.wait();
                while !gate.go.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
            Ok(())
        }
    };
    let one = Shared::new(Asking(FakeMonitor(Arc::clone(&kernel)), gated)).unwrap();
    let two = one.subscribe().unwrap();
    let [a, b] = [one, two].map(|monitor| {
        let builder = Cache::builder(FakeDevice::new(&kernel)).monitor(monitor);
        builder.build().unwrap()
    });
    drop(b.get(page(0), PAGE, READ).unwrap());
    let done = AtomicBool::new(false);
    let in_time = std::thread::scope(|s| {
        s.spawn(|| drop(a.get(page(7), PAGE, READ).unwrap()));
        gate.inside.wait();
        kernel.remap(0);
        s.spawn(|| {
            drop(b.get(page(0), PAGE, READ).unwrap());
            done.store(true, Ordering::Relaxed);
        });
        std::thread::sleep(Duration::from_millis(500));
        let in_time = done.load(Ordering::Relaxed);
        gate.go.store(true, Ordering::Relaxed);
        in_time
    });
    assert!(in_time, "b's lookup waited for a's watch");
}

#[test]
fn a_completion_knows_of_uncached_registrations_of_the_range() {
    let kernel = FakeKernel::new(8);
    let cache = builder(FakeDevice::new(&kernel), &kernel)
        .max_entries(0)
        .build()
        .unwrap();
    let held = cache.get(page(0), PAGE, READ).unwrap();
    let mut left = cache.invalidate(page(0), PAGE).unwrap();
    assert_eq!(
        left.in_use(),
        1,
        "a guard still holds a registration of the range"
    );
    drop(held);
}

#[test]
fn idle_entries_make_way_when_the_monitor_is_full() {
    let kernel = FakeKernel::new(8);
    // The limit on the number of watches models the driver's `max_user_regions`.
    let few = {
        let kernel = Arc::clone(&kernel);
        move |asked| match asked {
            Asked::Watch(_) if kernel.watches() >= 2 => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => Ok(()),
        }
    };
    let cache = Cache::builder(FakeDevice::new(&kernel))
        .monitor(Asking(FakeMonitor(Arc::clone(&kernel)), few))
        .build()
        .unwrap();
    for i in 0..2 {
        drop(cache.get(page(i), PAGE, READ).unwrap());
    }
    for _ in 0..100 {
        drop(cache.get(page(5), PAGE, READ).unwrap());
    }
    let stats = cache.stats();
    assert!(
        stats.uncached < 10,
        "{} lookups of one page were uncached, although two entries are idle",
        stats.uncached
    );
}
