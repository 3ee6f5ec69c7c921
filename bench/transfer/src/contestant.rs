//! [`Contestant`]: a policy with all that it needs to do the work, which runs when it is its turn.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use regcache::monitor::Monitor;
use regcache::{Registrar, VaRange};
use regcache_conformance::NeverReports;

use crate::counted::{Counted, Counts, Reading};
use crate::error::Trying;
use crate::policy::{Cached, Copy, EachTime, Once, Preparer};
use crate::sample::Tally;
use crate::wire::Fabric;
use crate::worker::Worker;
use crate::{Error, Policy, Workload};

/// Does the work when it is its turn.
pub trait Contestant {
    /// What it is called: the policy's name.
    fn name(&self) -> String;

    /// Before every so manieth of its transfers the buffer is unmapped.
    fn unmap_every(&self) -> u64;

    /// So many transfers, of each thread. Returns how long they took.
    ///
    /// # Errors
    ///
    /// The device's, or the policy's.
    fn run(&mut self, transfers: u64) -> Result<Duration, Error>;

    /// Prepares and releases every buffer once: then a cache knows them all.
    ///
    /// # Errors
    ///
    /// The policy's.
    fn visit(&mut self) -> Result<(), Error>;

    /// Starts counting: what came before was to warm up.
    ///
    /// # Errors
    ///
    /// None.
    fn start(&mut self) -> Result<(), Error>;

    /// What came of it since.
    ///
    /// # Errors
    ///
    /// None.
    fn tally(&self) -> Result<Tally, Error>;

    /// What was counted since.
    fn counts(&self) -> Reading;
}

/// A policy, and a worker for each thread.
struct Native<P> {
    // First: the device lets go of the buffers before their registrations end.
    workers: Vec<Worker>,
    policy: P,
    name: &'static str,
    unmap_every: u64,
    counts: Arc<Counts>,
    start: Reading,
}

impl<P: Preparer> Contestant for Native<P> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn unmap_every(&self) -> u64 {
        self.unmap_every
    }

    fn run(&mut self, transfers: u64) -> Result<Duration, Error> {
        let policy = &self.policy;
        if let [worker] = &mut self.workers[..] {
            return worker.run(policy, transfers);
        }
        let barrier = Barrier::new(self.workers.len());
        let start = |worker: &mut Worker| {
            barrier.wait();
            worker.run(policy, transfers)
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
        workers.try_for_each(|worker| worker.visit(&self.policy))
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

/// Makes the contestant that does `workload` by `policy` on `fabric`.
///
/// # Errors
///
/// The device's, or the cache's.
pub fn contestant<F: Fabric, M: Monitor>(
    fabric: &F,
    monitor: impl FnOnce() -> Result<M, Error>,
    policy: Policy,
    workload: Workload,
) -> Result<Box<dyn Contestant>, Error>
where
    F::Registrar: 'static,
{
    let workers = workers(fabric, workload)?;
    let counts = Arc::new(Counts::default());
    let (registrar, access) = (fabric.registrar(), fabric.access(workload.op));
    let registered = Counted::new(registrar.clone(), &counts);
    let register = |range: VaRange| {
        let made = registered.register(range, access);
        made.trying("register a buffer")
    };
    let entrant = Entrant {
        workers,
        workload,
        policy,
        counts: &counts,
    };
    Ok(match policy {
        Policy::RegisterEachTime => entrant.with(EachTime::new(registrar, access, &counts)),
        Policy::Regcache => {
            let cached = Cached::new(registrar, access, monitor()?, &counts)?;
            entrant.with(cached)
        }
        Policy::Naive => {
            let cached = Cached::new(registrar, access, NeverReports, &counts)?;
            entrant.with(cached)
        }
        Policy::RegisteredOnce => {
            let registrations = entrant.ranges()?.into_iter().map(register);
            let once = Once::new(registrations.collect::<Result<_, _>>()?);
            entrant.with(once)
        }
        Policy::Odp => {
            let ranges = entrant.ranges()?.into_iter();
            let registrations = ranges.map(|range| fabric.register_on_demand(workload.op, range));
            let once = Once::new(registrations.collect::<Result<_, _>>()?);
            entrant.with(once)
        }
        Policy::Copy => {
            let places = workload.threads * workload.depth;
            let copy = Copy::new(workload.op, workload.size, places, register)?;
            entrant.with(copy)
        }
    })
}

/// A worker for each of the workload's threads.
pub(crate) fn workers<F: Fabric>(fabric: &F, workload: Workload) -> Result<Vec<Worker>, Error> {
    let wires = (0..workload.threads).map(|number| {
        let wire = fabric.wire(workload.size, workload.depth)?;
        Worker::new(workload, number, wire)
    });
    wires.collect()
}

/// A contestant but for its policy.
pub(crate) struct Entrant<'a> {
    pub(crate) workers: Vec<Worker>,
    pub(crate) workload: Workload,
    pub(crate) policy: Policy,
    pub(crate) counts: &'a Arc<Counts>,
}

impl Entrant<'_> {
    /// Where the buffers of all threads are, by their numbers.
    pub(crate) fn ranges(&self) -> Result<Vec<VaRange>, Error> {
        let Workload { set, size, .. } = self.workload;
        let all = self.workers.iter().flat_map(|worker| {
            (0..set).map(move |index| VaRange::new(worker.buffers().at(index), size))
        });
        Ok(all.collect::<Result<_, _>>()?)
    }

    pub(crate) fn with<P: Preparer + 'static>(self, policy: P) -> Box<dyn Contestant> {
        Box::new(Native {
            workers: self.workers,
            policy,
            name: self.policy.name(),
            unmap_every: self.workload.unmap_every,
            counts: Arc::clone(self.counts),
            start: Reading::default(),
        })
    }
}
