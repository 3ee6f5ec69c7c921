//! The memory that the driver takes: whose it is, and what happens when there is no more.

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

/// How far a process has come, for another to see: memory that both have, so that telling takes none.
/// Stays mapped.
struct Progress(NonNull<AtomicU32>);

impl Progress {
    fn new() -> Self {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let len = NonZeroUsize::new(PAGE).unwrap();
        // SAFETY: where the kernel likes.
        let memory = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_SHARED) };
        Self(memory.unwrap().cast())
    }

    fn step(&self) -> &AtomicU32 {
        // SAFETY: mapped by `new` for good, and at first 0.
        unsafe { self.0.as_ref() }
    }

    fn reach(&self, step: u32) {
        self.step().store(step, Ordering::SeqCst);
    }

    fn has_reached(&self, step: u32) -> bool {
        self.step().load(Ordering::SeqCst) >= step
    }

    /// Without sleeping: for one who must not need anything.
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
        // At the limit not even a page of the program could be read any more.
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

/// Bytes of kernel objects that are charged to the group.
fn slab(group: &Group) -> u64 {
    // The counts of each processor are added up every two seconds.
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
