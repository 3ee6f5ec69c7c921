//! The measured loops, which are the same for each cache.

use std::ops::Range;
use std::time::{Duration, Instant};

use regcache_bench_harness::Random;

use crate::{Addresses, Subject};

/// How many ranges change at once in a loop that undoes what it measures.
const BATCH: usize = 1000;

/// A step that is co-prime to every number of entries here, so that it visits all in no simple
/// order.
const STEP: usize = 7919;

/// Registers all ranges.
pub fn fill(subject: &impl Subject, addresses: &Addresses) {
    for k in 0..addresses.count() {
        subject.get_put(addresses.entry(step(k, addresses)), addresses.len());
    }
}

/// Looks one range up `operations` times.
#[inline(always)]
pub fn same(subject: &impl Subject, start: usize, len: usize, operations: usize) {
    for _ in 0..operations {
        subject.get_put(start, len);
    }
}

/// Looks random registered ranges up `operations` times.
#[inline(always)]
pub fn random(
    subject: &impl Subject,
    addresses: &Addresses,
    order: &mut Random,
    operations: usize,
) {
    for _ in 0..operations {
        subject.get_put(
            addresses.entry(order.below(addresses.count())),
            addresses.len(),
        );
    }
}

/// Looks random pages of registered ranges up `operations` times.
pub fn within(
    subject: &impl Subject,
    addresses: &Addresses,
    order: &mut Random,
    operations: usize,
) {
    let pages = addresses.len() / 4096;
    for _ in 0..operations {
        let page = order.below(addresses.count() * pages);
        let start = addresses.entry(page / pages) + page % pages * 4096;
        subject.get_put(start, 4096);
    }
}

/// Does the lookups of these numbers, each a miss, and returns their time. Invalidating the ranges
/// again is not timed.
pub fn miss(subject: &impl Subject, addresses: &Addresses, operations: Range<usize>) -> Duration {
    let mut time = Duration::ZERO;
    for_batches(operations, addresses, |numbers| {
        let starts = || {
            numbers
                .clone()
                .map(|k| addresses.between(step(k, addresses)))
        };
        let before = subject.counts().0;
        time += timed(|| starts().for_each(|start| subject.get_put(start, addresses.len())));
        assert_eq!(
            subject.counts().0 - before,
            numbers.len() as u64,
            "not all were misses"
        );
        starts().for_each(|start| subject.invalidate(start, addresses.len()));
    });
    time
}

/// Does the invalidations of these numbers, each of which makes the cache destroy a registration,
/// and returns their time. Registering the ranges again is not timed.
pub fn invalidate(
    subject: &impl Subject,
    addresses: &Addresses,
    operations: Range<usize>,
) -> Duration {
    let mut time = Duration::ZERO;
    for_batches(operations, addresses, |numbers| {
        // The first range is left out: the lookup that drains is one of it.
        let starts = || {
            let numbers = numbers.clone().map(|k| step(k, addresses));
            numbers.filter(|&i| i != 0).map(|i| addresses.entry(i))
        };
        let before = subject.counts().1;
        time += timed(|| starts().for_each(|start| subject.invalidate(start, addresses.len())));
        assert_eq!(
            subject.counts().1 - before,
            starts().count() as u64,
            "not all were destroyed"
        );
        starts().for_each(|start| subject.get_put(start, addresses.len()));
    });
    time
}

/// Does `operations` lookups from number `from` on, each a miss, in a cache that is at its limit.
pub fn evict(subject: &impl Subject, addresses: &Addresses, from: usize, operations: usize) {
    for k in from..from + operations {
        let i = k.wrapping_mul(STEP) % (2 * addresses.count());
        let start = match i % 2 {
            0 => addresses.entry(i / 2),
            _ => addresses.between(i / 2),
        };
        subject.get_put(start, addresses.len());
    }
}

/// Divides the operations into batches, none of which has a range twice.
fn for_batches(
    mut operations: Range<usize>,
    addresses: &Addresses,
    mut run: impl FnMut(Range<usize>),
) {
    let batch = BATCH.min(addresses.count());
    while !operations.is_empty() {
        let end = operations.end.min(operations.start + batch);
        run(operations.start..end);
        operations.start = end;
    }
}

/// Number `k` of an order that visits each range once before any range again.
fn step(k: usize, addresses: &Addresses) -> usize {
    k.wrapping_mul(STEP) % addresses.count()
}

fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Regcache, Unwatched, peer};

    const ENTRIES: usize = 1000;

    /// The loops check themselves that they measure misses or invalidations.
    fn run_all(subject: &impl Subject, addresses: &Addresses) {
        fill(subject, addresses);
        assert_eq!(subject.counts(), (ENTRIES as u64, 0));
        let mut order = Random::new(1);
        same(subject, addresses.entry(3), addresses.len(), 10);
        random(subject, addresses, &mut order, 5000);
        within(subject, addresses, &mut order, 5000);
        assert_eq!(subject.counts(), (ENTRIES as u64, 0), "these are hits");
        // More than a batch, and no multiple of it.
        miss(subject, addresses, 0..2500);
        invalidate(subject, addresses, 0..2500);
        assert_eq!(subject.live(), ENTRIES as u64);
    }

    #[test]
    fn each_cache_does_what_the_loops_measure() {
        let addresses = Arc::new(Addresses::new(ENTRIES, 16 * 4096).unwrap());
        run_all(&Regcache::new(&addresses, 2 * ENTRIES).unwrap(), &addresses);
        run_all(&Unwatched::new(2 * ENTRIES).unwrap(), &addresses);
        if let Some(peer) = peer(2 * ENTRIES).unwrap() {
            run_all(&peer, &addresses);
        }
    }

    fn evict_all(subject: &impl Subject, addresses: &Addresses) {
        fill(subject, addresses);
        evict(subject, addresses, 0, 2 * ENTRIES);
        let before = subject.counts().0;
        evict(subject, addresses, 2 * ENTRIES, 5000);
        assert_eq!(subject.counts().0 - before, 5000, "all were misses");
        assert_eq!(subject.live(), ENTRIES as u64);
    }

    #[test]
    fn each_cache_evicts_at_its_limit() {
        let addresses = Arc::new(Addresses::new(ENTRIES, 4096).unwrap());
        evict_all(&Regcache::new(&addresses, ENTRIES).unwrap(), &addresses);
        if let Some(peer) = peer(ENTRIES).unwrap() {
            evict_all(&peer, &addresses);
        }
    }
}
