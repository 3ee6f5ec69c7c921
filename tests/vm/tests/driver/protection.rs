//! Tests that changes of protection are reported for the ranges that request such reports, and for
//! no other range.

use std::ptr;
use std::time::Duration;

use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};
use ummunotify_sys::PROTECTION;

/// The cookie of the range without the flag PROTECTION.
const PLAIN: u64 = 0;
/// The cookie of the range with the flag PROTECTION.
const STRICT: u64 = 1;

fn watch(device: &DriverFile, memory: &Pages, cookie: u64, flags: u32) {
    device
        .watch_with(flags, memory.page(0), memory.len(), cookie)
        .unwrap();
}

/// Watches the same pages twice, once without the flag PROTECTION and once with the flag.
fn both() -> (DriverFile, Pages) {
    let memory = Pages::new(4).unwrap();
    let device = DriverFile::open().unwrap();
    watch(&device, &memory, PLAIN, 0);
    watch(&device, &memory, STRICT, PROTECTION);
    (device, memory)
}

#[test]
fn mprotect_counts_where_it_was_asked_for() {
    let (device, memory) = both();
    let counter = device.counter().unwrap();
    memory.protect(1, 2, libc::PROT_READ).unwrap();
    assert_eq!(counter.get(), 1);
    assert_eq!(device.invalidated().unwrap(), [STRICT]);
    memory
        .protect(1, 2, libc::PROT_READ | libc::PROT_WRITE)
        .unwrap();
    assert_eq!(device.invalidated().unwrap(), [STRICT]);
    assert_eq!(counter.get(), 2);
}

#[test]
fn the_counter_stands_still_where_nobody_asked() {
    let (device, memory) = both();
    let counter = device.counter().unwrap();
    device.unwatch(STRICT).unwrap();
    memory.protect(0, 4, libc::PROT_READ).unwrap();
    assert_eq!((counter.get(), device.invalidated().unwrap()), (0, vec![]));
    watch(&device, &memory, STRICT, PROTECTION);
    memory.protect(0, 4, libc::PROT_NONE).unwrap();
    assert_eq!(
        (counter.get(), device.invalidated().unwrap()),
        (1, vec![STRICT])
    );
}

#[test]
fn changes_of_the_mapping_count_for_both() {
    let (device, memory) = both();
    memory.unmap(1, 1).unwrap();
    assert_eq!(device.invalidated().unwrap(), [PLAIN, STRICT]);
}

#[test]
fn fork_counts_where_it_was_asked_for() {
    let (device, _memory) = both();
    assert!(Child::fork(|| true).unwrap().succeeded().unwrap());
    assert_eq!(device.invalidated().unwrap(), [STRICT]);
}

#[test]
fn clearing_soft_dirty_bits_counts_for_nobody() {
    let (device, memory) = both();
    std::fs::write("/proc/self/clear_refs", "4").unwrap();
    memory.touch();
    assert_eq!(device.invalidated().unwrap(), []);
}

#[test]
fn a_range_beside_the_change_is_not_hit() {
    let memory = Pages::new(4).unwrap();
    let device = DriverFile::open().unwrap();
    device
        .watch_with(PROTECTION, memory.page(3), PAGE, STRICT)
        .unwrap();
    memory.protect(0, 3, libc::PROT_READ).unwrap();
    assert_eq!(device.invalidated().unwrap(), []);
}

#[test]
fn changes_of_protection_at_address_0_do_not_keep_registrations_waiting() {
    // The test runs in a child, so that no other test has a page at address 0.
    let child = Child::fork(|| {
        std::fs::write("/proc/sys/vm/mmap_min_addr", "0").unwrap();
        // The driver sees changes only after the first range was watched.
        let (device, elsewhere) = (DriverFile::open().unwrap(), Pages::new(1).unwrap());
        watch(&device, &elsewhere, 2, PROTECTION);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_POPULATE;
        // SAFETY: nothing is mapped at address 0 in the child, so the call replaces no mapping.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, how, -1, 0) };
        assert!(page.is_null());
        // The kernel announces no end of these changes. The loop makes more such changes than the
        // driver has slots for invalidations in flight. So the driver must not keep a slot for any
        // of these changes.
        for _ in 0..100 {
            for protection in [libc::PROT_READ, protection] {
                // SAFETY: the page was mapped above, and no reference to it exists.
                let done = unsafe { libc::mprotect(page, PAGE, protection) };
                assert_eq!(done, 0);
            }
        }
        for (cookie, flags) in [(PLAIN, 0), (STRICT, PROTECTION)] {
            device.watch_with(flags, ptr::null(), PAGE, cookie).unwrap();
        }
        // SAFETY: the page was mapped above, and no reference to it exists.
        assert_eq!(unsafe { libc::mprotect(page, PAGE, libc::PROT_READ) }, 0);
        assert_eq!(device.invalidated().unwrap(), [STRICT]);
        true
    })
    .unwrap();
    let done = child.succeeded_within(Duration::from_secs(60));
    std::fs::write("/proc/sys/vm/mmap_min_addr", "65536").unwrap();
    assert!(
        done.unwrap(),
        "the registration still waits, or the change was not reported"
    );
}
