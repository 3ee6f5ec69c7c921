//! Measures the operations that change the cache: misses, evictions and invalidations.

use std::time::{Duration, Instant};

use regcache_bench_harness::{Pinned, Rounds, measure as measure_rounds, median, timed};
use regcache_bench_lookup::figure::{Figure, Threshold};
use regcache_bench_lookup::{Addresses, Regcache, Subject, Unwatched, loops, peer};

use crate::Result;
use crate::pair::{Loop, Pair, room};
use crate::report::Report;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let _here = Pinned::to(0);
    miss(report, "miss", 10_000, Threshold::OfUcx(1.0))?;
    miss(report, "miss/100000", 100_000, Threshold::None)?;
    fill(report, 10_000)?;
    fill(report, 100_000)?;
    evict(report)?;
    invalidate(report)?;
    drain(report)
}

/// Measures misses. In this benchmark UCX's cache has no monitor. So regcache uses a monitor that
/// watches nothing.
fn miss(report: &mut Report, name: &str, entries: usize, threshold: Threshold) -> Result<()> {
    report.compare_rebuilt(name, threshold, entries, |effort| {
        let pair = Pair::unwatched(entries)?;
        let rounds = measure_rounds(effort, &mut pair.variants(Loop::Miss, None));
        pair.check_balance();
        Ok(rounds)
    })
}

/// Measures the misses that fill a new cache. Each of these misses allocates memory for its entry.
/// By contrast, the misses of [`miss`] reuse the memory of earlier entries.
fn fill(report: &mut Report, entries: usize) -> Result<()> {
    let name = format!("fill/{entries}");
    if !report.wants(&name) {
        return Ok(());
    }
    let addresses = Addresses::new(entries, 4096)?;
    let wanted = (report.effort.rounds * 500 / entries).clamp(7, 101);
    let mut rounds = Rounds::default();
    for round in 0..5 * wanted {
        let regcache = Unwatched::new(room(entries))?;
        let peer = peer(room(entries))?;
        let ours = || timed(entries, || loops::fill(&regcache, &addresses));
        let theirs = || {
            let peer = peer.as_ref();
            peer.map(|peer| timed(entries, || loops::fill(peer, &addresses)))
        };
        let (ours, theirs) = if round % 2 == 0 {
            let ours = ours();
            (ours, theirs())
        } else {
            let theirs = theirs();
            (ours(), theirs)
        };
        let samples: Vec<_> = std::iter::once(ours).chain(theirs).collect();
        // The last rounds are kept even if they were disturbed. So the measurement also ends on a
        // machine that is always busy.
        let counts = round >= 4 * wanted || samples.iter().all(|sample| sample.undisturbed);
        rounds.push(samples.iter().map(|sample| sample.ns).collect(), counts);
        if rounds.len() == wanted {
            break;
        }
    }
    report.add_rounds(&name, Threshold::None, &rounds);
    Ok(())
}

fn invalidate(report: &mut Report) -> Result<()> {
    let entries = 100_000;
    let name = format!("invalidate/{entries}");
    let (threshold, measured) = (Threshold::Value(1000.0), Loop::Invalidate);
    once(report, &name, threshold, entries, room(entries), measured)
}

fn evict(report: &mut Report) -> Result<()> {
    let entries = 10_000;
    once(
        report,
        "evict",
        Threshold::None,
        entries,
        entries,
        Loop::Evict,
    )
}

/// Measures a loop on one pair of caches, regcache and UCX's cache.
fn once(
    report: &mut Report,
    name: &str,
    threshold: Threshold,
    entries: usize,
    room: usize,
    measured: Loop,
) -> Result<()> {
    if !report.wants(name) {
        return Ok(());
    }
    let pair = Pair::new(entries, 4096, room)?;
    report.compare(name, threshold, &mut pair.variants(measured, None));
    pair.check_balance();
    Ok(())
}

/// Measures the lookup that drains the monitor's reports after `k` ranges have changed, for several
/// values of `k`. UCX's cache has no such lookup.
fn drain(report: &mut Report) -> Result<()> {
    if !report.wants("drain") {
        return Ok(());
    }
    let entries = 100_000;
    let pair = Pair::new(entries, 4096, room(entries))?;
    let timer = timer();
    for k in [1, 10, 100, 1000] {
        let rounds = report.effort.rounds * 20 / k;
        let times = (0..rounds.max(50)).map(|round| {
            one_drain(&pair.regcache, &pair.addresses, round * k, k).saturating_sub(timer)
        });
        let ns = median(times.map(|time| time.as_nanos() as f64).collect());
        report.add(Figure::new(format!("drain/{k}"), ns, "ns"));
    }
    pair.check_balance();
    Ok(())
}

fn one_drain(cache: &Regcache, addresses: &Addresses, from: usize, k: usize) -> Duration {
    let starts = || {
        let numbers = (from..from + k).map(|k| 1 + k * 7919 % (addresses.count() - 1));
        numbers.map(|i| addresses.entry(i))
    };
    starts().for_each(|start| cache.mark(start));
    let before = cache.counts().1;
    let start = Instant::now();
    cache.get_put(addresses.entry(0), addresses.len());
    let time = start.elapsed();
    assert_eq!(
        cache.counts().1 - before,
        k as u64,
        "not all registrations were destroyed"
    );
    starts().for_each(|start| cache.get_put(start, addresses.len()));
    time
}

/// Returns the time that one clock reading takes.
fn timer() -> Duration {
    let asked = (0..1001).map(|_| Instant::now().elapsed().as_nanos() as f64);
    Duration::from_nanos(median(asked.collect()) as u64)
}
