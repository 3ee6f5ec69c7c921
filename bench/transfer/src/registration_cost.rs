//! [`measure`]: measures the cost of registering on a device, for each size, without transfers.

use std::hint::black_box;
use std::time::{Duration, Instant};

use regcache::monitor::Monitor;
use regcache::{Cache, Registrar, VaRange};
use regcache_test_support::NeverReports;

use crate::buffers::Buffers;
use crate::endpoint::Provider;
use crate::error::Trying;
use crate::results::Cost;
use crate::{Error, Op};
use regcache_bench_harness::median;

/// The smallest number of rounds at each size.
const ROUNDS: usize = 15;

/// The number of lookups between two clock readings. A clock reading takes longer than a hit, so
/// many hits are timed together.
const HITS: u32 = 100;

/// Registers, deregisters, looks up and copies a buffer of each size. Spends at least the time
/// `each` on a size. Returns the median time of each of these actions, for each size.
///
/// # Errors
///
/// Returns the device's errors.
pub fn measure<F: Provider, M: Monitor>(
    provider: &F,
    monitor: M,
    sizes: &[usize],
    each: Duration,
) -> Result<Vec<Cost>, Error> {
    let registrar = provider.registrar();
    let access = provider.access(Op::Read);
    let watched = Cached {
        cache: cache(registrar.clone(), monitor)?,
        access,
    };
    let word = Cached {
        cache: cache(registrar.clone(), NeverReports)?,
        access,
    };
    let mut costs = Vec::new();
    for &size in sizes {
        let buffers = Buffers::new(2, size)?;
        let (source, target) = (buffers.at(0), buffers.at(1));
        let range = VaRange::new(source, size)?;
        let [
            mut register,
            mut deregister,
            mut hit,
            mut word_hit,
            mut copy,
        ] = [const { Vec::new() }; 5];
        let began = Instant::now();
        while register.len() < ROUNDS || began.elapsed() < each {
            let started = Instant::now();
            let registration = registrar.register(range, access).trying("register")?;
            let registered = Instant::now();
            registrar.deregister(registration).trying("deregister")?;
            register.push((registered - started).as_nanos() as f64);
            deregister.push(registered.elapsed().as_nanos() as f64);

            hit.push(watched.hit_ns(source, size)?);
            word_hit.push(word.hit_ns(source, size)?);

            let started = Instant::now();
            // SAFETY: both buffers are mapped and have this size. No references to the buffers
            // exist.
            unsafe { std::ptr::copy_nonoverlapping(source, target, size) };
            copy.push(started.elapsed().as_nanos() as f64);
        }
        // The monitor of the cache `word` never reports an unmap. So the cache is flushed before
        // the buffers are unmapped.
        word.cache.flush()?;
        costs.push(Cost {
            size,
            register_ns: median(register),
            deregister_ns: median(deregister),
            hit_ns: median(hit),
            word_hit_ns: median(word_hit),
            copy_ns: median(copy),
        });
    }
    Ok(costs)
}

/// A cache, and the access that its lookups request.
struct Cached<R: Registrar, M: Monitor> {
    cache: Cache<R, M>,
    access: R::Access,
}

impl<R: Registrar, M: Monitor> Cached<R, M> {
    /// Returns the nanoseconds of a hit, including the drop of its guard.
    fn hit_ns(&self, at: *const u8, len: usize) -> Result<f64, Error> {
        drop(self.cache.get(at, len, self.access)?);
        let started = Instant::now();
        for _ in 0..HITS {
            drop(black_box(self.cache.get(
                black_box(at),
                len,
                self.access,
            )?));
        }
        Ok(started.elapsed().as_nanos() as f64 / f64::from(HITS))
    }
}

fn cache<R: Registrar, M: Monitor>(registrar: R, monitor: M) -> Result<Cache<R, M>, Error> {
    let cache = Cache::builder(registrar).monitor(monitor);
    cache
        .max_bytes(usize::MAX)
        .build()
        .trying("build the cache")
}
