//! The memory of the driver: who is charged for it, and the errors when there is none left.

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MlockAllFlags, ProtFlags, mlockall, mmap_anonymous};
use nix::unistd::{Gid, Uid, setgid, setuid};
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};

use crate::alone;
use crate::machine::{self, Group, wait_until};

/// The progress of a process, in memory that it shares with another one, so that reporting needs no
/// memory. It stays mapped.
struct Progress(NonNull<AtomicU32>);

impl Progress {
    fn new() -> Self {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let len = NonZeroUsize::new(PAGE).unwrap();
        // SAFETY: the kernel chooses the address.
        let memory = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_SHARED) };
        Self(memory.unwrap().cast())
    }

    fn step(&self) -> &AtomicU32 {
        // SAFETY: `new` has mapped it, it starts as 0, and it is never unmapped.
        unsafe { self.0.as_ref() }
    }

    fn reach(&self, step: u32) {
        self.step().store(step, Ordering::SeqCst);
    }

    fn has_reached(&self, step: u32) -> bool {
        self.step().load(Ordering::SeqCst) >= step
    }

    /// Waits without sleeping, for a process that must not allocate.
    fn spin_until(&self, step: u32) {
        while !self.has_reached(step) {
            thread::yield_now();
        }
    }
}

#[test]
fn ranges_without_end_are_enomem_at_the_groups_limit_and_nothing_is_lost() {
    let _alone = alone();
    let group = Group::new();
    let progress = Progress::new();
    group.set("memory.max", "4M");
    let child = Child::fork(|| {
        // At the limit the kernel could not even read a page of the program.
        mlockall(MlockAllFlags::MCL_CURRENT).unwrap();
        group.enter();
        setgid(Gid::from_raw(65534)).unwrap();
        setuid(Uid::from_raw(65534)).unwrap();
        let memory = Pages::new(1).unwrap();
        let device = DriverFile::open().unwrap();
        let counter = device.counter().unwrap();
        assert_eq!(counter.get(), 0);
        let mut ranges = 0;
        let refused = loop {
            match device.watch(memory.page(0), PAGE, ranges) {
                Ok(()) => ranges += 1,
                Err(errno) => break errno,
            }
        };
        let again = device.watch(memory.page(0), PAGE, ranges);
        progress.reach(1);
        progress.spin_until(2);
        assert_eq!((refused, again), (Errno::ENOMEM, Err(Errno::ENOMEM)));
        assert!(ranges > 1000, "only {ranges}");
        memory.unmap(0, 1).unwrap();
        let (cookies, at) = device.drain().unwrap();
        assert!(cookies.into_iter().eq(0..ranges));
        assert_eq!((at, counter.get()), (1, 1));
        device.watch(memory.page(0), PAGE, ranges) == Ok(())
    })
    .unwrap();
    let events = group.file("memory.events");
    let kills = || machine::count(&events, "oom_kill");
    wait_until("it is refused", || progress.has_reached(1) || kills() > 0);
    assert_eq!(kills(), 0);
    assert!(machine::count(&events, "max") > 0, "it came to the limit");
    group.set("memory.max", "max");
    progress.reach(2);
    assert!(child.succeeded().unwrap());
}

/// The bytes of kernel objects that are charged to the group.
fn slab(group: &Group) -> u64 {
    // The kernel adds up the counts of all CPUs every two seconds.
    thread::sleep(Duration::from_secs(5));
    machine::count(group.file("memory.stat"), "slab")
}

#[test]
fn a_million_invalidations_that_nobody_reads_take_no_more_memory_than_a_thousand() {
    const RANGES: usize = 1000;
    let _alone = alone();
    let group = Group::new();
    let progress = Progress::new();
    let child = Child::fork(|| {
        group.enter();
        let memory = Pages::new(RANGES).unwrap();
        let device = DriverFile::open().unwrap();
        for i in 0..RANGES {
            device.watch(memory.page(i), PAGE, i as u64).unwrap();
        }
        let counter = device.counter().unwrap();
        let invalidate = || {
            for i in 0..RANGES {
                memory.advise(i, 1, libc::MADV_DONTNEED).unwrap();
            }
        };
        invalidate();
        assert_eq!(counter.get(), 1000);
        progress.reach(1);
        progress.spin_until(2);
        (1..1000).for_each(|_| invalidate());
        assert_eq!(counter.get(), 1_000_000);
        progress.reach(3);
        progress.spin_until(4);
        device.drain().unwrap().0.len() == RANGES
    })
    .unwrap();
    wait_until("a thousand", || progress.has_reached(1));
    let thousand = slab(&group);
    progress.reach(2);
    wait_until("a million", || progress.has_reached(3));
    let million = slab(&group);
    progress.reach(4);
    assert!(child.succeeded().unwrap());
    assert_eq!(thousand, million);
    assert!(
        thousand > RANGES as u64 * 64,
        "the ranges are charged to it"
    );
}
