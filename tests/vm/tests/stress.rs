//! A stress test of the cache on the real driver and device. Some threads change memory and let the
//! device move bytes of this memory. Other threads look up the same memory and hold guards. The
//! test fails if a transfer moves stale bytes, or if a registration or pinned memory is left at the
//! end. Needs the VM.
//!
//! The test runs for 20 s. The environment variable `REGCACHE_STRESS_SECONDS` sets another time.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use regcache::monitor::{Monitor, Ummunotify};
use regcache::{Cache, Error, Guard, Registrar, VaRange};
use regcache_tests_vm::{NeverReports, PAGE, Pages, Random, pinned};
use regcache_verbs::{Access, Context, Loopback, Mr, MrRegistrar, Pd};

const AREAS: usize = 16;
const AREA_PAGES: usize = 4;
const AREA: usize = AREA_PAGES * PAGE;

/// The largest number of entries. It is smaller than the number of ranges, so that the cache
/// evicts.
const ENTRIES: u32 = 24;

/// The number of threads that change memory and let the device move bytes.
const MOVERS: usize = 2;
/// The number of threads that only look memory up.
const LOOKERS: usize = 2;

const ACCESS: Access = Access::LOCAL_WRITE;

/// A verbs registrar that counts its registrations.
struct Counted {
    registrar: MrRegistrar,
    made: AtomicU64,
    destroyed: AtomicU64,
}

// SAFETY: the registrar passes all calls on to `MrRegistrar`, which upholds the contract.
unsafe impl Registrar for Counted {
    type Access = Access;
    type Registration = Mr;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Mr> {
        let mr = self.registrar.register(range, access)?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(mr)
    }

    fn deregister(&self, mr: Mr) -> io::Result<()> {
        self.registrar.deregister(mr)?;
        self.destroyed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A reference to the counting registrar. The cache owns this reference. The test keeps another
/// reference, so that it can read the counts after the drop of the cache.
struct Kept(Arc<Counted>);

// SAFETY: the registrar passes all calls on to `Counted`, which upholds the contract.
unsafe impl Registrar for Kept {
    type Access = Access;
    type Registration = Mr;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Mr> {
        self.0.register(range, access)
    }

    fn deregister(&self, mr: Mr) -> io::Result<()> {
        self.0.deregister(mr)
    }
}

/// The state that the threads share.
struct Field<M: Monitor> {
    cache: Cache<Kept, M>,
    /// The pieces of memory, each with a lock. Only the thread that holds the lock may change the
    /// memory or use its contents. Any thread may look the memory up without the lock.
    areas: Vec<(Pages, Mutex<()>)>,
    /// Guards that other threads drop later.
    shelf: [Mutex<Option<Guard<Kept, M>>>; 8],
    until: Instant,
    tally: Mutex<BTreeMap<&'static str, u64>>,
}

impl<M: Monitor> Field<M> {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    fn count(&self, counts: &[(&'static str, u64)]) {
        let mut tally = self.tally.lock().unwrap();
        for (what, n) in counts {
            *tally.entry(what).or_default() += n;
        }
    }

    /// Drops the guard, or leaves the guard on the shelf. Another thread may drop a guard that is
    /// on the shelf.
    fn put_down(&self, guard: Guard<Kept, M>, random: &mut Random) {
        if random.below(4) == 0 {
            let other = self.shelf[random.below(self.shelf.len())]
                .lock()
                .unwrap()
                .replace(guard);
            drop(other);
        }
    }

    /// Looks up random memory until the test ends. The memory may be changing or unmapped, so a
    /// lookup may fail.
    fn look_up(&self, seed: u64) {
        let mut random = Random::new(seed);
        let (mut answers, mut refusals) = (0, 0);
        while self.goes_on() {
            if random.below(64) == 0 {
                // This thread sleeps now and then. The sleep leaves the CPUs to the threads that
                // move bytes.
                thread::sleep(Duration::from_millis(1));
            }
            let (memory, _) = &self.areas[random.below(AREAS)];
            let first = random.below(AREA_PAGES);
            let pages = 1 + random.below(AREA_PAGES - first);
            match self.cache.get(memory.page(first), pages * PAGE, ACCESS) {
                Ok(guard) => {
                    answers += 1;
                    self.put_down(guard, &mut random);
                }
                // The lookup fails if a part of the memory is not mapped at the moment.
                Err(Error::Register(_)) => refusals += 1,
                Err(other) => panic!("{other}"),
            }
        }
        self.count(&[("looked up", answers), ("not mapped", refusals)]);
    }

    /// Makes transfers until the test ends. Before half of the transfers, this thread changes the
    /// memory.
    fn move_bytes(&self, seed: u64, loopback: &mut Loopback, unmapper: &Sender<usize>) {
        let mut random = Random::new(seed);
        let mut sink = MmapMut::map_anon(AREA).unwrap();
        let (mut moves, mut stale, mut changes, mut handed) = (0, 0, 0, 0);
        while self.goes_on() {
            let area = random.below(AREAS);
            let (memory, lock) = &self.areas[area];
            let Ok(_owned) = lock.try_lock() else {
                continue;
            };
            let first = random.below(AREA_PAGES);
            let pages = 1 + random.below(AREA_PAGES - first);
            let way = random.below(8);
            match way {
                0 => {
                    memory.unmap(first, pages).unwrap();
                    memory.map_over(first, pages).unwrap();
                }
                1 => memory.map_over(first, pages).unwrap(),
                2 => memory.advise(first, pages, libc::MADV_DONTNEED).unwrap(),
                3 => {
                    // The `munmap` of the other thread frees the address before it returns. So the
                    // kernel may map the address for this thread at once.
                    unmapper.send(area).unwrap();
                    map_when_free(memory.page(0), AREA);
                    handed += 1;
                }
                _ => {}
            }
            changes += u64::from(way < 4);
            let byte = random.below(255) as u8 + 1;
            let is_source = random.below(2) == 0;
            // SAFETY: the memory is mapped. This thread holds the lock of the area, so no other
            // thread has a reference to the memory.
            let bytes = unsafe { std::slice::from_raw_parts_mut(memory.page(0), AREA) };
            bytes.fill(if is_source { byte } else { 0 });
            sink.fill(if is_source { 0 } else { byte });
            let ours = self.cache.get(memory.page(0), AREA, ACCESS).unwrap();
            let theirs = self.cache.get(sink.as_ptr(), AREA, ACCESS).unwrap();
            let (mr, sink_mr) = (ours.registration(), theirs.registration());
            // SAFETY: the test moves no pages to another address. So a stale registration reaches
            // only pages that are mapped nowhere.
            let moved = unsafe {
                if is_source {
                    loopback.send_registered(bytes, mr, &mut sink, sink_mr)
                } else {
                    loopback.send_registered(&sink, sink_mr, bytes, mr)
                }
            };
            moved.unwrap();
            let arrived = if is_source { &sink[..] } else { &*bytes };
            stale += u64::from(arrived.iter().any(|&it| it != byte));
            moves += 1;
            self.put_down(ours, &mut random);
            self.put_down(theirs, &mut random);
        }
        self.count(&[
            ("transfers", moves),
            ("stale", stale),
            ("changes", changes),
            ("handed over", handed),
        ]);
    }

    /// Unmaps the areas that the movers send to this thread.
    fn unmap(&self, asked: &Receiver<usize>) {
        for area in asked {
            self.areas[area].0.unmap(0, AREA_PAGES).unwrap();
        }
    }
}

/// Calls `mmap` for this address repeatedly until the kernel grants the address.
fn map_when_free(start: *mut u8, len: usize) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    loop {
        // SAFETY: the call fails if anything is mapped at these addresses. So the call replaces no
        // mapping.
        let mapped = unsafe { libc::mmap(start.cast(), len, protection, flags, -1, 0) };
        if mapped == start.cast() {
            return;
        }
        assert_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EEXIST)
        );
        thread::yield_now();
    }
}

/// Runs the stress test for the duration `time`. Returns the number of transfers that moved stale
/// bytes.
fn run<M: Monitor>(monitor: M, time: Duration) -> u64 {
    static ALONE: Mutex<()> = Mutex::new(());
    // Only one run is active at a time, because the kernel counts pinned memory for the whole
    // process.
    let _alone: MutexGuard<'_, ()> = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pinned_before = pinned();
    let pd = Pd::alloc(&Context::open_first().unwrap()).unwrap();
    let counted = Arc::new(Counted {
        registrar: MrRegistrar::new(&pd),
        made: AtomicU64::new(0),
        destroyed: AtomicU64::new(0),
    });
    let area = |_| (Pages::new(AREA_PAGES).unwrap(), Mutex::default());
    let field = Field {
        cache: Cache::builder(Kept(Arc::clone(&counted)))
            .monitor(monitor)
            .max_entries(ENTRIES)
            .build()
            .unwrap(),
        areas: (0..AREAS).map(area).collect(),
        shelf: Default::default(),
        until: Instant::now() + time,
        tally: Mutex::default(),
    };
    thread::scope(|scope| {
        let (unmapper, asked) = channel();
        let field = &field;
        scope.spawn(move || field.unmap(&asked));
        for seed in 1..=MOVERS {
            let unmapper = unmapper.clone();
            let mut loopback = Loopback::connect(&pd).unwrap();
            scope.spawn(move || field.move_bytes(seed as u64, &mut loopback, &unmapper));
        }
        for seed in 0..LOOKERS {
            scope.spawn(move || field.look_up(100 + seed as u64));
        }
    });
    let Field {
        cache,
        shelf,
        tally,
        ..
    } = field;
    let stats = cache.stats();
    drop(shelf);
    drop(cache);
    let [made, destroyed] =
        [&counted.made, &counted.destroyed].map(|count| count.load(Ordering::Relaxed));
    let tally = tally.into_inner().unwrap();
    println!("stress: {tally:?} made={made} destroyed={destroyed}: {stats}");
    assert_eq!(made, destroyed, "registrations leak");
    assert_eq!(stats.leaked, 0);
    assert_eq!(pinned(), pinned_before, "pages stay pinned");
    for what in ["transfers", "changes", "handed over", "looked up"] {
        assert!(tally[what] > 0, "the count of `{what}` is 0");
    }
    tally["stale"]
}

#[test]
fn no_transfer_moves_old_bytes_and_nothing_leaks() {
    let seconds = env::var("REGCACHE_STRESS_SECONDS").map_or(20, |it| it.parse().unwrap());
    let stale = run(Ummunotify::open().unwrap(), Duration::from_secs(seconds));
    assert_eq!(stale, 0);
}

#[test]
fn a_naive_cache_is_caught_out() {
    assert!(run(NeverReports, Duration::from_secs(3)) > 0);
}
