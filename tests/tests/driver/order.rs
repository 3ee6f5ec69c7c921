//! A range registered while an invalidation of it is under way (M2).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use regcache_tests::{Device, PAGE, Pages};

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
    const ROUNDS: u32 = 12;
    let memory = Pages::new(PAGES).unwrap();
    let device = Device::open().unwrap();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let (mut unreported, mut during) = (0, 0);
    for _ in 0..ROUNDS {
        memory.touch();
        let (dropping, dropped) = (AtomicBool::new(false), AtomicBool::new(false));
        let cookies = AtomicU32::new(0);
        let present: Vec<bool> = thread::scope(|scope| {
            let registering = scope.spawn(|| {
                let mut present = Vec::new();
                while !dropping.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                while !dropped.load(Ordering::Acquire) {
                    let cookie = cookies.fetch_add(1, Ordering::Relaxed);
                    device
                        .watch(memory.page(PAGES - 1), PAGE, u64::from(cookie))
                        .unwrap();
                    present.push(is_present(&pagemap, memory.page(PAGES - 1).addr()));
                }
                present
            });
            dropping.store(true, Ordering::Release);
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
            during += 1;
            if *present && !reported.contains(&cookie) {
                unreported += 1;
            }
            device.unwatch(cookie).unwrap();
        }
    }
    assert!(
        during >= ROUNDS,
        "too few registrations came in between: {during}"
    );
    assert_eq!(unreported, 0, "of {during}");
}
