//! Tests rule M2. It covers a range that a thread watches while an invalidation of the range is in
//! flight.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use regcache_tests_vm::{DriverFile, PAGE, Pages};

/// Returns true if a page is present at the address.
fn is_present(pagemap: &File, address: usize) -> bool {
    let mut entry = [0; 8];
    pagemap
        .read_exact_at(&mut entry, (address / PAGE * 8) as u64)
        .unwrap();
    u64::from_ne_bytes(entry) >> 63 != 0
}

/// One thread drops 64 MiB, and another thread repeatedly watches the last page in the meantime.
/// After each watch, one of two conditions must hold. Either the page is already gone, or its
/// invalidation is reported later.
#[test]
fn registering_during_an_invalidation_waits_for_it_or_reports_it() {
    const PAGES: usize = 64 << 20 >> 12;
    /// The number of watches that must begin while the memory is being dropped.
    const ENOUGH: usize = 50;
    const MOST_ROUNDS: usize = 500;
    let memory = Pages::new(PAGES).unwrap();
    let device = DriverFile::open().unwrap();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let (mut during, mut unreported) = (0, 0);
    for _ in 0..MOST_ROUNDS {
        memory.touch();
        let start = Barrier::new(2);
        let dropped = AtomicBool::new(false);
        let present: Vec<bool> = thread::scope(|scope| {
            let registering = scope.spawn(|| {
                let mut present = Vec::new();
                start.wait();
                while !dropped.load(Ordering::Acquire) {
                    let cookie = present.len() as u64;
                    device.watch(memory.page(PAGES - 1), PAGE, cookie).unwrap();
                    present.push(is_present(&pagemap, memory.page(PAGES - 1).addr()));
                }
                present
            });
            start.wait();
            memory.advise(0, PAGES, libc::MADV_DONTNEED).unwrap();
            dropped.store(true, Ordering::Release);
            registering.join().unwrap()
        });
        let reported = device
            .drain()
            .map(|(cookies, _)| cookies)
            .unwrap_or_default();
        for (cookie, present) in present.iter().enumerate() {
            let cookie = cookie as u64;
            unreported += usize::from(*present && !reported.contains(&cookie));
            device.unwatch(cookie).unwrap();
        }
        during += present.len();
        if during >= ENOUGH {
            break;
        }
    }
    assert!(
        during >= ENOUGH,
        "too few watches began while the memory was being dropped: {during}"
    );
    assert_eq!(
        unreported, 0,
        "invalidations were not reported, of {during}"
    );
}

/// One thread drops 64 MiB, and another thread waits for the report of the last page in the
/// meantime. After the report, one of two conditions must hold. Either the page is already gone, or
/// the range is reported again. So a thread that pins the page after the first report, under the
/// same watch, receives the second report.
#[test]
fn what_is_reported_before_it_is_over_is_reported_again() {
    const PAGES: usize = 64 << 20 >> 12;
    const ENOUGH: usize = 10;
    const MOST_ROUNDS: usize = 200;
    let memory = Pages::new(PAGES).unwrap();
    let last_page = || memory.page(PAGES - 1);
    let device = DriverFile::open().unwrap();
    device.watch(last_page(), PAGE, 7).unwrap();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut early = 0;
    for _ in 0..MOST_ROUNDS {
        memory.touch();
        let start = Barrier::new(2);
        let still_present = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                start.wait();
                loop {
                    if let Ok((cookies, _)) = device.drain() {
                        assert_eq!(cookies, [7]);
                        break is_present(&pagemap, last_page().addr());
                    }
                }
            });
            start.wait();
            memory.advise(0, PAGES, libc::MADV_DONTNEED).unwrap();
            reader.join().unwrap()
        });
        let again = device.drain();
        if still_present {
            early += 1;
            assert_eq!(
                again.map(|(cookies, _)| cookies),
                Ok(vec![7]),
                "a registration that pinned the page after the first report is stale"
            );
        }
        if early >= ENOUGH {
            return;
        }
    }
    panic!("only {early} reports came early");
}

/// One thread drops 64 MiB again and again. A second thread calls `register` for the last page. A
/// third thread sends signals to the second thread in the meantime.
fn register_among_signals(mut register: impl FnMut(u64) + Send) {
    const PAGES: usize = 64 << 20 >> 12;
    const ROUNDS: usize = 40;
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGPROF, &action) }.unwrap();
    let memory = Pages::new(PAGES).unwrap();
    let start = memory.page(PAGES - 1).addr() as u64;
    let (dropping, stop) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        scope.spawn(|| {
            let tell = tell;
            tell.send(pthread_self()).unwrap();
            while !stop.load(Ordering::Acquire) {
                register(start);
            }
        });
        let registering = told.recv().unwrap();
        // This thread starts before the memory is dropped, because the start of a thread needs a
        // lock that dropping holds.
        let signalling = scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                if dropping.load(Ordering::Acquire) {
                    pthread_kill(registering, Signal::SIGPROF).unwrap();
                }
                thread::sleep(Duration::from_micros(300));
            }
        });
        for _ in 0..ROUNDS {
            memory.touch();
            dropping.store(true, Ordering::Release);
            memory.advise(0, PAGES, libc::MADV_DONTNEED).unwrap();
            dropping.store(false, Ordering::Release);
        }
        stop.store(true, Ordering::Release);
        signalling.join().unwrap();
    });
}

/// An interrupted call must leave no watch, so `unwatch` must fail after it.
#[test]
fn a_registration_that_waits_can_be_interrupted_and_leaves_nothing() {
    let device = DriverFile::open().unwrap();
    let (mut interrupted, mut registered) = (0, 0);
    register_among_signals(|start| {
        let said = device.watch_with(0, std::ptr::without_provenance(start as usize), PAGE, 1);
        match said {
            Ok(()) => registered += 1,
            Err(Errno::EINTR) => interrupted += 1,
            Err(errno) => panic!("{errno}"),
        }
        assert_eq!(device.unwatch(1).is_ok(), said.is_ok());
    });
    println!("{interrupted} interrupted, {registered} not");
    assert!(interrupted > 0 && registered > 0);
}

/// Programs of 2010 ignore the result of the old call. So the old call must not fail because of a
/// signal.
#[test]
fn a_registration_of_old_is_never_interrupted() {
    let device = DriverFile::open().unwrap();
    register_among_signals(|start| {
        let start = std::ptr::without_provenance(start as usize);
        device.watch(start, PAGE, 1).unwrap();
        device.unwatch(1).unwrap();
    });
}
