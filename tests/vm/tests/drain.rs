//! Drains many events of the real driver at once, in ascending order. The registrar is a fake that
//! pins nothing, because a million pinned pages need more memory than the VM has. Needs the VM.
//!
//! By default there are 2 000 entries. `REGCACHE_DRAIN_ENTRIES=1000000` takes some minutes on an
//! idle machine.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use regcache::monitor::Ummunotify;
use regcache::{Cache, Registrar, VaRange};
use regcache_tests_vm::{PAGE, Pages};

/// Registers nothing, and counts.
#[derive(Default)]
struct FakeRegistrar {
    made: AtomicU64,
    live: AtomicU64,
}

// SAFETY: the test posts no transfer with a registration.
unsafe impl Registrar for FakeRegistrar {
    type Access = ();
    type Registration = u64;

    fn register(&self, _: VaRange, (): ()) -> io::Result<u64> {
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(self.made.fetch_add(1, Ordering::Relaxed))
    }

    fn deregister(&self, _: u64) -> io::Result<()> {
        self.live.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

fn entries() -> usize {
    env::var("REGCACHE_DRAIN_ENTRIES").map_or(2_000, |it| it.parse().unwrap())
}

/// Fills a cache with one entry for each page of the memory, and with one of other memory.
fn filled(memory: &Pages, other: &Pages) -> Cache<FakeRegistrar, Ummunotify> {
    let entries = memory.len() / PAGE;
    let bound = "/sys/module/ummunotify/parameters/max_user_regions";
    let ranges: usize = fs::read_to_string(bound).unwrap().trim().parse().unwrap();
    if ranges < 2 * entries {
        fs::write(bound, (2 * entries).to_string()).unwrap();
    }
    let cache = Cache::builder(FakeRegistrar::default())
        .monitor(Ummunotify::open().unwrap())
        .max_entries(u32::try_from(entries).unwrap() + 2)
        .max_bytes(usize::MAX)
        .build()
        .unwrap();
    cache.prefetch(other.page(0), PAGE, ()).unwrap();
    for page in 0..entries {
        cache.prefetch(memory.page(page), PAGE, ()).unwrap();
    }
    assert_eq!(cache.stats().entries, entries + 1);
    cache
}

/// Looks the page up until told to stop. Returns the longest lookup.
fn longest_hit(
    cache: &Cache<FakeRegistrar, Ummunotify>,
    address: usize,
    stop: &AtomicBool,
) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let guard = cache
            .get(std::ptr::without_provenance(address), PAGE, ())
            .unwrap();
        longest = longest.max(started.elapsed());
        // The first registration is that of this page.
        assert_eq!(*guard.registration(), 0);
    }
    longest
}

/// Unmaps the memory in some way while another thread hits. Then no entry of the memory is left.
fn drained(name: &str, unmap: impl FnOnce(Pages)) {
    let entries = entries();
    let (memory, other) = (Pages::new(entries).unwrap(), Pages::new(1).unwrap());
    let cache = Arc::new(filled(&memory, &other));
    let stop = Arc::new(AtomicBool::new(false));
    let hitting = {
        let (cache, stop, address) = (cache.clone(), stop.clone(), other.page(0).addr());
        thread::spawn(move || longest_hit(&cache, address, &stop))
    };
    let started = Instant::now();
    unmap(memory);
    let unmapped = started.elapsed();
    while cache.stats().entries > 1 || cache.registrar().live.load(Ordering::Relaxed) > 1 {
        assert!(
            started.elapsed() < Duration::from_secs(600),
            "{:?}",
            cache.stats()
        );
        thread::sleep(Duration::from_millis(1));
    }
    let took = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    let longest = hitting.join().unwrap();
    let stats = cache.stats();
    println!(
        "{name}: {entries} entries unmapped in {unmapped:?}, gone after {took:?}; longest hit {longest:?}"
    );
    assert_eq!(stats.invalidations, entries as u64);
    assert_eq!(stats.leaked, 0);
    assert_eq!(
        cache.registrar().made.load(Ordering::Relaxed),
        entries as u64 + 1
    );
}

#[test]
fn all_entries_end_with_one_unmapping_of_their_memory() {
    drained("at once", drop);
}

#[test]
fn each_entry_ends_with_the_unmapping_of_its_page() {
    drained("in ascending order", |memory| {
        let pages = memory.len() / PAGE;
        for page in 0..pages {
            // SAFETY: the page is the test's own, and nothing refers to it. `Pages` unmaps the
            // range again at the end, which does nothing where nothing is mapped.
            let result = unsafe { libc::munmap(memory.page(page).cast(), PAGE) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
        std::mem::forget(memory);
    });
}
