//! In time (M3): no munmap returns before the counter has moved, and no lookup after it is stale,
//! whatever other threads do with the driver and the cache meanwhile. Needs the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use memmap2::MmapMut;
use regcache::monitor::{Cookie, Monitor, Ummunotify};
use regcache::{Cache, Registrar, VaRange};
use regcache_tests_vm::{PAGE, Pages};
use regcache_verbs::{Access, Context, Loopback, Mr, MrRegistrar, Pd};

const ROUNDS: u64 = 20_000;

/// Runs `rounds` while so many other threads run `contender` over and over again.
fn against(contenders: usize, contender: impl Fn(usize) + Sync, rounds: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for i in 0..contenders {
            let (stop, contender) = (&stop, &contender);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    contender(i);
                }
            });
        }
        // Also when it panics: the scope waits for the threads.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        rounds();
    });
}

/// The driver alone: on one thread mmap, register, munmap, look at the counter; on the others,
/// on the same file, register, unregister and drain. Nothing but the munmap moves the counter.
fn counter_has_moved_when_munmap_returns(contenders: usize) {
    let monitor = Ummunotify::open().unwrap();
    // No page is in them: one that is not pinned the kernel may move elsewhere (compaction), and that
    // is announced.
    let theirs = Pages::new(contenders.max(1)).unwrap();
    theirs
        .advise(0, contenders.max(1), libc::MADV_DONTNEED)
        .unwrap();
    let contender = |i: usize| {
        let range = VaRange::new(theirs.page(i), PAGE).unwrap();
        let cookie = Cookie(i as u64);
        monitor.watch(range, cookie).unwrap();
        monitor
            .drain(&mut |cookie| assert!(cookie.0 >= 100, "not theirs"))
            .unwrap();
        monitor.unwatch(cookie).unwrap();
    };
    let mut late = 0;
    against(contenders, contender, || {
        for round in 0..ROUNDS {
            let memory = Pages::new(1).unwrap();
            let cookie = Cookie(100 + round);
            monitor
                .watch(VaRange::new(memory.page(0), PAGE).unwrap(), cookie)
                .unwrap();
            let before = monitor.generation();
            memory.unmap(0, 1).unwrap();
            // Twice, if another thread has read the report before the munmap was over.
            late += u64::from(![before + 1, before + 2].contains(&monitor.generation()));
            monitor.unwatch(cookie).unwrap();
        }
    });
    println!("contenders={contenders} rounds={ROUNDS} late={late}");
    assert_eq!(late, 0);
}

#[test]
fn the_counter_has_moved_when_munmap_returns() {
    for contenders in [0, 1, 3] {
        counter_has_moved_when_munmap_returns(contenders);
    }
}

/// Verbs registrations that know their age.
struct Dated {
    registrar: MrRegistrar,
    made: AtomicU64,
}

struct DatedMr {
    number: u64,
    mr: Mr,
}

// SAFETY: as `MrRegistrar`, which does the work.
unsafe impl Registrar for Dated {
    type Access = Access;
    type Registration = DatedMr;

    fn register(&self, range: VaRange, access: Access) -> io::Result<DatedMr> {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        Ok(DatedMr {
            number,
            mr: self.registrar.register(range, access)?,
        })
    }

    fn deregister(&self, registration: DatedMr) -> io::Result<()> {
        self.registrar.deregister(registration.mr)
    }
}

/// The cache on the driver and the device: on one thread mmap, look up, munmap; on the others, look
/// up memory of their own and unmap it. A registration returned for a new mapping must have been
/// begun after the munmap of the old one; every so often the bytes are looked at as well.
fn no_lookup_after_munmap_is_stale(contenders: usize) {
    let pd = Pd::alloc(&Context::open_first().unwrap()).unwrap();
    let mut loopback = Loopback::connect(&pd).unwrap();
    let dated = Dated {
        registrar: MrRegistrar::new(&pd),
        made: AtomicU64::new(0),
    };
    let cache = Cache::builder(dated)
        .monitor(Ummunotify::open().unwrap())
        .build()
        .unwrap();
    let access = Access::LOCAL_WRITE;
    let mut sink = MmapMut::map_anon(PAGE).unwrap();

    let contender = |_: usize| {
        let memory = Pages::new(2).unwrap();
        let whole = cache.get(memory.page(0), 2 * PAGE, access).unwrap();
        drop(cache.get(memory.page(1), PAGE, access).unwrap());
        memory.unmap(1, 1).unwrap();
        drop(whole);
        drop(cache.get(memory.page(0), PAGE, access).unwrap());
    };
    let mut stale = 0;
    against(contenders, contender, || {
        // One place, mapped over and over again.
        let memory = Pages::new(1).unwrap();
        for round in 0..ROUNDS {
            let unmapped_at = cache.registrar().made.load(Ordering::SeqCst);
            if round > 0 {
                memory.map_over(0, 1).unwrap();
            }
            memory.write(0, round as u8);
            let guard = cache.get(memory.page(0), PAGE, access).unwrap();
            let mut is_stale = guard.registration().number < unmapped_at;
            if round % 64 == 0 {
                // SAFETY: mapped, and not written until the slice is gone.
                let bytes = unsafe { std::slice::from_raw_parts(memory.page(0), PAGE) };
                let out = cache.get(sink.as_ptr(), PAGE, access).unwrap();
                let (from, to) = (&guard.registration().mr, &out.registration().mr);
                // SAFETY: if the registration is stale, the page it reaches is mapped nowhere.
                unsafe { loopback.send_registered(bytes, from, &mut sink, to) }.unwrap();
                is_stale |= sink[0] != round as u8;
            }
            stale += u64::from(is_stale);
            memory.unmap(0, 1).unwrap();
        }
    });
    let stats = cache.stats();
    println!("contenders={contenders} rounds={ROUNDS} stale={stale}: {stats}");
    assert_eq!(stale, 0);
    assert_eq!(stats.leaked, 0);
}

#[test]
fn no_lookup_after_a_munmap_is_stale() {
    for contenders in [0, 1, 3] {
        no_lookup_after_munmap_is_stale(contenders);
    }
}
