//! Defines [`demonstrate`]. This function shows on io_uring that a naive cache has the reuse bug
//! and that regcache does not. It also prints the costs of both caches.

use regcache::monitor::Monitor;

use crate::{Device, MUNMAP_THEN_MMAP, NeverReports, Outcome, Result, Uring, monitor_costs, reuse};

fn count(device: &impl Device, rounds: u32) -> Result<u32> {
    let mut stale = 0;
    for _ in 0..rounds {
        stale += u32::from(reuse(device, MUNMAP_THEN_MMAP)? == Outcome::Stale);
    }
    Ok(stale)
}

/// Runs `rounds` rounds with a naive cache, then `rounds` rounds with a cache on `monitor`. Prints
/// the results.
///
/// In each round, io_uring writes a page to a pipe. The function then unmaps the page and maps a
/// new page at the same address. Then io_uring writes the new page to the pipe.
///
/// Returns true if stale bytes arrived in every round with the naive cache, and in no round with
/// the cache on `monitor`.
///
/// # Errors
///
/// Returns the errors of the device.
pub fn demonstrate<M: Monitor>(monitor: M, rounds: u32) -> Result<bool> {
    let naive = Uring::new(NeverReports)?;
    let mut naive_stale = 0;
    for _ in 0..rounds {
        naive.flush()?;
        naive_stale += count(&naive, 1)?;
    }
    println!(
        "The bug: io_uring writes a page to a pipe by a registered buffer. The page is unmapped,"
    );
    println!("a new page is mapped at the same address, and io_uring writes the new page.");
    println!(
        "  With a naive cache, the old page's bytes arrived in {naive_stale} of {rounds} rounds."
    );
    let regcache = Uring::new(monitor)?;
    let regcache_stale = count(&regcache, rounds)?;
    println!(
        "  With regcache, the old page's bytes arrived in {regcache_stale} rounds: {}",
        regcache.cache().stats()
    );
    println!();
    monitor_costs(&[("naive", &naive), ("regcache", &regcache)], 2000)?;
    println!();
    println!(
        "reuse: device={} monitor={} naive_stale={naive_stale}/{rounds} regcache_stale={regcache_stale}/{rounds}",
        regcache.name(),
        regcache.monitor_name(),
    );
    Ok(naive_stale == rounds && regcache_stale == 0)
}
