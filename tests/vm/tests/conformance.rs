//! Runs the conformance suite on the driver. Every scenario runs on the RDMA device and on
//! io_uring. The race of two threads for an address runs on io_uring. Needs the VM.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use regcache::monitor::Ummunotify;
use regcache_conformance::{matrix, scenarios, thread_reuse, uring_columns};
use regcache_repro::Uring;
use regcache_tests_vm::rxe_columns;

/// A lock that every test holds, so that one test runs at a time. Otherwise the kernel could give
/// the addresses of one test to a thread of another.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn no_sound_monitor_is_stale_and_a_naive_cache_is_wherever_pages_are_replaced() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut columns = uring_columns();
    // This test needs only the columns of the naive cache and of the driver.
    columns.retain(|it| it.name.ends_with("naive") || it.name.ends_with("ummunotify"));
    columns.extend(rxe_columns());
    let drivers = columns.iter().filter(|it| it.name.ends_with("ummunotify"));
    assert_eq!(drivers.count(), 2, "one column of each device");
    assert_eq!(matrix(&columns, scenarios(), ""), [""; 0]);
}

#[test]
fn a_thread_that_is_handed_the_address_gets_the_new_page() {
    const ROUNDS: u32 = 1000;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = Uring::new(Ummunotify::open().unwrap()).unwrap();
    let played = thread_reuse(&device, ROUNDS, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(played, (0, ROUNDS), "stale rounds, and all rounds");
    assert!(device.cache().stats().misses > 0);
}
