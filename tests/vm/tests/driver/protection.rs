//! Changes of protection, which count for the ranges that ask for them, and for no others.

use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use regcache::monitor::abi::{PROTECTION, Register};
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};

/// Cookies of the two ranges that `both` watches.
const PLAIN: u64 = 0;
const STRICT: u64 = 1;

fn watch(device: &DriverFile, memory: &Pages, cookie: u64, flags: u32) {
    let start = memory.page(0).addr() as u64;
    let region = Register {
        start,
        end: start + memory.len() as u64,
        user_cookie: cookie,
        flags,
        reserved: 0,
    };
    device.register(&region).unwrap();
}

/// Some pages, watched twice: as they always were, and with the flag.
fn both() -> (DriverFile, Pages) {
    let memory = Pages::new(4).unwrap();
    let device = DriverFile::open().unwrap();
    watch(&device, &memory, PLAIN, 0);
    watch(&device, &memory, STRICT, PROTECTION);
    (device, memory)
}

/// Which of the two were hit.
fn hit(device: &DriverFile) -> Vec<u64> {
    match device.drain() {
        Ok((cookies, _)) => cookies,
        Err(errno) => {
            assert_eq!(errno, Errno::EAGAIN);
            Vec::new()
        }
    }
}

#[test]
fn mprotect_counts_where_it_was_asked_for() {
    let (device, memory) = both();
    let counter = device.counter().unwrap();
    memory.protect(1, 2, libc::PROT_READ).unwrap();
    assert_eq!(counter.get(), 1);
    assert_eq!(hit(&device), [STRICT]);
    memory
        .protect(1, 2, libc::PROT_READ | libc::PROT_WRITE)
        .unwrap();
    assert_eq!(hit(&device), [STRICT]);
    assert_eq!(counter.get(), 2);
}

#[test]
fn the_counter_stands_still_where_nobody_asked() {
    let (device, memory) = both();
    let counter = device.counter().unwrap();
    device.unwatch(STRICT).unwrap();
    memory.protect(0, 4, libc::PROT_READ).unwrap();
    assert_eq!((counter.get(), hit(&device)), (0, vec![]));
    watch(&device, &memory, STRICT, PROTECTION);
    memory.protect(0, 4, libc::PROT_NONE).unwrap();
    assert_eq!((counter.get(), hit(&device)), (1, vec![STRICT]));
}

#[test]
fn changes_of_the_mapping_count_for_both() {
    let (device, memory) = both();
    memory.unmap(1, 1).unwrap();
    assert_eq!(hit(&device), [PLAIN, STRICT]);
}

#[test]
fn fork_counts_where_it_was_asked_for() {
    let (device, _memory) = both();
    assert!(Child::fork(|| true).unwrap().succeeded().unwrap());
    assert_eq!(hit(&device), [STRICT]);
}

#[test]
fn clearing_soft_dirty_bits_counts_for_nobody() {
    let (device, memory) = both();
    std::fs::write("/proc/self/clear_refs", "4").unwrap();
    memory.touch();
    assert_eq!(hit(&device), []);
}

#[test]
fn a_range_beside_the_change_is_not_hit() {
    let memory = Pages::new(4).unwrap();
    let device = DriverFile::open().unwrap();
    let start = memory.page(3).addr() as u64;
    let region = Register {
        start,
        end: start + PAGE as u64,
        user_cookie: STRICT,
        flags: PROTECTION,
        reserved: 0,
    };
    device.register(&region).unwrap();
    memory.protect(0, 3, libc::PROT_READ).unwrap();
    assert_eq!(hit(&device), []);
}

#[test]
fn changes_of_protection_at_address_0_do_not_keep_registrations_waiting() {
    // By a child, for nobody else wants a page there.
    let child = Child::fork(|| {
        std::fs::write("/proc/sys/vm/mmap_min_addr", "0").unwrap();
        let device = DriverFile::open().unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_POPULATE;
        // SAFETY: where nothing is, and is supposed to be.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, how, -1, 0) };
        assert!(page.is_null());
        // More often than the driver can keep note of.
        for _ in 0..100 {
            for protection in [libc::PROT_READ, protection] {
                // SAFETY: the page just mapped.
                let done = unsafe { libc::mprotect(page, PAGE, protection) };
                assert_eq!(done, 0);
            }
        }
        for (cookie, flags) in [(PLAIN, 0), (STRICT, PROTECTION)] {
            let region = Register {
                start: 0,
                end: PAGE as u64,
                user_cookie: cookie,
                flags,
                reserved: 0,
            };
            device.register(&region).unwrap();
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mprotect(page, PAGE, libc::PROT_READ) }, 0);
        assert_eq!(hit(&device), [STRICT]);
        true
    })
    .unwrap();
    let done = child.succeeded_within(Duration::from_secs(60));
    std::fs::write("/proc/sys/vm/mmap_min_addr", "65536").unwrap();
    assert!(done.unwrap(), "it is still waiting, or was not told");
}
