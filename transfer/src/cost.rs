//! What registering costs on a device, size by size: [`measure`]. No bytes are moved.

use std::hint::black_box;
use std::time::{Duration, Instant};

use regcache::monitor::Monitor;
use regcache::{Cache, Registrar, VaRange};

use crate::buffers::Buffers;
use crate::error::Trying;
use crate::results::Cost;
use crate::turns::median;
use crate::wire::Fabric;
use crate::{Error, Op};

/// Rounds at least, at each size.
const ROUNDS: usize = 15;

/// Lookups behind one reading of the clock: a hit takes less than that.
const HITS: u32 = 100;

/// Registers, deregisters, looks up and copies buffers of each size, for `each` long at least; medians.
///
/// # Errors
///
/// The device's.
pub fn measure<F: Fabric, M: Monitor>(
    fabric: &F,
    monitor: M,
    sizes: &[usize],
    each: Duration,
) -> Result<Vec<Cost>, Error> {
    let registrar = fabric.registrar();
    let access = fabric.access(Op::Read);
    let cache = Cache::builder(registrar.clone())
        .monitor(monitor)
        .max_bytes(usize::MAX)
        .build()
        .trying("build the cache")?;
    let mut costs = Vec::new();
    for &size in sizes {
        let buffers = Buffers::new(2, size)?;
        let (source, target) = (buffers.at(0), buffers.at(1));
        let range = VaRange::new(source, size)?;
        let [mut register, mut deregister, mut hit, mut copy] = [const { Vec::new() }; 4];
        let began = Instant::now();
        while register.len() < ROUNDS || began.elapsed() < each {
            let started = Instant::now();
            let registration = registrar.register(range, access).trying("register")?;
            let registered = Instant::now();
            registrar.deregister(registration).trying("deregister")?;
            register.push((registered - started).as_nanos() as f64);
            deregister.push(registered.elapsed().as_nanos() as f64);

            drop(cache.get(source, size, access)?);
            let started = Instant::now();
            for _ in 0..HITS {
                drop(black_box(cache.get(black_box(source), size, access)?));
            }
            hit.push(started.elapsed().as_nanos() as f64 / f64::from(HITS));

            let started = Instant::now();
            // SAFETY: two buffers of that size, to which there are no references.
            unsafe { std::ptr::copy_nonoverlapping(source, target, size) };
            copy.push(started.elapsed().as_nanos() as f64);
        }
        costs.push(Cost {
            size,
            register_ns: median(register).0,
            deregister_ns: median(deregister).0,
            hit_ns: median(hit).0,
            copy_ns: median(copy).0,
        });
    }
    Ok(costs)
}
