//! Counts the registrations that eight threads make if they miss the same range at once.

use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use regcache::{Cache, Registrar, VaRange};
use regcache_bench_harness::median;
use regcache_bench_lookup::figure::{Figure, Threshold};
use regcache_bench_lookup::{Addresses, DummyMonitor, Subject, peer};

use crate::Result;
use crate::report::Report;

const THREADS: usize = 8;

/// The range that the threads look up: 1 GiB. Nothing accesses the memory.
const BYTES: usize = 1 << 30;

/// The time that a registration takes: long enough for all threads to begin their lookups.
const REGISTERING: Duration = Duration::from_millis(20);

/// A registrar without a device, whose registrations take some time.
#[derive(Default)]
struct SlowRegistrar {
    made: AtomicU64,
}

// SAFETY: there is no device, so nothing accesses memory through a registration.
unsafe impl Registrar for SlowRegistrar {
    type Access = ();
    type Registration = ();

    fn register(&self, _: VaRange, (): ()) -> io::Result<()> {
        self.made.fetch_add(1, Ordering::Relaxed);
        thread::sleep(REGISTERING);
        Ok(())
    }

    fn deregister(&self, (): ()) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let name = format!("herd/{THREADS}/registrations");
    if !report.wants(&name) {
        return Ok(());
    }
    let addresses = Addresses::new(1, 4096)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let builder = Cache::builder(SlowRegistrar::default());
        let cache = builder
            .monitor(DummyMonitor::new()?)
            .max_bytes(2 * BYTES)
            .build()?;
        let start = addresses.entry(0);
        at_once(|| {
            let start = std::ptr::without_provenance(start);
            drop(cache.get(start, BYTES, ()).expect("a registration"));
        });
        ours.push(cache.registrar().made.load(Ordering::Relaxed) as f64);
        // UCX holds its lock while it registers.
        if let Some(peer) = peer(16)? {
            at_once(|| peer.get_put(addresses.entry(0), addresses.len()));
            theirs.push(peer.counts().0 as f64);
        }
    }
    let mut figure = Figure::new(name, median(ours), "registrations");
    if !theirs.is_empty() {
        let ucx = median(theirs);
        figure.ratio_ucx = Some(figure.value / ucx);
        figure.ucx = Some(ucx);
    }
    report.add(figure.threshold(Threshold::Value(1.0)));
    Ok(())
}

/// Calls `lookup` in all threads at once.
fn at_once(lookup: impl Fn() + Sync) {
    let barrier = Barrier::new(THREADS);
    thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                barrier.wait();
                lookup();
            });
        }
    });
}
