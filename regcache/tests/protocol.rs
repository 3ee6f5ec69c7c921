//! These tests check the cache's protocol, limits and eviction, on a modelled kernel and device.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod model;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use model::{BASE, Bits, FakeDevice, FakeKernel, FakeMonitor, PAGE, Random, page};
use regcache::monitor::{Cookie, Monitor, NoMonitor};
use regcache::{Builder, Cache, Error, Guard, Pool, RangeError, RegisterError, VaRange};

type FakeCache = Cache<FakeDevice, FakeMonitor>;

const READ: Bits = Bits(1);
const WRITE: Bits = Bits(3);

fn builder(kernel: &Arc<FakeKernel>) -> Builder<FakeDevice, FakeMonitor> {
    FakeDevice::new(kernel).builder()
}

fn get(cache: &FakeCache, first: usize, pages: usize) -> Guard<FakeDevice, FakeMonitor> {
    cache.get(page(first), pages * PAGE, READ).unwrap()
}

fn live(cache: &FakeCache) -> u32 {
    cache.registrar().live.load(Ordering::Relaxed)
}

#[test]
fn the_second_lookup_returns_the_first_registration() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).build().unwrap();
    let first = get(&cache, 0, 4).registration().id;
    assert_eq!(get(&cache, 0, 4).registration().id, first);
    assert_eq!(
        get(&cache, 1, 2).registration().id,
        first,
        "a part of the range"
    );
    assert_eq!(
        get(&cache, 1, 2).registration().id,
        first,
        "the same part, found by the hints"
    );
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.entries), (3, 1, 1));
    assert_eq!(stats.bytes, 4 * PAGE);
}

#[test]
fn wider_access_serves_a_lookup_and_narrower_does_not() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).build().unwrap();
    let lookup = |access| cache.get(page(0), PAGE, access).unwrap().registration().id;
    let read = lookup(READ);
    let write = lookup(WRITE);
    assert_ne!(read, write);
    assert_eq!(lookup(READ), write);
    assert_eq!(lookup(WRITE), write);
    assert_eq!(
        cache.stats().merges,
        1,
        "the narrower registration was replaced"
    );
    assert_eq!(live(&cache), 1);
}

#[test]
fn a_larger_registration_replaces_those_that_it_contains() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).build().unwrap();
    drop((get(&cache, 1, 1), get(&cache, 3, 1)));
    drop(cache.get(page(2), PAGE, WRITE).unwrap());
    drop(get(&cache, 0, 5));
    assert_eq!(
        cache.stats().merges,
        2,
        "the registration with more access stays"
    );
    assert_eq!(live(&cache), 2);
    assert_eq!(kernel.watches(), 2);
}

#[test]
fn a_change_of_any_page_gives_the_registration_up() {
    for changed in 2..5 {
        let kernel = FakeKernel::new(8);
        let cache = builder(&kernel).build().unwrap();
        let old = get(&cache, 2, 3).registration().id;
        kernel.remap(1);
        kernel.remap(5);
        assert_eq!(
            get(&cache, 2, 3).registration().id,
            old,
            "only neighbouring pages changed"
        );
        kernel.remap(changed);
        let new = get(&cache, 2, 3);
        assert_ne!(new.registration().id, old);
        assert!(!new.registration().is_stale(&kernel, new.range()));
        assert_eq!(live(&cache), 1, "the old registration is deregistered");
        assert_eq!(cache.stats().invalidations, 1);
    }
}

#[test]
fn memory_that_changes_while_it_is_registered_is_registered_again() {
    let kernel = FakeKernel::new(8);
    let mut device = FakeDevice::new(&kernel);
    device.hook = Some(Box::new(|device, _| {
        if device.made.load(Ordering::Relaxed) == 1 {
            device.kernel.remap(0);
        }
    }));
    let cache = device.builder().build().unwrap();
    for _ in 0..2 {
        let guard = get(&cache, 0, 2);
        assert!(!guard.registration().is_stale(&kernel, guard.range()));
        assert!(guard.is_cached());
    }
    let stats = cache.stats();
    assert_eq!((stats.retries, stats.misses, stats.hits), (1, 1, 1));
    assert_eq!((live(&cache), kernel.watches()), (1, 1));
}

#[test]
fn memory_that_changes_in_every_attempt_is_answered_uncached() {
    let kernel = FakeKernel::new(8);
    let mut device = FakeDevice::new(&kernel);
    device.hook = Some(Box::new(|device, _| device.kernel.remap(0)));
    let cache = device.builder().build().unwrap();
    let guard = get(&cache, 0, 1);
    assert!(!guard.is_cached());
    assert_eq!(kernel.watches(), 0);
    assert_eq!(cache.stats().uncached, 1);
    drop(guard);
    assert_eq!(live(&cache), 0);
}

#[test]
fn what_cannot_be_watched_is_not_kept() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).build().unwrap();
    kernel.refuse_watches.store(true, Ordering::Relaxed);
    let guard = get(&cache, 0, 1);
    assert!(!guard.is_cached());
    assert_eq!(live(&cache), 1);
    drop(guard);
    assert_eq!(live(&cache), 0);
    let stats = cache.stats();
    assert_eq!((stats.uncached, stats.entries, stats.bytes), (1, 0, 0));
    kernel.refuse_watches.store(false, Ordering::Relaxed);
    assert!(get(&cache, 0, 1).is_cached());
}

#[test]
fn without_a_monitor_every_lookup_registers() {
    let kernel = FakeKernel::new(8);
    let cache = Cache::builder(FakeDevice::new(&kernel))
        .monitor(NoMonitor)
        .build()
        .unwrap();
    let first = cache.get(page(0), PAGE, READ).unwrap().registration().id;
    assert_ne!(
        cache.get(page(0), PAGE, READ).unwrap().registration().id,
        first
    );
}

#[test]
fn the_least_recently_used_registration_makes_room() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).max_entries(3).build().unwrap();
    for i in [0, 1, 2, 0] {
        drop(get(&cache, i, 1));
    }
    drop(get(&cache, 3, 1));
    let misses = cache.stats().misses;
    for i in [0, 2, 3] {
        drop(get(&cache, i, 1));
    }
    assert_eq!(cache.stats().misses, misses, "only page 1 was evicted");
    assert_eq!(live(&cache), 3);
    assert_eq!(cache.stats().evictions, 1);
}

#[test]
fn bytes_are_bounded_and_counted_in_pages() {
    let kernel = FakeKernel::new(32);
    let cache = builder(&kernel).max_bytes(4 * PAGE).build().unwrap();
    drop(cache.get(page(0).wrapping_add(PAGE - 1), 2, READ).unwrap());
    assert_eq!(cache.stats().bytes, 2 * PAGE, "two bytes on two pages");
    for i in 1..8 {
        drop(get(&cache, i * 3, 2));
        assert!(cache.stats().bytes <= 4 * PAGE);
    }
    let whole = get(&cache, 0, 5);
    assert!(!whole.is_cached(), "more than the limit");
    assert_eq!(
        cache.stats().evictions,
        6,
        "only the other lookups evicted entries"
    );
}

#[test]
fn with_room_for_nothing_lookups_still_work() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).max_entries(0).build().unwrap();
    assert!(!get(&cache, 0, 1).is_cached());
    assert_eq!(live(&cache), 0);
}

#[test]
fn registrations_in_use_are_neither_evicted_nor_destroyed() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).max_entries(2).build().unwrap();
    let held = [get(&cache, 0, 1), get(&cache, 1, 1)];
    let third = get(&cache, 2, 1);
    assert!(!third.is_cached());
    assert_eq!(live(&cache), 3);
    kernel.remap(0);
    let fresh = get(&cache, 0, 1);
    assert!(
        !fresh.is_cached(),
        "the stale registration still takes room"
    );
    assert_eq!(live(&cache), 4, "the stale registration still exists");
    drop((third, fresh));
    drop(held);
    assert_eq!(live(&cache), 1);
    assert_eq!(kernel.watches(), 1);
    assert!(get(&cache, 0, 1).is_cached());
}

#[test]
fn a_full_device_is_relieved_of_idle_registrations() {
    let kernel = FakeKernel::new(8);
    let mut device = FakeDevice::new(&kernel);
    device.capacity = 2;
    let cache = device.builder().build().unwrap();
    for i in 0..8 {
        drop(get(&cache, i, 1));
    }
    assert_eq!(live(&cache), 2);
    let held = [get(&cache, 6, 1), get(&cache, 7, 1)];
    match cache.get(page(0), PAGE, READ).unwrap_err() {
        Error::Register(RegisterError::DeviceLimit { .. }) => {}
        other => panic!("{other}"),
    }
    drop(held);
    assert_eq!(kernel.watches(), 2, "the failed lookup left no watch");
    drop(get(&cache, 0, 1));
}

#[test]
fn what_is_stale_goes_before_the_device_is_asked_for_more() {
    let kernel = FakeKernel::new(8);
    let mut device = FakeDevice::new(&kernel);
    device.capacity = 2;
    device.hole = Some(7);
    let cache = device.builder().build().unwrap();
    drop([get(&cache, 0, 1), get(&cache, 1, 1)]);
    kernel.remap(0);
    drop(get(&cache, 0, 1));
    assert_eq!(
        cache.stats().evictions,
        0,
        "the room of the stale entry was enough"
    );

    kernel.remap(0);
    assert!(cache.get(page(7), PAGE, READ).is_err());
    assert_eq!(
        live(&cache),
        1,
        "the stale registration goes even if the lookup fails"
    );
    kernel.remap(1);
    kernel.refuse_watches.store(true, Ordering::Relaxed);
    assert!(!get(&cache, 2, 1).is_cached());
    assert_eq!(
        live(&cache),
        0,
        "the stale registration goes even if the new one is not cached"
    );
}

#[test]
fn guards_outlive_the_cache_and_nothing_leaks() {
    let kernel = FakeKernel::new(8);
    let device = FakeDevice::new(&kernel);
    let live = Arc::clone(&device.live);
    let cache = device.builder().build().unwrap();
    let held = get(&cache, 0, 1);
    drop(get(&cache, 1, 1));
    drop(cache);
    assert_eq!(live.load(Ordering::Relaxed), 1);
    assert_eq!(held.registration().first, 0);
    std::thread::spawn(move || drop(held)).join().unwrap();
    assert_eq!(live.load(Ordering::Relaxed), 0);
    assert_eq!(kernel.watches(), 0);
    assert_eq!(
        Arc::strong_count(&kernel),
        1,
        "monitor and registrar are gone"
    );
}

#[test]
fn flush_gives_everything_up() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).build().unwrap();
    let held = get(&cache, 0, 1);
    drop(get(&cache, 1, 1));
    cache.flush().unwrap();
    assert_eq!(live(&cache), 1);
    drop(held);
    assert_eq!(
        (live(&cache), kernel.watches(), cache.stats().bytes),
        (0, 0, 0)
    );
    cache.prefetch(page(0), PAGE, READ).unwrap();
    drop(get(&cache, 0, 1));
    assert_eq!(cache.stats().hits, 1);
}

#[test]
fn bad_ranges_are_typed_errors() {
    let kernel = FakeKernel::new(1);
    let cache = builder(&kernel).build().unwrap();
    assert!(matches!(
        cache.get(page(0), 0, READ),
        Err(Error::Range(RangeError::ZeroLength { start: BASE }))
    ));
    let wrapped = cache.get(page(0), usize::MAX, READ);
    assert!(matches!(
        wrapped,
        Err(Error::Range(RangeError::AddressWraps {
            len: usize::MAX,
            ..
        }))
    ));
    assert_eq!(cache.stats().entries, 0);
}

#[test]
fn a_monitor_that_fails_makes_lookups_uncached() {
    let kernel = FakeKernel::new(2);
    let cache = builder(&kernel).build().unwrap();
    drop(get(&cache, 0, 1));
    kernel.break_reports.store(true, Ordering::Relaxed);
    drop(get(&cache, 0, 1));
    kernel.remap(0);
    for _ in 0..2 {
        let guard = get(&cache, 0, 1);
        assert!(!guard.is_cached());
        assert!(!guard.registration().is_stale(&kernel, guard.range()));
    }
    let error = cache.reap().unwrap_err();
    let expected = matches!(
        error,
        Error::Monitor {
            monitor: "fake",
            ..
        }
    );
    assert!(expected, "{error}");
    assert_eq!(live(&cache), 0, "reports may be lost, so no entry is kept");
    kernel.break_reports.store(false, Ordering::Relaxed);
    let guard = get(&cache, 0, 1);
    assert!(guard.is_cached());
    assert!(!guard.registration().is_stale(&kernel, guard.range()));
}

/// A monitor with two faults that a test can switch on. With one fault, the monitor remaps a page
/// at the end of its next drain. With the other fault, the monitor does not end watches.
struct Twisted {
    inner: FakeMonitor,
    /// The page to remap at the end of the next drain.
    remap: AtomicUsize,
    keeps_watches: AtomicBool,
}

impl Twisted {
    fn new(kernel: &Arc<FakeKernel>) -> Arc<Self> {
        Arc::new(Self {
            inner: FakeMonitor(Arc::clone(kernel)),
            remap: AtomicUsize::new(usize::MAX),
            keeps_watches: AtomicBool::new(false),
        })
    }
}

struct Shared(Arc<Twisted>);

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Monitor for Shared {
    fn generation(&self) -> u64 {
        self.0.inner.generation()
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        self.0.inner.watch(range, cookie)
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        if self.0.keeps_watches.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        self.0.inner.unwatch(cookie)
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let generation = self.0.inner.drain(invalidated)?;
        let page = self.0.remap.swap(usize::MAX, Ordering::Relaxed);
        if page != usize::MAX {
            self.0.inner.0.remap(page);
        }
        Ok(generation)
    }

    fn name(&self) -> &'static str {
        "twisted"
    }
}

#[test]
fn an_invalidation_between_the_last_report_and_the_end_of_the_drain_is_seen() {
    let kernel = FakeKernel::new(2);
    let twisted = Twisted::new(&kernel);
    let monitor = Shared(Arc::clone(&twisted));
    let cache = Cache::builder(FakeDevice::new(&kernel))
        .monitor(monitor)
        .build()
        .unwrap();
    let lookup = |i| cache.get(page(i), PAGE, READ).unwrap();
    drop((lookup(0), lookup(1)));
    kernel.remap(0);
    twisted.remap.store(1, Ordering::Relaxed);
    drop(lookup(0));
    let guard = lookup(1);
    assert!(!guard.registration().is_stale(&kernel, guard.range()));
}

#[test]
fn a_report_for_a_former_user_of_the_slot_is_ignored() {
    let kernel = FakeKernel::new(2);
    let twisted = Twisted::new(&kernel);
    let monitor = Shared(Arc::clone(&twisted));
    let builder = Cache::builder(FakeDevice::new(&kernel))
        .monitor(monitor)
        .max_entries(1);
    let cache = builder.build().unwrap();
    drop(cache.get(page(0), PAGE, READ).unwrap());
    twisted.keeps_watches.store(true, Ordering::Relaxed);
    drop(cache.get(page(1), PAGE, READ).unwrap());
    kernel.remap(0);
    assert!(cache.get(page(1), PAGE, READ).unwrap().is_cached());
    let stats = cache.stats();
    assert_eq!((stats.invalidations, stats.hits), (0, 1));
}

#[test]
fn of_two_misses_at_once_the_first_to_be_published_serves_both() {
    static CACHE: OnceLock<FakeCache> = OnceLock::new();
    let kernel = FakeKernel::new(2);
    let mut device = FakeDevice::new(&kernel);
    device.hook = Some(Box::new(|device, _| {
        if device.made.load(Ordering::Relaxed) == 1 {
            let other = std::thread::spawn(|| drop(get(CACHE.get().unwrap(), 0, 1)));
            other.join().unwrap();
        }
    }));
    let cache = CACHE.get_or_init(|| device.builder().build().unwrap());
    assert_eq!(
        get(cache, 0, 1).registration().id,
        1,
        "the registration of the other thread serves the lookup"
    );
    assert_eq!(
        (cache.stats().merges, live(cache), kernel.watches()),
        (0, 1, 1)
    );
    // A static is never dropped. So LeakSanitizer would report memory to which only an entry
    // points. The test flushes the cache to prevent this.
    drop(cache.flush());
}

#[test]
fn guards_in_use_do_not_hide_idle_registrations_from_eviction() {
    const HELD: usize = 400;
    let kernel = FakeKernel::new(HELD + 100);
    let mut device = FakeDevice::new(&kernel);
    device.capacity = HELD as u32 + 10;
    let cache = device.builder().build().unwrap();
    let _held: Vec<_> = (0..HELD).map(|i| get(&cache, i, 1)).collect();
    for i in HELD..HELD + 100 {
        assert!(get(&cache, i, 1).is_cached());
    }
    let kernel = FakeKernel::new(HELD + 100);
    let cache = builder(&kernel)
        .max_entries(HELD as u32 + 10)
        .build()
        .unwrap();
    let _held: Vec<_> = (0..HELD).map(|i| get(&cache, i, 1)).collect();
    for i in HELD..HELD + 100 {
        assert!(get(&cache, i, 1).is_cached());
    }
}

#[test]
fn a_lookup_that_cannot_be_kept_does_not_empty_the_cache() {
    let kernel = FakeKernel::new(200);
    let cache = builder(&kernel).max_bytes(100 * PAGE).build().unwrap();
    let _held = get(&cache, 0, 60);
    for i in 60..100 {
        drop(get(&cache, i, 1));
    }
    assert!(!get(&cache, 100, 50).is_cached(), "60 pages are in use");
    assert!(!get(&cache, 60, 120).is_cached(), "more than the limit");
    let stats = cache.stats();
    assert_eq!((stats.evictions, stats.entries), (0, 41));
}

#[test]
fn a_registration_that_the_device_cannot_make_costs_no_more_than_its_own_size() {
    let kernel = FakeKernel::new(200);
    let mut device = FakeDevice::new(&kernel);
    device.largest = 8;
    let cache = device.builder().build().unwrap();
    for i in 0..100 {
        drop(get(&cache, i, 1));
    }
    cache.get(page(100), 10 * PAGE, READ).unwrap_err();
    assert_eq!(cache.stats().entries, 90);
}

/// Forks, runs `body` in the child, and returns the child's wait status. The child exits with the
/// result of `body`.
fn in_a_forked_child(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child touches only its own copy of the model's memory, and ends by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let status = body();
            // SAFETY: `_exit` ends the child, and has no preconditions.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `waitpid` waits for the child that `fork` made, and writes only `status`.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            status
        }
    }
}

#[test]
fn a_forked_child_is_refused_and_destroys_nothing() {
    let kernel = FakeKernel::new(2);
    let mut cache = Some(builder(&kernel).build().unwrap());
    let mut held = Some(get(cache.as_ref().unwrap(), 0, 1));
    drop(get(cache.as_ref().unwrap(), 1, 1));
    let status = in_a_forked_child(|| {
        let cache = cache.take().unwrap();
        let live = Arc::clone(&cache.registrar().live);
        let refused = matches!(cache.get(page(0), PAGE, READ), Err(Error::Forked))
            && matches!(cache.get(page(1), PAGE, READ), Err(Error::Forked))
            && matches!(cache.flush(), Err(Error::Forked));
        drop(cache);
        drop(held.take());
        i32::from(!refused) + 2 * i32::from(live.load(Ordering::Relaxed) != 2)
    });
    assert_eq!(status, 0);
    assert_eq!(live(cache.as_ref().unwrap()), 2);
    drop(get(cache.as_ref().unwrap(), 1, 1));
    assert_eq!(cache.as_ref().unwrap().stats().hits, 1);
}

#[test]
fn a_forked_child_cannot_use_a_pool_of_its_parent() {
    let kernel = FakeKernel::new(4);
    let pool = Pool::new(2 * PAGE).unwrap();
    let cache = builder(&kernel).pool(&pool).build().unwrap();
    drop(get(&cache, 0, 1));
    drop(get(&cache, 1, 1));
    let status = in_a_forked_child(|| {
        let limited = pool.set_max_bytes(PAGE);
        let its_kernel = FakeKernel::new(4);
        let joined = builder(&its_kernel).pool(&pool).build();
        let refused = matches!(limited, Err(Error::Forked))
            && joined.is_err_and(|error| error.to_string().contains("parent process"));
        let its_pool = Pool::new(PAGE).unwrap();
        let its_own = builder(&its_kernel).pool(&its_pool).build().unwrap();
        drop(get(&its_own, 2, 1));
        i32::from(!refused)
            + 2 * i32::from(pool.bytes() != 0)
            + 4 * i32::from(live(&cache) != 2)
            + 8 * i32::from(its_pool.bytes() != PAGE)
    });
    assert_eq!(status, 0);
    assert_eq!((pool.max_bytes(), pool.bytes()), (2 * PAGE, 2 * PAGE));
}

#[test]
fn a_forked_child_that_drops_the_last_guard_destroys_nothing() {
    let kernel = FakeKernel::new(2);
    let cache = builder(&kernel).build().unwrap();
    let mut given_up = Some(get(&cache, 0, 1));
    cache.flush().unwrap();
    kernel.refuse_watches.store(true, Ordering::Relaxed);
    let mut uncached = Some(get(&cache, 1, 1));
    let status = in_a_forked_child(|| {
        drop((given_up.take(), uncached.take()));
        i32::from(live(&cache) != 2)
    });
    assert_eq!(status, 0);
}

#[test]
fn a_forked_child_that_drops_an_empty_cache_closes_nothing() {
    let kernel = FakeKernel::new(1);
    let mut cache = Some(builder(&kernel).build().unwrap());
    let users = Arc::strong_count(&kernel);
    let status = in_a_forked_child(|| {
        drop(cache.take());
        i32::from(Arc::strong_count(&kernel) != users)
    });
    assert_eq!(status, 0, "the child dropped the registrar or the monitor");
}

/// Several threads look up and remap their own pages, and look up shared pages. The cache is small,
/// so it evicts all the time. If a thread has not remapped its own page since a lookup, the
/// lookup's registration must have pinned the current page.
#[test]
fn many_threads_never_see_a_stale_registration() {
    const OWN: usize = 6;
    const THREADS: usize = 4;
    let rounds = if cfg!(debug_assertions) {
        20_000
    } else {
        200_000
    };
    let kernel = FakeKernel::new(OWN * (THREADS + 1));
    let device = FakeDevice::new(&kernel);
    let live = Arc::clone(&device.live);
    let cache = device.builder().max_entries(12).build().unwrap();
    let (stop, lookups) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                drop(get(&cache, 0, OWN));
                std::thread::yield_now();
            }
        });
        let workers: Vec<_> = (1..=THREADS)
            .map(|thread| {
                let (cache, kernel, lookups) = (&cache, &kernel, &lookups);
                scope.spawn(move || {
                    let mut numbers = Random::new(thread as u64);
                    let mut random = move |below| numbers.below(below);
                    for _ in 0..rounds {
                        let first = random(OWN);
                        let len = 1 + random(OWN - first);
                        let start = thread * OWN + first;
                        if random(4) == 0 {
                            kernel.remap(start);
                        }
                        let wanted = VaRange::new(page(start), len * PAGE).unwrap();
                        let guard = get(cache, start, len);
                        assert!(guard.range().contains(&wanted));
                        assert!(!guard.registration().is_stale(kernel, wanted), "stale");
                        lookups.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(lookups.load(Ordering::Relaxed), THREADS * rounds);
    drop(cache);
    assert_eq!(live.load(Ordering::Relaxed), 0);
    assert_eq!(kernel.watches(), 0);
}
