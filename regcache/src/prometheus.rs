//! The counters in the text format that Prometheus scrapes.

use std::fmt;

use crate::stats::Stats;

macro_rules! define_metrics {
    ($({ $field:ident: $type:ty, $metric:literal, $description:literal })*) => {
        /// Returns each counter's value, name and description. The name of a value that only grows
        /// ends in `_total`.
        fn metrics(stats: &Stats) -> impl Iterator<Item = (u64, &'static str, &'static str)> {
            [$((stats.$field as u64, $metric, $description),)*].into_iter()
        }
    };
}

crate::for_each_statistic!(define_metrics);

impl Stats {
    /// Returns the counters in the [text format] that Prometheus scrapes.
    ///
    /// The name of each metric begins with `regcache_`. The label `cache` distinguishes several
    /// caches of one process. To export several caches, write their texts one after another.
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
        assert_eq!(text.lines().count(), 42);
    }
}
