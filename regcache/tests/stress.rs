//! These tests look memory up in several threads while another thread remaps it, on a modelled
//! kernel and device. Lookups that hit take no lock of the model. So the threads contend only for
//! the cache.
//!
//! By default these tests take a few seconds. A billion lookups with a million changes take about a
//! minute on two CPUs:
//!
//! ```sh
//! REGCACHE_STRESS_LOOKUPS=1000000000 REGCACHE_STRESS_CHANGES=1000000 \
//!     cargo test --release -p regcache --test stress -- --nocapture
//! ```
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod model;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use model::{Random, number};
use regcache::monitor::{Cookie, Monitor};
use regcache::{Cache, Guard, Registrar, VaRange};

const PAGE: usize = 4096;
const BASE: usize = 0x10_0000;
const PAGES: usize = 96;

/// The maximum number of entries of the cache. The limit is lower than the number of pages, so that
/// the cache evicts.
const ENTRIES: u32 = 94;

/// The number of lookups between two updates of the progress that a thread publishes.
const STEP: u64 = 1 << 10;

fn address(page: usize) -> *const u8 {
    std::ptr::without_provenance(BASE + page * PAGE)
}

fn page(range: VaRange) -> usize {
    (range.start() - BASE) / PAGE
}

/// The time at which the model reports a change.
#[derive(Clone, Copy, PartialEq)]
enum Report {
    /// The report comes before the change, as with the driver.
    InTime,
    /// The report comes after the change, as with userfaultfd.
    Late,
}

struct Mapping {
    /// The number of the physical page that is mapped. Each new page has a new number.
    version: AtomicU64,
    /// The cookies of the page's watches. The lock is held during a change and while a watch is
    /// placed, so the model keeps rule M2 of `Monitor`.
    watches: Mutex<Vec<u64>>,
}

struct FakeKernel {
    report: Report,
    mappings: Vec<Mapping>,
    generation: AtomicU64,
    hit: Mutex<Vec<u64>>,
    registered: AtomicI64,
    watched: AtomicI64,
}

impl FakeKernel {
    fn new(report: Report) -> Arc<Self> {
        let mapping = || Mapping {
            version: AtomicU64::new(0),
            watches: Mutex::default(),
        };
        Arc::new(Self {
            report,
            mappings: (0..PAGES).map(|_| mapping()).collect(),
            generation: AtomicU64::new(0),
            hit: Mutex::default(),
            registered: AtomicI64::new(0),
            watched: AtomicI64::new(0),
        })
    }

    fn version(&self, page: usize) -> u64 {
        self.mappings[page].version.load(Ordering::Acquire)
    }

    /// Models a `munmap` and a `mmap` of the page.
    fn change(&self, page: usize) {
        let mapping = &self.mappings[page];
        let watches = mapping.watches.lock().unwrap();
        let tell = || {
            if !watches.is_empty() {
                let mut hit = self.hit.lock().unwrap();
                hit.extend(&*watches);
                self.generation.fetch_add(1, Ordering::Release);
            }
        };
        if self.report == Report::InTime {
            tell();
        }
        mapping.version.fetch_add(1, Ordering::Release);
        if self.report == Report::Late {
            thread::yield_now();
            tell();
        }
    }
}

struct FakeMonitor(Arc<FakeKernel>);

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Monitor for FakeMonitor {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        self.0.watched.fetch_add(1, Ordering::Relaxed);
        let mut watches = self.0.mappings[page(range)].watches.lock().unwrap();
        watches.push(cookie.0);
        Ok(())
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        for mapping in &self.0.mappings {
            let mut watches = mapping.watches.lock().unwrap();
            if let Some(i) = watches.iter().position(|&watch| watch == cookie.0) {
                watches.swap_remove(i);
                self.0.watched.fetch_sub(1, Ordering::Relaxed);
                return Ok(());
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut hit = self.0.hit.lock().unwrap();
        for cookie in hit.drain(..) {
            invalidated(Cookie(cookie));
        }
        Ok(self.0.generation.load(Ordering::Acquire))
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

struct FakeDevice(Arc<FakeKernel>);

/// A registration that detects use after deregistration and a second deregistration.
struct Pinned {
    version: u64,
    live: Arc<AtomicBool>,
}

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Registrar for FakeDevice {
    type Access = ();
    type Registration = Pinned;

    fn register(&self, range: VaRange, (): ()) -> io::Result<Pinned> {
        self.0.registered.fetch_add(1, Ordering::Relaxed);
        Ok(Pinned {
            version: self.0.version(page(range)),
            live: Arc::new(AtomicBool::new(true)),
        })
    }

    fn deregister(&self, pinned: Pinned) -> io::Result<()> {
        assert!(
            pinned.live.swap(false, Ordering::Relaxed),
            "destroyed twice"
        );
        self.0.registered.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

type FakeCache = Cache<FakeDevice, FakeMonitor>;

/// Places in which a thread leaves a guard, so that another thread drops the guard.
type Shelf = [Mutex<Option<Guard<FakeDevice, FakeMonitor>>>; 8];

/// Looks pages up, or only the first page, while `goes_on` returns true for the number of lookups
/// that were made. Returns the number of stale ones.
fn look_up(
    cache: &FakeCache,
    shelf: &Shelf,
    one_page: bool,
    goes_on: impl Fn(u64) -> bool,
    seed: u64,
    done: &AtomicU64,
) -> u64 {
    let kernel = &cache.registrar().0;
    let mut random = Random::new(seed);
    let mut stale = 0;
    for i in (0..).take_while(|&i| goes_on(i)) {
        // At least half of the lookups go to a quarter of the pages, so that some entries are hit
        // often.
        let page = match random.below(2) {
            _ if one_page => 0,
            0 => random.below(PAGES),
            _ => random.below(PAGES / 4),
        };
        // The version `mapped` was in place before the lookup began. So a registration of an older
        // version is stale.
        let mapped = kernel.version(page);
        let guard = cache.get(address(page), PAGE, ()).unwrap();
        let pinned = guard.registration();
        stale += u64::from(pinned.version < mapped);
        assert!(
            pinned.live.load(Ordering::Relaxed),
            "destroyed while in use"
        );
        if random.below(64) == 0 {
            let shelf = &shelf[random.below(shelf.len())];
            let other = shelf.lock().unwrap().replace(guard);
            if let Some(other) = other {
                assert!(other.registration().live.load(Ordering::Relaxed));
            }
        }
        if i % STEP == 0 {
            done.fetch_add(STEP, Ordering::Relaxed);
        }
    }
    stale
}

/// Makes `lookups` lookups while the memory changes `changes` times. Returns the number of lookups
/// that returned a stale registration.
fn run(report: Report, lookups: u64, changes: u64) -> u64 {
    const THREADS: u64 = 2;
    let kernel = FakeKernel::new(report);
    let cache = Cache::builder(FakeDevice(Arc::clone(&kernel)))
        .monitor(FakeMonitor(Arc::clone(&kernel)))
        .max_entries(ENTRIES)
        .build()
        .unwrap();
    let shelf: Shelf = Default::default();
    let (done, started) = (AtomicU64::new(0), Instant::now());
    let stale = thread::scope(|scope| {
        let lookers: Vec<_> = (1..=THREADS)
            .map(|seed| {
                let (cache, shelf, done) = (&cache, &shelf, &done);
                let goes_on = move |i| i < lookups / THREADS;
                scope.spawn(move || look_up(cache, shelf, false, goes_on, seed, done))
            })
            .collect();
        let mut random = Random::new(99);
        for i in 0..changes {
            // The changes are spread evenly over the lookups.
            while done.load(Ordering::Relaxed) < lookups / changes * i
                && !lookers.iter().all(thread::ScopedJoinHandle::is_finished)
            {
                std::hint::spin_loop();
            }
            kernel.change(random.below(PAGES));
        }
        lookers.into_iter().map(|it| it.join().unwrap()).sum()
    });
    let stats = cache.stats();
    println!(
        "{lookups} lookups, {changes} changes, {stale} stale, in {:?}: {stats}",
        started.elapsed()
    );
    assert_eq!(stats.hits + stats.misses, lookups / THREADS * THREADS);
    assert!(stats.invalidations > 0 && stats.evictions > 0);
    drop(shelf);
    drop(cache);
    let left = [&kernel.registered, &kernel.watched].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(left, [0, 0], "registrations, watches");
    stale
}

#[test]
fn no_lookup_is_stale_and_nothing_leaks() {
    let lookups = number("REGCACHE_STRESS_LOOKUPS", 2_000_000);
    let changes = number("REGCACHE_STRESS_CHANGES", 20_000);
    assert_eq!(run(Report::InTime, lookups, changes), 0);
}

/// Several threads hit one entry, so that its references are spread. Meanwhile the page changes and
/// the cache is flushed. Each thread leaves guards to others, and ends before they are dropped. The
/// cache is dropped while threads hit the entry.
fn run_on_one_entry(threads: u64, lookups: u64, changes: u64) {
    let kernel = FakeKernel::new(Report::InTime);
    let cache = Cache::builder(FakeDevice(Arc::clone(&kernel)))
        .monitor(FakeMonitor(Arc::clone(&kernel)))
        .build()
        .unwrap();
    let cache = Arc::new(cache);
    let shelf: Shelf = Default::default();
    let (done, started) = (AtomicU64::new(0), Instant::now());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let lookers: Vec<_> = (1..=threads)
            .map(|seed| {
                let (cache, shelf, done, stop) = (Arc::clone(&cache), &shelf, &done, &stop);
                let goes_on = |_| !stop.load(Ordering::Relaxed);
                scope.spawn(move || look_up(&cache, shelf, true, goes_on, seed, done))
            })
            .collect();
        let ended = || lookers.iter().any(thread::ScopedJoinHandle::is_finished);
        for i in 0..changes {
            // The changes are spread evenly over the lookups, and some come after each change. A
            // thread ends early if it panics.
            let before = done.load(Ordering::Relaxed);
            let apart = (lookups / changes).max(2 * STEP);
            while done.load(Ordering::Relaxed) < before + apart && !ended() {
                thread::yield_now();
            }
            match i % 4 {
                0 => drop(cache.flush().unwrap()),
                1 => cache.reap().unwrap(),
                _ => kernel.change(0),
            }
        }
        let stats = cache.stats();
        // One of the other threads is the last that uses the cache.
        drop(cache);
        stop.store(true, Ordering::Relaxed);
        for looker in lookers {
            assert_eq!(looker.join().unwrap(), 0, "stale");
        }
        println!(
            "{lookups} lookups of one entry by {threads} threads, {changes} changes, in {:?}: {stats}",
            started.elapsed()
        );
        assert!(stats.invalidations > 0);
    });
    let on_shelf = shelf.iter().filter(|place| place.lock().unwrap().is_some());
    assert!(on_shelf.count() > 0, "no guard outlived its thread");
    drop(shelf);
    let left = [&kernel.registered, &kernel.watched].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(left, [0, 0], "registrations, watches");
}

#[test]
fn one_entry_that_two_threads_hit_is_never_stale_and_does_not_leak() {
    let lookups = number("REGCACHE_STRESS_LOOKUPS", 2_000_000);
    let changes = number("REGCACHE_STRESS_CHANGES", 100);
    run_on_one_entry(2, lookups, changes);
}

#[test]
fn one_entry_that_eight_threads_hit_is_never_stale_and_does_not_leak() {
    run_on_one_entry(8, 2_000_000, 100);
}

/// A count of hits is exact, in the entry and in its lanes.
#[test]
fn each_hit_of_one_entry_is_counted() {
    const THREADS: u64 = 4;
    const LOOKUPS: u64 = 200_000;
    let kernel = FakeKernel::new(Report::InTime);
    let cache = Cache::builder(FakeDevice(Arc::clone(&kernel)))
        .monitor(FakeMonitor(Arc::clone(&kernel)))
        .build()
        .unwrap();
    for round in 1..=3 {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..LOOKUPS).for_each(|_| drop(cache.get(address(0), 1, ()))));
            }
        });
        let stats = cache.stats();
        assert_eq!(stats.hits + stats.misses, round * THREADS * LOOKUPS);
        drop(cache.flush().unwrap());
        assert_eq!(cache.stats().hits, stats.hits);
    }
}

#[test]
fn reports_that_are_late_are_caught_out() {
    let stale = (0..20).map(|_| run(Report::Late, 1_000_000, 20_000));
    assert!(stale.into_iter().any(|stale| stale > 0));
}
