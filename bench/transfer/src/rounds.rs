//! Measures one cell, which is a workload with its variants. The variants run in interleaved
//! rounds.

use std::time::{Duration, Instant};

use regcache_bench_harness::{Rounds, Sample, interleave, operations_in};

use crate::results::{Cell, Outcome};
use crate::variant::Variant;
use crate::{Error, Strategy, Workload};

/// The amount of measuring in a cell.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The time that a cell should take.
    pub cell: Duration,
    /// The smallest number of rounds, even if these rounds take longer than `cell`.
    pub rounds: usize,
    /// The time that one sample should take.
    pub sample: Duration,
}

/// The number of rounds that suffices if one transfer takes longer than [`Effort::sample`]. Short
/// disturbances hardly change the time of such a long transfer.
///
/// So few rounds suffice only if the ratios of each variant agree within [`AGREEMENT`].
const LONG_ROUNDS: usize = 3;

/// The largest fraction by which the ratios of a variant may differ, so that [`LONG_ROUNDS`] rounds
/// suffice.
const AGREEMENT: f64 = 0.02;

/// The number of transfers that each variant does before the first measured transfer.
const WARM_UP: u64 = 2;

/// Measures rounds of the variants, and compares each variant with the first variant.
///
/// `tick` is called before each round, with the fraction of the work that is done.
///
/// # Errors
///
/// Returns the variants' errors. Returns [`Error::Stale`] if a variant moved stale bytes. The naive
/// cache and on-demand paging (ODP) are exempt, because their stale bytes are part of the result.
pub fn measure_cell(
    workload: Workload,
    effort: Effort,
    variants: &mut [Box<dyn Variant>],
    tick: &mut dyn FnMut(f64),
) -> Result<Cell, Error> {
    let transfers = calibrate(workload, effort, variants)?;
    for variant in &mut *variants {
        variant.start()?;
    }
    let started = Instant::now();
    let is_enough = |rounds: &Rounds| {
        let long = transfers == 1 && rounds.len() >= LONG_ROUNDS && rounds.agree(0, AGREEMENT);
        let least = if long {
            LONG_ROUNDS.min(effort.rounds)
        } else {
            effort.rounds
        };
        let done = (started.elapsed().as_secs_f64() / effort.cell.as_secs_f64())
            .min(rounds.len() as f64 / least as f64);
        tick(done.min(1.0));
        done >= 1.0
    };
    let all = transfers * workload.threads as u64;
    let rounds = interleave(variants.len(), 0, is_enough, |which| {
        let took = variants[which].run(transfers)?;
        Ok::<_, Error>(Sample::of(took.as_secs_f64() * 1e9 / all as f64))
    })?;
    let outcomes = variants.iter().enumerate();
    let outcomes = outcomes.map(|(which, variant)| outcome(workload, &**variant, &rounds, which));
    Ok(Cell {
        workload,
        rounds: rounds.len(),
        transfers_per_sample: transfers,
        outcomes: outcomes.collect::<Result<_, _>>()?,
    })
}

/// Warms the variants up. Returns the number of transfers that each thread does in a sample. This
/// number is the same for all variants.
fn calibrate(
    workload: Workload,
    effort: Effort,
    variants: &mut [Box<dyn Variant>],
) -> Result<u64, Error> {
    let mut fastest = Duration::MAX;
    for variant in &mut *variants {
        variant.run(WARM_UP)?;
        let depth = workload.depth as u64;
        fastest = fastest.min(variant.run(depth)? / u32::try_from(depth).unwrap_or(1));
    }
    let fit = operations_in(effort.sample, fastest.as_nanos() as f64, 1..=100_000);
    // Above depth 1, a sample has at least twice as many transfers as can be in flight at one time.
    // If a variant unmaps its buffer, each sample has at least one unmap.
    let unmap_every = variants.iter().map(|it| it.unmap_every()).max();
    let least = (2 * workload.depth as u64 * u64::from(workload.depth > 1))
        .max(unmap_every.unwrap_or(0))
        .max(1);
    let transfers = fit.next_multiple_of(least).max(least);
    for variant in variants {
        variant.visit()?;
        if transfers > WARM_UP {
            variant.run(transfers)?;
        }
    }
    Ok(transfers)
}

fn outcome(
    workload: Workload,
    variant: &dyn Variant,
    rounds: &Rounds,
    which: usize,
) -> Result<Outcome, Error> {
    let (tally, counts) = (variant.tally()?, variant.counts());
    let strategy = variant.name();
    let may_be_stale = [Strategy::Naive, Strategy::Odp].map(Strategy::name);
    if tally.wrong_bytes > 0 && !may_be_stale.contains(&&*strategy) {
        return Err(Error::Stale {
            strategy,
            workload: workload.name(),
            size: workload.size,
            bytes: tally.wrong_bytes,
        });
    }
    let time = rounds.ns(which) / 1e3;
    let ratio = rounds.ratio(which, 0);
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let percentile = |q: f64| micros(tally.latency.value_at_quantile(q));
    let transfers = tally.transfers.max(1) as f64;
    Ok(Outcome {
        strategy,
        unmap_every: variant.unmap_every(),
        transfers: tally.transfers,
        us: time,
        rate: 1e6 / time,
        bandwidth: workload.size as f64 * 1e6 / time,
        latency_us: [
            percentile(0.5),
            percentile(0.9),
            percentile(0.99),
            percentile(0.999),
            micros(tally.latency.max()),
        ],
        prepare_us: micros(tally.prepare.value_at_quantile(0.5)),
        prepare_mean_us: tally.prepare.mean() / 1e3,
        cpu_us: tally.cpu.mean() / 1e3,
        registration_calls: (counts.registrations + counts.deregistrations) as f64 / transfers,
        monitor_calls: counts.monitor_calls as f64 / transfers,
        pinned: counts.most_pinned,
        remaps: tally.remaps,
        checked: workload.checked,
        stale_bytes: tally.wrong_bytes,
        ratio: ratio.median,
        ratio_between: ratio.between,
    })
}
