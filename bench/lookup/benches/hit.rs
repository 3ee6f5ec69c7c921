//! Benchmarks hits in one thread: `cargo bench -p regcache-bench-lookup --bench hit`.
//!
//! Run this benchmark before and after a change to the cache. `cargo xtask bench` compares the
//! cache with UCX's registration cache.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use regcache_bench_harness::Random;
use regcache_bench_lookup::{Addresses, Regcache, Subject, loops};

fn same(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit/same");
    for entries in [1, 100_000] {
        let (cache, addresses) = filled(entries);
        let start = addresses.entry(entries / 2);
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| cache.get_put(start, addresses.len()));
        });
    }
}

fn random(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit/random");
    for entries in [100, 10_000, 100_000] {
        let (cache, addresses) = filled(entries);
        let mut order = Random::new(1);
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter(|| cache.get_put(addresses.entry(order.below(entries)), addresses.len()));
        });
    }
}

fn filled(entries: usize) -> (Regcache, Arc<Addresses>) {
    let addresses = Arc::new(Addresses::new(entries, 4096).expect("the address space has room"));
    let cache = Regcache::new(&addresses, 1 << 17).expect("the cache can be built");
    loops::fill(&cache, &addresses);
    (cache, addresses)
}

criterion_group!(benches, same, random);
criterion_main!(benches);
