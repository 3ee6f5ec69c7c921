//! A range registered while an invalidation of it is under way (M2).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use regcache_tests_vm::{DriverFile, PAGE, Pages};

/// True if there is a page behind the address.
fn is_present(pagemap: &File, address: usize) -> bool {
    let mut entry = [0; 8];
    pagemap
        .read_exact_at(&mut entry, (address / PAGE * 8) as u64)
        .unwrap();
    u64::from_ne_bytes(entry) >> 63 != 0
}

/// While one thread drops 64 MiB, which takes a while, another registers the last page over and over
/// again. Each time one of two things must hold once it is registered: the page has gone already, or
/// its going is reported.
#[test]
fn registering_during_an_invalidation_waits_for_it_or_reports_it() {
    const PAGES: usize = 64 << 20 >> 12;
    /// Registrations that began while the memory was being dropped.
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
        "too few registrations came in between: {during}"
    );
    assert_eq!(unreported, 0, "of {during}");
}

/// While one thread drops 64 MiB, another waits for the report of the last page. When it has it, one
/// of two things must hold: the page has gone already, or the range is reported again, so that
/// whoever pins it under the same watch now finds out.
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
                "pinned now it is stale"
            );
        }
        if early >= ENOUGH {
            return;
        }
    }
    panic!("only {early} reports came early");
}
