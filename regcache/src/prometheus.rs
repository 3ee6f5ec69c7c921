//! The counters in the text format that Prometheus scrapes.

use std::fmt;

use crate::stats::Stats;

/// Returns each counter's value, name and description. The name ends in `_total` if it only grows.
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
            "Misses whose registration could not be cached.",
        ),
        (
            stats.invalidations,
            "invalidations_total",
            "Cached registrations whose memory changed.",
        ),
        (
            stats.spurious,
            "spurious_total",
            "Drains that found no registration to invalidate.",
        ),
        (
            stats.evictions,
            "evictions_total",
            "Cached registrations evicted to make room.",
        ),
        (
            stats.merges,
            "merges_total",
            "Cached registrations replaced by a wider one.",
        ),
        (
            stats.retries,
            "retries_total",
            "Registrations made again because their memory changed meanwhile.",
        ),
        (
            stats.leaked,
            "leaked_total",
            "Registrations that the device refused to deregister.",
        ),
        (
            stats.entries as u64,
            "registrations",
            "Registrations that the cache holds now.",
        ),
        (
            stats.bytes as u64,
            "pinned_bytes",
            "Memory pinned by all registrations.",
        ),
        (
            stats.unreleased as u64,
            "unreleased_registrations",
            "Unlinked registrations that guards still hold.",
        ),
        (
            stats.unreleased_bytes as u64,
            "unreleased_bytes",
            "Memory pinned by unlinked registrations.",
        ),
    ]
}

impl Stats {
    /// Returns the counters in the [text format] that Prometheus scrapes.
    ///
    /// The metrics are named `regcache_…`. Their label `cache` tells several caches of one process
    /// apart. An endpoint writes one cache after another.
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
}
