//! These tests check, by counts, that no lookup pays for many entries of others: entries that one
//! change has invalidated, dead entries, and entries in use.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod model;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use model::{Bits, FakeDevice, FakeKernel, FakeMonitor, PAGE, Pinned, page};
use regcache::monitor::{Monitor, Shared};
use regcache::{Access, Cache, Guard, Registrar, VaRange};

const READ: Bits = Bits(1);
/// The number of entries that one change invalidates.
const MANY: usize = 1000;

type FakeCache = Cache<FakeDevice, FakeMonitor>;

fn get<R, M>(cache: &Cache<R, M>, at: usize) -> Guard<R, M>
where
    R: Registrar<Access = Bits>,
    M: Monitor,
{
    cache.get(page(at), PAGE, READ).unwrap()
}

fn live(cache: &FakeCache) -> u32 {
    cache.registrar().live.load(Ordering::Relaxed)
}

/// Returns a cache without a reaper, in which the pages up to number `entries` are registered.
fn filled(kernel: &Arc<FakeKernel>, entries: usize) -> FakeCache {
    let builder = FakeDevice::new(kernel).builder().max_bytes(usize::MAX);
    let cache = builder.build().unwrap();
    (0..=entries).for_each(|i| drop(get(&cache, i)));
    cache
}

#[test]
fn a_hit_of_other_memory_leaves_a_large_change_to_others() {
    let kernel = FakeKernel::new(MANY + 1);
    let cache = filled(&kernel, MANY);
    let before = get(&cache, MANY).registration().id;
    kernel.remap_all(0..MANY);
    for _ in 0..3 {
        assert_eq!(get(&cache, MANY).registration().id, before, "a hit");
    }
    assert_eq!(live(&cache) as usize, MANY + 1, "a hit deregisters nothing");
    let unlinked = cache.stats().invalidations;
    assert!((1..=64).contains(&unlinked), "{unlinked} unlinked by hits");
    for at in (0..MANY).step_by(7) {
        let guard = get(&cache, at);
        assert!(!guard.registration().is_stale(&kernel, guard.range()));
    }
    cache.reap().unwrap();
    assert_eq!(cache.stats().invalidations as usize, MANY);
    assert_eq!(live(&cache) as usize, 1 + MANY.div_ceil(7));
    assert_eq!(get(&cache, MANY).registration().id, before, "still a hit");
}

#[test]
fn a_miss_without_a_reaper_deregisters_a_few_dead_entries() {
    let kernel = FakeKernel::new(2 * MANY);
    let cache = filled(&kernel, MANY);
    kernel.remap_all(0..MANY);
    drop(get(&cache, MANY));
    for miss in 1.. {
        let before = live(&cache);
        drop(get(&cache, MANY + miss));
        let after = live(&cache);
        assert!(before + 1 - after <= 8, "{before} before, {after} after");
        if cache.stats().entries == miss + 1 {
            break;
        }
        assert!(miss < MANY - 1, "the dead entries do not become fewer");
    }
}

#[test]
fn a_small_change_is_over_when_the_lookup_that_saw_it_returns() {
    let kernel = FakeKernel::new(64);
    let cache = filled(&kernel, 60);
    kernel.remap_all(0..60);
    drop(get(&cache, 60));
    assert_eq!(cache.stats().invalidations, 60);
}

#[test]
fn a_cache_full_of_marked_and_dead_entries_has_room() {
    let kernel = FakeKernel::new(2 * MANY);
    let device = FakeDevice::new(&kernel);
    let builder = device.builder().max_entries(MANY as u32);
    let cache = builder.max_bytes(usize::MAX).build().unwrap();
    (0..MANY).for_each(|i| drop(get(&cache, i)));
    kernel.remap_all(0..MANY);
    for i in MANY..2 * MANY {
        assert!(get(&cache, i).is_cached(), "miss {i}");
    }
    assert_eq!(cache.stats().evictions, 0, "there were dead entries");
    assert!(live(&cache) as usize <= MANY);
}

/// A device that records the threads that deregister.
struct Recorder {
    inner: FakeDevice,
    deregistered_by: Arc<Mutex<BTreeSet<String>>>,
    threads: Arc<Mutex<Vec<ThreadId>>>,
}

impl Recorder {
    fn new(kernel: &Arc<FakeKernel>) -> Self {
        Self {
            inner: FakeDevice::new(kernel),
            deregistered_by: Arc::default(),
            threads: Arc::default(),
        }
    }
}

// SAFETY: this is a model, without a device that reaches memory.
unsafe impl Registrar for Recorder {
    type Access = Bits;
    type Registration = Pinned;

    fn register(&self, range: VaRange, access: Bits) -> io::Result<Pinned> {
        self.inner.register(range, access)
    }

    fn deregister(&self, registration: Pinned) -> io::Result<()> {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default().to_owned();
        self.deregistered_by.lock().unwrap().insert(name);
        self.threads.lock().unwrap().push(thread.id());
        self.inner.deregister(registration)
    }
}

/// Waits until `done` returns true. Fails after a minute.
fn wait_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn where_there_is_a_reaper_no_lookup_deregisters() {
    let kernel = FakeKernel::with_descriptor(2 * MANY);
    let device = Recorder::new(&kernel);
    let by = Arc::clone(&device.deregistered_by);
    let builder = Cache::builder(device).monitor(FakeMonitor(Arc::clone(&kernel)));
    let cache = builder.max_bytes(usize::MAX).build().unwrap();
    for round in 0..10 {
        (0..MANY).for_each(|i| drop(get(&cache, i)));
        kernel.remap_all(0..MANY);
        for i in 0..100 {
            drop(get(&cache, MANY + 100 * round % 900 + i));
        }
        // A wider registration replaces the narrow ones, which are left to the reaper as well.
        drop(cache.get(page(MANY), MANY * PAGE, READ).unwrap());
        let live = || cache.registrar().inner.live.load(Ordering::Relaxed);
        wait_until(|| live() == 1);
        kernel.remap_all(MANY..2 * MANY);
        wait_until(|| live() == 0);
    }
    let names: Vec<_> = by.lock().unwrap().iter().cloned().collect();
    assert_eq!(names, ["regcache-reaper"]);
}

#[test]
fn caches_that_share_a_monitor_share_the_reaper() {
    let kernel = FakeKernel::with_descriptor(64);
    let share = Shared::new(FakeMonitor(Arc::clone(&kernel))).unwrap();
    let threads: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let build = || {
        let mut device = Recorder::new(&kernel);
        device.threads = Arc::clone(&threads);
        let builder = Cache::builder(device).monitor(share.subscribe().unwrap());
        builder.build().unwrap()
    };
    let mut caches = vec![build(), build(), build()];
    for round in 0..30 {
        for cache in &caches {
            (0..20).for_each(|i| drop(get(cache, i)));
        }
        kernel.remap_all(0..20);
        // This lookup drains the monitor, also for the caches that have the other entries.
        drop(get(&caches[round % 3], 20));
        let live =
            |cache: &Cache<Recorder, _>| cache.registrar().inner.live.load(Ordering::Relaxed);
        wait_until(|| caches.iter().all(|cache| live(cache) <= 1));
        // Caches come and go meanwhile. This thread deregisters the entry of page 20.
        drop(caches.remove(round % 3));
        caches.push(build());
    }
    let mut ids = threads.lock().unwrap().clone();
    ids.retain(|&id| id != thread::current().id());
    ids.dedup();
    assert_eq!(ids.len(), 1, "one thread has deregistered for all caches");
}

/// The number of entries in the caches that are full of entries in use. A search that examined only
/// some thousand entries would not meet the idle ones.
const CROWD: usize = 6000;

fn crowd(kernel: &Arc<FakeKernel>) -> FakeCache {
    let device = FakeDevice::new(kernel);
    let builder = device.builder().max_entries(CROWD as u32);
    builder.max_bytes(usize::MAX).build().unwrap()
}

#[test]
fn a_miss_finds_the_idle_entries_among_those_in_use() {
    let kernel = FakeKernel::new(2 * CROWD);
    let cache = crowd(&kernel);
    let mut held = Vec::new();
    for i in 0..CROWD {
        let guard = get(&cache, i);
        if i % (CROWD / 10) != 7 {
            held.push(guard);
        }
    }
    for i in 0..200 {
        assert!(get(&cache, CROWD + i).is_cached(), "miss {i}");
    }
    assert_eq!(cache.stats().evictions, 200);
    // Each guard that is dropped makes one more entry a candidate.
    let mut new = Vec::new();
    for i in 200..300 {
        new.push(get(&cache, CROWD + i));
        assert_eq!(new[i - 200].is_cached(), i < 210, "miss {i}");
    }
    for i in 300..400 {
        drop(held.pop());
        new.push(get(&cache, CROWD + i));
        assert!(new[i - 200].is_cached(), "miss {i}");
    }
    drop(held);
    drop(new);
    for i in 400..CROWD {
        assert!(get(&cache, CROWD + i).is_cached(), "miss {i}");
    }
}

#[test]
fn a_miss_finds_a_victim_although_all_entries_were_used() {
    let kernel = FakeKernel::new(2 * CROWD);
    let cache = crowd(&kernel);
    for _ in 0..2 {
        (0..CROWD).for_each(|i| drop(get(&cache, i)));
    }
    for i in 0..CROWD {
        assert!(get(&cache, CROWD + i).is_cached(), "miss {i}");
    }
    assert_eq!(cache.stats().evictions as usize, CROWD);
}

/// An access whose comparison calls a cache, as an allocator's hook might.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reentrant;

static REENTERED: OnceLock<FakeCache> = OnceLock::new();

impl Access for Reentrant {
    fn serves(self, _: Self) -> bool {
        if let Some(cache) = REENTERED.get() {
            cache.stats();
        }
        true
    }
}

struct ReentrantDevice;

// SAFETY: this is a model, without a device that reaches memory.
unsafe impl Registrar for ReentrantDevice {
    type Access = Reentrant;
    type Registration = ();

    fn register(&self, _: VaRange, _: Reentrant) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&self, (): ()) -> io::Result<()> {
        Ok(())
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "a cache was called by a thread that is inside a cache")]
fn a_call_of_a_cache_from_inside_a_cache_is_found() {
    let kernel = FakeKernel::new(8);
    let other = FakeDevice::new(&kernel).builder().build().unwrap();
    assert!(REENTERED.set(other).is_ok());
    let monitor = FakeMonitor(kernel);
    let cache = Cache::builder(ReentrantDevice)
        .monitor(monitor)
        .build()
        .unwrap();
    for i in 0..3 {
        drop(cache.get(page(i), PAGE, Reentrant));
    }
}
