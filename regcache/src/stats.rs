//! What the cache has done and holds.

use std::fmt;

/// A reading of the cache's counters; see [`Cache::stats`](crate::Cache::stats).
///
/// Counts are since the cache was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    /// Times the generation had moved and no entry was given up for it, nor one being made.
    pub spurious: u64,
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
    /// Of the entries, those that were given up and wait for their last guard.
    pub unreleased: usize,
    /// Of the bytes, those pinned by them.
    pub unreleased_bytes: usize,
}

/// Each with its name, which ends in `_total` if it only grows, and what it says.
fn metrics(stats: &Stats) -> [(u64, &'static str, &'static str); 13] {
    [
        (
            stats.hits,
            "hits_total",
            "Lookups served by a cached registration.",
        ),
        (
            stats.misses,
            "misses_total",
            "Lookups for which a registration was made.",
        ),
        (
            stats.uncached,
            "uncached_total",
            "Misses whose registration could not be kept.",
        ),
        (
            stats.invalidations,
            "invalidations_total",
            "Registrations given up because memory under them changed.",
        ),
        (
            stats.spurious,
            "spurious_total",
            "Drains for which no registration was given up.",
        ),
        (
            stats.evictions,
            "evictions_total",
            "Registrations given up to make room.",
        ),
        (
            stats.merges,
            "merges_total",
            "Registrations given up because a wider one came.",
        ),
        (
            stats.retries,
            "retries_total",
            "Registrations made again because memory changed meanwhile.",
        ),
        (
            stats.leaked,
            "leaked_total",
            "Registrations that the device refused to destroy.",
        ),
        (
            stats.entries as u64,
            "registrations",
            "Registrations held now.",
        ),
        (stats.bytes as u64, "pinned_bytes", "Memory pinned by them."),
        (
            stats.unreleased as u64,
            "unreleased_registrations",
            "Registrations given up that guards still hold.",
        ),
        (
            stats.unreleased_bytes as u64,
            "unreleased_bytes",
            "Memory pinned by those.",
        ),
    ]
}

impl Stats {
    /// In the [text format] that Prometheus scrapes: metrics `regcache_…` with the label `cache`, which
    /// tells several caches of one process apart. Caches are to be written one after another.
    ///
    /// [text format]: https://prometheus.io/docs/instrumenting/exposition_formats/
    ///
    /// ```
    /// let text = regcache::Stats::default().prometheus("mlx5_0").to_string();
    /// assert!(text.contains("\nregcache_hits_total{cache=\"mlx5_0\"} 0\n"));
    /// ```
    pub fn prometheus<'a>(&self, cache: &'a str) -> impl fmt::Display + use<'a> {
        Prometheus {
            stats: *self,
            cache,
        }
    }
}

struct Prometheus<'a> {
    stats: Stats,
    cache: &'a str,
}

impl fmt::Display for Prometheus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self
            .cache
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        for (value, name, help) in metrics(&self.stats) {
            let kind = if name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            writeln!(f, "# HELP regcache_{name} {help}")?;
            writeln!(f, "# TYPE regcache_{name} {kind}")?;
            writeln!(f, "regcache_{name}{{cache=\"{label}\"}} {value}")?;
        }
        Ok(())
    }
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
                ", {} of {} bytes held by guards after they were given up",
                self.unreleased, self.unreleased_bytes
            )?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_metrics_typed() {
        let stats = Stats {
            misses: 7,
            bytes: 4096,
            ..Stats::default()
        };
        let text = stats.prometheus("a\"b\\c\nd").to_string();
        assert!(
            text.contains("\nregcache_misses_total{cache=\"a\\\"b\\\\c\\nd\"} 7\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE regcache_misses_total counter\n"));
        assert!(text.contains("# TYPE regcache_pinned_bytes gauge\n"));
        assert_eq!(text.lines().count(), 39);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_snapshot_serialises() {
        let value = serde_json::to_value(Stats::default()).unwrap();
        assert_eq!(value["unreleased_bytes"], 0);
    }
}
