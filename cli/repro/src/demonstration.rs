//! The reuse bug shown on io_uring, which every machine has, with a naive cache and with one that is not; and what it costs.

use regcache::monitor::Monitor;

use crate::{Device, MUNMAP_THEN_MMAP, NeverReports, Outcome, Result, Uring, monitor_costs, reuse};

fn count(device: &impl Device, rounds: u32) -> Result<u32> {
    let mut stale = 0;
    for _ in 0..rounds {
        stale += u32::from(reuse(device, MUNMAP_THEN_MMAP)? == Outcome::Stale);
    }
    Ok(stale)
}

/// Has io_uring write a page to a pipe, unmaps it, maps a new one at the same address, writes that; counts how often the
/// old page's bytes arrive, with a naive cache and with one on this monitor, and prints that. Returns whether they always
/// did with the naive one, and never with the other.
///
/// # Errors
///
/// The device's.
pub fn demonstrate<M: Monitor>(monitor: M, rounds: u32) -> Result<bool> {
    let naive = Uring::new(NeverReports)?;
    let mut naive_stale = 0;
    for _ in 0..rounds {
        naive.flush()?;
        naive_stale += count(&naive, 1)?;
    }
    println!("the bug: a page is written to a pipe by a registered buffer, unmapped, another one");
    println!("mapped at the same address, and that written");
    println!("  with a naive cache the old page's bytes arrived {naive_stale} times of {rounds}");
    let regcache = Uring::new(monitor)?;
    let regcache_stale = count(&regcache, rounds)?;
    println!(
        "  with regcache {regcache_stale} times: {}",
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
