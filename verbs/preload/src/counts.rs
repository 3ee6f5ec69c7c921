//! The numbers that the shim counts, for the summary.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use regcache::Stats;

/// How many registrations the program asked for, and how each of them ended.
#[derive(Default)]
pub(crate) struct Counts {
    /// Registrations asked for.
    pub(crate) asked: AtomicU64,
    /// Of these, those that the cache answered.
    pub(crate) cached: AtomicU64,
    /// Those passed on because a peer may use them.
    pub(crate) remote: AtomicU64,
    /// Those passed on because of other flags.
    pub(crate) flags: AtomicU64,
    /// Those passed on because the device's addresses are not the process's.
    pub(crate) iova: AtomicU64,
    /// Those passed on because the program holds the registration that serves them.
    pub(crate) in_use: AtomicU64,
    /// Those passed on because the shim does not see all work of the device.
    pub(crate) unseen: AtomicU64,
    /// Those passed on because there is no cache.
    pub(crate) off: AtomicU64,
    /// Those that were refused.
    pub(crate) refused: AtomicU64,
    /// Registrations that the program has given back and that were kept.
    pub(crate) kept: AtomicU64,
    /// Those that were deregistered because work with their keys may have been outstanding.
    pub(crate) outstanding: AtomicU64,
    /// Those that were deregistered for another reason.
    pub(crate) ended: AtomicU64,
    /// Registrations that the cache has made, by number of calls to libibverbs.
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
