//! Compares the hit rate of regcache with the hit rates of other eviction policies. All caches have
//! the same limit of entries.
//!
//! regcache itself and models of the other policies process the same traces of lookups.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::error::Error;
use std::sync::Arc;

use regcache_bench_harness::Random;
use regcache_bench_lookup::{Addresses, Regcache, Subject};

/// The limit of entries in each cache.
const LIMIT: usize = 1000;

const LOOKUPS: usize = 400_000;

/// A cache with an eviction policy. Each call of `lookup` looks one key up, and returns whether the
/// lookup was a hit.
trait Policy {
    fn lookup(&mut self, key: usize) -> bool;
}

/// A cache that evicts the oldest entry.
#[derive(Default)]
struct Fifo {
    queue: VecDeque<usize>,
    cached: HashSet<usize>,
}

impl Policy for Fifo {
    fn lookup(&mut self, key: usize) -> bool {
        if self.cached.contains(&key) {
            return true;
        }
        if self.queue.len() == LIMIT
            && let Some(out) = self.queue.pop_front()
        {
            self.cached.remove(&out);
        }
        self.queue.push_back(key);
        self.cached.insert(key);
        false
    }
}

/// A cache that always evicts the least recently used entry.
#[derive(Default)]
struct Lru {
    now: u64,
    used: HashMap<usize, u64>,
    order: BTreeMap<u64, usize>,
}

impl Policy for Lru {
    fn lookup(&mut self, key: usize) -> bool {
        self.now += 1;
        let before = self.used.insert(key, self.now);
        if let Some(before) = before {
            self.order.remove(&before);
        } else if self.used.len() > LIMIT
            && let Some((_, out)) = self.order.pop_first()
        {
            self.used.remove(&out);
        }
        self.order.insert(self.now, key);
        before.is_some()
    }
}

/// A regcache cache with its real eviction policy.
struct Ours {
    cache: Regcache,
    addresses: Arc<Addresses>,
}

impl Policy for Ours {
    fn lookup(&mut self, key: usize) -> bool {
        let before = self.cache.counts().0;
        self.cache
            .get_put(self.addresses.entry(key), self.addresses.len());
        self.cache.counts().0 == before
    }
}

/// A trace of lookups. Each key is below `of`.
struct Trace {
    name: &'static str,
    of: usize,
    keys: Vec<usize>,
}

/// A function that returns the key of the lookup with a given number.
type Next = Box<dyn FnMut(usize, &mut Random) -> usize>;

/// Returns a function that draws a key. The probability of key `k` is proportional to `1 / (k +
/// 1)^skew`.
fn zipf(of: usize, skew: f64, random: &mut Random) -> impl FnMut() -> usize {
    let mut sums = Vec::with_capacity(of);
    let mut sum = 0.0;
    for k in 0..of {
        sum += 1.0 / ((k + 1) as f64).powf(skew);
        sums.push(sum);
    }
    move || {
        let at = random.below(1 << 30) as f64 / f64::from(1 << 30) * sum;
        sums.partition_point(|&s| s < at).min(of - 1)
    }
}

fn traces() -> Vec<Trace> {
    let mut random = Random::new(7);
    let mut trace = |name, of, mut next: Next| Trace {
        name,
        of,
        keys: (0..LOOKUPS).map(|i| next(i, &mut random)).collect(),
    };
    let of_zipf = |skew| {
        let mut random = Random::new(11);
        let mut next = zipf(10_000, skew, &mut random);
        let keys: Vec<_> = (0..LOOKUPS).map(|_| next()).collect();
        Box::new(move |i: usize, _: &mut Random| keys[i])
    };
    vec![
        trace("Zipf, skew 0.8", 10_000, of_zipf(0.8)),
        trace("Zipf, skew 1.1", 10_000, of_zipf(1.1)),
        trace(
            "a working set of 900, and one lookup in 10 of any of 50 000 ranges",
            50_000,
            Box::new(|_, random| match random.below(10) {
                0 => random.below(50_000),
                _ => random.below(900),
            }),
        ),
        trace(
            "a working set of 900, of which one range changes every 100 lookups",
            10_000,
            Box::new(|i, random| (i / 100 + random.below(900)) % 10_000),
        ),
        trace(
            "a working set of 500, and a stream of ranges that are used once",
            LOOKUPS,
            Box::new(|i, random| match i % 2 {
                0 => random.below(500),
                _ => i,
            }),
        ),
        trace(
            "a loop over 1 100 buffers",
            1_100,
            Box::new(|i, _| i % 1_100),
        ),
    ]
}

fn hits(policy: &mut dyn Policy, trace: &Trace) -> String {
    let hits = trace.keys.iter().filter(|&&key| policy.lookup(key)).count();
    format!("{:.1} %", hits as f64 / LOOKUPS as f64 * 100.0)
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("| lookups that were hits, {LIMIT} entries | FIFO | LRU | regcache |");
    println!("|---|---|---|---|");
    for trace in traces() {
        let addresses = Arc::new(Addresses::new(trace.of, 4096)?);
        let mut ours = Ours {
            cache: Regcache::new(&addresses, LIMIT)?,
            addresses,
        };
        println!(
            "| {} | {} | {} | {} |",
            trace.name,
            hits(&mut Fifo::default(), &trace),
            hits(&mut Lru::default(), &trace),
            hits(&mut ours, &trace)
        );
    }
    Ok(())
}
