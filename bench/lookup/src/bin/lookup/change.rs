//! Measures the operations that change the cache: misses, evictions and invalidations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use regcache_bench_harness::{
    Pinned, Random, Rounds, Sample, measure as measure_rounds, median, timed,
};
use regcache_bench_lookup::figure::{Figure, Threshold};
use regcache_bench_lookup::{
    Addresses, DummyRegistrar, Peer, Regcache, Subject, Unwatched, loops, peer,
};

use crate::Result;
use crate::pair::{Loop, Pair, room};
use crate::report::Report;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    {
        let _here = Pinned::to(0);
        miss(report, "miss", 10_000)?;
        miss(report, "miss/100000", 100_000)?;
        for entries in [10_000, 100_000] {
            fill(report, &format!("fill/{entries}"), entries, false, 0.9)?;
        }
        for entries in [100_000, 1_000_000] {
            fill(
                report,
                &format!("fill/random/{entries}"),
                entries,
                true,
                1.2,
            )?;
        }
        for entries in [1000, 10_000, 100_000, 1_000_000] {
            evict(report, entries)?;
        }
        invalidate(report)?;
        drain(report)?;
        for entries in [100_000, 1_000_000] {
            drain_all(report, entries)?;
        }
    }
    let name = "drain/100000/longest-hit";
    longest_hit(report, name, 100_000, Duration::ZERO)?;
    let name = "drain/slow/10000/longest-hit";
    longest_hit(report, name, 10_000, Duration::from_micros(20))
}

/// Measures misses. In this benchmark UCX's cache has no monitor. So regcache uses a monitor that
/// watches nothing.
fn miss(report: &mut Report, name: &str, entries: usize) -> Result<()> {
    report.compare_rebuilt(name, Threshold::OfUcx(0.9), entries, |effort| {
        let pair = Pair::unwatched(entries, room(entries))?;
        let rounds = measure_rounds(effort, &mut pair.variants(Loop::Miss, None));
        pair.check_balance();
        Ok(rounds)
    })
}

/// Measures the misses that fill a new cache, in ascending or in random order. Each of these misses
/// allocates memory for its entry. By contrast, the misses of [`miss`] reuse the memory of earlier
/// entries.
fn fill(report: &mut Report, name: &str, entries: usize, random: bool, most: f64) -> Result<()> {
    if !report.wants(name) {
        return Ok(());
    }
    let addresses = Addresses::new(entries, 4096)?;
    let mut order: Vec<_> = (0..entries).collect();
    if random {
        let mut numbers = Random::new(1);
        for i in (1..entries).rev() {
            order.swap(i, numbers.below(i + 1));
        }
    }
    let room = room(entries);
    let rounds = rounds(
        report,
        entries,
        || {
            let cache = Unwatched::new(room)?;
            let numbers = order.iter().copied();
            Ok(timed(entries, || {
                loops::register(&cache, &addresses, numbers);
            }))
        },
        || {
            let cache = peer(room)?;
            let numbers = order.iter().copied();
            let fill =
                |cache: Peer| timed(entries, || loops::register(&cache, &addresses, numbers));
            Ok(cache.map(fill))
        },
    )?;
    report.add_rounds(name, Threshold::OfUcx(most), &rounds);
    Ok(())
}

/// Measures rounds of two variants that build their own caches of `entries` entries, in turn.
fn rounds(
    report: &Report,
    entries: usize,
    ours: impl Fn() -> Result<Sample>,
    theirs: impl Fn() -> Result<Option<Sample>>,
) -> Result<Rounds> {
    let wanted = (report.effort.rounds * 500 / entries).clamp(7, 101);
    let mut rounds = Rounds::default();
    for round in 0..5 * wanted {
        let (ours, theirs) = if round % 2 == 0 {
            let ours = ours()?;
            (ours, theirs()?)
        } else {
            let theirs = theirs()?;
            (ours()?, theirs)
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
    Ok(rounds)
}

fn invalidate(report: &mut Report) -> Result<()> {
    let entries = 100_000;
    let name = format!("invalidate/{entries}");
    if !report.wants(&name) {
        return Ok(());
    }
    let pair = Pair::new(entries, 4096, room(entries))?;
    let mut variants = pair.variants(Loop::Invalidate, None);
    report.compare(&name, Threshold::OfUcx(0.9), &mut variants);
    drop(variants);
    pair.check_balance();
    Ok(())
}

/// Measures misses in a cache at its limit. Each miss evicts an entry.
fn evict(report: &mut Report, entries: usize) -> Result<()> {
    let name = format!("evict/{entries}");
    report.compare_rebuilt(&name, Threshold::OfUcx(1.0), entries, |effort| {
        let pair = Pair::unwatched(entries, entries)?;
        let rounds = measure_rounds(effort, &mut pair.variants(Loop::Evict, None));
        pair.check_balance();
        Ok(rounds)
    })
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
    cache.reap();
    assert_eq!(
        cache.counts().1 - before,
        k as u64,
        "not all registrations were destroyed"
    );
    starts().for_each(|start| cache.get_put(start, addresses.len()));
    time
}

/// Measures the invalidation of all entries but the first, in ascending order, as the driver
/// reports one change of all of them. The figure is the time for one entry until it is
/// deregistered. UCX's cache is told of each range.
fn drain_all(report: &mut Report, entries: usize) -> Result<()> {
    let name = format!("drain/{entries}/entry");
    if !report.wants(&name) {
        return Ok(());
    }
    let addresses = Arc::new(Addresses::new(entries, 4096)?);
    let starts = || (1..entries).map(|i| addresses.entry(i));
    let all = || 0..entries;
    let room = room(entries);
    let rounds = rounds(
        report,
        entries,
        || {
            let cache = Regcache::new(&addresses, room)?;
            loops::register(&cache, &addresses, all());
            cache.mark_all(starts());
            let sample = timed(entries, || cache.reap());
            assert_eq!(cache.live(), 1, "not all registrations were destroyed");
            Ok(sample)
        },
        || {
            let invalidate = |cache: Peer| {
                loops::register(&cache, &addresses, all());
                let invalidate = |start| cache.invalidate(start, addresses.len());
                timed(entries, || starts().for_each(invalidate))
            };
            Ok(peer(room)?.map(invalidate))
        },
    )?;
    report.add_rounds(&name, Threshold::Value(300.0), &rounds);
    Ok(())
}

/// Measures the longest hit of one thread while another thread drains one change of all other
/// entries and deregisters them. `deregistering` is the time that one deregistration takes. UCX has
/// no counterpart.
fn longest_hit(
    report: &mut Report,
    name: &str,
    entries: usize,
    deregistering: Duration,
) -> Result<()> {
    if !report.wants(name) {
        return Ok(());
    }
    let addresses = Arc::new(Addresses::new(entries + 1, 4096)?);
    let mut longest = Vec::new();
    for _ in 0..15 {
        let registrar = DummyRegistrar::slow(deregistering);
        let cache = Regcache::with_registrar(registrar, &addresses, room(entries))?;
        loops::register(&cache, &addresses, 0..=entries);
        let done = AtomicBool::new(false);
        let hit = thread::scope(|scope| {
            let hits = scope.spawn(|| {
                let _here = Pinned::to(0);
                let mut longest = Duration::ZERO;
                while !done.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    cache.get_put(addresses.entry(0), addresses.len());
                    longest = longest.max(start.elapsed());
                }
                longest
            });
            let _there = Pinned::to(1);
            thread::sleep(Duration::from_millis(1));
            cache.mark_all((1..=entries).map(|i| addresses.entry(i)));
            cache.reap();
            done.store(true, Ordering::Relaxed);
            hits.join()
        });
        longest.push(hit.unwrap_or(Duration::MAX).as_nanos() as f64);
        assert_eq!(cache.live(), 1, "not all registrations were destroyed");
    }
    let figure = Figure::new(name, median(longest), "ns");
    report.add(figure.threshold(Threshold::Value(1e6)));
    Ok(())
}

/// Returns the time that one clock reading takes.
fn timer() -> Duration {
    let asked = (0..1001).map(|_| Instant::now().elapsed().as_nanos() as f64);
    Duration::from_nanos(median(asked.collect()) as u64)
}
