//! These tests check a cache's options and less common methods, on a modelled kernel and device.
//! They cover widening, merging, revoking remote keys, invalidating, reaping and sharing a monitor.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod model;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use model::{BASE, Bits, FakeDevice, FakeKernel, FakeMonitor, PAGE, page};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use regcache::monitor::Shared;
use regcache::{Builder, Cache, Error, Guard};

type FakeCache = Cache<FakeDevice, FakeMonitor>;

const READ: Bits = Bits(1);
const WRITE: Bits = Bits(3);
const REMOTE: Bits = Bits(7);

const LONG: Duration = Duration::from_secs(20);

fn builder(kernel: &Arc<FakeKernel>) -> Builder<FakeDevice, FakeMonitor> {
    FakeDevice::new(kernel).builder()
}

fn get(
    cache: &FakeCache,
    first: usize,
    pages: usize,
    access: Bits,
) -> Guard<FakeDevice, FakeMonitor> {
    cache.get(page(first), pages * PAGE, access).unwrap()
}

fn live(cache: &FakeCache) -> u32 {
    cache.registrar().live.load(Ordering::Relaxed)
}

fn until(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(
            started.elapsed() < LONG,
            "the condition was not met in time"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the number of a registration's first page, and the number of pages that the registration
/// covers.
fn extent(guard: &Guard<FakeDevice, FakeMonitor>) -> (usize, usize) {
    let range = guard.range();
    assert_eq!((range.start() % PAGE, range.len() % PAGE), (0, 0));
    ((range.start() - BASE) / PAGE, range.len() / PAGE)
}

#[test]
fn small_buffers_share_the_page_but_not_its_remote_key() {
    let kernel = FakeKernel::new(16);
    let small = |cache: &FakeCache, offset: usize, access| {
        cache.get(page(3).wrapping_add(offset), 64, access).unwrap()
    };
    let cache = builder(&kernel).build().unwrap();
    let first = small(&cache, 64, READ);
    assert_eq!(extent(&first), (3, 1));
    let id = first.registration().id;
    assert_eq!(small(&cache, 4032, READ).registration().id, id);
    let remote = small(&cache, 128, REMOTE).range();
    assert_eq!((remote.start(), remote.len()), (BASE + 3 * PAGE + 128, 64));
    drop(first);
    kernel.remap(3);
    assert_ne!(small(&cache, 64, READ).registration().id, id);

    let exact = builder(&FakeKernel::new(16))
        .granularity(1)
        .build()
        .unwrap();
    assert_eq!(small(&exact, 64, READ).range().len(), 64);
    let cache = builder(&FakeKernel::new(16))
        .granularity(PAGE)
        .build()
        .unwrap();
    assert_eq!(extent(&small(&cache, 128, REMOTE)), (3, 1));
}

#[cfg(feature = "snapshot")]
#[test]
fn a_snapshot_shows_what_is_cached_in_use_and_on_its_way_out() {
    use regcache::EntryState;

    let kernel = FakeKernel::new(16);
    let cache = builder(&kernel)
        .max_entries(3)
        .background_reaper(false)
        .build()
        .unwrap();
    drop(get(&cache, 0, 1, READ));
    let held = [get(&cache, 2, 2, READ), get(&cache, 5, 1, WRITE)];
    let alone = cache.get_unretained(page(8), 10, READ).unwrap();
    drop(cache.invalidate(page(5), 1).unwrap());
    kernel.remap(0);
    // This lookup drains the report. It is a hit, so the first entry may be unlinked already.
    drop(get(&cache, 2, 1, READ));
    let snapshot = cache.snapshot().unwrap();
    let state = |first| {
        let found = snapshot.at(page(first));
        found
            .first()
            .map(|entry| (entry.state, entry.watched, entry.in_use))
    };
    assert_ne!(state(0).map(|it| it.0), Some(EntryState::Cached));
    assert_eq!(state(1), None);
    assert_eq!(state(3), Some((EntryState::Cached, true, true)));
    assert_eq!(state(5), Some((EntryState::Leaving, true, true)));
    assert_eq!(state(8), Some((EntryState::Uncached, false, true)));
    drop((held, alone));
    drop(cache.flush().unwrap());
    assert!(cache.snapshot().unwrap().entries().is_empty());
}

#[test]
fn whole_blocks_are_registered_and_watched() {
    let kernel = FakeKernel::new(16);
    let cache = builder(&kernel).granularity(4 * PAGE).build().unwrap();
    let first = cache.get(page(5).wrapping_add(7), 1, READ).unwrap();
    assert_eq!(extent(&first), (4, 4));
    let id = first.registration().id;
    drop(first);
    assert_eq!(get(&cache, 6, 2, READ).registration().id, id);
    assert_eq!(
        extent(&get(&cache, 6, 3, READ)),
        (4, 8),
        "the range is in two blocks"
    );
    kernel.remap(11);
    assert_ne!(get(&cache, 6, 2, READ).registration().id, id);
    assert_eq!(live(&cache), 1);
}

#[test]
fn where_a_block_cannot_be_registered_the_range_is() {
    let kernel = FakeKernel::new(16);
    let mut device = FakeDevice::new(&kernel);
    device.hole = Some(7);
    let cache = device.builder().granularity(4 * PAGE).build().unwrap();
    let beside = get(&cache, 5, 2, READ);
    assert_eq!(extent(&beside), (5, 2));
    assert!(beside.is_cached());
    let error = cache.get(page(7), PAGE, READ).unwrap_err();
    assert!(matches!(error, Error::Register(_)), "{error}");
    drop(beside);
    assert_eq!((live(&cache), kernel.watches()), (1, 1));
}

#[test]
fn a_block_that_always_changes_does_not_spoil_the_range() {
    let kernel = FakeKernel::new(16);
    let mut device = FakeDevice::new(&kernel);
    device.hook = Some(Box::new(|device, range| {
        if range.len() > PAGE {
            device.kernel.remap(0);
        }
    }));
    let cache = device.builder().granularity(4 * PAGE).build().unwrap();
    let guard = get(&cache, 1, 1, READ);
    assert_eq!(extent(&guard), (1, 1));
    assert!(guard.is_cached());
    assert_eq!(cache.stats().retries, 1);
}

#[test]
fn a_block_that_the_limits_have_no_room_for_is_not_tried() {
    let kernel = FakeKernel::new(16);
    let cache = builder(&kernel)
        .granularity(8 * PAGE)
        .max_bytes(4 * PAGE)
        .build()
        .unwrap();
    assert_eq!(extent(&get(&cache, 1, 2, READ)), (1, 2));
    assert!(builder(&kernel).granularity(3 * PAGE).build().is_err());
}

#[test]
fn neighbours_are_joined_up_to_the_limit() {
    let kernel = FakeKernel::new(32);
    let cache = builder(&kernel).merge_up_to(8 * PAGE).build().unwrap();
    for first in [0, 2, 4, 6] {
        drop(get(&cache, first, 2, READ));
    }
    assert_eq!(extent(&get(&cache, 3, 1, READ)), (0, 8));
    assert_eq!((live(&cache), cache.stats().bytes), (1, 8 * PAGE));
    assert_eq!(
        extent(&get(&cache, 8, 2, READ)),
        (8, 2),
        "merging would exceed the limit"
    );
    assert_eq!(
        extent(&get(&cache, 7, 2, READ)),
        (7, 3),
        "the neighbour has reached the limit"
    );
    assert_eq!(
        extent(&get(&cache, 12, 1, READ)),
        (12, 1),
        "no neighbour is adjacent"
    );
    assert_eq!(
        extent(&get(&cache, 13, 1, WRITE)),
        (13, 1),
        "the neighbour has another access"
    );
    kernel.remap(0);
    assert_eq!(
        extent(&get(&cache, 5, 1, READ)),
        (5, 1),
        "the merged registration was invalidated as a whole"
    );
}

#[test]
fn remote_keys_are_kept_unless_they_are_to_be_revoked() {
    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).build().unwrap();
    drop(get(&cache, 0, 1, REMOTE));
    assert_eq!(live(&cache), 1);

    let kernel = FakeKernel::new(8);
    let cache = builder(&kernel).revoke_remote_keys(true).build().unwrap();
    let first = get(&cache, 0, 4, REMOTE);
    let second = get(&cache, 1, 1, REMOTE);
    assert_eq!(
        first.registration().id,
        second.registration().id,
        "the second lookup shares the registration in use"
    );
    let local = get(&cache, 1, 1, WRITE);
    assert_ne!(
        local.registration().id,
        second.registration().id,
        "a local lookup must not share a remote key"
    );
    drop(first);
    assert_eq!(live(&cache), 2);
    drop(second);
    assert_eq!(live(&cache), 1, "the last guard revokes the registration");
    drop(local);
    assert_eq!((live(&cache), kernel.watches()), (1, 1));
    let again = get(&cache, 0, 1, REMOTE);
    kernel.remap(0);
    drop(get(&cache, 0, 1, REMOTE));
    assert_eq!(live(&cache), 2, "the stale registration is still in use");
    drop(again);
    drop(get(&cache, 1, 1, READ));
    assert_eq!(live(&cache), 1);
    assert_eq!(cache.stats().unreleased, 0);
}

#[test]
fn revoking_under_contention_destroys_each_key_once() {
    let kernel = FakeKernel::new(4);
    let cache = builder(&kernel)
        .revoke_remote_keys(true)
        .max_entries(2)
        .build()
        .unwrap();
    thread::scope(|scope| {
        for thread in 0..3 {
            let (cache, kernel) = (&cache, &kernel);
            scope.spawn(move || {
                for i in 0..5_000 {
                    let guard = get(cache, (i * 7 + thread) % 4, 1, REMOTE);
                    if i % 64 == 0 {
                        kernel.remap(i % 4);
                    }
                    drop(guard);
                }
            });
        }
    });
    assert_eq!((live(&cache), kernel.watches()), (0, 0));
    assert_eq!((cache.stats().entries, cache.stats().unreleased), (0, 0));
}

#[test]
fn invalidate_gives_up_what_overlaps_and_tells_when_it_is_gone() {
    let kernel = FakeKernel::new(16);
    let cache = builder(&kernel).build().unwrap();
    let held = get(&cache, 2, 4, READ);
    for first in [0, 5, 6, 8] {
        drop(get(&cache, first, 2, WRITE));
    }
    let mut left = cache.invalidate(page(5), 2 * PAGE).unwrap();
    assert_eq!(left.in_use(), 1);
    assert_eq!(
        live(&cache),
        3,
        "the registrations of pages 0 and 8, and the one in use, are left"
    );
    let stats = cache.stats();
    assert_eq!((stats.unreleased, stats.unreleased_bytes), (1, 4 * PAGE));
    assert!(!left.wait(Duration::from_millis(5)));
    let fresh = get(&cache, 2, 4, READ);
    assert_ne!(fresh.registration().id, held.registration().id);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(10));
            drop(held);
        });
        assert!(left.wait(LONG));
    });
    assert_eq!(left.in_use(), 0);
    assert_eq!(cache.stats().unreleased, 0);
    drop(fresh);
    assert!(cache.invalidate(page(5), 0).is_err());
    assert_eq!(cache.invalidate(page(12), PAGE).unwrap().in_use(), 0);
}

#[test]
fn what_is_being_registered_when_it_is_invalidated_is_registered_anew() {
    let kernel = FakeKernel::new(4);
    let slot = Arc::new(OnceLock::<Weak<FakeCache>>::new());
    let mut device = FakeDevice::new(&kernel);
    let inner = Arc::clone(&slot);
    device.hook = Some(Box::new(move |device, _| {
        if device.made.load(Ordering::Relaxed) == 1 {
            let cache = inner.get().unwrap().upgrade().unwrap();
            let mut left = cache.invalidate(page(0), PAGE).unwrap();
            assert_eq!(left.in_use(), 1);
        }
    }));
    let builder = device.builder();
    let cache = &Arc::new(builder.build().unwrap());
    assert!(slot.set(Arc::downgrade(cache)).is_ok());
    assert_eq!(get(cache, 0, 1, READ).registration().id, 1);
    assert_eq!((live(cache), cache.stats().retries), (1, 1));
}

#[test]
fn closing_tells_what_is_still_in_use() {
    let kernel = FakeKernel::new(4);
    let cache = builder(&kernel).build().unwrap();
    let live = Arc::clone(&cache.registrar().live);
    drop(get(&cache, 0, 1, READ));
    let cached = get(&cache, 1, 1, READ);
    kernel.refuse_watches.store(true, Ordering::Relaxed);
    let uncached = get(&cache, 2, 1, READ);
    let mut left = cache.close().unwrap();
    assert_eq!(left.in_use(), 2);
    assert_eq!(live.load(Ordering::Relaxed), 2);
    drop(cached);
    assert_eq!(left.in_use(), 1);
    thread::scope(|scope| {
        scope.spawn(|| drop(uncached));
        assert!(left.wait(LONG));
    });
    assert_eq!(live.load(Ordering::Relaxed), 0);
    drop(left);
    assert_eq!(Arc::strong_count(&live), 1, "the core was dropped");
}

#[test]
fn what_was_freed_is_released_though_nobody_looks_up() {
    let kernel = FakeKernel::with_descriptor(8);
    let cache = builder(&kernel).build().unwrap();
    drop((get(&cache, 0, 1, READ), get(&cache, 1, 1, READ)));
    let held = get(&cache, 2, 1, READ);
    kernel.remap(0);
    until(|| live(&cache) == 2);
    kernel.remap(2);
    until(|| cache.stats().unreleased == 1);
    assert_eq!(live(&cache), 2, "the registration in use stays");
    drop(held);
    assert_eq!((live(&cache), kernel.watches()), (1, 1));
    drop(cache);
    assert_eq!(Arc::strong_count(&kernel), 1, "the thread has ended");
}

#[test]
fn an_event_loop_can_release_what_was_freed() {
    let kernel = FakeKernel::with_descriptor(8);
    let cache = builder(&kernel).background_reaper(false).build().unwrap();
    drop(get(&cache, 0, 1, READ));
    let descriptor = cache.descriptor().unwrap();
    let readable = |timeout: u8| {
        let mut fds = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout)).unwrap() == 1
    };
    assert!(!readable(0));
    kernel.remap(0);
    assert!(readable(200));
    assert_eq!(live(&cache), 1, "the cache has no reaper");
    cache.reap().unwrap();
    assert_eq!(live(&cache), 0);
    assert!(!readable(0));
    kernel.break_reports.store(true, Ordering::Relaxed);
    drop(get(&cache, 1, 1, READ));
    kernel.remap(1);
    assert!(matches!(cache.reap(), Err(Error::Monitor { .. })));
}

mod shared {
    use super::*;

    type SharedCache = Cache<FakeDevice, Shared<FakeMonitor>>;

    fn caches(kernel: &Arc<FakeKernel>) -> [SharedCache; 2] {
        let first = Shared::new(FakeMonitor(Arc::clone(kernel))).unwrap();
        let second = first.subscribe().unwrap();
        [first, second].map(|monitor| {
            let builder = Cache::builder(FakeDevice::new(kernel));
            builder.monitor(monitor).build().unwrap()
        })
    }

    fn id(cache: &SharedCache, at: usize) -> u32 {
        let guard = cache.get(page(at), PAGE, READ).unwrap();
        assert!(
            !guard
                .registration()
                .is_stale(cache.registrar().kernel.as_ref(), guard.range())
        );
        guard.registration().id
    }

    fn live(cache: &SharedCache) -> u32 {
        cache.registrar().live.load(Ordering::Relaxed)
    }

    #[test]
    fn one_watch_serves_all_caches_and_each_hears_of_it() {
        let kernel = FakeKernel::new(8);
        let caches = caches(&kernel);
        for cache in &caches {
            assert_eq!((id(cache, 0), id(cache, 1)), (0, 1));
        }
        assert_eq!(kernel.watches(), 2);
        kernel.remap(0);
        for cache in &caches {
            assert_eq!((id(cache, 0), id(cache, 1)), (2, 1));
            assert_eq!(id(cache, 0), 2, "a change is reported once");
            assert_eq!(cache.stats().invalidations, 1);
        }
        let [first, second] = caches;
        drop(first);
        kernel.remap(1);
        assert_eq!((id(&second, 0), id(&second, 1)), (2, 3));
        drop(second);
        assert_eq!(kernel.watches(), 0);
    }

    #[test]
    fn a_report_that_is_lost_is_lost_to_all() {
        let kernel = FakeKernel::new(8);
        let [first, second] = caches(&kernel);
        assert_eq!((id(&first, 0), id(&second, 0)), (0, 0));
        kernel.break_reports.store(true, Ordering::Relaxed);
        kernel.remap(0);
        assert!(matches!(first.reap(), Err(Error::Monitor { .. })));
        kernel.break_reports.store(false, Ordering::Relaxed);
        assert!(matches!(second.reap(), Err(Error::Monitor { .. })));
        assert_eq!((id(&first, 0), id(&second, 0)), (1, 1));
    }

    #[test]
    fn each_caches_reaper_hears_of_what_another_has_drained() {
        let kernel = FakeKernel::with_descriptor(8);
        let caches = caches(&kernel);
        for _ in 0..20 {
            for cache in &caches {
                id(cache, 0);
            }
            kernel.remap(0);
            until(|| caches.iter().all(|cache| live(cache) == 0));
        }
        assert_eq!(kernel.watches(), 0);
    }

    #[test]
    fn members_come_and_go() {
        let kernel = FakeKernel::new(4);
        let first = Shared::new(FakeMonitor(Arc::clone(&kernel))).unwrap();
        for _ in 0..3 {
            let builder = Cache::builder(FakeDevice::new(&kernel));
            let cache = builder.monitor(first.subscribe().unwrap()).build().unwrap();
            id(&cache, 0);
            kernel.remap(0);
            id(&cache, 0);
            assert_eq!(first.watches(), 1);
        }
        assert_eq!(first.watches(), 0);
    }
}
