//! [`Report`]: the figures that were measured so far.

use std::time::Duration;

use regcache_bench_harness::{Effort, Rounds, Variant, measure};
use regcache_bench_lookup::figure::{Figure, Threshold, table};

use crate::Result;

/// The number of times that the caches are built for one figure. The placement of a cache's memory
/// affects the figure, so several placements are measured.
const BUILDS: usize = 5;

const LONGEST_SAMPLE: Duration = Duration::from_millis(5);

pub(crate) struct Report {
    only: String,
    pub(crate) effort: Effort,
    figures: Vec<Figure>,
    /// The number of discarded rounds, and the number of all rounds.
    rounds: (usize, usize),
}

impl Report {
    pub(crate) fn new(only: String, effort: Effort) -> Self {
        Self {
            only,
            effort,
            figures: Vec::new(),
            rounds: (0, 0),
        }
    }

    /// Returns whether the user requested the figure `name`, or a figure whose name begins with
    /// `name`.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.only) || self.only.starts_with(name)
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        eprintln!("{}", figure.line());
        self.figures.push(figure);
    }

    /// Measures rounds of the variants and adds the figure of regcache. The first variant is
    /// regcache. UCX's cache follows if it is built in. If the figure is compared with one thread,
    /// the last variant is regcache in one thread.
    pub(crate) fn compare(
        &mut self,
        name: &str,
        threshold: Threshold,
        variants: &mut [Box<Variant<'_>>],
    ) {
        if self.wants(name) {
            let rounds = measure(self.effort, variants);
            self.add_rounds(name, threshold, &rounds);
        }
    }

    /// Measures caches of `entries` entries and adds the figure of regcache. Calls `run` several
    /// times. Each call of `run` builds and measures new caches.
    pub(crate) fn compare_rebuilt(
        &mut self,
        name: &str,
        threshold: Threshold,
        entries: usize,
        mut run: impl FnMut(Effort) -> Result<Rounds>,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let mut effort = self.effort;
        effort.rounds = effort.rounds.div_ceil(BUILDS);
        if entries >= 10_000 {
            // The two registration caches evict each other's memory from the CPU's caches. A sample
            // is long enough that the time to load this memory again hardly affects the result.
            let sample = Duration::from_micros(entries as u64 / 5).min(LONGEST_SAMPLE);
            effort.sample = effort.sample.max(sample);
            effort.rounds = effort.rounds.div_ceil(2);
        }
        let mut rounds = Rounds::default();
        for _ in 0..BUILDS {
            rounds.extend(run(effort)?);
        }
        self.add_rounds(name, threshold, &rounds);
        Ok(())
    }

    /// Adds the figure of these rounds. The rounds must have measured the variants in the order
    /// that `compare` describes.
    pub(crate) fn add_rounds(&mut self, name: &str, threshold: Threshold, rounds: &Rounds) {
        let ucx = cfg!(feature = "ucx");
        let one_thread = rounds.variants() > 1 + usize::from(ucx);
        let (disturbed, all) = rounds.disturbed();
        self.rounds.0 += disturbed;
        self.rounds.1 += all;
        self.add(Figure {
            name: name.to_owned(),
            value: rounds.ns(0),
            unit: "ns",
            ucx: ucx.then(|| rounds.ns(1)),
            ratio_ucx: ucx.then(|| rounds.ratio(0, 1).median),
            ratio_one_thread: one_thread.then(|| rounds.ratio(0, 1 + usize::from(ucx)).median),
            threshold,
        });
    }

    pub(crate) fn print(&self) {
        println!("{}", table(&self.figures));
        println!(
            "The figures are medians. A ratio is the median of the ratios of all rounds. {} of {} rounds were disturbed and \
             repeated.\n",
            self.rounds.0, self.rounds.1
        );
        for figure in &self.figures {
            println!("{}", figure.line());
        }
    }
}
