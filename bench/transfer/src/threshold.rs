//! [`judge`]: compares a run with the thresholds of the figures.

use std::fmt;

use crate::results::{Cell, Outcome, Run};
use crate::{Strategy, bytes};

/// The largest time of a transfer with the cache, as a ratio to the time with pre-registered
/// memory.
pub(crate) const OF_PRE_REGISTERED: f64 = 1.03;

/// The smallest overhead of registering per transfer, as a ratio to the cache's overhead.
const TIMES_LESS: f64 = 20.0;

/// The smallest rate of transfers with the cache if 1 % of the transfers follow an unmap, as a
/// ratio to the rate without unmaps.
const OF_QUIET: f64 = 0.9;

const STALE: &str = "stale bytes";

/// The comparison of one cell with one threshold.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The workload.
    pub workload: String,
    /// The number of bytes in a transfer.
    pub size: usize,
    /// The threshold, in words.
    pub threshold: String,
    /// The measured figure.
    pub value: f64,
    /// The lower and the upper bound of the figure with 95 % confidence, if they are known.
    pub between: Option<[f64; 2]>,
    /// True if the figure meets the threshold.
    pub met: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = if self.met { "met" } else { "MISSED" };
        write!(
            f,
            "{met}: {} of {}: {}: {:.3}",
            self.workload,
            bytes(self.size),
            self.threshold,
            self.value
        )?;
        match self.between {
            Some([low, high]) => write!(f, " (95 %: {low:.3} to {high:.3})"),
            None => Ok(()),
        }
    }
}

/// Compares a run with the thresholds.
///
/// The thresholds for times and overheads apply only to RDMA devices. With io_uring, the kernel
/// registers a page in less than a microsecond, so a run with io_uring has only one threshold: no
/// byte is stale.
#[must_use]
pub fn judge(run: &Run) -> Vec<Verdict> {
    let mut all: Vec<_> = run.cells.iter().flat_map(of_cell).collect();
    if run.machine.kind == "io_uring" {
        all.retain(|verdict| verdict.threshold == STALE);
    }
    all
}

fn of_cell(cell: &Cell) -> Vec<Verdict> {
    let workload = cell.workload;
    let outcome = |strategy: Strategy, every| cell.outcome(strategy.name(), every);
    let verdict = |threshold: String, value: f64, between, met| Verdict {
        workload: workload.name(),
        size: workload.size,
        threshold,
        value,
        between,
        met,
    };
    let mut verdicts = Vec::new();
    if let (0, Some(ours)) = (workload.unmap_every, outcome(Strategy::Regcache, 0)) {
        if outcome(Strategy::PreRegistered, 0).is_some() {
            verdicts.push(verdict(
                format!(
                    "regcache takes at most {OF_PRE_REGISTERED} times as long as pre-registered"
                ),
                ours.ratio,
                Some(ours.ratio_between),
                ours.ratio <= OF_PRE_REGISTERED,
            ));
        }
        if let Some(each) = outcome(Strategy::PerTransfer, 0) {
            let times = each.prepare_us / ours.prepare_us;
            let threshold = format!(
                "registering per transfer has at least {TIMES_LESS} times the overhead of regcache"
            );
            verdicts.push(verdict(threshold, times, None, times >= TIMES_LESS));
        }
    }
    let peers = cell.outcomes.iter();
    let peers = peers.filter(|outcome| outcome.strategy.starts_with("libfabric"));
    let least = peers.map(|peer| peer.prepare_us).reduce(f64::min);
    if let (Some(least), Some(ours)) = (least, outcome(Strategy::Regcache, 0)) {
        verdicts.push(verdict(
            "regcache has at most the overhead of the best of libfabric's caches".to_owned(),
            ours.prepare_us / least,
            None,
            ours.prepare_us <= least,
        ));
    }
    if let (100, Some(ours)) = (workload.unmap_every, outcome(Strategy::Regcache, 100)) {
        let rate = 1.0 / ours.ratio;
        let [low, high] = ours.ratio_between;
        verdicts.push(verdict(
            format!(
                "with an unmap before 1 % of the transfers, regcache has at least {OF_QUIET} of the rate without unmaps"
            ),
            rate,
            Some([1.0 / high, 1.0 / low]),
            rate >= OF_QUIET,
        ));
    }
    if workload.checked {
        // Wrong bytes of on-demand paging are not counted here, because they are an error of the
        // kernel and not of the cache. The table of the report shows their number.
        let ours = cell.outcomes.iter();
        let ours = ours.filter(|outcome: &&Outcome| outcome.strategy != Strategy::Odp.name());
        let stale: u64 = ours.map(|outcome| outcome.stale_bytes).sum();
        verdicts.push(verdict(STALE.to_owned(), stale as f64, None, stale == 0));
    }
    verdicts
}
