//! Benchmarks operations that change the cache: misses, invalidations and evictions. Run this
//! benchmark with `cargo bench -p regcache-bench-lookup --bench change`.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use regcache_bench_lookup::{Addresses, Regcache, Subject, loops};

fn miss_and_invalidate(c: &mut Criterion) {
    let (cache, addresses) = filled(100_000, 1 << 17);
    let next = Cell::new(0);
    // Criterion chooses the number of operations of each call. The operations of all calls are
    // numbered together. So each call starts with the number after the last number of the previous
    // call.
    let take = |operations: u64| -> Range<usize> {
        let from = next.get();
        next.set(from + operations as usize);
        from..next.get()
    };
    c.bench_function("miss/100000", |b| {
        b.iter_custom(|n| loops::miss(&cache, &addresses, take(n)));
    });
    c.bench_function("invalidate/100000", |b| {
        b.iter_custom(|n| loops::invalidate(&cache, &addresses, take(n)));
    });
}

fn evict(c: &mut Criterion) {
    let (cache, addresses) = filled(10_000, 10_000);
    let mut from = 0;
    c.bench_function("evict", |b| {
        b.iter_custom(|n| {
            let start = Instant::now();
            loops::evict(&cache, &addresses, from, n as usize);
            from += n as usize;
            start.elapsed()
        });
    });
}

fn filled(entries: usize, room: usize) -> (Regcache, Arc<Addresses>) {
    let addresses = Arc::new(Addresses::new(entries, 4096).expect("the address space has room"));
    let cache = Regcache::new(&addresses, room).expect("the cache can be built");
    loops::fill(&cache, &addresses);
    assert_eq!(cache.live(), entries as u64);
    (cache, addresses)
}

criterion_group!(benches, miss_and_invalidate, evict);
criterion_main!(benches);
