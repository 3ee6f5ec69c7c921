//! Tests that `open` does not wait for the lock of an address space. The kernel calls `open` under
//! a lock that all misc devices share. So an `open` that waits would block every misc device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use regcache_tests_vm::{Child, DriverFile, Pages};

#[test]
fn opening_does_not_wait_for_the_lock_of_the_address_space() {
    const ROUNDS: usize = 15;
    /// If opening waits for nothing, at least this number of files opens during one fork. If
    /// opening waited for the fork, only one or two files would open.
    const ENOUGH: usize = 10;
    // The test runs in a child. Otherwise each fork by another test would copy the page tables of
    // this large memory.
    let child = Child::fork(|| {
        // A fork copies the page tables while it holds mmap_lock. The copy takes long, because the
        // memory is large.
        let memory = Pages::new(256 << 20 >> 12).unwrap();
        memory.touch();
        precede_other_tests(0);
        let opens: Vec<_> = (0..ROUNDS).map(|_| opens_during_a_fork()).collect();
        println!("files opened during a fork: {opens:?}");
        opens.into_iter().any(|opens| opens >= ENOUGH)
    });
    assert!(child.unwrap().succeeded().unwrap());
}

fn opens_during_a_fork() -> usize {
    let [ready, forking, forked] = [const { AtomicBool::new(false) }; 3];
    thread::scope(|scope| {
        let opener = scope.spawn(|| {
            precede_other_tests(1);
            ready.store(true, Ordering::Release);
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
        while !ready.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        forking.store(true, Ordering::Release);
        let child = Child::fork(|| true).unwrap();
        forked.store(true, Ordering::Release);
        assert!(child.succeeded().unwrap());
        opener.join().unwrap()
    })
}

/// Gives the calling thread a processor on which the threads of other tests wait for it. Otherwise
/// a busy machine may run this thread only before the fork and after it.
fn precede_other_tests(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: The structure lives during the call, and the call changes no memory.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const priority) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
