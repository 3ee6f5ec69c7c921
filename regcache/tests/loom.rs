//! These tests check the cache's protocol under loom, on a modelled kernel with one page. In each
//! test, loom runs every interleaving of a few threads, up to `LOOM_MAX_PREEMPTIONS` preemptions.
//! If the modelled kernel breaks rule M2 or M3 of `Monitor`, loom must find a stale registration.
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p regcache --release --test loom
//! ```
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::io;
use std::marker::PhantomData;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use regcache::monitor::{Cookie, Monitor};
use regcache::{Access, Builder, Cache, Registrar, VaRange};

const PAGE: *const u8 = std::ptr::without_provenance(0x1000);

/// The rule that the modelled kernel breaks.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    None,
    /// M2: a watch does not wait for an invalidation that is in flight.
    WatchDoesNotWait,
    /// M3: the report comes after the change, as with userfaultfd.
    ReportIsLate,
}

/// The modelled kernel, with one page and its watches.
struct FakeKernel {
    flaw: Flaw,
    /// The lock that is held from the start to the end of an invalidation.
    in_flight: Mutex<()>,
    version: AtomicU64,
    generation: AtomicU64,
    watches: Mutex<Watches>,
    registered: AtomicU64,
    /// The number of registrations that the device has room for.
    room: u64,
    /// The number of registrations ever made. A test reads it after all threads have ended, so it
    /// is not modelled.
    made: std::sync::atomic::AtomicU64,
    /// True if the device refuses the first registration.
    refuses_first: bool,
}

#[derive(Default)]
struct Watches {
    live: BTreeSet<u64>,
    invalidated: BTreeSet<u64>,
}

impl FakeKernel {
    fn new(flaw: Flaw) -> Arc<Self> {
        Self::with_room(flaw, u64::MAX)
    }

    fn with_room(flaw: Flaw, room: u64) -> Arc<Self> {
        Arc::new(Self::of(flaw, room))
    }

    fn of(flaw: Flaw, room: u64) -> Self {
        Self {
            flaw,
            in_flight: Mutex::new(()),
            version: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            watches: Mutex::default(),
            registered: AtomicU64::new(0),
            room,
            made: std::sync::atomic::AtomicU64::new(0),
            refuses_first: false,
        }
    }

    fn that_refuses_the_first() -> Arc<Self> {
        Arc::new(Self {
            refuses_first: true,
            ..Self::of(Flaw::None, u64::MAX)
        })
    }

    /// Counts a registration, and returns the number of earlier ones.
    fn count(&self) -> u64 {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// Models a `munmap` and a `mmap` in one thread. As with the driver, the report comes before
    /// the change. Returns the version of the new page.
    fn remap(&self) -> u64 {
        let in_flight = self.in_flight.lock().unwrap();
        if self.flaw == Flaw::ReportIsLate {
            let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
            drop(in_flight);
            self.report();
            return version;
        }
        self.report();
        self.version.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn report(&self) {
        let mut watches = self.watches.lock().unwrap();
        if !watches.live.is_empty() {
            watches.invalidated = watches.live.clone();
            self.generation.fetch_add(1, Ordering::Release);
        }
    }
}

struct FakeMonitor(Arc<FakeKernel>);

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Monitor for FakeMonitor {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn watch(&self, _: VaRange, cookie: Cookie) -> io::Result<()> {
        assert!(self.0.watches.lock().unwrap().live.insert(cookie.0));
        if self.0.flaw != Flaw::WatchDoesNotWait {
            drop(self.0.in_flight.lock().unwrap());
        }
        Ok(())
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let mut watches = self.0.watches.lock().unwrap();
        assert!(watches.live.remove(&cookie.0));
        watches.invalidated.remove(&cookie.0);
        Ok(())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut watches = self.0.watches.lock().unwrap();
        for cookie in std::mem::take(&mut watches.invalidated) {
            invalidated(Cookie(cookie));
        }
        Ok(self.0.generation.load(Ordering::Acquire))
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

/// A modelled device whose registrations have the access `A`.
struct FakeDevice<A>(Arc<FakeKernel>, PhantomData<A>);

/// A registration, which records the version of the page that was pinned.
struct Pinned(u64);

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl<A: Access> Registrar for FakeDevice<A> {
    type Access = A;
    type Registration = Pinned;

    fn register(&self, _: VaRange, _: A) -> io::Result<Pinned> {
        if self.0.registered.fetch_add(1, Ordering::Relaxed) >= self.0.room {
            self.0.registered.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        if self.0.count() == 0 && self.0.refuses_first {
            self.0.registered.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        Ok(Pinned(self.0.version.load(Ordering::Acquire)))
    }

    fn deregister(&self, _: Pinned) -> io::Result<()> {
        self.0.registered.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

type FakeCache<A = ()> = Cache<FakeDevice<A>, FakeMonitor>;

fn builder<A: Access>(kernel: &Arc<FakeKernel>) -> Builder<FakeDevice<A>, FakeMonitor> {
    let device = FakeDevice(Arc::clone(kernel), PhantomData);
    // A wider registration that fails would be tried again, which doubles the model.
    let builder = Cache::builder(device).granularity(1);
    builder.monitor(FakeMonitor(Arc::clone(kernel)))
}

fn cache(kernel: &Arc<FakeKernel>, max_entries: u32) -> Arc<FakeCache> {
    Arc::new(builder(kernel).max_entries(max_entries).build().unwrap())
}

fn assert_balanced<A: Access>(kernel: &FakeKernel, cache: Arc<FakeCache<A>>) {
    drop(cache);
    assert_eq!(
        kernel.registered.load(Ordering::Relaxed),
        0,
        "registrations leak"
    );
    assert!(
        kernel.watches.lock().unwrap().live.is_empty(),
        "watches leak"
    );
}

/// Remaps the page and then looks it up, while the other thread runs. The lookup must not be stale.
fn remap_and_look_up(
    kernel: &Arc<FakeKernel>,
    cache: Arc<FakeCache>,
    other: thread::JoinHandle<()>,
) {
    let now = kernel.remap();
    let guard = cache.get(PAGE, 1, ()).unwrap();
    assert_eq!(guard.registration().0, now, "stale");
    other.join().unwrap();
    drop(guard);
    assert_balanced(kernel, cache);
}

/// Starts a thread that gets the address from `mmap`, and then looks the page up.
fn receiver(cache: &Arc<FakeCache>, kernel: &Arc<FakeKernel>) -> thread::JoinHandle<()> {
    let (cache, kernel) = (Arc::clone(cache), Arc::clone(kernel));
    thread::spawn(move || {
        let version = kernel.version.load(Ordering::Acquire);
        let guard = cache.get(PAGE, 1, ()).unwrap();
        assert!(guard.registration().0 >= version, "stale");
    })
}

/// One thread remaps the page and then looks it up. Another thread looks the page up at the same
/// time.
fn remap_against_lookup(cached_before: bool, flaw: Flaw) {
    let kernel = FakeKernel::new(flaw);
    let cache = cache(&kernel, 2);
    if cached_before {
        drop(cache.get(PAGE, 1, ()).unwrap());
    }
    let other = {
        let cache = Arc::clone(&cache);
        thread::spawn(move || {
            // The lookup is concurrent with the remap, so it may return either version.
            let guard = cache.get(PAGE, 1, ()).unwrap();
            assert!(guard.registration().0 <= 1);
        })
    };
    remap_and_look_up(&kernel, cache, other);
}

#[test]
fn loom_a_remapped_page_is_never_served_stale_from_the_cache() {
    loom::model(|| remap_against_lookup(true, Flaw::None));
}

#[test]
fn loom_a_remap_during_another_threads_miss_is_never_served_stale() {
    loom::model(|| remap_against_lookup(false, Flaw::None));
}

#[test]
#[should_panic(expected = "stale")]
fn loom_finds_the_stale_hit_when_watching_does_not_wait() {
    loom::model(|| remap_against_lookup(true, Flaw::WatchDoesNotWait));
}

/// One thread gets the address from `mmap` after another thread has unmapped the page. The kernel
/// can hand out the address as soon as the page is gone, before `munmap` has returned.
fn handed_to_another_thread(flaw: Flaw) {
    let kernel = FakeKernel::new(flaw);
    let cache = cache(&kernel, 2);
    drop(cache.get(PAGE, 1, ()).unwrap());
    let receiver = receiver(&cache, &kernel);
    kernel.remap();
    receiver.join().unwrap();
    assert_balanced(&kernel, cache);
}

#[test]
fn loom_an_address_handed_over_is_never_served_stale() {
    loom::model(|| handed_to_another_thread(Flaw::None));
}

#[test]
#[should_panic(expected = "stale")]
fn loom_finds_the_stale_hit_when_the_report_is_late() {
    loom::model(|| handed_to_another_thread(Flaw::ReportIsLate));
}

/// One thread remaps the page and then looks it up. Meanwhile another thread drains the report, and
/// unlinks and deregisters the entry. The lookup may find the entry marked, dead or gone.
#[test]
fn loom_a_lookup_while_another_thread_unlinks_is_never_stale() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 2);
        drop(cache.get(PAGE, 1, ()).unwrap());
        let reaper = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.reap().unwrap())
        };
        remap_and_look_up(&kernel, cache, reaper);
    });
}

/// One thread drains the report of a change and unlinks the entry. Meanwhile another thread, which
/// was handed the address, looks the page up, and a third one flushes.
#[test]
fn loom_an_address_handed_over_while_others_unlink_is_never_served_stale() {
    // With more preemptions, three threads take too long.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|bound| bound.min(1));
    model.check(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 2);
        drop(cache.get(PAGE, 1, ()).unwrap());
        let flusher = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || drop(cache.flush().unwrap()))
        };
        let receiver = receiver(&cache, &kernel);
        kernel.remap();
        cache.reap().unwrap();
        receiver.join().unwrap();
        flusher.join().unwrap();
        assert_balanced(&kernel, cache);
    });
}

/// A search for a victim parks an entry while its last guard is dropped. The entry is evicted by
/// the next search at the latest.
#[test]
fn loom_a_parked_entry_is_evicted_after_its_last_guard() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 1);
        let held = cache.get(PAGE, 1, ()).unwrap();
        let dropper = thread::spawn(move || drop(held));
        let elsewhere = PAGE.wrapping_add(0x1000);
        drop(cache.get(elsewhere, 1, ()).unwrap());
        dropper.join().unwrap();
        let guard = cache.get(elsewhere, 1, ()).unwrap();
        assert!(guard.is_cached(), "an idle entry was not evicted");
        drop(guard);
        assert_balanced(&kernel, cache);
    });
}

/// One thread drops a guard while another thread evicts the entry and remaps the page. Each
/// registration is deregistered exactly once.
#[test]
fn loom_eviction_and_last_guard_destroy_a_registration_once() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 1);
        let held = cache.get(PAGE, 1, ()).unwrap();
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                let elsewhere = PAGE.wrapping_add(0x1000);
                drop(cache.get(elsewhere, 1, ()).unwrap());
            })
        };
        drop(held);
        other.join().unwrap();
        assert_balanced(&kernel, cache);
    });
}

/// Two threads drop guards of one registration, while a third thread drops the cache.
#[test]
fn loom_cache_and_last_guards_may_go_at_once() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 2);
        let guards = [
            cache.get(PAGE, 1, ()).unwrap(),
            cache.get(PAGE, 1, ()).unwrap(),
        ];
        let droppers = guards.map(|guard| thread::spawn(move || drop(guard)));
        drop(cache);
        for dropper in droppers {
            dropper.join().unwrap();
        }
        assert_eq!(kernel.registered.load(Ordering::Relaxed), 0);
        assert!(kernel.watches.lock().unwrap().live.is_empty());
        assert_eq!(
            Arc::strong_count(&kernel),
            1,
            "monitor and registrar are gone"
        );
    });
}

/// Two threads deregister dead entries, while a third thread drops the last guard of an unlinked
/// entry.
#[test]
fn loom_several_threads_deregister_each_registration_once() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 4);
        let held = cache.get(PAGE, 1, ()).unwrap();
        drop(cache.get(PAGE.wrapping_add(0x1000), 1, ()).unwrap());
        drop(cache.get(PAGE.wrapping_add(0x2000), 1, ()).unwrap());
        let flusher = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.flush().unwrap())
        };
        let dropper = thread::spawn(move || drop(held));
        cache.flush().unwrap();
        flusher.join().unwrap();
        dropper.join().unwrap();
        assert_eq!(cache.stats().entries, 0);
        assert_balanced(&kernel, cache);
    });
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bits(u8);

impl Access for Bits {
    fn serves(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
    fn is_remote(self) -> bool {
        self.0 & 4 != 0
    }
}

fn revoking_cache(kernel: &Arc<FakeKernel>) -> Arc<FakeCache<Bits>> {
    let builder = builder(kernel).max_entries(2).revoke_remote_keys(true);
    Arc::new(builder.build().unwrap())
}

const READ: Bits = Bits(1);
const REMOTE: Bits = Bits(5);

/// A lookup finds a revocable entry by a wrong hint and declines the entry. Meanwhile the last
/// guard of the entry is dropped.
#[test]
fn loom_a_declining_reader_does_not_keep_a_remote_key() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = revoking_cache(&kernel);
        let elsewhere = PAGE.wrapping_add(0x10000);
        drop(cache.get(PAGE, 1, READ).unwrap());
        cache.flush().unwrap();
        let remote = cache.get(elsewhere, 1, REMOTE).unwrap();
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || drop(cache.get(PAGE, 1, READ).unwrap()))
        };
        drop(remote);
        other.join().unwrap();
        // Only the registration of `other` is left.
        assert_eq!(
            cache.stats().entries,
            1,
            "the remote key outlives its last guard"
        );
        assert_balanced(&kernel, cache);
    });
}

/// One thread drops a guard of a revocable registration, and another looks up the same memory.
/// Meanwhile a third thread flushes.
#[test]
fn loom_revocable_guards_lookups_and_flush() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = revoking_cache(&kernel);
        let remote = cache.get(PAGE, 1, REMOTE).unwrap();
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || drop(cache.get(PAGE, 1, REMOTE).unwrap()))
        };
        let dropper = thread::spawn(move || drop(remote));
        cache.flush().unwrap();
        other.join().unwrap();
        dropper.join().unwrap();
        assert_eq!(
            cache.stats().entries,
            0,
            "the remote key outlives its last guard"
        );
        assert_balanced(&kernel, cache);
    });
}

/// One thread flushes, and waits until a registration is gone. Meanwhile another thread drops the
/// last guard of this registration.
#[test]
fn loom_completion_sees_the_last_guard_go() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 2);
        let held = cache.get(PAGE, 1, ()).unwrap();
        let mut left = cache.flush().unwrap();
        let dropper = thread::spawn(move || drop(held));
        assert!(left.wait(std::time::Duration::from_secs(1000)));
        dropper.join().unwrap();
        drop(left);
        assert_balanced(&kernel, cache);
    });
}

/// A full device serves a lookup as soon as another thread has deregistered an unlinked entry.
#[test]
fn loom_a_full_device_has_room_once_another_thread_has_deregistered() {
    loom::model(|| {
        let kernel = FakeKernel::with_room(Flaw::None, 1);
        let cache = cache(&kernel, 2);
        drop(cache.get(PAGE, 1, ()).unwrap());
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || drop(cache.flush().unwrap()))
        };
        drop(cache.get(PAGE, 1, ()).unwrap());
        other.join().unwrap();
        assert_balanced(&kernel, cache);
    });
}

/// Two lookups of one page miss at once. One of them waits for the registration of the other.
#[test]
fn loom_two_misses_of_one_page_make_one_registration() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 2);
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || drop(cache.get(PAGE, 1, ()).unwrap()))
        };
        drop(cache.get(PAGE, 1, ()).unwrap());
        other.join().unwrap();
        assert_eq!(kernel.made.load(Ordering::Relaxed), 1);
        assert_balanced(&kernel, cache);
    });
}

/// A lookup waits for a registration that fails. It then makes its own.
#[test]
fn loom_a_waiting_miss_survives_the_failure_of_the_other() {
    loom::model(|| {
        let kernel = FakeKernel::that_refuses_the_first();
        let cache = cache(&kernel, 2);
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.get(PAGE, 1, ()).is_ok())
        };
        let here = cache.get(PAGE, 1, ()).is_ok();
        let there = other.join().unwrap();
        assert_ne!(here, there, "only the first registration is refused");
        assert_eq!(kernel.made.load(Ordering::Relaxed), 2);
        assert_balanced(&kernel, cache);
    });
}

/// A flush marks a registration in the making. The flushing thread then waits for it. The
/// registration is made again, and both lookups get the new one.
#[test]
fn loom_a_waiting_miss_gets_the_registration_of_the_last_attempt() {
    loom::model(|| {
        let kernel = FakeKernel::new(Flaw::None);
        let cache = cache(&kernel, 2);
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || drop(cache.get(PAGE, 1, ()).unwrap()))
        };
        drop(cache.flush().unwrap());
        drop(cache.get(PAGE, 1, ()).unwrap());
        other.join().unwrap();
        assert!(kernel.made.load(Ordering::Relaxed) <= 2);
        assert_balanced(&kernel, cache);
    });
}
