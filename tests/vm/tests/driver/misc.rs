//! open() runs under the lock of all misc devices, so that it must not wait for the address space.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use regcache_tests_vm::{Child, DriverFile, Pages};

#[test]
fn opening_does_not_wait_for_the_lock_of_the_address_space() {
    const ROUNDS: usize = 15;
    // By itself: what it has must not be copied for other tests' children.
    let child = Child::fork(|| {
        // To copy the page tables takes a fork long, with mmap_lock held.
        let memory = Pages::new(256 << 20 >> 12).unwrap();
        memory.touch();
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let (mut forks, mut opens) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let forking = AtomicBool::new(false);
            thread::scope(|scope| {
                let opener = scope.spawn(|| {
                    while !forking.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    thread::sleep(Duration::from_millis(3));
                    let start = Instant::now();
                    drop(DriverFile::open().unwrap());
                    start.elapsed()
                });
                let start = Instant::now();
                forking.store(true, Ordering::Release);
                let child = Child::fork(|| true).unwrap();
                forks.push(start.elapsed());
                assert!(child.succeeded().unwrap());
                opens.push(opener.join().unwrap());
            });
        }
        let (fork, open) = (median(&mut forks), median(&mut opens));
        println!("a fork takes {fork:?}, opening meanwhile {open:?}");
        open < fork / 4
    });
    assert!(child.unwrap().succeeded().unwrap());
}
