//! What the cache has done and holds.

use std::fmt;

use crate::sync::{AtomicU64, Ordering};

/// A reading of the cache's counters; see [`Cache::stats`](crate::Cache::stats).
///
/// Counts are since the cache was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Lookups served by a cached registration.
    pub hits: u64,
    /// Lookups for which a registration was made.
    pub misses: u64,
    /// Misses whose registration could not be kept: it dies with its guard.
    pub uncached: u64,
    /// Cached registrations given up because memory under them changed.
    pub invalidations: u64,
    /// Cached registrations given up to make room.
    pub evictions: u64,
    /// Cached registrations given up because a wider one came.
    pub merges: u64,
    /// Registrations made again because their memory changed while they were being made.
    pub retries: u64,
    /// Registrations that the device refused to destroy.
    pub leaked: u64,
    /// Registrations held now: cached, being made, or waiting for their last guard.
    pub entries: usize,
    /// Memory pinned by them, in bytes, whole pages counted.
    pub bytes: usize,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} hits, {} misses ({} uncached), {} invalidations, {} evictions, {} merges, {} retries, {} leaked; {} entries of {} bytes",
            self.hits,
            self.misses,
            self.uncached,
            self.invalidations,
            self.evictions,
            self.merges,
            self.retries,
            self.leaked,
            self.entries,
            self.bytes
        )
    }
}

/// Counts things that happen off the hit path.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) misses: Counter,
    pub(crate) uncached: Counter,
    pub(crate) invalidations: Counter,
    pub(crate) evictions: Counter,
    pub(crate) merges: Counter,
    pub(crate) retries: Counter,
    pub(crate) leaked: Counter,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let zero = Counter::new;
        Self {
            misses: zero(),
            uncached: zero(),
            invalidations: zero(),
            evictions: zero(),
            merges: zero(),
            retries: zero(),
            leaked: zero(),
        }
    }
}
