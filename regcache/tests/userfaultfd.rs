//! These tests check the userfaultfd monitor on this machine's kernel. They cover its reports, the
//! ranges that it refuses, and the check at each lookup.
//!
//! On a kernel that does not support the check (before Linux 6.7), the tests cover only the error
//! of `open`.
#![cfg(all(feature = "userfaultfd", not(loom)))]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{self, Read};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use regcache::monitor::{Cookie, Monitor, Userfaultfd, UserfaultfdError};
use regcache::{Cache, Registrar, VaRange};

const PAGE: usize = 4096;

/// The lock that every test holds while it runs. Without the lock, `mmap` in one test could return
/// addresses that another test has just unmapped.
static ALONE: Mutex<()> = Mutex::new(());

fn monitor() -> Option<(Userfaultfd, MutexGuard<'static, ()>)> {
    own_page();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match open() {
        Ok(monitor) => Some((monitor, alone)),
        Err(error @ (UserfaultfdError::NoCheck { .. } | UserfaultfdError::Refused { .. })) => {
            eprintln!("not tested here: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn open() -> Result<Userfaultfd, UserfaultfdError> {
    match Userfaultfd::open() {
        // SAFETY: tests install guard pages only in memory that this monitor does not watch.
        Err(UserfaultfdError::GuardPages { .. }) => unsafe { Userfaultfd::open_unprivileged() },
        opened => opened,
    }
}

fn map_with(at: *mut u8, len: usize, protection: i32, flags: i32, fd: i32) -> *mut u8 {
    // SAFETY: the new mapping replaces nothing but a test's own mapping.
    let start = unsafe { libc::mmap(at.cast(), len, protection, flags, fd, 0) };
    assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    start.cast()
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANON: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Maps and touches `pages` pages, with an unmapped hole on either side.
fn map(pages: usize) -> *mut u8 {
    let start = map_with(
        ptr::null_mut(),
        (pages + 2) * PAGE,
        libc::PROT_NONE,
        ANON,
        -1,
    );
    let start = start.wrapping_add(PAGE);
    map_with(start, pages * PAGE, RW, ANON | libc::MAP_FIXED, -1);
    // SAFETY: the pages were mapped above.
    unsafe { start.write_bytes(1, pages * PAGE) };
    start
}

fn unmap(start: *mut u8, len: usize) {
    // SAFETY: the call unmaps only a test's own mapping.
    assert_eq!(unsafe { libc::munmap(start.cast(), len) }, 0);
}

fn advise(start: *mut u8, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: the advice affects only a test's own mapping.
    match unsafe { libc::madvise(start.cast(), len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn range(start: *const u8, len: usize) -> VaRange {
    VaRange::new(start, len).unwrap()
}

/// Returns the address of a page that is never unmapped.
fn own_page() -> *const u8 {
    static OWN: OnceLock<usize> = OnceLock::new();
    ptr::with_exposed_provenance(*OWN.get_or_init(|| map(1).expose_provenance()))
}

/// Waits until every change in flight is entered in the monitor's log. The function repeats a watch
/// of other memory, because `watch` fails while a change is in flight.
fn settle(monitor: &Userfaultfd) {
    let (own, cookie) = (range(own_page(), PAGE), Cookie(u64::MAX));
    while monitor.watch(own, cookie).is_err() {
        thread::yield_now();
    }
    while !monitor.is_intact(own) {
        thread::yield_now();
    }
    monitor.unwatch(cookie).unwrap();
}

/// Waits until every change in flight is entered in the log. Returns the cookies that the monitor
/// reports after that.
fn reported(monitor: &Userfaultfd) -> Vec<u64> {
    settle(monitor);
    let before = monitor.generation();
    let mut cookies = Vec::new();
    let after = monitor.drain(&mut |cookie| cookies.push(cookie.0)).unwrap();
    assert!(after >= before);
    cookies.sort_unstable();
    cookies
}

fn check(name: &str, change: impl FnOnce(*mut u8, usize)) {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let (memory, len) = (map(8), 8 * PAGE);
    let other = map(1);
    monitor.watch(range(memory, len), Cookie(7)).unwrap();
    monitor.watch(range(other, PAGE), Cookie(8)).unwrap();
    assert!(monitor.is_intact(range(memory, len)));
    let before = monitor.generation();
    assert!(reported(&monitor).is_empty(), "{name}");
    change(memory, len);
    let intact = monitor.is_intact(range(memory, len));
    settle(&monitor);
    let noticed = monitor.generation() != before;
    assert!(noticed || !intact, "{name} went unnoticed");
    if noticed {
        assert_eq!(reported(&monitor), [7], "{name}");
    }
    assert!(reported(&monitor).is_empty(), "{name} is reported once");
    monitor.unwatch(Cookie(7)).unwrap();
    monitor.unwatch(Cookie(8)).unwrap();
    assert!(monitor.unwatch(Cookie(8)).is_err());
}

#[test]
fn munmap_is_reported_and_the_hole_is_not_intact() {
    check("munmap", unmap);
    check("munmap of a part", |start, _| {
        unmap(start.wrapping_add(3 * PAGE), PAGE);
    });
}

#[test]
fn mappings_over_it_and_moved_away_are_reported() {
    check("MAP_FIXED", |start, len| {
        map_with(start, len, RW, ANON | libc::MAP_FIXED, -1);
    });
    check("mremap", |start, len| {
        let to = map(8);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: `mremap` changes only the test's own mappings.
        let moved = unsafe { libc::mremap(start.cast(), len, len, flags, to) };
        assert_eq!(moved.cast(), to);
    });
    check("mremap onto it", |start, len| {
        let from = map(8);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: `mremap` changes only the test's own mappings.
        let moved = unsafe { libc::mremap(from.cast(), len, len, flags, start) };
        assert_eq!(moved.cast(), start);
    });
    check("mremap to shrink", |start, len| {
        // SAFETY: `mremap` shrinks only a test's own mapping.
        let moved = unsafe { libc::mremap(start.cast(), len, PAGE, 0) };
        assert_eq!(moved.cast(), start);
    });
}

#[test]
fn discarded_pages_are_reported() {
    for advice in [
        libc::MADV_DONTNEED,
        libc::MADV_FREE,
        24, /* MADV_DONTNEED_LOCKED */
    ] {
        check("madvise", |start, len| advise(start, len, advice).unwrap());
        check("madvise of a part", |start, _| {
            advise(start.wrapping_add(PAGE), PAGE, advice).unwrap();
        });
    }
}

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// Installs a guard page in the middle of the memory, removes it, and returns the page's address.
fn guard_there_and_back(start: *mut u8) -> io::Result<*mut u8> {
    let page = start.wrapping_add(3 * PAGE);
    advise(page, PAGE, MADV_GUARD_INSTALL)?;
    advise(page, PAGE, MADV_GUARD_REMOVE)?;
    Ok(page)
}

#[test]
fn guard_pages_are_noticed_after_they_are_gone() {
    let known = {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        guard_there_and_back(map(8)).is_ok()
    };
    if !known {
        eprintln!("not tested here: this kernel has no guard pages");
        return;
    }
    if let Err(error @ UserfaultfdError::GuardPages { .. }) = Userfaultfd::open() {
        eprintln!("not tested here: {error}");
        return;
    }
    check("guard pages", |start, _| {
        advise(start.wrapping_add(3 * PAGE), PAGE, MADV_GUARD_INSTALL).unwrap();
    });
    check("guard pages installed and removed", |start, _| {
        guard_there_and_back(start).unwrap();
    });
    check(
        "guard pages installed and removed, then written",
        |start, _| {
            let page = guard_there_and_back(start).unwrap();
            // SAFETY: the page is in the test's own mapping.
            unsafe {
                assert_eq!(page.read(), 0, "a page of zeros");
                page.write(1);
            }
        },
    );
    check(
        "guard pages installed and removed, then written by the kernel",
        |start, _| {
            let page = guard_there_and_back(start).unwrap();
            // SAFETY: the page is in the test's own mapping.
            let read = unsafe { libc::getrandom(page.cast(), PAGE, 0) };
            assert_eq!(read, PAGE as isize, "{}", io::Error::last_os_error());
        },
    );
    check(
        "guard pages installed and removed, then written by eight threads",
        |start, _| {
            let page = guard_there_and_back(start).unwrap().expose_provenance();
            thread::scope(|scope| {
                for i in 0..8 {
                    // SAFETY: the page is in the test's own mapping, and each thread has its own
                    // byte.
                    scope.spawn(move || unsafe {
                        ptr::with_exposed_provenance_mut::<u8>(page).add(i).write(1);
                    });
                }
            });
        },
    );
}

#[test]
fn discarded_memory_is_touched_again_without_anybody_being_asked() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let pages = 2000;
    let memory = map(pages);
    monitor
        .watch(range(memory, pages * PAGE), Cookie(1))
        .unwrap();
    advise(memory, pages * PAGE, libc::MADV_DONTNEED).unwrap();
    settle(&monitor);
    let before = monitor.generation();
    // SAFETY: the bytes are in the test's own mapping.
    unsafe { memory.write_bytes(1, pages * PAGE) };
    settle(&monitor);
    assert_eq!(monitor.generation(), before);
}

/// Replaces mappings by `shmat(SHM_REMAP)`, which sends no event.
fn remap_shm(start: *mut u8, len: usize) {
    const SHM_REMAP: i32 = 0o40000;
    // SAFETY: the code makes a segment and attaches it over the test's own mapping. The segment is
    // deleted when it is detached.
    unsafe {
        let id = libc::shmget(libc::IPC_PRIVATE, len, libc::IPC_CREAT | 0o600);
        assert!(id >= 0);
        let at = libc::shmat(id, start.cast(), SHM_REMAP);
        libc::shmctl(id, libc::IPC_RMID, ptr::null_mut());
        assert_eq!(at.cast(), start, "{}", io::Error::last_os_error());
    }
}

fn detach_shm(start: *mut u8) {
    // SAFETY: the segment was attached by `remap_shm`.
    assert_eq!(unsafe { libc::shmdt(start.cast()) }, 0);
}

#[test]
fn a_replacement_without_an_event_is_found_by_the_check() {
    check("shmat(SHM_REMAP)", remap_shm);
    check("shmat(SHM_REMAP), then a hole", |start, len| {
        remap_shm(start, len);
        detach_shm(start);
    });
    check("shmat(SHM_REMAP), then anonymous memory", |start, len| {
        remap_shm(start, len);
        detach_shm(start);
        map_with(start, len, RW, ANON | libc::MAP_FIXED, -1);
    });
}

#[test]
fn a_new_watch_inside_or_over_an_old_one_does_not_make_the_old_one_look_alive() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    for (first, pages) in [(0, 8), (2, 3), (0, 10)] {
        let memory = map(10);
        let old = range(memory, 8 * PAGE);
        monitor.watch(old, Cookie(1)).unwrap();
        remap_shm(memory, 8 * PAGE);
        detach_shm(memory);
        map_with(memory, 10 * PAGE, RW, ANON | libc::MAP_FIXED, -1);
        let new = range(memory.wrapping_add(first * PAGE), pages * PAGE);
        assert!(
            monitor.watch(new, Cookie(2)).is_err(),
            "the old watch has not ended"
        );
        assert!(!monitor.is_intact(old));
        assert!(!monitor.is_intact(range(memory.wrapping_add(2 * PAGE), PAGE)));
        monitor.unwatch(Cookie(1)).unwrap();
        monitor.watch(new, Cookie(3)).unwrap();
        assert!(monitor.is_intact(new));
        monitor.unwatch(Cookie(3)).unwrap();
        unmap(memory, 10 * PAGE);
    }
}

#[test]
fn a_watch_goes_on_when_others_of_the_same_pages_end() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let memory = map(8);
    let at = |page: usize, pages: usize| range(memory.wrapping_add(page * PAGE), pages * PAGE);
    monitor.watch(at(0, 8), Cookie(1)).unwrap();
    monitor.watch(at(2, 2), Cookie(2)).unwrap();
    // These watches cover pages, or parts of pages, that other watches cover too.
    monitor
        .watch(range(memory.wrapping_add(4 * PAGE + 8), 16), Cookie(3))
        .unwrap();
    monitor.watch(at(0, 8), Cookie(4)).unwrap();
    for cookie in [2, 3, 4] {
        monitor.unwatch(Cookie(cookie)).unwrap();
    }
    assert!(monitor.is_intact(at(0, 8)));
    unmap(memory.wrapping_add(3 * PAGE), PAGE);
    assert_eq!(reported(&monitor), [1]);
    // The ranges of these two watches are adjacent, and only one of the watches ends.
    let next = map(8);
    monitor.watch(range(next, 4 * PAGE), Cookie(5)).unwrap();
    monitor
        .watch(range(next.wrapping_add(4 * PAGE), 4 * PAGE), Cookie(6))
        .unwrap();
    monitor.unwatch(Cookie(5)).unwrap();
    assert!(
        !monitor.is_intact(range(next, PAGE)),
        "no watch covers the page"
    );
    unmap(next, 8 * PAGE);
    assert_eq!(reported(&monitor), [6]);
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let refused = |memory: *mut u8, len, what: &str| {
        assert!(
            monitor.watch(range(memory, len), Cookie(1)).is_err(),
            "{what}"
        );
        assert!(monitor.unwatch(Cookie(1)).is_err(), "{what}");
    };
    // SAFETY: the name is a terminated string.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), 0) };
    // SAFETY: the file descriptor was made above.
    assert_eq!(unsafe { libc::ftruncate(fd, PAGE as libc::off_t) }, 0);
    refused(
        map_with(ptr::null_mut(), PAGE, RW, libc::MAP_SHARED, fd),
        PAGE,
        "a shared memfd",
    );
    refused(
        map_with(ptr::null_mut(), PAGE, RW, libc::MAP_PRIVATE, fd),
        PAGE,
        "a private memfd",
    );
    // SAFETY: the file descriptor is not used after this.
    unsafe { libc::close(fd) };
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    refused(
        map_with(ptr::null_mut(), PAGE, RW, shared, -1),
        PAGE,
        "shared anonymous memory",
    );
    // SAFETY: the path is a string literal with its terminator.
    let fd = unsafe { libc::open(c"/proc/self/exe".as_ptr(), libc::O_RDONLY) };
    refused(
        map_with(
            ptr::null_mut(),
            PAGE,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            fd,
        ),
        PAGE,
        "a file",
    );
    refused(
        map_with(ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, fd),
        PAGE,
        "a file, read-only",
    );
    // SAFETY: the file descriptor was opened above.
    unsafe { libc::close(fd) };
    let holed = map(3);
    unmap(holed.wrapping_add(PAGE), PAGE);
    refused(holed, 3 * PAGE, "a hole");
    refused(holed.wrapping_add(PAGE), PAGE, "nothing");
    for at in [0, 1] {
        let memory = map(2);
        let closed = memory.wrapping_add(at * PAGE);
        // SAFETY: the page is the test's own, and the test does not touch it any more.
        let closing = unsafe { libc::mprotect(closed.cast(), PAGE, libc::PROT_NONE) };
        assert_eq!(closing, 0);
        refused(memory, 2 * PAGE, "a page that may not be accessed");
        refused(closed, PAGE, "memory that may not be accessed");
    }

    let other = open().unwrap();
    let memory = map(1);
    other.watch(range(memory, PAGE), Cookie(1)).unwrap();
    refused(memory, PAGE, "memory under another userfaultfd");
    assert!(
        other.is_intact(range(memory, PAGE)),
        "the memory is still armed for the other monitor"
    );
    drop(other);
    monitor.watch(range(memory, PAGE), Cookie(2)).unwrap();
}

#[test]
#[cfg_attr(
    any(sanitizer = "address", sanitizer = "thread"),
    ignore = "a sanitizer maps memory of its own during the test"
)]
fn half_of_the_mappings_that_the_kernel_allows_are_left_to_the_program() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let allowed = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let allowed: usize = allowed.trim().parse().unwrap();
    let mappings = || {
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let before = mappings();
    let pages = allowed + 4;
    let memory = map_with(ptr::null_mut(), pages * PAGE, RW, ANON, -1);
    let every_other = |i: usize| range(memory.wrapping_add(2 * i * PAGE), PAGE);
    let mut watched = 0;
    let error = loop {
        match monitor.watch(every_other(watched), Cookie(watched as u64)) {
            Ok(()) => watched += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    assert!(monitor.unwatch(Cookie(watched as u64)).is_err());
    let added = mappings() - before;
    assert!(added <= allowed / 2 + 8, "{added} of {allowed}");
    assert!(added >= allowed / 2 - 8, "{added} of {allowed}");

    // Watches of adjacent pages add no mappings, however many they are.
    monitor.unwatch(Cookie(0)).unwrap();
    monitor.unwatch(Cookie(1)).unwrap();
    monitor.watch(every_other(0), Cookie(0)).unwrap();
    let between = range(memory.wrapping_add(PAGE), 2 * PAGE);
    monitor.watch(between, Cookie(1)).unwrap();
    for i in 2..watched {
        monitor.unwatch(Cookie(i as u64)).unwrap();
    }
    let all = range(memory, pages * PAGE);
    monitor.watch(all, Cookie(watched as u64)).unwrap();
    for i in [0, 1, watched] {
        monitor.unwatch(Cookie(i as u64)).unwrap();
    }
    unmap(memory, pages * PAGE);
}

fn is_readable(monitor: &Userfaultfd) -> bool {
    let descriptor = monitor.descriptor().unwrap();
    let mut fds = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
}

/// Another thread drains as soon as the generation has risen, as lookups do.
#[test]
fn the_descriptor_is_not_readable_once_the_last_change_was_drained() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let (drained, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|s| {
        let _stop = Ended(&stop);
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if monitor.generation() != drained.load(Ordering::Relaxed) {
                    let generation = monitor.drain(&mut |_| {}).unwrap();
                    drained.store(generation, Ordering::Release);
                }
            }
        });
        for round in 0..200 {
            let memory = map(1);
            monitor.watch(range(memory, PAGE), Cookie(round)).unwrap();
            unmap(memory, PAGE);
            monitor.unwatch(Cookie(round)).unwrap();
            settle(&monitor);
            while monitor.generation() != drained.load(Ordering::Acquire) {
                thread::yield_now();
            }
            assert!(!is_readable(&monitor), "round {round}");
        }
    });
}

#[test]
fn reading_from_the_descriptor_takes_nothing_away() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let memory = map(1);
    monitor.watch(range(memory, PAGE), Cookie(1)).unwrap();
    unmap(memory, PAGE);
    settle(&monitor);
    assert!(is_readable(&monitor));
    let descriptor = monitor.descriptor().unwrap().try_clone_to_owned().unwrap();
    let read = fs::File::from(descriptor).read(&mut [0; 64]);
    assert!(read.is_err(), "{read:?}");
    assert!(is_readable(&monitor));
    assert_eq!(reported(&monitor), [1]);
    assert!(!is_readable(&monitor));
}

/// Sets a flag when the value is dropped, even during a panic.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_removal_is_suspected_until_every_thread_was_elsewhere() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let memory = map(8);
    monitor.watch(range(memory, 8 * PAGE), Cookie(1)).unwrap();
    let (stop, running) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let ended = Ended(&stop);
        // The thread is never in a system call. So the monitor must assume that the thread is about
        // to remove pages.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                running.store(true, Ordering::Relaxed);
            }
        });
        while !running.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        advise(memory.wrapping_add(PAGE), PAGE, libc::MADV_DONTNEED).unwrap();
        assert!(!monitor.is_intact(range(memory, 8 * PAGE)));
        assert!(
            monitor.is_intact(range(memory.wrapping_add(2 * PAGE), PAGE)),
            "other pages are not suspected"
        );
        assert!(
            monitor
                .watch(range(memory.wrapping_add(PAGE), 1), Cookie(2))
                .is_err()
        );
        assert_eq!(reported(&monitor), [1]);
        drop(ended);
    });
    // The test ends the watch and places another one, as a cache would do.
    monitor.unwatch(Cookie(1)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while monitor.watch(range(memory, 8 * PAGE), Cookie(3)).is_err() {
        assert!(
            Instant::now() < deadline,
            "the removal is over, because every other thread sleeps or has ended"
        );
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(
        reported(&monitor),
        [3],
        "the removal is reported again when it is over"
    );
    // SAFETY: the bytes are in the test's own mapping.
    unsafe { memory.write_bytes(1, 8 * PAGE) };
    assert!(monitor.is_intact(range(memory, 8 * PAGE)));
}

#[test]
fn a_forked_child_unmaps_without_waiting_for_anybody() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let memory = map(8);
    monitor.watch(range(memory, 8 * PAGE), Cookie(1)).unwrap();
    // SAFETY: the child only makes system calls.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the child touches only its own copy of the memory, and then ends.
            unsafe {
                libc::alarm(5);
                let unmapped = libc::munmap(memory.cast(), 8 * PAGE) == 0;
                let refused = !monitor.is_intact(range(memory, PAGE));
                libc::_exit(i32::from(!(unmapped && refused)));
            }
        }
        child => {
            let mut status = 0;
            // SAFETY: `waitpid` waits for the child that `fork` made, and writes only `status`.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
    assert!(monitor.is_intact(range(memory, 8 * PAGE)));
    assert!(reported(&monitor).is_empty());
}

#[test]
fn a_dropped_monitor_leaves_nothing_armed_though_a_child_has_its_descriptor() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let (memory, moved) = (map(8), map(8));
    monitor.watch(range(memory, 8 * PAGE), Cookie(1)).unwrap();
    monitor.watch(range(moved, 8 * PAGE), Cookie(2)).unwrap();
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let to = map(8);
    // SAFETY: `mremap` changes only the test's own mappings.
    unsafe { libc::mremap(moved.cast(), 8 * PAGE, 8 * PAGE, flags, to) };
    // SAFETY: the child only waits until it is killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the child only makes system calls.
        unsafe {
            libc::alarm(30);
            loop {
                libc::pause();
            }
        }
    }
    drop(monitor);
    let unmapping = thread::spawn({
        let (memory, to) = (memory.expose_provenance(), to.expose_provenance());
        move || {
            unmap(ptr::with_exposed_provenance_mut(memory), 8 * PAGE);
            unmap(ptr::with_exposed_provenance_mut(to), 8 * PAGE);
        }
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    while !unmapping.is_finished() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let finished = unmapping.is_finished();
    // SAFETY: the calls concern only the child that `fork` made above.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, ptr::null_mut(), 0);
    }
    assert!(finished, "munmap waits for a reader that has ended");
}

#[test]
fn more_events_than_the_log_holds_are_one_about_everything() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let (memory, other) = (map(600), map(1));
    monitor.watch(range(memory, 600 * PAGE), Cookie(1)).unwrap();
    monitor.watch(range(other, PAGE), Cookie(2)).unwrap();
    for i in 0..300 {
        unmap(memory.wrapping_add(2 * i * PAGE), PAGE);
    }
    assert_eq!(reported(&monitor), [1, 2]);
}

#[test]
fn a_closed_descriptor_is_noticed() {
    // The check runs in a child process. In the test's own process, another thread could open a
    // file and get the number of the closed file descriptor.
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    drop(monitor);
    // SAFETY: the child has only this thread, and exits below.
    match unsafe { libc::fork() } {
        0 => {
            let monitor = open().unwrap();
            let memory = map(1);
            monitor.watch(range(memory, PAGE), Cookie(1)).unwrap();
            // SAFETY: the child closes file descriptors of other owners, as a daemon would.
            // Afterwards the child uses only the monitor, which must notice the closed file
            // descriptor.
            unsafe { libc::close_range(3, u32::MAX, 0) };
            let noticed = !monitor.is_intact(range(memory, PAGE));
            // SAFETY: `_exit` ends the child, and has no preconditions.
            unsafe { libc::_exit(i32::from(!noticed)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `waitpid` waits for the child that `fork` made, and writes only `status`.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
}

/// A registrar for addresses at which a device has its own memory. With nvidia-peermem,
/// `ibv_reg_mr` registers such addresses. The number identifies the device memory that is at the
/// addresses now.
struct PeerMemory(AtomicU64);

// SAFETY: this is a model: no device accesses memory through a registration, which is only a
// number.
unsafe impl Registrar for PeerMemory {
    type Access = ();
    type Registration = u64;

    fn register(&self, _: VaRange, (): ()) -> io::Result<u64> {
        Ok(self.0.load(Ordering::Relaxed))
    }

    fn deregister(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "ThreadSanitizer has memory of its own at the chosen address"
)]
fn memory_that_only_a_device_has_is_never_stale() {
    let Some((monitor, _alone)) = monitor() else {
        return;
    };
    let cache = Cache::builder(PeerMemory(AtomicU64::new(0)))
        .monitor(monitor)
        .build()
        .unwrap();
    let reserved = map_with(ptr::null_mut(), PAGE, libc::PROT_NONE, ANON, -1);
    let nowhere = ptr::without_provenance::<u8>(0x2000_0000_0000);
    for at in [reserved.cast_const(), nowhere] {
        for memory in 0..100 {
            cache.registrar().0.store(memory, Ordering::Relaxed);
            assert_eq!(*cache.get(at, PAGE, ()).unwrap().registration(), memory);
        }
    }
    assert_eq!(cache.stats().uncached, 200);
}
