//! What was promised of the figures, and whether it is kept: [`judge`].

use std::fmt;

use crate::results::{Cell, Outcome, Run};
use crate::{Policy, bytes};

/// The cache's time of a transfer, of that with memory registered once.
const OF_ONCE: f64 = 1.03;

/// Time in registering each time, of that in the cache.
const TIMES_LESS: f64 = 20.0;

/// The cache's rate with 1 % of the transfers preceded by an unmap, of that without.
const OF_QUIET: f64 = 0.9;

const STALE: &str = "stale bytes";

/// One promise, for one cell.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Of what.
    pub workload: String,
    /// Bytes.
    pub size: usize,
    /// What was promised.
    pub promise: &'static str,
    /// What was measured.
    pub value: f64,
    /// Between what it is with 95 % confidence, if known.
    pub between: Option<[f64; 2]>,
    /// Whether it is kept.
    pub kept: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = if self.kept { "kept" } else { "MISSED" };
        write!(
            f,
            "{kept}: {} of {}: {}: {:.3}",
            self.workload,
            bytes(self.size),
            self.promise,
            self.value
        )?;
        match self.between {
            Some([low, high]) => write!(f, " (95 %: {low:.3} to {high:.3})"),
            None => Ok(()),
        }
    }
}

/// Holds what was measured against what was promised, which is of RDMA devices. Of others it is only that no byte is
/// stale: io_uring registers a page in less than a microsecond.
#[must_use]
pub fn judge(run: &Run) -> Vec<Verdict> {
    let mut all: Vec<_> = run.cells.iter().flat_map(of_cell).collect();
    if run.machine.kind == "io_uring" {
        all.retain(|verdict| verdict.promise == STALE);
    }
    all
}

fn of_cell(cell: &Cell) -> Vec<Verdict> {
    let workload = cell.workload;
    let outcome = |policy: Policy, every| cell.outcome(policy.name(), every);
    let verdict = |promise, value: f64, between, kept| Verdict {
        workload: workload.name(),
        size: workload.size,
        promise,
        value,
        between,
        kept,
    };
    let mut verdicts = Vec::new();
    if let (0, Some(ours)) = (workload.unmap_every, outcome(Policy::Regcache, 0)) {
        if let Some(_once) = outcome(Policy::RegisteredOnce, 0) {
            verdicts.push(verdict(
                "regcache takes at most 1.03 of registered-once",
                ours.ratio,
                Some(ours.ratio_between),
                ours.ratio <= OF_ONCE,
            ));
        }
        if let Some(each) = outcome(Policy::RegisterEachTime, 0) {
            let times = each.prepare_us / ours.prepare_us;
            let promise = "registering each time takes at least 20 times as long in registration";
            verdicts.push(verdict(promise, times, None, times >= TIMES_LESS));
        }
    }
    let peers = cell.outcomes.iter();
    let peers = peers.filter(|outcome| outcome.policy.starts_with("libfabric"));
    let least = peers.map(|peer| peer.prepare_us).reduce(f64::min);
    if let (Some(least), Some(ours)) = (least, outcome(Policy::Regcache, 0)) {
        verdicts.push(verdict(
            "no longer in registration than the best of libfabric's caches",
            ours.prepare_us / least,
            None,
            ours.prepare_us <= least,
        ));
    }
    if let (100, Some(ours)) = (workload.unmap_every, outcome(Policy::Regcache, 100)) {
        let rate = 1.0 / ours.ratio;
        let [low, high] = ours.ratio_between;
        verdicts.push(verdict(
            "with 1 % unmapped before, at least 0.9 of the rate without",
            rate,
            Some([1.0 / high, 1.0 / low]),
            rate >= OF_QUIET,
        ));
    }
    if workload.checked {
        // What the device pages in is the kernel's affair; the table has it.
        let ours = cell.outcomes.iter();
        let ours = ours.filter(|outcome: &&Outcome| outcome.policy != Policy::Odp.name());
        let stale: u64 = ours.map(|outcome| outcome.stale_bytes).sum();
        verdicts.push(verdict(STALE, stale as f64, None, stale == 0));
    }
    verdicts
}
