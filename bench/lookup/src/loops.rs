//! The loops that are measured, the same for each cache.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::{Addresses, Random, Subject};

/// How many ranges change at once where what is measured has to be undone again.
const BATCH: usize = 1000;

/// Co-prime to every number of entries here: steps by it visit all of them in no simple order.
const STEP: usize = 7919;

/// Registers all.
pub fn fill(subject: &impl Subject, addresses: &Addresses) {
    for k in 0..addresses.count() {
        subject.get_put(addresses.entry(step(k, addresses)), addresses.len());
    }
}

/// `operations` lookups of one range.
#[inline(always)]
pub fn same(subject: &impl Subject, start: usize, len: usize, operations: usize) {
    for _ in 0..operations {
        subject.get_put(start, len);
    }
}

/// `operations` lookups of any of the ranges that were registered.
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

/// `operations` lookups of one of the pages in any of the ranges that were registered.
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

/// Lookups, number this to that, of ranges that are not registered, and are registered; then, not
/// counted, they are invalidated again. Returns the time of the lookups.
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

/// Each time, number this to that, one of the ranges changes, and the cache gives its registration
/// up; then, not counted, they are registered again. Returns the time of the former.
pub fn invalidate(
    subject: &impl Subject,
    addresses: &Addresses,
    operations: Range<usize>,
) -> Duration {
    let mut time = Duration::ZERO;
    for_batches(operations, addresses, |numbers| {
        // All but the first, which is who notices.
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

/// `operations` lookups of ranges that are not registered, in a cache whose limit is reached. Goes
/// on from lookup number `from`.
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

/// Spreads the operations over batches, in none of which a range comes twice.
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

/// Number `k` of an order in which each range comes once before one comes again.
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
    use crate::{Regcache, Unwatched, rival};

    const ENTRIES: usize = 1000;

    /// The loops themselves check that what they measure is what they say.
    fn run_all(subject: &impl Subject, addresses: &Addresses) {
        fill(subject, addresses);
        assert_eq!(subject.counts(), (ENTRIES as u64, 0));
        let mut order = Random::new(1);
        same(subject, addresses.entry(3), addresses.len(), 10);
        random(subject, addresses, &mut order, 5000);
        within(subject, addresses, &mut order, 5000);
        assert_eq!(subject.counts(), (ENTRIES as u64, 0), "these are hits");
        // More than a batch, and not a multiple of one.
        miss(subject, addresses, 0..2500);
        invalidate(subject, addresses, 0..2500);
        assert_eq!(subject.live(), ENTRIES as u64);
    }

    #[test]
    fn each_cache_does_what_the_loops_measure() {
        let addresses = Arc::new(Addresses::new(ENTRIES, 16 * 4096).unwrap());
        run_all(&Regcache::new(&addresses, 2 * ENTRIES).unwrap(), &addresses);
        run_all(&Unwatched::new(2 * ENTRIES).unwrap(), &addresses);
        if let Some(rival) = rival(2 * ENTRIES).unwrap() {
            run_all(&rival, &addresses);
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
        if let Some(rival) = rival(ENTRIES).unwrap() {
            evict_all(&rival, &addresses);
        }
    }
}
