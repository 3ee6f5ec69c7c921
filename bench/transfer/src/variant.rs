//! [`Variant`]: a strategy with its endpoints and buffers. In each round, every variant gives one
//! sample.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use regcache::monitor::Monitor;
use regcache::{Registrar, VaRange};
use regcache_test_support::NeverReports;

use crate::counted::{Counted, Counts, Reading};
use crate::endpoint::Provider;
use crate::error::Trying;
use crate::preparer::{Cached, Copy, PerTransfer, PreRegistered, Preparer};
use crate::timing::Tally;
use crate::worker::Worker;
use crate::{Error, Strategy, Workload};

/// A variant, which a cell compares with other variants.
pub trait Variant {
    /// Returns the name of the variant, which is the name of its strategy.
    fn name(&self) -> String;

    /// Returns N if the buffer is unmapped and mapped again before every Nth transfer. Returns 0 if
    /// the buffer is never unmapped.
    fn unmap_every(&self) -> u64;

    /// Does `transfers` transfers in each thread, and returns the time until all threads are done.
    /// The time excludes pauses, and the filling and checking of payloads.
    ///
    /// # Errors
    ///
    /// Returns the errors of the device or of the strategy.
    fn run(&mut self, transfers: u64) -> Result<Duration, Error>;

    /// Prepares and releases every buffer once, so that a cache has an entry for each buffer.
    ///
    /// # Errors
    ///
    /// Returns the errors of the strategy.
    fn visit(&mut self) -> Result<(), Error>;

    /// Ends the warm-up: discards the results so far, and starts to count.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no memory for the results.
    fn start(&mut self) -> Result<(), Error>;

    /// Returns the results since [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// Returns an error if the results of several threads cannot be added.
    fn tally(&self) -> Result<Tally, Error>;

    /// Returns the counts of calls and of pinned bytes since [`start`](Self::start).
    fn counts(&self) -> Reading;
}

/// A strategy of this crate, with a worker for each thread.
struct Native<P> {
    // The workers are the first field, so they are dropped before the strategy. So the device no
    // longer uses the buffers when the strategy deregisters them.
    workers: Vec<Worker>,
    strategy: P,
    name: &'static str,
    unmap_every: u64,
    counts: Arc<Counts>,
    start: Reading,
}

impl<P: Preparer> Variant for Native<P> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn unmap_every(&self) -> u64 {
        self.unmap_every
    }

    fn run(&mut self, transfers: u64) -> Result<Duration, Error> {
        let strategy = &self.strategy;
        if let [worker] = &mut self.workers[..] {
            return worker.run(strategy, transfers);
        }
        let barrier = Barrier::new(self.workers.len());
        let start = |worker: &mut Worker| {
            barrier.wait();
            worker.run(strategy, transfers)
        };
        let start = &start;
        thread::scope(|scope| {
            let workers = self.workers.iter_mut();
            let threads: Vec<_> = workers
                .map(|worker| scope.spawn(move || start(worker)))
                .collect();
            let mut longest = Duration::ZERO;
            for thread in threads {
                let ended = thread.join();
                let ended = ended.map_err(|_| Error::Cannot("a worker panicked".to_owned()))?;
                longest = longest.max(ended?);
            }
            Ok(longest)
        })
    }

    fn visit(&mut self) -> Result<(), Error> {
        let mut workers = self.workers.iter();
        workers.try_for_each(|worker| worker.visit(&self.strategy))
    }

    fn start(&mut self) -> Result<(), Error> {
        self.start = self.counts.read();
        self.workers.iter_mut().try_for_each(Worker::forget)
    }

    fn tally(&self) -> Result<Tally, Error> {
        let mut all = self.workers[0].tally().clone();
        for worker in &self.workers[1..] {
            all.add(worker.tally())?;
        }
        Ok(all)
    }

    fn counts(&self) -> Reading {
        let now = self.counts.read();
        Reading {
            registrations: now.registrations - self.start.registrations,
            deregistrations: now.deregistrations - self.start.deregistrations,
            monitor_calls: now.monitor_calls - self.start.monitor_calls,
            ..now
        }
    }
}

/// Makes the variant that does `workload` with `strategy` on `provider`.
///
/// # Errors
///
/// Returns the errors of the device or of the cache.
pub fn variant<F: Provider, M: Monitor>(
    provider: &F,
    monitor: impl FnOnce() -> Result<M, Error>,
    strategy: Strategy,
    workload: Workload,
) -> Result<Box<dyn Variant>, Error>
where
    F::Registrar: 'static,
{
    let workers = workers(provider, workload)?;
    let counts = Arc::new(Counts::default());
    let (registrar, access) = (provider.registrar(), provider.access(workload.op));
    let registered = Counted::new(registrar.clone(), &counts);
    let register = |range: VaRange| {
        let made = registered.register(range, access);
        made.trying("register a buffer")
    };
    let unfinished = Unfinished {
        workers,
        workload,
        strategy,
        counts: &counts,
    };
    Ok(match strategy {
        Strategy::PerTransfer => unfinished.with(PerTransfer::new(registrar, access, &counts)),
        Strategy::Regcache => {
            let cached = Cached::new(registrar, access, monitor()?, &counts)?;
            unfinished.with(cached)
        }
        Strategy::Naive => {
            let cached = Cached::new(registrar, access, NeverReports, &counts)?;
            unfinished.with(cached)
        }
        Strategy::PreRegistered => {
            let registrations = unfinished.ranges()?.into_iter().map(register);
            let once = PreRegistered::new(registrations.collect::<Result<_, _>>()?);
            unfinished.with(once)
        }
        Strategy::Odp => {
            let ranges = unfinished.ranges()?.into_iter();
            let registrations = ranges.map(|range| provider.register_on_demand(workload.op, range));
            let once = PreRegistered::new(registrations.collect::<Result<_, _>>()?);
            unfinished.with(once)
        }
        Strategy::Copy => {
            let places = workload.threads * workload.depth;
            let copy = Copy::new(workload.op, workload.size, places, register)?;
            unfinished.with(copy)
        }
    })
}

/// Makes a worker for each thread of the workload.
pub(crate) fn workers<F: Provider>(provider: &F, workload: Workload) -> Result<Vec<Worker>, Error> {
    let endpoints = (0..workload.threads).map(|number| {
        let endpoint = provider.endpoint(workload.size, workload.depth)?;
        Worker::new(workload, number, endpoint)
    });
    endpoints.collect()
}

/// The parts of a variant whose strategy has not been made yet.
pub(crate) struct Unfinished<'a> {
    pub(crate) workers: Vec<Worker>,
    pub(crate) workload: Workload,
    pub(crate) strategy: Strategy,
    pub(crate) counts: &'a Arc<Counts>,
}

impl Unfinished<'_> {
    /// Returns the ranges of the buffers of all threads, in the order of the buffers' numbers.
    pub(crate) fn ranges(&self) -> Result<Vec<VaRange>, Error> {
        let Workload { set, size, .. } = self.workload;
        let all = self.workers.iter().flat_map(|worker| {
            (0..set).map(move |index| VaRange::new(worker.buffers().at(index), size))
        });
        Ok(all.collect::<Result<_, _>>()?)
    }

    pub(crate) fn with<P: Preparer + 'static>(self, strategy: P) -> Box<dyn Variant> {
        Box::new(Native {
            workers: self.workers,
            strategy,
            name: self.strategy.name(),
            unmap_every: self.workload.unmap_every,
            counts: Arc::clone(self.counts),
            start: Reading::default(),
        })
    }
}
