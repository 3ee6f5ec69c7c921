//! Tests duties of the cache other than lookups, on the real driver and device. The cache
//! deregisters freed memory, shares a monitor with other caches, and revokes remote keys. Needs the
//! VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use regcache::monitor::{Shared, Ummunotify};
use regcache::{Builder, Cache, Registrar, VaRange};
use regcache_tests_vm::{PAGE, Pages, pinned};
use regcache_verbs::{
    Access, Context, Cq, Loopback, MrRegistrar, Pd, Qp, RemoteMemory, Route, Sge, WcStatus,
};

/// Returns a lock that every test holds. Only one test runs at a time, because the kernel counts
/// pinned memory for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn domain() -> Arc<Pd> {
    Pd::alloc(&Context::open_first().unwrap()).unwrap()
}

fn builder(pd: &Arc<Pd>) -> Builder<MrRegistrar, Ummunotify> {
    Cache::builder(MrRegistrar::new(pd)).monitor(Ummunotify::open().unwrap())
}

/// Returns a cache that still has a registration of 16 KiB of freed memory, because the cache has
/// no reaper. Also returns the amount of memory that was pinned before the registration.
fn freed_and_not_reaped() -> (Cache<MrRegistrar, Ummunotify>, u64) {
    let cache = builder(&domain()).background_reaper(false).build().unwrap();
    let memory = Pages::new(4).unwrap();
    let before = pinned();
    cache
        .prefetch(memory.page(0), memory.len(), Access::LOCAL_WRITE)
        .unwrap();
    drop(memory);
    (cache, before)
}

fn within(limit: Duration, what: impl Fn() -> bool) -> Duration {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < limit, "not within {limit:?}");
        thread::sleep(Duration::from_micros(200));
    }
    started.elapsed()
}

#[test]
fn freed_memory_is_unpinned_though_nobody_looks_up() {
    let _alone = alone();
    let cache = builder(&domain()).build().unwrap();
    let before = pinned();
    let memory: Vec<_> = (0..64).map(|_| Pages::new(4).unwrap()).collect();
    for pages in &memory {
        cache
            .prefetch(pages.page(0), pages.len(), Access::LOCAL_WRITE)
            .unwrap();
    }
    assert_eq!(pinned(), before + 64 * 16);
    drop(memory);
    let took = within(Duration::from_secs(5), || pinned() == before);
    println!("256 pages were unpinned {took:?} after they were freed");
    assert_eq!(cache.stats().entries, 0);
    assert_eq!(cache.stats().invalidations, 64);
}

#[test]
fn an_event_loop_can_do_the_releasing() {
    let _alone = alone();
    let (cache, before) = freed_and_not_reaped();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(
        pinned(),
        before + 16,
        "the registration is still pinned, because nothing has reaped it"
    );
    cache.reap().unwrap();
    assert_eq!(pinned(), before);
}

#[test]
fn a_lookup_that_is_refused_unpins_what_was_freed() {
    let _alone = alone();
    let (cache, before) = freed_and_not_reaped();
    // The kernel makes no mapping at this low address.
    let nowhere = std::ptr::without_provenance(PAGE);
    cache.get(nowhere, PAGE, Access::LOCAL_WRITE).unwrap_err();
    assert_eq!(pinned(), before);
}

#[test]
fn domains_share_a_monitor() {
    let _alone = alone();
    let first = Shared::new(Ummunotify::open().unwrap()).unwrap();
    let domains = [domain(), domain()];
    let caches = domains.each_ref().map(|pd| {
        let monitor = first.subscribe().unwrap();
        let builder = Cache::builder(MrRegistrar::new(pd));
        builder.monitor(monitor).build().unwrap()
    });
    let mut links = domains.each_ref().map(|pd| Loopback::connect(pd).unwrap());
    let mut sink = vec![0; PAGE];
    for round in 1..100 {
        // The memory is unmapped at the end of each round. So the kernel maps the memory of the
        // next round at the same address.
        let mut source = memmap2::MmapMut::map_anon(PAGE).unwrap();
        source.fill(round);
        for (link, cache) in links.iter_mut().zip(&caches) {
            for _ in 0..2 {
                link.send(cache, &source, &mut sink).unwrap();
                assert!(sink.iter().all(|&byte| byte == round));
            }
        }
        // The reaper ends the watch of the last round's source. The source and the sink are watched
        // once each.
        within(Duration::from_secs(5), || first.watches() <= 2);
    }
    for cache in &caches {
        assert_eq!(cache.stats().uncached, 0);
        assert!(cache.stats().invalidations >= 98);
    }
}

#[test]
fn a_revoked_key_reaches_no_memory() {
    let _alone = alone();
    let pd = domain();
    let context = pd.context();
    let route = Route::to_self(context, &context.active_port().unwrap()).unwrap();
    let memory = Pages::new(2).unwrap();
    memory.write(1, b'B');
    let cache = builder(&pd).revoke_remote_keys(true).build().unwrap();
    let from = cache
        .get(memory.page(0), PAGE, Access::LOCAL_WRITE)
        .unwrap();
    let to = cache
        .get(memory.page(1), PAGE, Access::REMOTE_WRITE)
        .unwrap();
    let sge = Sge {
        addr: memory.page(0).addr() as u64,
        length: PAGE as u32,
        lkey: from.registration().lkey(),
    };
    let remote = RemoteMemory {
        addr: memory.page(1).addr() as u64,
        rkey: to.registration().rkey(),
    };
    let write = || {
        let cq = Cq::create(context, 16).unwrap();
        let ends = [(); 2].map(|()| Qp::create(&pd, &cq, &cq, 4).unwrap());
        Qp::connect(&ends[0], &ends[1], &route).unwrap();
        // SAFETY: `memory` is mapped, and nothing touches it until the completion has been polled.
        unsafe { ends[0].post_rdma_write(7, sge, remote) }.unwrap();
        let status = Cell::new(None);
        within(Duration::from_secs(30), || {
            status.set(cq.poll().unwrap().map(|completion| completion.status));
            status.get().is_some()
        });
        status.get()
    };
    assert_eq!(write(), Some(WcStatus::SUCCESS));
    drop(to);
    assert_eq!(write(), Some(WcStatus::REM_ACCESS_ERR));
}

#[test]
fn devices_and_domains_do_not_mix_their_registrations() {
    let _alone = alone();
    let domains = [domain(), domain()];
    let caches = domains.each_ref().map(|pd| builder(pd).build().unwrap());
    let memory = Pages::new(1).unwrap();
    let keys: BTreeSet<_> = caches
        .iter()
        .map(|cache| {
            let guard = cache
                .get(memory.page(0), PAGE, Access::LOCAL_WRITE)
                .unwrap();
            guard.registration().lkey()
        })
        .collect();
    assert_eq!(keys.len(), 2);
}

/// A registrar for addresses at which a device has its own memory. With nvidia-peermem,
/// `ibv_reg_mr` registers such addresses. The number identifies the device memory that is at the
/// addresses now.
struct PeerMemory(AtomicU64);

// SAFETY: the registration is only a number, and gives access to no memory.
unsafe impl Registrar for PeerMemory {
    type Access = ();
    type Registration = u64;

    fn register(&self, _: VaRange, (): ()) -> io::Result<u64> {
        Ok(self.0.load(Ordering::Relaxed))
    }

    fn deregister(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn memory_that_only_a_device_has_is_never_stale() {
    let _alone = alone();
    let cache = Cache::builder(PeerMemory(AtomicU64::new(0)))
        .monitor(Ummunotify::open().unwrap())
        .build()
        .unwrap();
    let reserved = Pages::new(1).unwrap();
    reserved.protect(0, 1, libc::PROT_NONE).unwrap();
    let nowhere = ptr::without_provenance::<u8>(0x2000_0000_0000);
    for at in [reserved.page(0).cast_const(), nowhere] {
        for memory in 0..100 {
            cache.registrar().0.store(memory, Ordering::Relaxed);
            assert_eq!(*cache.get(at, PAGE, ()).unwrap().registration(), memory);
        }
    }
    assert_eq!(cache.stats().uncached, 200);
    // The cache still retains registrations of memory that is mapped and accessible.
    let memory = Pages::new(1).unwrap();
    for _ in 0..2 {
        cache.get(memory.page(0), PAGE, ()).unwrap();
    }
    assert_eq!((cache.stats().uncached, cache.stats().hits), (200, 1));
}
