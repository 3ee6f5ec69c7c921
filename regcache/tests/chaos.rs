//! This test makes everything happen at once, on a modelled kernel and device. Several caches share
//! a monitor. Registrations fail and panic, deregistrations fail and panic, watches are refused,
//! and the monitor fails. Meanwhile the threads look up, hold guards, remap memory, invalidate and
//! flush.
//!
//! The test checks that no lookup returns a stale registration, that no registration ends while a
//! guard holds it, and that nothing is left at the end.
//!
//! By default the test takes a few seconds. `REGCACHE_CHAOS_LOOKUPS` sets the number of lookups of
//! each thread, and `REGCACHE_CHAOS_SEED` the seed.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod model;

use std::collections::HashSet;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use model::{Bits, FakeDevice, FakeKernel, FakeMonitor, PAGE, Pinned, Random, number, page};
use regcache::monitor::Shared;
use regcache::{Cache, Guard, Registrar, VaRange};

const PAGES: usize = 96;
const THREADS: u64 = 4;

type ChaosCache = Cache<ChaosDevice, Shared<FakeMonitor>>;
type ChaosGuard = Guard<ChaosDevice, Shared<FakeMonitor>>;

/// A device whose registrations and deregistrations fail at random.
struct ChaosDevice {
    inner: FakeDevice,
    random: Mutex<Random>,
    /// The registrations that were made and not deregistered.
    alive: Mutex<HashSet<u32>>,
    /// True while the device refuses and panics at random.
    fails: AtomicBool,
    /// The number of deregistrations that have failed.
    refused: AtomicU64,
}

/// The end of a call of the device.
enum Fate {
    Success,
    Error(i32),
    Panic,
}

impl ChaosDevice {
    fn new(kernel: &Arc<FakeKernel>, seed: u64) -> Self {
        let mut inner = FakeDevice::new(kernel);
        inner.capacity = 24;
        Self {
            inner,
            random: Mutex::new(Random::new(seed)),
            alive: Mutex::default(),
            fails: AtomicBool::new(true),
            refused: AtomicU64::new(0),
        }
    }

    fn fate(&self) -> Fate {
        if !self.fails.load(Ordering::Relaxed) {
            return Fate::Success;
        }
        match self.random.lock().unwrap().below(100) {
            0..3 => Fate::Error(libc::ENOMEM),
            3..6 => Fate::Error(libc::EFAULT),
            6 => Fate::Panic,
            _ => Fate::Success,
        }
    }

    fn is_alive(&self, pinned: &Pinned) -> bool {
        self.alive.lock().unwrap().contains(&pinned.id)
    }
}

/// Panics without a message on standard error.
fn panic_quietly() -> ! {
    panic::resume_unwind(Box::new("chaos"))
}

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Registrar for ChaosDevice {
    type Access = Bits;
    type Registration = Pinned;

    fn register(&self, range: VaRange, access: Bits) -> io::Result<Pinned> {
        match self.fate() {
            Fate::Success => {}
            Fate::Error(code) => return Err(io::Error::from_raw_os_error(code)),
            Fate::Panic => panic_quietly(),
        }
        let pinned = self.inner.register(range, access)?;
        // Another thread changes the memory before the registration is published.
        if self.random.lock().unwrap().below(16) == 0 {
            self.inner.kernel.remap(pinned.first);
        }
        self.alive.lock().unwrap().insert(pinned.id);
        Ok(pinned)
    }

    fn deregister(&self, pinned: Pinned) -> io::Result<()> {
        let was_alive = self.alive.lock().unwrap().remove(&pinned.id);
        assert!(was_alive, "deregistered twice");
        let fate = self.fate();
        // A registration that the device refuses to deregister takes no room of this model.
        self.inner.deregister(pinned)?;
        match fate {
            Fate::Success => Ok(()),
            Fate::Error(code) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(io::Error::from_raw_os_error(code))
            }
            Fate::Panic => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                panic_quietly()
            }
        }
    }
}

/// Counts of the outcomes of one thread's lookups.
#[derive(Debug, Default)]
struct Outcomes {
    served: u64,
    refused: u64,
    panicked: u64,
}

struct Worker<'a> {
    kernel: &'a FakeKernel,
    caches: &'a [ChaosCache],
    random: Random,
    held: Vec<(usize, ChaosGuard)>,
    outcomes: Outcomes,
}

impl Worker<'_> {
    fn work(mut self, lookups: u64) -> Outcomes {
        for _ in 0..lookups {
            self.look_up();
            match self.random.below(200) {
                0..20 => self.kernel.remap(self.random.below(PAGES)),
                20 => {
                    let first = self.random.below(PAGES - 16);
                    self.kernel.remap_all(first..first + 16);
                }
                21 => {
                    let (cache, first) = (self.cache(), self.random.below(PAGES));
                    let mut completion = self.caches[cache].invalidate(page(first), PAGE).unwrap();
                    self.held.clear();
                    completion.wait(Duration::from_secs(20));
                }
                22 => drop(self.caches[self.cache()].flush().unwrap()),
                23 => drop(self.caches[self.cache()].reap()),
                24 => {
                    let bytes = (8 + self.random.below(64)) * PAGE;
                    self.caches[self.cache()].set_max_bytes(bytes).unwrap();
                }
                25 => {
                    let refuse = self.random.below(2) == 0;
                    self.kernel.refuse_watches.store(refuse, Ordering::Relaxed);
                }
                26 => {
                    // Mostly one drain fails, in one cache.
                    let break_reports = &self.kernel.break_reports;
                    break_reports.store(true, Ordering::Relaxed);
                    drop(self.caches[self.cache()].reap());
                    break_reports.store(false, Ordering::Relaxed);
                }
                27..60 if !self.held.is_empty() => {
                    let i = self.random.below(self.held.len());
                    let (cache, guard) = self.held.swap_remove(i);
                    self.check_alive(cache, &guard);
                }
                _ => {}
            }
        }
        for (cache, guard) in &self.held {
            self.check_alive(*cache, guard);
        }
        self.outcomes
    }

    fn cache(&mut self) -> usize {
        self.random.below(self.caches.len())
    }

    fn look_up(&mut self) {
        let number = self.cache();
        let cache = &self.caches[number];
        let first = self.random.below(PAGES);
        let pages = 1 + self.random.below(8.min(PAGES - first));
        let access = [Bits(1), Bits(3), Bits(5), Bits(7)][self.random.below(4)];
        // These versions were in place before the lookup began.
        let before: Vec<_> = (first..first + pages)
            .map(|page| self.kernel.version(page))
            .collect();
        let kind = self.random.below(8);
        let lookup = AssertUnwindSafe(|| match kind {
            0 => cache.get_if_cached(page(first), pages * PAGE, access),
            1 => cache
                .get_unretained(page(first), pages * PAGE, access)
                .map(Some),
            _ => cache.get(page(first), pages * PAGE, access).map(Some),
        });
        let guard = match panic::catch_unwind(lookup) {
            Ok(Ok(Some(guard))) => guard,
            Ok(Ok(None)) => return,
            Ok(Err(_)) => {
                self.outcomes.refused += 1;
                return;
            }
            Err(panic) => {
                let is_planned = panic.downcast_ref() == Some(&"chaos");
                assert!(is_planned, "the cache panicked");
                self.outcomes.panicked += 1;
                return;
            }
        };
        self.outcomes.served += 1;
        let pinned = guard.registration();
        for (i, before) in before.into_iter().enumerate() {
            let its = pinned.versions[first + i - pinned.first];
            assert!(its >= before, "stale: page {} of {number}", first + i);
        }
        self.check_alive(number, &guard);
        if self.held.len() < 3 && self.random.below(3) == 0 {
            self.held.push((number, guard));
        }
    }

    fn check_alive(&self, cache: usize, guard: &ChaosGuard) {
        let device = self.caches[cache].registrar();
        assert!(device.is_alive(guard.registration()), "ended while in use");
    }
}

/// Runs the chaos over this number of caches.
fn run(caches: usize, seed: u64) {
    let kernel = FakeKernel::with_descriptor(PAGES);
    let shared = Shared::new(FakeMonitor(Arc::clone(&kernel))).unwrap();
    let caches: Vec<ChaosCache> = (0..caches)
        .map(|i| {
            Cache::builder(ChaosDevice::new(&kernel, seed + i as u64))
                .monitor(shared.subscribe().unwrap())
                .max_entries(20)
                .max_bytes(64 * PAGE)
                .background_reaper(i % 2 == 0)
                .revoke_remote_keys(i % 3 == 1)
                .merge_up_to(if i % 3 == 2 { 16 * PAGE } else { 0 })
                .granularity(if i % 4 == 3 { 2 * PAGE } else { 1 })
                .build()
                .unwrap()
        })
        .collect();
    drop(shared);
    let lookups = number("REGCACHE_CHAOS_LOOKUPS", 20_000);
    let outcomes: Vec<_> = thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let worker = Worker {
                    kernel: &kernel,
                    caches: &caches,
                    random: Random::new(seed + 100 + thread),
                    held: Vec::new(),
                    outcomes: Outcomes::default(),
                };
                s.spawn(move || worker.work(lookups))
            })
            .collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    println!("{} caches, seed {seed}: {outcomes:?}", caches.len());
    assert!(outcomes.iter().all(|its| its.served > lookups / 2));
    assert!(outcomes.iter().any(|its| its.panicked > 0));
    kernel.refuse_watches.store(false, Ordering::Relaxed);
    for cache in &caches {
        cache.registrar().fails.store(false, Ordering::Relaxed);
        assert!(cache.flush().unwrap().wait(Duration::from_secs(20)));
        let (stats, device) = (cache.stats(), cache.registrar());
        assert_eq!((stats.entries, stats.bytes, stats.unreleased), (0, 0, 0));
        assert_eq!(stats.leaked, device.refused.load(Ordering::Relaxed));
        assert!(device.alive.lock().unwrap().is_empty());
        assert_eq!(device.inner.live.load(Ordering::Relaxed), 0);
        // The next drain may fail, because another cache has lost reports. After that nothing that
        // failed is remembered: a lookup is served and retained again.
        drop(cache.get(page(0), PAGE, Bits(1)).unwrap());
        assert!(cache.get(page(0), PAGE, Bits(1)).unwrap().is_cached());
    }
    drop(caches);
    assert_eq!(kernel.watches(), 0);
}

#[test]
fn nothing_is_stale_lost_or_left_whatever_fails() {
    let seed = number("REGCACHE_CHAOS_SEED", 1);
    for (i, caches) in [1, 4, 6].into_iter().enumerate() {
        run(caches, seed + 1000 * i as u64);
    }
}
