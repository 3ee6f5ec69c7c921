//! [`Worker`]: does the transfers of one thread.

use std::time::{Duration, Instant};

use regcache_test_support::Random;

use crate::buffers::{Buffers, fill, wrong_bytes};
use crate::endpoint::{Endpoint, PATIENCE};
use crate::preparer::{Piece, Preparer};
use crate::timing::{Stopwatch, Tally, Timing};
use crate::{Error, Workload};

/// The longest pause before a transfer, in nanoseconds.
const PAUSE: usize = 20_000;

/// The time for which a thread sleeps between two transfers on a software device. Meanwhile, the
/// device's kernel threads can finish their work.
const REST: Duration = Duration::from_micros(20);

/// Pauses for a random time before a transfer. The pause varies the time from the end of the
/// transfer to the poll that finds it complete. Returns the duration of the pause.
///
/// On an emulated machine, each transfer repeats the timing of the previous transfer. So without
/// the pause, the same poll, for example the third, would find each transfer of a sample complete.
/// If transfers took a tenth of a microsecond longer, all of them might miss that poll.
///
/// If `idle` is true, the thread first sleeps, so that the kernel threads of a software device can
/// finish their work.
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

/// A transfer in flight.
struct Flight<H> {
    piece: Piece,
    index: usize,
    held: H,
    seed: u64,
    watch: Stopwatch,
}

/// The endpoint, the buffers and the results of one thread.
pub(crate) struct Worker {
    // The endpoint is the first field, so it is dropped before the buffers. After the endpoint is
    // dropped, the device no longer uses the buffers.
    endpoint: Box<dyn Endpoint>,
    buffers: Buffers,
    workload: Workload,
    /// The number of this worker's first buffer, and the number of its first place (see
    /// [`Endpoint`]). The buffers of all threads are numbered together, and so are the places.
    first: (usize, usize),
    random: Random,
    begun: u64,
    tally: Tally,
}

impl Worker {
    /// Makes the worker of thread `number` of the workload.
    ///
    /// # Errors
    ///
    /// Returns the kernel's errors. Returns [`Error::Cannot`] if the depth is above 1 and the
    /// workload has unmaps or checked payloads.
    pub(crate) fn new(
        workload: Workload,
        number: usize,
        endpoint: Box<dyn Endpoint>,
    ) -> Result<Self, Error> {
        if (workload.checked || workload.unmap_every > 0) && workload.depth > 1 {
            return Err(Error::Cannot(
                "unmaps and checks happen between transfers: use --depth 1".to_owned(),
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

    /// Returns the buffers of the worker.
    #[must_use]
    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Returns the results so far.
    #[must_use]
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Discards the results of the warm-up, except the number of stale bytes.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no memory for new results.
    pub(crate) fn forget(&mut self) -> Result<(), Error> {
        let wrong_bytes = self.tally.wrong_bytes;
        self.tally = Tally::new()?;
        // Stale bytes that the warm-up moved are failures too, so they still count.
        self.tally.wrong_bytes = wrong_bytes;
        Ok(())
    }

    /// Prepares and releases each buffer once, without a transfer.
    ///
    /// # Errors
    ///
    /// Returns the errors of the strategy.
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

    /// Does `transfers` transfers and returns the time that they take. The time excludes pauses,
    /// and the filling and checking of payloads.
    ///
    /// # Errors
    ///
    /// Returns the errors of the device or of the strategy.
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
        // Adding a timing to the results takes time, so the timings are added after the last
        // transfer.
        let mut timings = Vec::with_capacity(usize::try_from(transfers).unwrap_or(0));
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
                        timings.push(self.end(strategy, flight, &mut aside)?);
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
        for timing in timings {
            self.tally.record(timing);
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
        // A random pause varies the time from the end of the transfer to the next poll (see
        // `pause`). At a depth above 1, this time varies without a pause.
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
        // SAFETY: the buffers belong to this worker, and only `begin` unmaps a buffer. `new` allows
        // unmaps only at depth 1, and at depth 1 no other transfer is in flight. So a buffer in
        // flight stays mapped. `held` keeps the registration until the transfer ends.
        //
        // After an error, `held` may be dropped before the transfer ends. The device then refuses
        // the key of the registration. If the worker is dropped before the transfer ends, its
        // endpoint is dropped before its buffers.
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
        let timing = flight.watch.release(|| strategy.release(piece, held))?;
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
        Ok(timing)
    }
}
