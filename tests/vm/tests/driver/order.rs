//! Tests rule M2 of the contract (see `regcache/src/monitor/contract.rs`). A thread watches a range
//! while an invalidation of the range is in flight. The driver must wait for the end of this
//! invalidation, or report the invalidation after that end.

use std::fs::File;
use std::ops::Range;
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

/// One thread drops the pages of 64 MiB. In the meantime, another thread repeatedly watches the
/// last page. After each watch, one of two conditions must hold: the page is already gone, or the
/// driver reports the invalidation of the page later.
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
        "of {during} invalidations, some were not reported"
    );
}

/// Watches the last page of 64 MiB with each of the cookies. One thread then drops the pages. In
/// the meantime, another thread calls `wait_for_reports`. After the reports, one of two conditions
/// must hold: the page is already gone, or the driver reports each range again. A thread that pins
/// the page after the first report, under the same watch, needs the second report.
pub(crate) fn early_reports_are_repeated(
    cookies: Range<u64>,
    most_rounds: usize,
    wait_for_reports: impl Fn(&DriverFile) + Sync,
) {
    const PAGES: usize = 64 << 20 >> 12;
    const ENOUGH: usize = 10;
    let memory = Pages::new(PAGES).unwrap();
    let last_page = || memory.page(PAGES - 1);
    let device = DriverFile::open().unwrap();
    for cookie in cookies.clone() {
        device.watch(last_page(), PAGE, cookie).unwrap();
    }
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut early = 0;
    for _ in 0..most_rounds {
        memory.touch();
        let start = Barrier::new(2);
        let still_present = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                start.wait();
                wait_for_reports(&device);
                is_present(&pagemap, last_page().addr())
            });
            start.wait();
            memory.advise(0, PAGES, libc::MADV_DONTNEED).unwrap();
            reader.join().unwrap()
        });
        let again = device.drain();
        if still_present {
            early += 1;
            let again = again.map(|(mut cookies, _)| {
                cookies.sort_unstable();
                cookies
            });
            assert_eq!(
                again,
                Ok(cookies.clone().collect()),
                "a registration that pinned the page after the first report is stale"
            );
        }
        if early >= ENOUGH {
            return;
        }
    }
    panic!("only {early} reports came early");
}

#[test]
fn what_is_reported_before_it_is_over_is_reported_again() {
    early_reports_are_repeated(7..8, 200, |device| {
        loop {
            if let Ok((cookies, _)) = device.drain() {
                assert_eq!(cookies, [7]);
                break;
            }
        }
    });
}

/// Runs three threads. One thread repeatedly drops the pages of 64 MiB. The second thread calls
/// `register` for the last page. The third thread sends signals to the second thread in the
/// meantime.
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
        // This thread starts before the memory is dropped. The start of a thread needs a lock, and
        // the thread that drops memory holds this lock.
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

/// An interrupted call must leave no watch. So `unwatch` must fail after an interrupted call.
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

/// Programs of 2010 ignore the result of REGISTER_REGION. So a signal must not make this call fail.
#[test]
fn a_registration_of_old_is_never_interrupted() {
    let device = DriverFile::open().unwrap();
    register_among_signals(|start| {
        let start = std::ptr::without_provenance(start as usize);
        device.watch(start, PAGE, 1).unwrap();
        device.unwatch(1).unwrap();
    });
}
