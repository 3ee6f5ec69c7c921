//! [`Stats`]: the counters of a cache.

use std::fmt;

/// A reading of a cache's counters; see [`Cache::stats`](crate::Cache::stats).
///
/// Counts start when the cache is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// The number of lookups served by a cached registration.
    pub hits: u64,
    /// The number of lookups for which a registration was made.
    pub misses: u64,
    /// The number of misses whose registration could not be cached: it dies with its guard.
    pub uncached: u64,
    /// The number of cached registrations whose memory changed.
    pub invalidations: u64,
    /// The number of drains that found no registration to invalidate, because it was gone already.
    pub spurious: u64,
    /// The number of cached registrations evicted to make room.
    pub evictions: u64,
    /// The number of cached registrations replaced by a wider one.
    pub merges: u64,
    /// The number of registrations made again because their memory changed meanwhile.
    pub retries: u64,
    /// The number of registrations that the device refused to deregister.
    pub leaked: u64,
    /// The number of registrations held now: cached, being made, or in use after they were unlinked.
    pub entries: usize,
    /// The memory that they pin, in bytes, counted in whole pages.
    pub bytes: usize,
    /// The number of unlinked registrations that guards still hold. They are among the entries.
    pub unreleased: usize,
    /// The memory that they pin, in bytes. It is among the bytes.
    pub unreleased_bytes: usize,
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
        )?;
        if self.unreleased > 0 {
            write!(
                f,
                ", {} of {} bytes held by guards after they were unlinked",
                self.unreleased, self.unreleased_bytes
            )?;
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "serde", not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_serialises() {
        let value = serde_json::to_value(Stats::default()).unwrap();
        assert_eq!(value["unreleased_bytes"], 0);
    }
}
