//! Turns: how contestants are compared on a machine that is never quiet.
//!
//! They work by turns of some milliseconds. Each leads in its turn, and the others follow in any order, since who comes after
//! another finds the machine as that one has left it; and what is compared is what they took in the same turn:
//! whoever disturbs the machine for longer than a turn disturbs them all. The ratio is the median over the turns, with
//! the interval in which the median of infinitely many would be with 95 % confidence, from the order of the ratios
//! alone.

use std::time::{Duration, Instant};

use regcache_conformance::Random;

use crate::contestant::Contestant;
use crate::results::{Cell, Outcome};
use crate::{Error, Policy, Workload};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How long a cell shall take.
    pub cell: Duration,
    /// Turns at least, however long they take.
    pub turns: usize,
    /// How long a contestant's turn shall be.
    pub turn: Duration,
}

/// Turns that are enough where one transfer is longer than a turn shall be, as little that disturbs it is, if they agree: if the
/// ratios of each contestant are no further apart than this part.
const LONG_TURNS: usize = 3;
const AGREEMENT: f64 = 0.02;

/// Transfers that each contestant does before any count.
const WARM_UP: u64 = 2;

/// Lets the contestants work by turns. The first is the one that the others are compared with. `tick` is called after
/// each turn with the share that is done.
///
/// # Errors
///
/// The contestants'; [`Error::Stale`] if one that is neither naive nor the device's own paging moved
/// bytes that nobody had sent.
pub fn take_turns(
    workload: Workload,
    effort: Effort,
    contestants: &mut [Box<dyn Contestant>],
    tick: &mut dyn FnMut(f64),
) -> Result<Cell, Error> {
    let transfers = calibrate(workload, effort, contestants)?;
    for contestant in &mut *contestants {
        contestant.start()?;
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); contestants.len()];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    let started = Instant::now();
    let mut turn = 0;
    loop {
        let least = if transfers == 1 && turn >= LONG_TURNS && agree(&times) {
            LONG_TURNS.min(effort.turns)
        } else {
            effort.turns
        };
        let done = (started.elapsed().as_secs_f64() / effort.cell.as_secs_f64())
            .min(turn as f64 / least as f64);
        tick(done.min(1.0));
        if done >= 1.0 {
            break;
        }
        order.sort_unstable();
        let lead = turn % order.len();
        order.swap(0, lead);
        random.shuffle(&mut order[1..]);
        for &which in &order {
            let took = contestants[which].run(transfers)?;
            let all = transfers * workload.threads as u64;
            times[which].push(took.as_secs_f64() * 1e6 / all as f64);
        }
        turn += 1;
    }
    let outcomes = contestants.iter().zip(&times);
    let outcomes = outcomes.map(|(contestant, us)| outcome(workload, &**contestant, us, &times[0]));
    Ok(Cell {
        workload,
        turns: turn,
        transfers_a_turn: transfers,
        outcomes: outcomes.collect::<Result<_, _>>()?,
    })
}

/// Each one's time, as a part of the first's in the same turn.
fn ratios(mine: &[f64], first: &[f64]) -> Vec<f64> {
    mine.iter()
        .zip(first)
        .map(|(mine, its)| mine / its)
        .collect()
}

/// Whether each contestant's ratios are about the same in all turns.
fn agree(times: &[Vec<f64>]) -> bool {
    times.iter().all(|mine| {
        let ratios = ratios(mine, &times[0]);
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        most <= least * (1.0 + AGREEMENT)
    })
}

/// How many transfers make a turn: as many for all. Warms up.
fn calibrate(
    workload: Workload,
    effort: Effort,
    contestants: &mut [Box<dyn Contestant>],
) -> Result<u64, Error> {
    let mut fastest = Duration::MAX;
    for contestant in &mut *contestants {
        contestant.run(WARM_UP)?;
        let depth = workload.depth as u64;
        fastest = fastest.min(contestant.run(depth)? / u32::try_from(depth).unwrap_or(1));
    }
    let fit = effort.turn.as_nanos() / fastest.as_nanos().max(1);
    let fit = u64::try_from(fit).unwrap_or(u64::MAX).clamp(1, 100_000);
    // Queues are filled once a turn at least, and each turn has its unmap.
    let unmap_every = contestants.iter().map(|it| it.unmap_every()).max();
    let least = (2 * workload.depth as u64 * u64::from(workload.depth > 1))
        .max(unmap_every.unwrap_or(0))
        .max(1);
    let transfers = fit.next_multiple_of(least).max(least);
    for contestant in contestants {
        contestant.visit()?;
        if transfers > WARM_UP {
            contestant.run(transfers)?;
        }
    }
    Ok(transfers)
}

fn outcome(
    workload: Workload,
    contestant: &dyn Contestant,
    us: &[f64],
    first: &[f64],
) -> Result<Outcome, Error> {
    let (tally, counts) = (contestant.tally()?, contestant.counts());
    let policy = contestant.name();
    let others = [Policy::Naive, Policy::Odp].map(Policy::name);
    if tally.wrong_bytes > 0 && !others.contains(&&*policy) {
        return Err(Error::Stale {
            policy,
            workload: workload.name(),
            size: workload.size,
            bytes: tally.wrong_bytes,
        });
    }
    let (time, _) = median(us.to_vec());
    let (ratio, ratio_between) = median(ratios(us, first));
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let percentile = |q: f64| micros(tally.latency.value_at_quantile(q));
    let transfers = tally.transfers.max(1) as f64;
    Ok(Outcome {
        policy,
        unmap_every: contestant.unmap_every(),
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
        ratio,
        ratio_between,
    })
}

/// The middle one, and the two between which the median of what they are drawn from is with 95 % confidence.
#[must_use]
pub fn median(mut values: Vec<f64>) -> (f64, [f64; 2]) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 {
        return (f64::NAN, [f64::NAN; 2]);
    }
    let middle = if n % 2 == 1 {
        values[n / 2]
    } else {
        f64::midpoint(values[n / 2 - 1], values[n / 2])
    };
    // How many are below the median is binomial, with a standard deviation of half the root of n.
    let off = (1.96 * (n as f64).sqrt() / 2.0).ceil() as usize;
    let low = (n / 2).saturating_sub(off);
    let high = (n.div_ceil(2) + off).min(n) - 1;
    (middle, [values[low], values[high.max(low)]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_agree_if_no_contestant_was_disturbed() {
        let quiet = vec![vec![10.0, 20.0, 10.0], vec![10.1, 20.1, 10.0]];
        assert!(agree(&quiet));
        let disturbed = vec![vec![10.0, 10.0, 10.0], vec![10.1, 12.0, 10.0]];
        assert!(!agree(&disturbed));
    }

    #[test]
    fn the_interval_of_a_median_narrows_with_the_values() {
        let (middle, [low, high]) = median((0..=100).map(f64::from).collect());
        assert_eq!(middle, 50.0);
        assert!((38.0..42.0).contains(&low), "{low}");
        assert!((58.0..62.0).contains(&high), "{high}");
        assert_eq!(median(vec![7.0]), (7.0, [7.0, 7.0]));
        assert_eq!(median(vec![1.0, 3.0]).0, 2.0);
    }
}
