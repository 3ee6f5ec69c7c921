//! [`Worker`]: one thread's transfers.

use std::time::{Duration, Instant};

use regcache_test_support::Random;

use crate::buffers::{Buffers, fill, wrong_bytes};
use crate::endpoint::{Endpoint, PATIENCE};
use crate::preparer::{Piece, Preparer};
use crate::timing::{Stopwatch, Tally, Timing};
use crate::{Error, Workload};

/// At most how long is paused before a transfer, in nanoseconds.
const PAUSE: usize = 20_000;

/// How long what a software device does after a transfer may take.
const REST: Duration = Duration::from_micros(20);

/// Pauses for a while that is never the same. On an emulated machine each transfer begins where the one before has left the
/// kernel's threads, and so they all are like the first: a tenth of a microsecond more decides whether all of them are found complete
/// by one poll or by the one after. `idle` lets these threads come to rest first.
pub(crate) fn pause(random: &mut Random, idle: bool) -> Duration {
    let started = Instant::now();
    if idle {
        std::thread::sleep(REST);
    }
    let started_spinning = Instant::now();
    let pause = Duration::from_nanos(random.below(PAUSE) as u64);
    while started_spinning.elapsed() < pause {
        std::hint::spin_loop();
    }
    started.elapsed()
}

/// A transfer under way.
struct Flight<H> {
    piece: Piece,
    index: usize,
    held: H,
    seed: u64,
    watch: Stopwatch,
}

/// One thread's endpoint, buffers and results.
pub(crate) struct Worker {
    // First: when it is gone, the device has let go of the buffers.
    endpoint: Box<dyn Endpoint>,
    buffers: Buffers,
    workload: Workload,
    /// Of its first buffer and place among those of all threads.
    first: (usize, usize),
    random: Random,
    begun: u64,
    tally: Tally,
}

impl Worker {
    /// The `number`th of the workload's threads.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn new(
        workload: Workload,
        number: usize,
        endpoint: Box<dyn Endpoint>,
    ) -> Result<Self, Error> {
        if (workload.checked || workload.unmap_every > 0) && workload.depth > 1 {
            return Err(Error::Cannot(
                "buffers are unmapped and payloads checked between transfers: depth 1".to_owned(),
            ));
        }
        Ok(Self {
            endpoint,
            buffers: Buffers::new(workload.set, workload.size)?,
            workload,
            first: (number * workload.set, number * workload.depth),
            random: Random::new(0x9e37_79b9_7f4a_7c15 + number as u64),
            begun: 0,
            tally: Tally::new()?,
        })
    }

    /// Its buffers.
    #[must_use]
    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// What came of it.
    #[must_use]
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Forgets what came of it: the transfers so far were to warm up.
    ///
    /// # Errors
    ///
    /// None.
    pub(crate) fn forget(&mut self) -> Result<(), Error> {
        let wrong_bytes = self.tally.wrong_bytes;
        self.tally = Tally::new()?;
        // What is wrong stays wrong.
        self.tally.wrong_bytes = wrong_bytes;
        Ok(())
    }

    /// Prepares and releases each buffer once, and transfers nothing.
    ///
    /// # Errors
    ///
    /// The strategy's.
    pub(crate) fn visit<P: Preparer>(&self, strategy: &P) -> Result<(), Error> {
        for index in 0..self.workload.set {
            let piece = self.piece(index, 0);
            let (_, held) = strategy.prepare(piece)?;
            strategy.release(piece, held)?;
        }
        Ok(())
    }

    fn piece(&self, index: usize, place: usize) -> Piece {
        Piece {
            number: self.first.0 + index,
            place: self.first.1 + place,
            at: self.buffers.at(index),
            len: self.workload.size,
        }
    }

    /// So many transfers. Returns how long they took, without the filling and checking of payloads.
    ///
    /// # Errors
    ///
    /// The device's, or the strategy's.
    pub(crate) fn run<P: Preparer>(
        &mut self,
        strategy: &P,
        transfers: u64,
    ) -> Result<Duration, Error> {
        let mut flights: Vec<Option<Flight<P::Held>>> = Vec::new();
        flights.resize_with(self.workload.depth, || None);
        let started = Instant::now();
        let mut aside = Duration::ZERO;
        let (mut begun, mut ended) = (0, 0);
        let mut quiet_since = None;
        let mut polls = 0;
        // Entered when all is over: it would be a part of each transfer.
        let mut samples = Vec::with_capacity(usize::try_from(transfers).unwrap_or(0));
        while ended < transfers {
            while begun < transfers
                && let Some(place) = flights.iter().position(Option::is_none)
            {
                flights[place] = Some(self.begin(strategy, place, &mut aside)?);
                begun += 1;
            }
            match self.endpoint.poll()? {
                Some(place) => {
                    (quiet_since, polls) = (None, 0);
                    if let Some(flight) = flights.get_mut(place).and_then(Option::take) {
                        samples.push(self.end(strategy, flight, &mut aside)?);
                        ended += 1;
                    }
                }
                None => {
                    let since = *quiet_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        return Err(Error::TimedOut { after: PATIENCE });
                    }
                    self.endpoint.idle(polls);
                    polls = polls.saturating_add(1);
                }
            }
        }
        let took = started.elapsed().saturating_sub(aside);
        for sample in samples {
            self.tally.record(sample);
        }
        Ok(took)
    }

    fn begin<P: Preparer>(
        &mut self,
        strategy: &P,
        place: usize,
        aside: &mut Duration,
    ) -> Result<Flight<P::Held>, Error> {
        let Workload {
            op,
            set,
            unmap_every,
            checked,
            ..
        } = self.workload;
        // With more under way they have no common phase.
        if self.workload.depth == 1 {
            *aside += pause(&mut self.random, self.endpoint.is_software());
        }
        self.begun += 1;
        let seed = self.begun;
        let index = if set > 1 { self.random.below(set) } else { 0 };
        if unmap_every > 0 && self.begun.is_multiple_of(unmap_every) {
            self.buffers.remap(index)?;
            self.tally.remaps += 1;
        }
        if checked {
            let filling = Instant::now();
            if op.is_from_buffer() {
                self.buffers.fill(index, seed);
            } else {
                fill(self.endpoint.peer(place)?, seed);
            }
            *aside += filling.elapsed();
        }
        let piece = self.piece(index, place);
        let ((memory, held), watch) = Stopwatch::prepare(self.begun, || strategy.prepare(piece))?;
        // SAFETY: the buffers are ours, and not unmapped but by `begin`, which chooses a buffer that may be under way
        // only where the depth is above 1, and that goes without unmapping (`new`). `held` keeps the registration; if it
        // goes early, after an error, the device refuses the key. If this worker goes before the transfer has ended, its
        // endpoint goes first.
        unsafe { self.endpoint.post(place, op, memory) }?;
        Ok(Flight {
            piece,
            index,
            held,
            seed,
            watch,
        })
    }

    fn end<P: Preparer>(
        &mut self,
        strategy: &P,
        flight: Flight<P::Held>,
        aside: &mut Duration,
    ) -> Result<Timing, Error> {
        let Flight { piece, held, .. } = flight;
        let sample = flight.watch.release(|| strategy.release(piece, held))?;
        if self.workload.checked {
            let checking = Instant::now();
            let place = piece.place - self.first.1;
            self.tally.wrong_bytes += if self.workload.op.is_from_buffer() {
                wrong_bytes(self.endpoint.peer(place)?, flight.seed)
            } else {
                self.buffers.wrong_bytes(flight.index, flight.seed)
            };
            *aside += checking.elapsed();
        }
        Ok(sample)
    }
}
