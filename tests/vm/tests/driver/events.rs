//! Tests the events. The driver delivers one event for each invalidated range, however often the
//! range was invalidated. The event LAST follows these events.

use nix::errno::Errno;
use regcache_tests_vm::{DriverFile, PAGE, Pages};

use crate::{invalidated_often, invalidated_once, last, watched, watched_as_one};

#[test]
fn one_invalidation_is_reported_with_where_it_hit() {
    let (device, memory) = watched_as_one(8);
    memory.unmap(2, 3).unwrap();
    assert_eq!(
        device.read(9).unwrap(),
        [invalidated_once(7, memory.page(2), 3 * PAGE), last(1)]
    );
}

#[test]
fn the_hint_is_within_the_range() {
    let memory = Pages::new(8).unwrap();
    let device = DriverFile::open().unwrap();
    let (start, len) = (memory.page(2).wrapping_add(100), 2 * PAGE);
    device.watch(start, len, 7).unwrap();
    memory.unmap(0, 8).unwrap();
    assert_eq!(
        device.read(9).unwrap(),
        [invalidated_once(7, start, len), last(1)]
    );

    memory.map_over(0, 8).unwrap();
    memory.touch();
    memory.unmap(2, 1).unwrap();
    let first = invalidated_once(7, start, PAGE - 100);
    assert_eq!(device.read(9).unwrap(), [first, last(2)]);
}

#[test]
fn a_byte_beside_the_range_is_not_in_it() {
    let memory = Pages::new(4).unwrap();
    let device = DriverFile::open().unwrap();
    device.watch(memory.page(1), 2 * PAGE, 7).unwrap();
    memory.unmap(0, 1).unwrap();
    memory.unmap(3, 1).unwrap();
    assert_eq!(device.read(1), Err(Errno::EAGAIN));
    assert_eq!(device.counter().unwrap().get(), 0);
}

#[test]
fn a_range_is_hit_where_nothing_was_watched_a_moment_before() {
    let memory = Pages::new(8).unwrap();
    let device = DriverFile::open().unwrap();
    let drop_pages = |first, pages| {
        memory.advise(first, pages, libc::MADV_DONTNEED).unwrap();
        memory.touch();
    };
    for page in 0..8 {
        // Each half of the memory is invalidated first, and then the whole memory.
        drop_pages(0, 4);
        drop_pages(4, 4);
        drop_pages(0, 8);
        assert_eq!(device.read(1), Err(Errno::EAGAIN));
        device.watch(memory.page(page), PAGE, 7).unwrap();
        drop_pages(0, 8);
        drop_pages(page, 1);
        let counter = 2 * page as u64 + 2;
        let often = invalidated_often(7, memory.page(page), PAGE);
        assert_eq!(device.read(9).unwrap(), [often, last(counter)]);
        device.unwatch(7).unwrap();
    }
}

#[test]
fn two_invalidations_make_one_event_without_a_hint() {
    let (device, memory) = watched_as_one(8);
    memory.unmap(1, 1).unwrap();
    memory.unmap(6, 1).unwrap();
    assert_eq!(
        device.read(9).unwrap(),
        [invalidated_often(7, memory.page(0), 8 * PAGE), last(2)]
    );
}

#[test]
fn a_range_stays_watched_after_it_was_reported() {
    let (device, memory) = watched_as_one(2);
    for round in 1..=5 {
        memory.map_over(0, 2).unwrap();
        assert_eq!(device.drain().unwrap(), (vec![7], round));
        memory.touch();
    }
}

#[test]
fn the_counter_rises_once_for_an_invalidation_that_hits_many_ranges() {
    const RANGES: u64 = 1000;
    let memory = Pages::new(2).unwrap();
    let device = DriverFile::open().unwrap();
    for cookie in 0..RANGES {
        device.watch(memory.page(0), PAGE, cookie).unwrap();
    }
    let counter = device.counter().unwrap();
    memory.unmap(1, 1).unwrap();
    assert_eq!(counter.get(), 0, "no range was invalidated");
    memory.unmap(0, 1).unwrap();
    assert_eq!(counter.get(), 1);
    let mut cookies = Vec::new();
    while let Ok(events) = device.read(7) {
        assert!(events.len() == 7 || events.last() == Some(&last(1)));
        cookies.extend(
            events
                .iter()
                .filter(|e| **e != last(1))
                .map(|e| e.user_cookie_counter),
        );
    }
    cookies.sort_unstable();
    assert!(
        cookies.into_iter().eq(0..RANGES),
        "each range must be reported once"
    );
}

#[test]
fn the_oldest_hit_is_reported_first() {
    let (device, memory) = watched(3);
    for page in [1, 2, 0] {
        memory.unmap(page, 1).unwrap();
    }
    let cookies: Vec<_> = device
        .read(3)
        .unwrap()
        .iter()
        .map(|e| e.user_cookie_counter)
        .collect();
    assert_eq!(cookies, [1, 2, 0]);
}

#[test]
fn overlapping_and_identical_ranges_are_reported_each() {
    let memory = Pages::new(4).unwrap();
    let device = DriverFile::open().unwrap();
    device.watch(memory.page(0), 4 * PAGE, 1).unwrap();
    device.watch(memory.page(0), 4 * PAGE, 2).unwrap();
    device.watch(memory.page(1), PAGE, 3).unwrap();
    device.watch(memory.page(2), PAGE, 4).unwrap();
    memory.unmap(1, 1).unwrap();
    assert_eq!(device.drain().unwrap(), (vec![1, 2, 3], 1));
}

#[test]
fn last_is_owed_after_an_event_and_only_then() {
    let (device, memory) = watched(3);
    assert_eq!(device.read(1), Err(Errno::EAGAIN));
    memory.unmap(0, 1).unwrap();
    assert_eq!(
        device.read(1).unwrap().len(),
        1,
        "the buffer has no room for LAST"
    );
    memory.unmap(1, 1).unwrap();
    assert_eq!(
        device.read(2).unwrap()[1],
        last(2),
        "LAST must carry the counter at the time of its read"
    );
    assert_eq!(
        device.read(1),
        Err(Errno::EAGAIN),
        "LAST must be reported once"
    );
    memory.unmap(2, 1).unwrap();
    device.read(1).unwrap();
    assert_eq!(
        device.read(5).unwrap(),
        [last(3)],
        "LAST was still owed after the previous read"
    );
}

#[test]
fn unregistering_drops_a_queued_event() {
    let (device, memory) = watched(2);
    memory.unmap(0, 2).unwrap();
    device.unwatch(0).unwrap();
    assert_eq!(device.drain().unwrap(), (vec![1], 1));
    memory.map_over(0, 2).unwrap();
    assert_eq!(
        device.read(1),
        Err(Errno::EAGAIN),
        "mapping over an unmapped range changes no page"
    );
    memory.unmap(0, 2).unwrap();
    assert_eq!(device.drain().unwrap(), (vec![1], 2));
}

#[test]
fn a_cookie_used_anew_does_not_inherit_the_old_event() {
    let (device, memory) = watched(2);
    memory.unmap(0, 1).unwrap();
    device.unwatch(0).unwrap();
    device.watch(memory.page(1), PAGE, 0).unwrap();
    assert_eq!(
        device.read(1),
        Err(Errno::EAGAIN),
        "an event or LAST was reported for the old watch"
    );
    assert_eq!(
        device.counter().unwrap().get(),
        1,
        "the invalidation of the old watch still counts"
    );
}

#[test]
fn two_files_have_nothing_to_do_with_one_another() {
    let memory = Pages::new(2).unwrap();
    let (one, other) = (DriverFile::open().unwrap(), DriverFile::open().unwrap());
    one.watch(memory.page(0), PAGE, 1).unwrap();
    other.watch(memory.page(1), PAGE, 1).unwrap();
    memory.unmap(0, 1).unwrap();
    assert_eq!(one.drain().unwrap(), (vec![1], 1));
    assert_eq!(other.read(1), Err(Errno::EAGAIN));
    assert_eq!(other.counter().unwrap().get(), 0);
    one.unwatch(1).unwrap();
    memory.unmap(1, 1).unwrap();
    assert_eq!(other.drain().unwrap(), (vec![1], 1));
}
