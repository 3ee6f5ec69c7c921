//! Tests that a cache gives back the memory of entries that are gone. The tests are in a process of
//! their own, because they measure the memory of the process.
#![cfg(not(any(loom, sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

mod unchanging;

use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io, ptr, thread};

use regcache::{Cache, Registrar, VaRange};
use unchanging::FakeMonitor;

/// A device that reaches no memory.
struct FakeDevice;

// SAFETY: nothing accesses memory through a registration.
unsafe impl Registrar for FakeDevice {
    type Access = ();
    type Registration = usize;

    fn register(&self, range: VaRange, (): ()) -> io::Result<usize> {
        Ok(range.start())
    }

    fn deregister(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

const ENTRIES: usize = 200_000;

fn cache() -> Cache<FakeDevice, FakeMonitor> {
    let builder = Cache::builder(FakeDevice).monitor(FakeMonitor);
    let builder = builder.max_entries(ENTRIES as u32 + 1);
    builder.max_bytes(usize::MAX).build().unwrap()
}

/// Returns an address at which the cache registers one range.
fn address(number: usize) -> *const u8 {
    ptr::without_provenance((number + 16) << 13)
}

fn fill(cache: &Cache<FakeDevice, FakeMonitor>) {
    for number in 0..ENTRIES {
        drop(cache.get(address(number), 4096, ()).unwrap());
    }
}

/// Returns the bytes of this process that are in memory, without what malloc could give back.
fn resident() -> usize {
    // SAFETY: the call has no preconditions.
    unsafe { libc::malloc_trim(0) };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes = line.trim().strip_suffix(" kB").unwrap();
    kilobytes.parse::<usize>().unwrap() << 10
}

fn memory_of_a_cache_that_shrank_is_given_back() {
    let cache = cache();
    let before = resident();
    for _ in 0..3 {
        fill(&cache);
        let full = resident() - before;
        assert!(full > 100 * ENTRIES, "{full}");
        drop(cache.flush().unwrap());
        let left = resident().saturating_sub(before);
        assert!(left < full / 10, "{left} of {full} bytes");
    }
}

/// The guards keep one entry in 1 000 where it is.
fn memory_around_entries_in_use_is_given_back() {
    let cache = cache();
    let before = resident();
    let held: Vec<_> = (0..ENTRIES)
        .filter_map(|number| {
            let guard = cache.get(address(number), 4096, ()).unwrap();
            (number % 1000 == 0).then_some(guard)
        })
        .collect();
    let full = resident() - before;
    drop(cache.flush().unwrap());
    let left = resident().saturating_sub(before);
    // The records of the slots stay up to the last entry in use.
    assert!(left < full * 6 / 10, "{left} of {full} bytes");
    for (at, guard) in held.iter().enumerate() {
        assert_eq!(*guard.registration(), address(at * 1000).addr());
    }
    drop(held);
    drop(cache.flush().unwrap());
    let left = resident().saturating_sub(before);
    assert!(left < full / 10, "{left} of {full} bytes");
}

fn a_guard_that_outlives_its_cache_keeps_little_memory() {
    let cache = cache();
    let before = resident();
    let guard = cache.get(address(0), 4096, ()).unwrap();
    fill(&cache);
    let full = resident() - before;
    drop(cache);
    let left = resident().saturating_sub(before);
    assert!(left < full / 10, "{left} of {full} bytes");
    assert_eq!(*guard.registration(), address(0).addr());
}

/// Threads look up and count hits while the memory comes and goes.
fn hits_are_counted_while_memory_is_given_back() {
    let cache = cache();
    let stop = AtomicBool::new(false);
    let served: u64 = thread::scope(|scope| {
        let lookers: Vec<_> = (0..2)
            .map(|which| {
                let (cache, stop) = (&cache, &stop);
                scope.spawn(move || {
                    let mut lookups = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let at = address((lookups as usize * 7 + which) % 1000);
                        assert_eq!(*cache.get(at, 4096, ()).unwrap().registration(), at.addr());
                        lookups += 1;
                    }
                    lookups
                })
            })
            .collect();
        for _ in 0..20 {
            (0..20_000).for_each(|number| drop(cache.get(address(number), 4096, ()).unwrap()));
            drop(cache.flush().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        lookers
            .into_iter()
            .map(|looker| looker.join().unwrap())
            .sum()
    });
    let stats = cache.stats();
    assert_eq!(stats.hits + stats.misses, served + 20 * 20_000);
    assert_eq!(stats.leaked, 0);
}

/// One test, because the parts measure the memory of the process.
#[test]
fn a_cache_gives_back_the_memory_of_entries_that_are_gone() {
    // Otherwise glibc keeps large blocks, once one was freed.
    // SAFETY: the call only changes how malloc serves later requests.
    let done = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) };
    assert_eq!(done, 1);
    memory_of_a_cache_that_shrank_is_given_back();
    memory_around_entries_in_use_is_given_back();
    a_guard_that_outlives_its_cache_keeps_little_memory();
    hits_are_counted_while_memory_is_given_back();
}
