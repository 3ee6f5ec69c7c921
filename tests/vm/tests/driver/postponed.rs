//! Tests invalidations that meet many ranges. An invalidation marks at most 32 ranges itself. If it
//! meets more, it is postponed: the owner of the file marks the others before the next report or
//! registration. Postponing must not lose the report of a range, and must not add one.

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::poll::PollFlags;
use regcache_tests_vm::{DriverFile, PAGE, Pages, Random};
use ummunotify_sys::{Event, HINT, PROTECTION};

use crate::order::early_reports_are_repeated;
use crate::{invalidated_often, last};

/// The most ranges that an invalidation marks itself.
const MARKED: u64 = 32;

/// More ranges than an invalidation marks.
const MANY: u64 = 100;

/// The number of invalidations that the driver remembers one by one.
const REMEMBERED: usize = 8;

/// Opens a file that watches each page `MANY` times.
fn watched_often(pages: usize) -> (DriverFile, Pages) {
    let memory = Pages::new(pages).unwrap();
    let device = DriverFile::open().unwrap();
    for page in 0..pages {
        for cookie in cookies(page) {
            device.watch(memory.page(page), PAGE, cookie).unwrap();
        }
    }
    (device, memory)
}

/// Returns the cookies of the ranges that watch the page.
fn cookies(page: usize) -> std::ops::Range<u64> {
    let first = page as u64 * MANY;
    first..first + MANY
}

/// Returns the cookies of the ranges that watch these pages, in order.
fn cookies_of(pages: impl IntoIterator<Item = usize>) -> Vec<u64> {
    pages.into_iter().flat_map(cookies).collect()
}

/// Reads all reports. Returns their cookies in order, and the counter.
fn drain(device: &DriverFile) -> (Vec<u64>, u64) {
    let (mut cookies, counter) = device.drain().unwrap();
    cookies.sort_unstable();
    (cookies, counter)
}

/// Populates a page, and then drops it with `MADV_DONTNEED`.
fn drop_page(memory: &Pages, page: usize) {
    memory.write(page, 1);
    memory.advise(page, 1, libc::MADV_DONTNEED).unwrap();
}

#[test]
fn each_range_is_reported_once_and_the_others_are_not() {
    let (device, memory) = watched_often(3);
    for round in 1..4 {
        drop_page(&memory, 1);
        assert_eq!(drain(&device), (cookies_of([1]), round));
    }
    assert_eq!(device.read(1), Err(Errno::EAGAIN));
}

#[test]
fn neighbouring_invalidations_report_each_range_once() {
    let (device, memory) = watched_often(6);
    for page in [2, 3, 1, 2] {
        drop_page(&memory, page);
    }
    assert_eq!(drain(&device), (cookies_of(1..4), 4));
}

#[test]
fn a_range_in_two_postponed_invalidations_is_reported_once() {
    let (device, memory) = watched_often(4);
    for cookie in 1000..1000 + MANY {
        device.watch(memory.page(0), memory.len(), cookie).unwrap();
    }
    for page in [0, 2, 0] {
        drop_page(&memory, page);
    }
    let mut expected = cookies_of([0, 2]);
    expected.extend(1000..1000 + MANY);
    assert_eq!(drain(&device), (expected, 3));
}

/// The driver remembers only some postponed invalidations one by one, and the others together. It
/// must report all of their ranges.
#[test]
fn none_is_missed_if_there_are_more_than_the_driver_remembers_one_by_one() {
    const PAGES: usize = 4 * REMEMBERED;
    let (device, memory) = watched_often(PAGES);
    let dropped = || (0..PAGES).step_by(2);
    for page in dropped() {
        drop_page(&memory, page);
    }
    let (reported, counter) = drain(&device);
    assert_eq!(counter, dropped().count() as u64);
    let reported: BTreeSet<_> = reported.into_iter().collect();
    let missed: Vec<_> = cookies_of(dropped())
        .into_iter()
        .filter(|cookie| !reported.contains(cookie))
        .collect();
    assert!(missed.is_empty(), "missed {missed:?}");
    let exact = cookies_of((1..REMEMBERED).step_by(2));
    assert!(
        exact.iter().all(|cookie| !reported.contains(cookie)),
        "those that are remembered one by one must not report the ranges between them"
    );
}

#[test]
fn a_range_registered_later_has_no_report() {
    let (device, memory) = watched_often(1);
    drop_page(&memory, 0);
    device.watch(memory.page(0), PAGE, 1000).unwrap();
    assert_eq!(drain(&device), (cookies_of([0]), 1));
    drop_page(&memory, 0);
    let mut expected = cookies_of([0]);
    expected.push(1000);
    assert_eq!(drain(&device), (expected, 2));
}

#[test]
fn there_is_nothing_to_read_if_all_ranges_are_unregistered() {
    let (device, memory) = watched_often(2);
    drop_page(&memory, 0);
    assert_eq!(device.poll(0), Ok(PollFlags::POLLIN));
    drop_page(&memory, 1);
    for cookie in cookies_of([0, 1]) {
        device.unwatch(cookie).unwrap();
    }
    assert_eq!(device.poll(0), Ok(PollFlags::empty()));
    assert_eq!(device.read(1), Err(Errno::EAGAIN));
}

#[test]
fn a_read_that_faults_loses_none() {
    let (device, memory) = watched_often(1);
    drop_page(&memory, 0);
    // SAFETY: address 8 is never mapped.
    let n = unsafe { libc::read(device.raw(), std::ptr::without_provenance_mut(8), 4096) };
    assert_eq!(Errno::result(n), Err(Errno::EFAULT));
    drop_page(&memory, 0);
    assert_eq!(drain(&device), (cookies_of([0]), 2));
}

/// Watches a page `ranges` times, and drops the page. Returns the number of events with a hint.
fn hints(ranges: u64) -> usize {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(1).unwrap());
    for cookie in 0..ranges {
        device.watch(memory.page(0), PAGE, cookie).unwrap();
    }
    drop_page(&memory, 0);
    let mut events = device.read(ranges as usize + 1).unwrap();
    assert_eq!(events.pop(), Some(last(1)));
    assert_eq!(events.len(), ranges as usize);
    for &event in &events {
        let whole = invalidated_often(event.user_cookie_counter, memory.page(0), PAGE);
        let flags = event.flags;
        assert_eq!(event, Event { flags, ..whole });
    }
    events.iter().filter(|it| it.flags == HINT).count()
}

#[test]
fn a_postponed_invalidation_gives_hints() {
    for ranges in [MARKED, MARKED + 1, 10 * MARKED] {
        assert_eq!(hints(ranges), ranges as usize);
    }
}

/// Neighbours join a postponed invalidation. The driver then does not know how many of them have
/// met a range.
#[test]
fn neighbours_of_a_postponed_invalidation_give_no_hints() {
    let (device, memory) = watched_often(2);
    for page in [0, 1] {
        drop_page(&memory, page);
    }
    let mut events = device.read(2 * MANY as usize + 1).unwrap();
    assert_eq!(events.pop(), Some(last(2)));
    assert_eq!(events.len(), 2 * MANY as usize);
    assert!(events.iter().all(|it| it.flags == 0), "{events:x?}");
}

/// The driver marks postponed ranges a few at a time, and remembers the next one. If this range
/// goes away, the driver must still mark the ranges behind it.
#[test]
fn a_range_may_go_before_the_driver_has_marked_it() {
    for gone in 0..MANY {
        let (device, memory) = watched_often(1);
        drop_page(&memory, 0);
        device.unwatch(gone).unwrap();
        let mut expected = cookies_of([0]);
        expected.retain(|&cookie| cookie != gone);
        assert_eq!(drain(&device), (expected, 1));
    }
}

#[test]
fn a_change_of_protection_reports_those_that_ask_for_it_and_no_others() {
    let (device, memory) = watched_often(1);
    for cookie in 1000..1000 + MANY {
        device
            .watch_with(PROTECTION, memory.page(0), PAGE, cookie)
            .unwrap();
    }
    memory.touch();
    memory.protect(0, 1, libc::PROT_READ).unwrap();
    let expected: Vec<_> = (1000..1000 + MANY).collect();
    assert_eq!(drain(&device), (expected, 1));
    let all: Vec<_> = (0..MANY).chain(1000..1000 + MANY).collect();
    memory
        .protect(0, 1, libc::PROT_READ | libc::PROT_WRITE)
        .unwrap();
    drop_page(&memory, 0);
    assert_eq!(drain(&device), (all, 3));
}

#[test]
fn each_range_that_is_reported_early_is_reported_again() {
    early_reports_are_repeated(0..MANY, 300, |device| {
        let mut reported = BTreeSet::new();
        while reported.len() < MANY as usize {
            if let Ok((cookies, _)) = device.drain() {
                reported.extend(cookies);
            }
        }
    });
}

/// Runs random invalidations, registrations and reads against a model. The model knows for each
/// range whether it must be reported, and whether it may be.
#[test]
fn random_invalidations_report_what_they_meet() {
    const PAGES: usize = 48;
    const RANGES: u64 = 400;
    const STEPS: usize = 3000;
    const SEED: u64 = 0x2545_F491_4F6C_DD1D;
    let mut random = Random::new(SEED);
    let memory = Pages::new(PAGES).unwrap();
    let device = DriverFile::open().unwrap();
    let mut ranges: Vec<Range> = Vec::new();
    for step in 0..STEPS {
        let first = random.below(PAGES);
        let pages = 1 + random.below((PAGES - first).min(12));
        match random.below(20) {
            0..8 => {
                memory.touch();
                memory.advise(first, pages, libc::MADV_DONTNEED).unwrap();
                for it in &mut ranges {
                    it.meet(first, pages);
                }
            }
            8..18 if (ranges.len() as u64) < RANGES => {
                let cookie = step as u64;
                device
                    .watch(memory.page(first), pages * PAGE, cookie)
                    .unwrap();
                ranges.push(Range {
                    cookie,
                    first,
                    pages,
                    is_due: false,
                });
            }
            18 if !ranges.is_empty() => {
                let gone = ranges.swap_remove(random.below(ranges.len()));
                device.unwatch(gone.cookie).unwrap();
            }
            _ => {
                let max = 1 + random.below(300);
                for event in device.read(max).unwrap_or_default() {
                    let cookie = event.user_cookie_counter;
                    if event == last(cookie) {
                        let missed = ranges.iter().find(|it| it.is_due);
                        assert_eq!(missed, None, "not reported before LAST, step {step}");
                        continue;
                    }
                    let range = ranges.iter_mut().find(|it| it.cookie == cookie);
                    range.unwrap().is_due = false;
                }
            }
        }
    }
    let reported: BTreeSet<_> = device
        .invalidated()
        .unwrap_or_default()
        .into_iter()
        .collect();
    for it in ranges.iter().filter(|it| it.is_due) {
        assert!(reported.contains(&it.cookie), "{it:?} was not reported");
    }
}

#[derive(Debug, PartialEq)]
struct Range {
    cookie: u64,
    first: usize,
    pages: usize,
    is_due: bool,
}

impl Range {
    fn meet(&mut self, first: usize, pages: usize) {
        self.is_due |= self.first < first + pages && first < self.first + self.pages;
    }
}
