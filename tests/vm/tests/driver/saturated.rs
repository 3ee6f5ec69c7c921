//! Tests saturated ranges. A range is saturated if it was invalidated more than once before its
//! report was read. The tests check the report after a further invalidation. They also check that
//! such an invalidation takes less than twice as long as an invalidation of memory without a watch.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};
use ummunotify_sys::PROTECTION;

use crate::{invalidated_often, invalidated_once, last, watched};

/// Populates all pages, and drops one of them.
fn invalidate(memory: &Pages, page: usize) {
    memory.touch();
    memory.advise(page, 1, libc::MADV_DONTNEED).unwrap();
}

#[test]
fn each_invalidation_still_counts_once_and_the_report_is_one() {
    let (device, memory) = watched(2);
    let counter = device.counter().unwrap();
    for expected in 1..10 {
        invalidate(&memory, 0);
        assert_eq!(counter.get(), expected);
    }
    invalidate(&memory, 1);
    let events = [
        invalidated_often(0, memory.page(0), PAGE),
        invalidated_once(1, memory.page(1), PAGE),
        last(10),
    ];
    assert_eq!(device.read(4).unwrap(), events);
}

#[test]
fn after_its_report_it_is_reported_again() {
    let (device, memory) = watched(1);
    for round in 1..5 {
        for _ in 0..3 {
            invalidate(&memory, 0);
        }
        let events = [
            invalidated_often(0, memory.page(0), PAGE),
            last(4 * round - 1),
        ];
        assert_eq!(device.read(4).unwrap(), events);
        invalidate(&memory, 0);
        let events = [invalidated_once(0, memory.page(0), PAGE), last(4 * round)];
        assert_eq!(device.read(4).unwrap(), events);
    }
}

#[test]
fn unregistered_it_is_neither_reported_nor_counted() {
    let (device, memory) = watched(2);
    let counter = device.counter().unwrap();
    invalidate(&memory, 0);
    invalidate(&memory, 0);
    device.unwatch(0).unwrap();
    invalidate(&memory, 0);
    assert_eq!((counter.get(), device.read(1)), (2, Err(Errno::EAGAIN)));
    device.watch(memory.page(0), PAGE, 0).unwrap();
    invalidate(&memory, 0);
    let events = [invalidated_once(0, memory.page(0), PAGE), last(3)];
    assert_eq!(device.read(4).unwrap(), events);
}

#[test]
fn a_read_that_faults_leaves_it_as_it_was() {
    let (device, memory) = watched(1);
    let counter = device.counter().unwrap();
    invalidate(&memory, 0);
    invalidate(&memory, 0);
    // SAFETY: address 8 is never mapped.
    let n = unsafe { libc::read(device.raw(), std::ptr::without_provenance_mut(8), 64) };
    assert_eq!(Errno::result(n), Err(Errno::EFAULT));
    invalidate(&memory, 0);
    assert_eq!(counter.get(), 3);
    let events = [invalidated_often(0, memory.page(0), PAGE), last(3)];
    assert_eq!(device.read(4).unwrap(), events);
    invalidate(&memory, 0);
    assert_eq!(
        device.read(1).unwrap(),
        [invalidated_once(0, memory.page(0), PAGE)]
    );
}

#[test]
fn changes_of_protection_saturate_the_ranges_that_ask_for_them() {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(1).unwrap());
    let counter = device.counter().unwrap();
    device.watch(memory.page(0), PAGE, 0).unwrap();
    device
        .watch_with(PROTECTION, memory.page(0), PAGE, 1)
        .unwrap();
    for _ in 0..2 {
        memory.protect(0, 1, libc::PROT_READ).unwrap();
        memory
            .protect(0, 1, libc::PROT_READ | libc::PROT_WRITE)
            .unwrap();
    }
    assert_eq!(counter.get(), 4);
    invalidate(&memory, 0);
    assert_eq!(counter.get(), 5);
    let events = [
        invalidated_often(1, memory.page(0), PAGE),
        invalidated_once(0, memory.page(0), PAGE),
        last(5),
    ];
    assert_eq!(device.read(4).unwrap(), events);
    // Two changes of the mapping saturate range 0, which is watched without the flag PROTECTION.
    // Changes of protection still do not count for this range.
    invalidate(&memory, 0);
    invalidate(&memory, 0);
    device.unwatch(1).unwrap();
    memory.protect(0, 1, libc::PROT_READ).unwrap();
    assert_eq!(counter.get(), 7);
}

/// Returns the median time of `times` operations. `prepare` runs before each operation and is not
/// timed.
fn median(times: usize, mut prepare: impl FnMut(), mut operation: impl FnMut()) -> Duration {
    let mut all: Vec<_> = (0..times)
        .map(|_| {
            prepare();
            let start = Instant::now();
            operation();
            start.elapsed()
        })
        .collect();
    all.sort_unstable();
    all[times / 2]
}

/// Runs `test` in a separate process, so that no other test changes the address space at the same
/// time.
fn alone(test: impl FnOnce()) {
    let child = Child::fork(|| {
        test();
        true
    });
    assert!(child.unwrap().succeeded().unwrap());
}

const WATCHES: u64 = 65_536;

/// Checks that `operation` takes less than `MOST` times as long on the watched page as on the bare
/// page.
fn costs_the_same(
    bare: &Pages,
    watched: &Pages,
    prepare: impl Fn(&Pages),
    operation: impl Fn(&Pages),
) {
    const TIMES: usize = 201;
    /// The largest accepted ratio of the times. This ratio leaves room for counting the
    /// invalidation and for one search. If the driver visited each watch, the ratio would be about
    /// a hundred.
    const MOST: u32 = 2;
    for _ in 0..2 {
        prepare(watched);
        operation(watched);
    }
    let without = median(TIMES, || prepare(bare), || operation(bare));
    let with = median(TIMES, || prepare(watched), || operation(watched));
    println!("under {WATCHES} watches {with:?}, without {without:?}");
    assert!(with < without * MOST);
}

/// Returns a page that is not watched, and a page that a file watches `WATCHES` times.
fn bare_and_watched(flags: u32) -> (DriverFile, Pages, Pages) {
    let device = DriverFile::open().unwrap();
    let (bare, memory) = (Pages::new(1).unwrap(), Pages::new(1).unwrap());
    for cookie in 0..WATCHES {
        device
            .watch_with(flags, memory.page(0), PAGE, cookie)
            .unwrap();
    }
    (device, bare, memory)
}

fn drop_it(memory: &Pages) {
    memory.advise(0, 1, libc::MADV_DONTNEED).unwrap();
}

fn make_writable(memory: &Pages) {
    memory
        .protect(0, 1, libc::PROT_READ | libc::PROT_WRITE)
        .unwrap();
    memory.touch();
}

fn make_read_only(memory: &Pages) {
    memory.protect(0, 1, libc::PROT_READ).unwrap();
}

#[test]
fn an_invalidation_costs_no_more_under_unread_watches() {
    alone(|| {
        for flags in [0, PROTECTION] {
            let (device, bare, memory) = bare_and_watched(flags);
            costs_the_same(&bare, &memory, Pages::touch, drop_it);
            assert_eq!(device.drain().unwrap().0.len() as u64, WATCHES);
        }
    });
}

#[test]
fn a_change_of_protection_costs_no_more_under_unread_watches() {
    alone(|| {
        let (device, bare, memory) = bare_and_watched(PROTECTION);
        costs_the_same(&bare, &memory, make_writable, make_read_only);
        assert_eq!(device.drain().unwrap().0.len() as u64, WATCHES);
    });
}

#[test]
fn a_change_of_protection_costs_no_more_under_watches_that_it_does_not_matter_to() {
    alone(|| {
        let (device, bare, memory) = bare_and_watched(0);
        let elsewhere = Pages::new(1).unwrap();
        device
            .watch_with(PROTECTION, elsewhere.page(0), PAGE, u64::MAX)
            .unwrap();
        costs_the_same(&bare, &memory, make_writable, make_read_only);
        assert_eq!(device.drain(), Err(Errno::EAGAIN));
    });
}
