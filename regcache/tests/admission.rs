//! These tests check which registrations a miss makes, waits for and evicts. They use a modelled
//! kernel and a device whose registrations last until the test lets them end.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod model;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use model::{BASE, Bits, FakeDevice, FakeKernel, FakeMonitor, PAGE, Pinned, Random, page};
use regcache::{Cache, Guard, Pool, Registrar, VaRange};

type FakeCache = Cache<FakeDevice, FakeMonitor>;

const READ: Bits = Bits(1);
const REMOTE: Bits = Bits(5);

fn get(cache: &FakeCache, first: usize, pages: usize) -> Guard<FakeDevice, FakeMonitor> {
    cache.get(page(first), pages * PAGE, READ).unwrap()
}

fn made(cache: &FakeCache) -> u32 {
    cache.registrar().made.load(Ordering::Relaxed)
}

fn live(cache: &FakeCache) -> u32 {
    cache.registrar().live.load(Ordering::Relaxed)
}

/// A gate in the middle of each registration of two pages or more. Registrations wait at the gate
/// until the test lets them pass.
#[derive(Default)]
struct Gate {
    /// The number of registrations that have come to the gate, and the number that may pass.
    state: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Gate {
    /// Waits until the registration may pass, for 20 seconds at most.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let number = state.0;
        self.changed.notify_all();
        let limit = Duration::from_secs(20);
        drop(
            self.changed
                .wait_timeout_while(state, limit, |it| it.1 < number),
        );
    }

    /// Lets the first `registrations` registrations pass.
    fn let_pass(&self, registrations: usize) {
        self.state.lock().unwrap().1 = registrations;
        self.changed.notify_all();
    }

    fn open(&self) {
        self.let_pass(usize::MAX);
    }

    /// Waits until `registrations` registrations have come to the gate.
    fn wait_for(&self, registrations: usize) {
        let state = self.state.lock().unwrap();
        let limit = Duration::from_secs(20);
        let arrived = |it: &mut (usize, usize)| it.0 < registrations;
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, arrived)
            .unwrap();
        assert!(state.0 >= registrations);
    }
}

/// Returns a device with a gate, on a kernel of 64 pages.
fn gated() -> (Arc<FakeKernel>, FakeDevice, Arc<Gate>) {
    let kernel = FakeKernel::new(64);
    let mut device = FakeDevice::new(&kernel);
    let gate = Arc::new(Gate::default());
    let its = Arc::clone(&gate);
    device.hook = Some(Box::new(move |_, range: VaRange| {
        if range.len() > PAGE {
            its.pass();
        }
    }));
    (kernel, device, gate)
}

/// Waits until `lookups` lookups have waited for a registration.
fn until_waits(cache: &FakeCache, lookups: u64) {
    for _ in 0..20_000 {
        if cache.stats().waits >= lookups {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("{} lookups have waited", cache.stats().waits);
}

#[test]
fn lookups_of_a_range_or_of_a_part_of_it_wait_for_one_registration() {
    let (kernel, device, gate) = gated();
    let cache = device.builder().build().unwrap();
    drop(get(&cache, 60, 1));
    thread::scope(|s| {
        let first = s.spawn(|| get(&cache, 0, 8).registration().id);
        gate.wait_for(1);
        let same = (0..4).map(|_| s.spawn(|| get(&cache, 0, 8).registration().id));
        let others: Vec<_> = same.collect();
        let parts = [0, 3, 7].map(|i| {
            let cache = &cache;
            s.spawn(move || get(cache, i, 1).registration().id)
        });
        until_waits(&cache, 7);
        // Lookups that the registration will not serve do not wait for it.
        drop(get(&cache, 60, 1));
        drop(get(&cache, 8, 1));
        assert_eq!(cache.stats().waits, 7);
        gate.open();
        let id = first.join().unwrap();
        for other in others.into_iter().chain(parts) {
            assert_eq!(other.join().unwrap(), id);
        }
    });
    let stats = cache.stats();
    assert_eq!((made(&cache), stats.misses, stats.hits), (3, 3, 8));
    assert_eq!((stats.entries, kernel.watches()), (3, 3));
}

#[test]
fn a_lookup_waits_only_for_a_registration_that_will_serve_it() {
    let (_, device, gate) = gated();
    let builder = device.builder().revoke_remote_keys(true);
    let cache = builder.build().unwrap();
    thread::scope(|s| {
        let first = s.spawn(|| drop(get(&cache, 0, 8)));
        gate.wait_for(1);
        // The first registration does not allow remote access.
        let remote = s.spawn(|| drop(cache.get(page(0), 8 * PAGE, REMOTE).unwrap()));
        gate.wait_for(2);
        // A registration that ends with its remote guards does not serve local lookups.
        let local = s.spawn(|| drop(cache.get(page(4), 8 * PAGE, READ).unwrap()));
        gate.wait_for(3);
        gate.open();
        for thread in [first, remote, local] {
            thread.join().unwrap();
        }
    });
    assert_eq!((made(&cache), cache.stats().waits), (3, 0));
}

#[test]
fn a_lookup_does_not_wait_for_ever() {
    let (_, device, gate) = gated();
    let cache = device.builder().build().unwrap();
    thread::scope(|s| {
        let first = s.spawn(|| drop(get(&cache, 0, 8)));
        gate.wait_for(1);
        let impatient = s.spawn(|| drop(get(&cache, 0, 8)));
        gate.wait_for(2);
        assert_eq!(cache.stats().waits, 1);
        gate.open();
        first.join().unwrap();
        impatient.join().unwrap();
    });
    assert_eq!((live(&cache), cache.stats().entries), (1, 1));
}

#[test]
fn lookups_that_waited_for_a_registration_that_failed_get_their_own_error_or_guard() {
    let (kernel, mut device, gate) = gated();
    let refusals = Arc::new(AtomicU32::new(1));
    device.refusals = Some(Arc::clone(&refusals));
    let cache = device.builder().build().unwrap();
    thread::scope(|s| {
        let first = s.spawn(|| cache.get(page(0), 8 * PAGE, READ).is_ok());
        gate.wait_for(1);
        let others: Vec<_> = (0..4)
            .map(|_| s.spawn(|| cache.get(page(0), 8 * PAGE, READ).is_ok()))
            .collect();
        until_waits(&cache, 4);
        gate.open();
        assert!(!first.join().unwrap(), "the device refused the first one");
        for other in others {
            assert!(other.join().unwrap());
        }
    });
    assert_eq!((made(&cache), live(&cache), kernel.watches()), (2, 1, 1));
}

#[test]
fn memory_that_changes_while_others_wait_is_registered_again_once() {
    let (kernel, device, gate) = gated();
    let cache = device.builder().build().unwrap();
    thread::scope(|s| {
        let first = s.spawn(|| get(&cache, 0, 8));
        gate.wait_for(1);
        let others: Vec<_> = (0..4).map(|_| s.spawn(|| get(&cache, 0, 8))).collect();
        until_waits(&cache, 4);
        kernel.remap(3);
        gate.let_pass(1);
        gate.wait_for(2);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(cache.stats().waits, 4, "they wait for the next attempt");
        gate.open();
        let guards = others.into_iter().map(|it| it.join().unwrap());
        for guard in guards.chain([first.join().unwrap()]) {
            assert!(!guard.registration().is_stale(&kernel, guard.range()));
            assert!(guard.is_cached());
        }
    });
    let stats = cache.stats();
    assert_eq!((made(&cache), stats.retries, stats.waits), (2, 1, 4));
    assert_eq!((live(&cache), kernel.watches()), (1, 1));
}

#[test]
fn registrations_in_the_making_do_not_evict_and_are_charged_once() {
    let (_, device, gate) = gated();
    let builder = device.builder().max_bytes(24 * PAGE);
    let cache = builder.build().unwrap();
    for i in 0..16 {
        drop(get(&cache, 32 + i, 1));
    }
    thread::scope(|s| {
        let threads: Vec<_> = (0..4)
            .map(|_| s.spawn(|| drop(get(&cache, 0, 8))))
            .collect();
        gate.wait_for(1);
        until_waits(&cache, 3);
        assert_eq!(cache.stats().evictions, 0);
        assert_eq!(cache.stats().bytes, 24 * PAGE, "one of them, and 16 idle");
        gate.open();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let stats = cache.stats();
    assert_eq!((stats.evictions, stats.entries, stats.uncached), (0, 17, 0));
    drop(get(&cache, 8, 4));
    assert_eq!(
        cache.stats().evictions,
        4,
        "the room of four pages was needed"
    );
}

#[test]
fn a_lookup_that_the_device_or_the_monitor_refuses_evicts_nothing() {
    let kernel = FakeKernel::new(64);
    let mut device = FakeDevice::new(&kernel);
    device.hole = Some(63);
    let cache = device.builder().max_bytes(40 * PAGE).build().unwrap();
    for i in 0..30 {
        drop(get(&cache, i, 1));
    }
    for _ in 0..3 {
        cache.get(page(30), 34 * PAGE, READ).unwrap_err();
    }
    kernel.refuse_watches.store(true, Ordering::Relaxed);
    assert!(!get(&cache, 30, 20).is_cached());
    let stats = cache.stats();
    assert_eq!((stats.evictions, stats.entries), (0, 30));
}

#[test]
fn room_on_its_way_out_is_not_made_twice() {
    let kernel = FakeKernel::new(64);
    let mut device = FakeDevice::new(&kernel);
    let gate = Arc::new(Gate::default());
    let its = Arc::clone(&gate);
    device.before_deregistering = Some(Box::new(move |pinned| {
        if pinned.versions.len() == 16 {
            its.pass();
        }
    }));
    let cache = device.builder().max_bytes(24 * PAGE).build().unwrap();
    drop(get(&cache, 0, 16));
    for i in 16..24 {
        drop(get(&cache, i, 1));
    }
    thread::scope(|s| {
        let evicting = s.spawn(|| drop(get(&cache, 32, 4)));
        gate.wait_for(1);
        for i in 40..48 {
            assert!(get(&cache, i, 1).is_cached());
        }
        assert_eq!(cache.stats().evictions, 1, "16 pages are on their way out");
        gate.open();
        evicting.join().unwrap();
    });
    assert_eq!(cache.stats().bytes, 20 * PAGE);
}

/// A lookup unlinks only a few of the marked entries. The others are room as well.
#[test]
fn marked_entries_make_room_before_any_live_entry_does() {
    let kernel = FakeKernel::new(1000);
    let cache = FakeDevice::new(&kernel).builder().max_bytes(300 * PAGE);
    let cache = cache.build().unwrap();
    for i in 0..300 {
        drop(get(&cache, i, 1));
    }
    kernel.remap_all(0..200);
    assert!(get(&cache, 400, 190).is_cached());
    assert_eq!(cache.stats().evictions, 0);
    kernel.remap_all(400..590);
    for i in 600..680 {
        drop(get(&cache, i, 1));
    }
    kernel.remap_all(600..680);
    cache.set_max_bytes(110 * PAGE).unwrap();
    assert_eq!(cache.stats().evictions, 0);
    assert!(live(&cache) <= 110);
}

/// Returns a device whose reaper waits at a gate before each deregistration, and the gate.
fn slow_reaper() -> (Arc<FakeKernel>, FakeDevice, Arc<Gate>) {
    let kernel = FakeKernel::with_descriptor(1000);
    let mut device = FakeDevice::new(&kernel);
    let gate = Arc::new(Gate::default());
    let its = Arc::clone(&gate);
    device.before_deregistering = Some(Box::new(move |_| {
        if thread::current().name() == Some("regcache-reaper") {
            its.pass();
        }
    }));
    (kernel, device, gate)
}

#[test]
fn a_slow_reaper_does_not_let_dead_entries_exceed_the_limit() {
    const LIMIT: usize = 8;
    /// The number of entries that the reaper takes at a time.
    const PIECE: usize = 16;
    let (kernel, device, gate) = slow_reaper();
    let cache = device.builder().max_bytes(LIMIT * PAGE).build().unwrap();
    for i in 0..200 {
        assert!(get(&cache, i, 1).is_cached());
        kernel.remap(i);
        let live = live(&cache) as usize;
        assert!(live <= LIMIT + PIECE, "{live} registrations");
    }
    assert_eq!(cache.stats().evictions, 0);
    gate.open();
}

#[test]
fn dead_entries_make_room_on_a_full_device_before_any_live_entry_does() {
    let (kernel, mut device, gate) = slow_reaper();
    device.capacity = 8;
    let cache = device.builder().build().unwrap();
    for i in 0..8 {
        drop(get(&cache, i, 1));
    }
    kernel.remap(0);
    gate.wait_for(1);
    kernel.remap_all(1..4);
    for i in 10..13 {
        assert!(get(&cache, i, 1).is_cached());
    }
    assert_eq!(cache.stats().evictions, 0);
    assert_eq!(live(&cache), 8);
    gate.open();
}

#[test]
fn a_slow_reaper_does_not_let_dead_entries_exceed_the_limit_of_a_pool() {
    let (kernel, device, gate) = slow_reaper();
    let other_kernel = FakeKernel::new(8);
    let other = FakeDevice::new(&other_kernel);
    let pool = Pool::new(8 * PAGE).unwrap();
    let cache = device.builder().pool(&pool).build().unwrap();
    let other = other.builder().pool(&pool).build().unwrap();
    for i in 0..100 {
        assert!(get(&cache, i, 1).is_cached());
        kernel.remap(i);
    }
    drop(get(&other, 0, 8));
    assert!(
        live(&cache) + 8 * live(&other) <= 8 + 16,
        "the reaper has taken 16"
    );
    assert_eq!(cache.stats().evictions + other.stats().evictions, 0);
    gate.open();
    drop(cache);
    drop(other);
    assert_eq!(pool.bytes(), 0);
}

/// Another thread takes the room of an evicted entry before the lookup that evicted it.
#[test]
fn room_that_another_thread_has_taken_is_made_again() {
    static CACHE: OnceLock<FakeCache> = OnceLock::new();
    let kernel = FakeKernel::new(64);
    let mut device = FakeDevice::new(&kernel);
    device.capacity = 4;
    let thefts = AtomicU32::new(0);
    device.after_deregistering = Some(Box::new(move |pinned| {
        let theft = thefts.fetch_add(1, Ordering::Relaxed);
        if theft < 3 && pinned.first < 8 {
            let thief = move || drop(get(CACHE.get().unwrap(), 32 + theft as usize, 1));
            thread::spawn(thief).join().unwrap();
        }
    }));
    let cache = CACHE.get_or_init(|| device.builder().background_reaper(false).build().unwrap());
    for i in 0..4 {
        drop(get(cache, i, 1));
    }
    assert!(get(cache, 16, 1).is_cached());
    assert_eq!(made(cache), 8, "three thefts");
    // A static is never dropped, so LeakSanitizer would report what only an entry points to.
    drop(cache.flush());
}

/// More threads than places are idle at any time, so each lookup can be served.
#[test]
fn a_full_device_refuses_nothing_that_idle_entries_could_make_room_for() {
    const THREADS: usize = 8;
    let kernel = FakeKernel::new(256);
    let mut device = FakeDevice::new(&kernel);
    device.capacity = 2 * THREADS as u32;
    let cache = device.builder().build().unwrap();
    thread::scope(|s| {
        for thread in 0..THREADS {
            let cache = &cache;
            s.spawn(move || {
                let mut random = Random::new(99 + thread as u64);
                for _ in 0..5000 {
                    drop(get(cache, random.below(256), 1));
                }
            });
        }
    });
    assert!(live(&cache) <= 2 * THREADS as u32);
}

#[test]
fn invalidating_waits_for_every_registration_in_the_making() {
    for max_bytes in [usize::MAX, PAGE] {
        let (kernel, device, gate) = gated();
        let cache = device.builder().max_bytes(max_bytes).build().unwrap();
        thread::scope(|s| {
            let first = s.spawn(|| get(&cache, 0, 8));
            gate.wait_for(1);
            let mut left = cache.invalidate(page(3), PAGE).unwrap();
            assert_eq!(left.in_use(), 1);
            assert!(!left.wait(Duration::from_millis(1)));
            gate.open();
            let guard = first.join().unwrap();
            if guard.is_cached() {
                // The registration of that time was made again.
                assert!(left.wait(Duration::from_secs(20)));
            }
            drop(guard);
            assert!(left.wait(Duration::from_secs(20)));
        });
        assert!(kernel.watches() <= 1);
    }
}

#[test]
fn a_lookup_only_returns_what_is_cached() {
    let kernel = FakeKernel::new(8);
    let cache = FakeDevice::new(&kernel).builder().build().unwrap();
    let look = |first, pages: usize| {
        cache
            .get_if_cached(page(first), pages * PAGE, READ)
            .unwrap()
    };
    assert!(look(0, 4).is_none());
    let id = get(&cache, 0, 4).registration().id;
    assert_eq!(look(0, 4).unwrap().registration().id, id, "by its hint");
    assert_eq!(look(1, 2).unwrap().registration().id, id, "by the index");
    assert!(look(3, 2).is_none());
    kernel.remap(2);
    assert!(look(0, 4).is_none(), "stale");
    cache.reap().unwrap();
    assert_eq!(live(&cache), 0);
    kernel.break_reports.store(true, Ordering::Relaxed);
    drop(get(&cache, 0, 4));
    kernel.remap(0);
    assert!(look(0, 4).is_none(), "the monitor failed");
    let stats = cache.stats();
    assert_eq!((made(&cache), stats.hits), (2, 2));
}

#[test]
fn an_unretained_registration_ends_with_its_guard() {
    let kernel = FakeKernel::new(8);
    let cache = FakeDevice::new(&kernel).builder().build().unwrap();
    let once = |first, pages: usize| {
        cache
            .get_unretained(page(first), pages * PAGE, READ)
            .unwrap()
    };
    let guard = once(0, 4);
    assert!(!guard.is_cached());
    assert_eq!((live(&cache), kernel.watches()), (1, 0));
    drop(guard);
    assert_eq!(live(&cache), 0);
    let id = get(&cache, 0, 4).registration().id;
    assert_eq!(
        once(1, 2).registration().id,
        id,
        "one that is cached serves"
    );
    assert_eq!(cache.stats().entries, 1);
}

/// A device whose registrations change the mapping of their first page, as libibverbs does with
/// fork support. The first registration of the page changes the mapping, and the end of the last
/// one changes it back.
struct Splitting {
    inner: FakeDevice,
    holds: Mutex<BTreeMap<usize, u32>>,
}

impl Splitting {
    fn hold(&self, range: VaRange) {
        let mut holds = self.holds.lock().unwrap();
        let holds = holds.entry(range.start()).or_default();
        if *holds == 0 {
            self.inner.kernel.remap((range.start() - BASE) / PAGE);
        }
        *holds += 1;
    }

    fn let_go(&self, start: usize) {
        let mut holds = self.holds.lock().unwrap();
        let count = holds.get_mut(&start).unwrap();
        *count -= 1;
        if *count == 0 {
            holds.remove(&start);
        }
    }
}

// SAFETY: this is a model, without a device that reaches memory.
unsafe impl Registrar for Splitting {
    type Access = Bits;
    type Registration = (usize, Pinned);

    fn register(&self, range: VaRange, access: Bits) -> io::Result<(usize, Pinned)> {
        self.hold(range);
        match self.inner.register(range, access) {
            Ok(pinned) => Ok((range.start(), pinned)),
            Err(error) => {
                self.let_go(range.start());
                Err(error)
            }
        }
    }

    fn prepare(&self, range: VaRange) -> bool {
        self.hold(range);
        true
    }

    fn finish(&self, range: VaRange) {
        self.let_go(range.start());
    }

    fn deregister(&self, (start, pinned): (usize, Pinned)) -> io::Result<()> {
        self.inner.deregister(pinned)?;
        self.let_go(start);
        Ok(())
    }
}

#[test]
fn a_registrar_changes_the_mapping_before_the_range_is_watched() {
    let kernel = FakeKernel::new(16);
    let mut inner = FakeDevice::new(&kernel);
    inner.hole = Some(15);
    let device = Splitting {
        inner,
        holds: Mutex::default(),
    };
    let monitor = FakeMonitor(Arc::clone(&kernel));
    let cache = Cache::builder(device).monitor(monitor).build().unwrap();
    let holds = || cache.registrar().holds.lock().unwrap().len();
    for _ in 0..3 {
        for i in 0..4 {
            drop(cache.get(page(i), PAGE, READ).unwrap());
        }
        assert_eq!(holds(), 4);
        cache.flush().unwrap();
        assert_eq!(holds(), 0);
    }
    let stats = cache.stats();
    let made = cache.registrar().inner.made.load(Ordering::Relaxed);
    assert_eq!((made, stats.retries, stats.uncached), (12, 0, 0));

    cache.get(page(14), 2 * PAGE, READ).unwrap_err();
    kernel.refuse_watches.store(true, Ordering::Relaxed);
    drop(cache.get(page(5), PAGE, READ).unwrap());
    assert_eq!(holds(), 0, "each failure has given up its hold");
}

/// Maps the first pages of the modelled kernel as real memory, which was only read. All of them are
/// the zero page.
fn map_zero_pages(pages: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let start = page(0).cast_mut().cast();
    // SAFETY: the new mapping replaces no other.
    let mapped = unsafe { libc::mmap(start, pages * PAGE, protection, flags, -1, 0) };
    assert_eq!(mapped, start, "{}", io::Error::last_os_error());
    // Children of other tests must not share the pages.
    //
    // SAFETY: this is the mapping made above. The call does not change its content.
    let hidden = unsafe { libc::madvise(start, pages * PAGE, libc::MADV_DONTFORK) };
    assert_eq!(hidden, 0);
    for i in 0..pages {
        // SAFETY: the page was mapped above.
        unsafe { page(i).read_volatile() };
    }
}

/// Returns true if only this process maps the page, so that the kernel can pin it as it is.
fn is_in_place(i: usize) -> bool {
    let mut entry = [0; 8];
    let pagemap = fs::File::open("/proc/self/pagemap").unwrap();
    let offset = (page(i).addr() / PAGE * 8) as u64;
    pagemap.read_exact_at(&mut entry, offset).unwrap();
    let (present, exclusive) = (1 << 63, 1 << 56);
    u64::from_ne_bytes(entry) & (present | exclusive) == present | exclusive
}

/// The device replaces pages that are not in place, as `pin_user_pages` does. Each replacement is
/// reported.
#[test]
fn memory_that_a_registration_replaces_is_registered_once_after_the_first_time() {
    map_zero_pages(32);
    let kernel = FakeKernel::new(32);
    let mut device = FakeDevice::new(&kernel);
    device.hook = Some(Box::new(|device, range| {
        let first = (range.start() - BASE) / PAGE;
        for i in first..first + range.len() / PAGE {
            if !is_in_place(i) {
                // SAFETY: this is memory of the test, which no other thread uses.
                unsafe { page(i).cast_mut().write_volatile(0) };
                device.kernel.remap(i);
            }
        }
    }));
    let cache = device.builder().build().unwrap();
    let mut before = 0;
    for (i, expected) in [2, 1, 1, 1].into_iter().enumerate() {
        assert!(get(&cache, 8 * i, 8).is_cached());
        let now = made(&cache);
        assert_eq!(now - before, expected, "miss {i}");
        before = now;
    }
    assert_eq!(cache.stats().retries, 1);
}

#[test]
fn limits_can_be_changed_at_run_time() {
    let kernel = FakeKernel::new(32);
    let builder = FakeDevice::new(&kernel).builder().max_entries(16);
    let cache = builder.build().unwrap();
    for i in 0..16 {
        drop(get(&cache, i, 1));
    }
    let held = get(&cache, 0, 1);
    cache.set_max_bytes(10 * PAGE).unwrap();
    let stats = cache.stats();
    assert_eq!(
        (stats.bytes, stats.evictions, live(&cache)),
        (10 * PAGE, 6, 10)
    );
    cache.set_max_entries(4).unwrap();
    assert_eq!((cache.stats().entries, live(&cache)), (4, 4));
    cache.set_max_entries(0).unwrap();
    assert_eq!(cache.stats().entries, 1, "an entry in use stays");
    assert!(!get(&cache, 20, 1).is_cached());
    drop(held);
    assert_eq!((cache.stats().entries, live(&cache)), (0, 0));
    cache.set_max_entries(u32::MAX).unwrap();
    cache.set_max_bytes(usize::MAX).unwrap();
    for i in 0..20 {
        assert!(get(&cache, i, 1).is_cached());
    }
    assert_eq!(cache.stats().entries, 16, "as many as it was built for");
}

#[test]
fn the_caches_of_a_pool_keep_one_limit_together() {
    let kernels = [FakeKernel::new(64), FakeKernel::new(64)];
    let pool = Pool::new(8 * PAGE).unwrap();
    let caches = kernels.each_ref().map(|kernel| {
        let builder = FakeDevice::new(kernel).builder().pool(&pool);
        builder.build().unwrap()
    });
    let [first, second] = &caches;
    let bytes = || caches.each_ref().map(|cache| cache.stats().bytes / PAGE);
    for i in 0..8 {
        drop(get(first, i, 1));
    }
    assert_eq!((bytes(), pool.bytes()), ([8, 0], 8 * PAGE));
    assert!(get(second, 16, 3).is_cached());
    assert_eq!(
        (bytes(), pool.bytes()),
        ([5, 3], 8 * PAGE),
        "the other cache made room"
    );
    let held = get(second, 16, 3);
    assert!(get(second, 20, 5).is_cached());
    assert_eq!(bytes(), [0, 8]);
    let also_held = get(second, 20, 5);
    assert!(!get(first, 0, 1).is_cached(), "all entries are in use");
    assert!(!get(first, 0, 9).is_cached(), "more than the limit");
    assert_eq!(pool.bytes(), 8 * PAGE);

    drop(held);
    pool.set_max_bytes(6 * PAGE).unwrap();
    assert_eq!(bytes(), [0, 5]);
    assert!(get(first, 0, 1).is_cached());
    kernels[1].remap(20);
    drop(get(second, 40, 1));
    assert_eq!(
        pool.bytes(),
        6 * PAGE,
        "a stale registration in use takes room"
    );
    drop(also_held);
    assert_eq!(pool.bytes(), PAGE);
    let [held, idle] = [get(first, 0, 1), get(first, 1, 1)];
    pool.set_max_bytes(PAGE).unwrap();
    assert_eq!(bytes(), [2, 0]);
    drop(idle);
    assert_eq!(bytes(), [1, 0], "a limit was lowered while it was in use");
    drop(held);
    assert_eq!(bytes(), [1, 0], "now the limit is kept");
    let [first, second] = caches;
    drop(second);
    drop(first);
    assert_eq!(pool.bytes(), 0);
}

#[test]
fn a_registration_that_is_made_again_is_charged_to_the_pool_once() {
    let kernel = FakeKernel::new(8);
    let mut device = FakeDevice::new(&kernel);
    device.hook = Some(Box::new(|device, _| {
        if device.made.load(Ordering::Relaxed) <= 2 {
            device.kernel.remap(0);
        }
    }));
    let pool = Pool::new(4 * PAGE).unwrap();
    let cache = device.builder().pool(&pool).build().unwrap();
    assert!(get(&cache, 0, 4).is_cached());
    assert_eq!((cache.stats().retries, pool.bytes()), (2, 4 * PAGE));
}

#[test]
fn the_caches_of_a_pool_do_not_deadlock_or_lose_bytes() {
    const THREADS: usize = 4;
    let kernels = [FakeKernel::new(256), FakeKernel::new(256)];
    let pool = Pool::new(16 * PAGE).unwrap();
    let caches = kernels.each_ref().map(|kernel| {
        let builder = FakeDevice::new(kernel).builder().pool(&pool);
        builder.build().unwrap()
    });
    thread::scope(|s| {
        for thread in 0..THREADS {
            let (cache, kernel) = (&caches[thread % 2], &kernels[thread % 2]);
            s.spawn(move || {
                let mut random = Random::new(7 + thread as u64);
                for _ in 0..5000 {
                    let first = random.below(250);
                    drop(get(cache, first, 1 + random.below(6)));
                    if random.below(16) == 0 {
                        kernel.remap(first);
                    }
                }
            });
        }
    });
    assert!(pool.bytes() <= 16 * PAGE);
    for cache in &caches {
        cache.flush().unwrap();
    }
    assert_eq!(pool.bytes(), 0);
}
