//! Defines [`watch`], which compares a naive cache with regcache while a caller shows the counts.

use std::time::{Duration, Instant};

use regcache::Stats;
use regcache::monitor::Monitor;

use crate::memory::{map, unmap};
use crate::{Device, NeverReports, PAGE, Result, Uring};

/// The number of transfers from each page, from its mapping to its unmapping.
const TRANSFERS: u64 = 4;

/// The counts of one cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// The number of lookups.
    pub lookups: u64,
    /// The number of lookups that found a registration in the cache.
    pub hits: u64,
    /// The number of registrations that the cache dropped because their memory changed.
    pub invalidations: u64,
    /// The number of transfers in which bytes of an old page arrived.
    pub stale: u64,
}

impl Counts {
    fn of(stats: &Stats, stale: u64) -> Self {
        Self {
            lookups: stats.hits + stats.misses,
            hits: stats.hits,
            invalidations: stats.invalidations,
            stale,
        }
    }
}

/// The counts at one moment.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The name of the device.
    pub device: &'static str,
    /// The name of regcache's monitor.
    pub monitor: &'static str,
    /// The number of pages that were mapped, used and unmapped with each cache.
    pub rounds: u64,
    /// The counts of the naive cache.
    pub naive: Counts,
    /// The counts of regcache.
    pub regcache: Counts,
}

/// Maps pages one after the other, lets io_uring transfer each page with both caches, and unmaps
/// the page. Calls `show` each `interval`, and once at the end after `time`.
///
/// The kernel maps most pages at the address of the page before. Each page holds the number of its
/// round, so the bytes that arrive tell which page the device read.
///
/// Returns true if stale bytes arrived with the naive cache, and none with the cache on `monitor`.
///
/// # Errors
///
/// Returns the errors of the device and of `show`.
pub fn watch<M: Monitor>(
    monitor: M,
    time: Duration,
    interval: Duration,
    mut show: impl FnMut(&Frame) -> Result<()>,
) -> Result<bool> {
    let naive = Uring::new(NeverReports)?;
    let regcache = Uring::new(monitor)?;
    let mut frame = Frame {
        device: regcache.name(),
        monitor: regcache.monitor_name(),
        rounds: 0,
        naive: Counts::default(),
        regcache: Counts::default(),
    };
    let started = Instant::now();
    let mut shown = started;
    loop {
        let round = frame.rounds;
        let stale = frame.naive.stale + stale_in_round(&naive, round)?;
        frame.naive = Counts::of(&naive.cache().stats(), stale);
        let stale = frame.regcache.stale + stale_in_round(&regcache, round)?;
        frame.regcache = Counts::of(&regcache.cache().stats(), stale);
        frame.rounds += 1;
        if started.elapsed() >= time {
            show(&frame)?;
            return Ok(frame.naive.stale > 0 && frame.regcache.stale == 0);
        }
        if shown.elapsed() >= interval {
            show(&frame)?;
            shown = Instant::now();
        }
    }
}

/// Maps a page, transfers it, and unmaps it. Returns the number of transfers that moved other bytes
/// than those of this page.
fn stale_in_round(device: &impl Device, round: u64) -> Result<u64> {
    let page = map(PAGE)?;
    let transfers = || -> Result<u64> {
        // SAFETY: the page is mapped until this closure has returned, and no other reference to it
        // exists.
        let bytes = unsafe { page.bytes() };
        let number = round.to_ne_bytes();
        bytes[..number.len()].copy_from_slice(&number);
        let mut stale = 0;
        for _ in 0..TRANSFERS {
            let (arrived, _) = device.read_out(bytes)?;
            stale += u64::from(!arrived.starts_with(&number));
        }
        Ok(stale)
    };
    let stale = transfers();
    unmap(page);
    stale
}
