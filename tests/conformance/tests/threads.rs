//! Runs the race for an address and the search for deadlocks, on userfaultfd and io_uring.
//!
//! The search for deadlocks runs for 20 s. The environment variable `REGCACHE_STRESS_SECONDS` sets
//! another time.

use std::env;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use regcache::monitor::Userfaultfd;
use regcache_conformance::{allocate_free_fork_and_look_up, thread_reuse};
use regcache_repro::Uring;

/// A lock that every test holds. Each test needs two CPUs, so only one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn strict() -> Option<Userfaultfd> {
    Userfaultfd::open()
        .inspect_err(|error| eprintln!("not tested here: {error}"))
        .ok()
}

#[test]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "maps addresses that ThreadSanitizer does not allow"
)]
fn a_thread_that_is_handed_the_address_gets_the_new_page() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(monitor) = strict() else { return };
    let device = Uring::new(monitor).unwrap();
    let (stale, played) = thread_reuse(&device, 5000, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((stale, played), (0, 5000));
}

#[test]
#[cfg_attr(
    sanitizer = "thread",
    ignore = "maps addresses that ThreadSanitizer does not allow"
)]
fn with_events_alone_it_is_at_times_given_the_old_one() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if strict().is_none() {
        return;
    }
    // SAFETY: this monitor is unsound, so a registration can be stale. That does no harm, because
    // the device only reads, and a stale registration reaches only pages that are mapped nowhere.
    let device = Uring::new(unsafe { Userfaultfd::open_racy() }.unwrap()).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let (stale, played) = thread_reuse(&device, u32::MAX, |stale| {
        if stale > 0 || Instant::now() > until {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(
        stale > 0,
        "the monitor reported in time in each of {played} rounds"
    );
}

#[test]
#[cfg_attr(
    sanitizer = "address",
    ignore = "needs libc's malloc, which the sanitizer replaces"
)]
fn allocating_freeing_and_forking_with_mallocs_memory_cached_never_stands_still() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(monitor) = strict() else { return };
    let seconds = env::var("REGCACHE_STRESS_SECONDS").ok();
    let seconds = seconds.map_or(20, |it| it.parse().unwrap());
    // SAFETY: mallopt has no preconditions.
    unsafe {
        // With these thresholds, malloc often maps memory and often returns memory to the kernel.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
    }
    let device = Box::leak(Box::new(Uring::new(monitor).unwrap()));
    let (time, patience) = (Duration::from_secs(seconds), Duration::from_secs(30));
    let progress = allocate_free_fork_and_look_up(device, 4, time, patience);
    let progress = match progress {
        Ok(progress) => progress,
        Err(error) => {
            eprintln!("{error}");
            // Unwinding could wait for locks that the deadlocked threads hold. So the process
            // aborts.
            std::process::abort();
        }
    };
    eprintln!("{progress:?} {}", device.cache().stats());
    assert_eq!(progress.stale.load(Ordering::Relaxed), 0);
    assert!(progress.checked.load(Ordering::Relaxed) > 0);
    assert!(device.cache().stats().hits > 0, "no lookup was a hit");
}
