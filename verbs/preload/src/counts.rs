//! The numbers that the shim counts, for the summary.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use regcache::Stats;

/// The number of registrations that the program requested, by outcome. Each thread counts the
/// common outcomes for itself (`local.rs`).
#[derive(Default)]
pub(crate) struct Counts {
    /// Requests that were passed on to libibverbs because they allow remote access.
    pub(crate) remote: AtomicU64,
    /// Requests that were passed on because of other flags.
    pub(crate) flags: AtomicU64,
    /// Requests that were passed on because the device addresses differ from the process's own
    /// addresses.
    pub(crate) iova: AtomicU64,
    /// Requests that were passed on because the program already holds the matching cached
    /// registration.
    pub(crate) in_use: AtomicU64,
    /// Requests that were passed on because the shim does not see all work of the device.
    pub(crate) unseen: AtomicU64,
    /// Requests that were passed on because there is no cache.
    pub(crate) off: AtomicU64,
    /// Requests that the device refused.
    pub(crate) refused: AtomicU64,
    /// Registrations that were deregistered because work with their keys may have been outstanding.
    pub(crate) outstanding: AtomicU64,
    /// Registrations that were deregistered for another reason.
    pub(crate) ended: AtomicU64,
    /// Registrations that the caches made by calling libibverbs.
    pub(crate) made: Arc<AtomicU64>,
}

/// The sums over caches that no longer exist.
#[derive(Default)]
pub(crate) struct Gone {
    pub(crate) hits: u64,
    pub(crate) invalidations: u64,
    pub(crate) evictions: u64,
}

impl Gone {
    pub(crate) fn add(&mut self, stats: &Stats) {
        self.hits += stats.hits;
        self.invalidations += stats.invalidations;
        self.evictions += stats.evictions;
    }
}
