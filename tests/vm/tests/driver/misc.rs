//! open() runs under the lock of all misc devices, so that it must not wait for the address space.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use regcache_tests_vm::{Child, DriverFile, Pages};

#[test]
fn opening_does_not_wait_for_the_lock_of_the_address_space() {
    const ROUNDS: usize = 15;
    /// Files that waited for the fork are one or two.
    const ENOUGH: usize = 10;
    // By itself: its memory must not be copied for other tests' children.
    let child = Child::fork(|| {
        // To copy the page tables takes a fork long, with mmap_lock held.
        let memory = Pages::new(256 << 20 >> 12).unwrap();
        memory.touch();
        let opens: Vec<_> = (0..ROUNDS).map(|_| opens_during_a_fork()).collect();
        println!("files opened during a fork: {opens:?}");
        opens.into_iter().any(|opens| opens >= ENOUGH)
    });
    assert!(child.unwrap().succeeded().unwrap());
}

fn opens_during_a_fork() -> usize {
    let (forking, forked) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let opener = scope.spawn(|| {
            while !forking.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let mut opens = 0;
            while !forked.load(Ordering::Acquire) {
                drop(DriverFile::open().unwrap());
                opens += 1;
            }
            opens
        });
        forking.store(true, Ordering::Release);
        let child = Child::fork(|| true).unwrap();
        forked.store(true, Ordering::Release);
        assert!(child.succeeded().unwrap());
        opener.join().unwrap()
    })
}
