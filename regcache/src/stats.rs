//! [`Stats`]: the counters of a cache, and the table that defines them.

use std::fmt;

/// The table of the statistics: the only place that defines the name, type and description of each
/// one.
///
/// A row has a field's name, its type, the name of its Prometheus metric, and its description. The
/// metric's name ends in `_total` if the value only grows. [`Stats`], its documentation, the
/// Prometheus text and the C library's `struct regcache_stats` are all generated from the table.
/// Add rows only at the end, because the order of the rows is the layout of the C structure.
///
/// `for_each_statistic!(name)` expands to `name! { rows }`.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_statistic {
    ($then:ident) => {
        $then! {
            { hits: u64, "hits_total", "Lookups that found a live entry." }
            { misses: u64, "misses_total", "Lookups that registered memory." }
            { uncached: u64, "uncached_total",
              "Misses whose registration was not retained: it ends with its guard." }
            { invalidations: u64, "invalidations_total",
              "Entries unlinked because memory under them changed." }
            { spurious: u64, "spurious_total",
              "Drains that invalidated nothing: the entries reported were unlinked before." }
            { evictions: u64, "evictions_total", "Idle entries unlinked to make room." }
            { merges: u64, "merges_total",
              "Entries unlinked because a wider registration replaced them." }
            { retries: u64, "retries_total",
              "Registrations made again because their memory changed while they were made." }
            { leaked: u64, "leaked_total", "Registrations that the device refused to deregister." }
            { entries: usize, "registrations",
              "Registrations in the cache now: linked, being made, or not yet deregistered." }
            { bytes: usize, "pinned_bytes",
              "Bytes that the registrations in the cache pin now, in whole pages." }
            { unreleased: usize, "unreleased_registrations",
              "Registrations that were unlinked and that guards still hold." }
            { unreleased_bytes: usize, "unreleased_bytes",
              "Bytes pinned by registrations that were unlinked and that guards still hold." }
            { waits: u64, "waits_total",
              "Waits for a registration that another lookup was making." }
        }
    };
}

macro_rules! define_stats {
    ($({ $field:ident: $type:ty, $metric:literal, $description:literal })*) => {
        /// A reading of the cache's counters; see [`Cache::stats`](crate::Cache::stats).
        ///
        /// All counts start when the cache is built.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub struct Stats {
            $(
                #[doc = $description]
                pub $field: $type,
            )*
        }
    };
}

for_each_statistic!(define_stats);

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} hits, {} misses ({} uncached), {} invalidations, {} evictions, {} merges, \
             {} retries, {} leaked; {} entries of {} bytes",
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
                ", {} of {} bytes unlinked and held by guards",
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
