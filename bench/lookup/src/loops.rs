//! Defines the measured loops. Every cache runs the same loops.

use std::ops::Range;
use std::time::{Duration, Instant};

use regcache_bench_harness::Random;

use crate::{Addresses, Subject};

/// The number of ranges in a batch. After each batch, a loop undoes the changes that it measured in
/// this batch.
const BATCH: usize = 1000;

/// The stride of the loops: the difference between the numbers of two ranges that are visited one
/// after the other. It is coprime to every number of ranges in use, so a loop visits all ranges.
/// The order of the visits is not ascending.
const STEP: usize = 7919;

/// Registers the ranges with these numbers, in this order.
#[inline(always)]
pub fn register(
    subject: &impl Subject,
    addresses: &Addresses,
    numbers: impl Iterator<Item = usize>,
) {
    for i in numbers {
        subject.get_put(addresses.entry(i), addresses.len());
    }
}

/// Looks up each range once, so that the cache registers all ranges.
pub fn fill(subject: &impl Subject, addresses: &Addresses) {
    for k in 0..addresses.count() {
        subject.get_put(addresses.entry(step(k, addresses)), addresses.len());
    }
}

/// Looks up one range `operations` times.
#[inline(always)]
pub fn same(subject: &impl Subject, start: usize, len: usize, operations: usize) {
    for _ in 0..operations {
        subject.get_put(start, len);
    }
}

/// Looks up random registered ranges `operations` times.
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

/// Looks up random pages of registered ranges `operations` times.
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

/// Does the lookups whose numbers are in `operations`, and returns the time of all these lookups.
/// Each lookup is a miss.
///
/// The ranges are invalidated afterwards, outside the measured time.
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
            "not all lookups were misses"
        );
        starts().for_each(|start| subject.invalidate(start, addresses.len()));
    });
    time
}

/// Does the invalidations whose numbers are in `operations`, and returns the time of all of them.
/// Each invalidation makes the cache destroy a registration.
///
/// The ranges are registered again afterwards, outside the measured time.
pub fn invalidate(
    subject: &impl Subject,
    addresses: &Addresses,
    operations: Range<usize>,
) -> Duration {
    let mut time = Duration::ZERO;
    for_batches(operations, addresses, |numbers| {
        // The first range is not invalidated. [`Subject::invalidate`] looks this range up to make
        // regcache drain the report.
        let starts = || {
            let numbers = numbers.clone().map(|k| step(k, addresses));
            numbers.filter(|&i| i != 0).map(|i| addresses.entry(i))
        };
        let before = subject.counts().1;
        time += timed(|| starts().for_each(|start| subject.invalidate(start, addresses.len())));
        assert_eq!(
            subject.counts().1 - before,
            starts().count() as u64,
            "not all registrations were destroyed"
        );
        starts().for_each(|start| subject.get_put(start, addresses.len()));
    });
    time
}

/// Does `operations` lookups in a cache that is at its limit of entries, so that each lookup is a
/// miss. The lookups are numbered from `from` on.
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

/// Runs the operations in batches. Within a batch, no two operations use the same range.
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

/// Returns the number of the range at position `k` of a fixed order. The order visits each range
/// once, and then repeats.
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

    /// Runs the loops over a cache. The loops assert that their lookups are misses, and that their
    /// invalidations destroy registrations.
    fn run_all(subject: &impl Subject, addresses: &Addresses) {
        fill(subject, addresses);
        assert_eq!(subject.counts(), (ENTRIES as u64, 0));
        let mut order = Random::new(1);
        same(subject, addresses.entry(3), addresses.len(), 10);
        random(subject, addresses, &mut order, 5000);
        within(subject, addresses, &mut order, 5000);
        assert_eq!(
            subject.counts(),
            (ENTRIES as u64, 0),
            "not all lookups were hits"
        );
        // 2500 operations take three batches, and the last batch is not full.
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
        assert_eq!(
            subject.counts().0 - before,
            5000,
            "not all lookups were misses"
        );
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
