//! What changes the cache: misses, evictions, invalidations.

use std::ops::Range;
use std::time::{Duration, Instant};

use regcache_bench::block::{Block, Pinned, Turns, median, timed};
use regcache_bench::figure::{Figure, Limit};
use regcache_bench::{Addresses, Regcache, Rival, Subject, Unwatched, loops, rival};

use crate::Result;
use crate::hit::{Pair, dynamic, room};
use crate::report::{Report, contest};

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let _here = Pinned::to(0);
    miss(report, "miss", 10_000, Limit::OfUcx(1.0))?;
    miss(report, "miss/100000", 100_000, Limit::None)?;
    fill(report, 10_000)?;
    fill(report, 100_000)?;
    evict(report)?;
    invalidate(report)?;
    drain(report)
}

/// On a monitor that does nothing: UCX's has none.
fn miss(report: &mut Report, name: &str, entries: usize, limit: Limit) -> Result<()> {
    report.contests(name, limit, entries, |effort| {
        let addresses = Addresses::new(entries, 4096)?;
        let (regcache, rival) = (Unwatched::new(room(entries))?, rival(room(entries))?);
        loops::fill(&regcache, &addresses);
        if let Some(rival) = &rival {
            loops::fill(rival, &addresses);
        }
        let turns = contest(
            effort,
            &mut of(loops::miss, &regcache, &addresses),
            dynamic(
                &mut rival
                    .as_ref()
                    .map(|rival| of(loops::miss, rival, &addresses)),
            ),
            None,
        );
        balance(&regcache, rival.as_ref(), entries);
        Ok(turns)
    })
}

/// Misses of a cache that is new: memory has to be had for each entry, where in [`miss`] some was used before.
fn fill(report: &mut Report, entries: usize) -> Result<()> {
    let name = format!("fill/{entries}");
    if !report.wants(&name) {
        return Ok(());
    }
    let addresses = Addresses::new(entries, 4096)?;
    let wanted = (report.effort.turns * 500 / entries).clamp(7, 101);
    let mut turns = Turns::default();
    for turn in 0..5 * wanted {
        let regcache = Unwatched::new(room(entries))?;
        let rival = rival(room(entries))?;
        let ours = || timed(entries, || loops::fill(&regcache, &addresses));
        let theirs = || {
            let rival = rival.as_ref();
            rival.map(|rival| timed(entries, || loops::fill(rival, &addresses)))
        };
        let (ours, theirs) = if turn % 2 == 0 {
            let ours = ours();
            (ours, theirs())
        } else {
            let theirs = theirs();
            (ours(), theirs)
        };
        let blocks: Vec<_> = std::iter::once(ours).chain(theirs).collect();
        // On a machine that is busy all the time a disturbed turn is better than none.
        let counts = turn >= 4 * wanted || blocks.iter().all(|block| block.undisturbed);
        turns.push(blocks.iter().map(|block| block.ns).collect(), counts);
        if turns.len() == wanted {
            break;
        }
    }
    report.judge(&name, Limit::None, &turns);
    Ok(())
}

fn invalidate(report: &mut Report) -> Result<()> {
    let entries = 100_000;
    let name = format!("invalidate/{entries}");
    if !report.wants(&name) {
        return Ok(());
    }
    let pair = Pair::new(entries, 4096, room(entries))?;
    report.contest(
        &name,
        Limit::Value(1000.0),
        &mut of(loops::invalidate, &pair.regcache, &pair.addresses),
        dynamic(
            &mut pair
                .rival
                .as_ref()
                .map(|rival| of(loops::invalidate, rival, &pair.addresses)),
        ),
        None,
    );
    balance(&pair.regcache, pair.rival.as_ref(), entries);
    Ok(())
}

fn evict(report: &mut Report) -> Result<()> {
    if !report.wants("evict") {
        return Ok(());
    }
    let entries = 10_000;
    let pair = Pair::new(entries, 4096, entries)?;
    report.contest(
        "evict",
        Limit::None,
        &mut evictions(&pair.regcache, &pair.addresses),
        dynamic(
            &mut pair
                .rival
                .as_ref()
                .map(|rival| evictions(rival, &pair.addresses)),
        ),
        None,
    );
    balance(&pair.regcache, pair.rival.as_ref(), entries);
    Ok(())
}

fn evictions(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Block {
    // One round, in which some of what `fill` has left may be found.
    let mut from = 2 * addresses.count();
    loops::evict(subject, addresses, 0, from);
    move |operations| {
        let before = subject.counts().0;
        let block = timed(operations, || {
            loops::evict(subject, addresses, from, operations);
        });
        from += operations;
        assert_eq!(
            subject.counts().0 - before,
            operations as u64,
            "not all were misses"
        );
        block
    }
}

/// The lookup after `k` ranges have changed, by regcache only: UCX has no such moment.
fn drain(report: &mut Report) -> Result<()> {
    if !report.wants("drain") {
        return Ok(());
    }
    let entries = 100_000;
    let pair = Pair::new(entries, 4096, room(entries))?;
    let timer = timer();
    for k in [1, 10, 100, 1000] {
        let rounds = report.effort.turns * 20 / k;
        let times = (0..rounds.max(50)).map(|round| {
            one_drain(&pair.regcache, &pair.addresses, round * k, k).saturating_sub(timer)
        });
        let ns = median(times.map(|time| time.as_nanos() as f64).collect());
        report.add(Figure::new(format!("drain/{k}"), ns, "ns"));
    }
    balance(&pair.regcache, pair.rival.as_ref(), entries);
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
        "not all were destroyed"
    );
    starts().for_each(|start| cache.get_put(start, addresses.len()));
    time
}

/// What asking for the time takes.
fn timer() -> Duration {
    let asked = (0..1001).map(|_| Instant::now().elapsed().as_nanos() as f64);
    Duration::from_nanos(median(asked.collect()) as u64)
}

/// A loop that times itself.
fn of<S: Subject>(
    run: impl Fn(&S, &Addresses, Range<usize>) -> Duration,
    subject: &S,
    addresses: &Addresses,
) -> impl FnMut(usize) -> Block {
    let mut from = 0;
    move |operations| {
        let mut time = Duration::ZERO;
        let Block { undisturbed, .. } = timed(operations, || {
            time = run(subject, addresses, from..from + operations);
        });
        from += operations;
        Block {
            ns: time.as_nanos() as f64 / operations as f64,
            undisturbed,
        }
    }
}

/// Nothing may have been leaked, or destroyed twice.
fn balance(regcache: &impl Subject, rival: Option<&Rival>, entries: usize) {
    assert_eq!(regcache.live(), entries as u64);
    if let Some(rival) = rival {
        assert_eq!(rival.live(), entries as u64);
    }
}
