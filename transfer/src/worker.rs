//! [`Worker`]: one thread's transfers.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};
use regcache_conformance::Random;

use crate::buffers::{Buffers, fill, wrong_bytes};
use crate::error::Trying;
use crate::policy::{Piece, Preparer};
use crate::wire::{PATIENCE, Wire};
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

/// Of so many transfers one has its processor time measured, instead of the time on the clock: asking for it is a
/// system call, which would be most of what a hit takes.
const CPU_SAMPLE: u64 = 8;

/// A minute, in nanoseconds: what the histograms reach.
const LONGEST: u64 = 60_000_000_000;

/// What a worker's transfers came to so far.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Nanoseconds from before a transfer's buffer was prepared to after it was released.
    pub latency: Histogram<u64>,
    /// Of those, the nanoseconds in the policy: preparing and releasing.
    pub prepare: Histogram<u64>,
    /// Nanoseconds of processor time in the policy, each of a transfer.
    pub cpu: Histogram<u64>,
    /// Transfers that have ended.
    pub transfers: u64,
    /// Buffers that were unmapped and mapped again.
    pub remaps: u64,
    /// Bytes at the other end that are not what was sent.
    pub wrong_bytes: u64,
}

impl Tally {
    pub(crate) fn new() -> Result<Self, Error> {
        let histogram = || {
            Histogram::new_with_bounds(1, LONGEST, 3).map_err(|why| Error::Cannot(why.to_string()))
        };
        Ok(Self {
            latency: histogram()?,
            prepare: histogram()?,
            cpu: histogram()?,
            transfers: 0,
            remaps: 0,
            wrong_bytes: 0,
        })
    }

    /// A transfer that somebody else has timed, in nanoseconds.
    pub(crate) fn record(&mut self, latency: u64, prepare: u64) {
        self.latency.saturating_record(latency.max(1));
        self.prepare.saturating_record(prepare.max(1));
        self.transfers += 1;
    }

    /// Both together.
    ///
    /// # Errors
    ///
    /// None: all histograms have the same bounds.
    pub fn add(&mut self, other: &Self) -> Result<(), Error> {
        for (mine, others) in [
            (&mut self.latency, &other.latency),
            (&mut self.prepare, &other.prepare),
            (&mut self.cpu, &other.cpu),
        ] {
            mine.add(others)
                .map_err(|why| Error::Cannot(why.to_string()))?;
        }
        self.transfers += other.transfers;
        self.remaps += other.remaps;
        self.wrong_bytes += other.wrong_bytes;
        Ok(())
    }
}

/// A transfer under way.
struct Flight<H> {
    piece: Piece,
    index: usize,
    held: H,
    seed: u64,
    started: Instant,
    prepared: Time,
}

/// Time in the policy: on the clock, or of the processor.
#[derive(Clone, Copy)]
enum Time {
    Clock(Duration),
    Cpu(Duration),
}

/// One thread's wire, buffers and results.
pub(crate) struct Worker {
    // First: when it is gone, the device has let go of the buffers.
    wire: Box<dyn Wire>,
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
        wire: Box<dyn Wire>,
    ) -> Result<Self, Error> {
        if (workload.checked || workload.unmap_every > 0) && workload.depth > 1 {
            return Err(Error::Cannot(
                "buffers are unmapped and payloads checked between transfers: depth 1".to_owned(),
            ));
        }
        Ok(Self {
            wire,
            buffers: Buffers::new(workload.set, workload.size)?,
            workload,
            first: (number * workload.set, number * workload.depth),
            random: Random(0x9e37_79b9_7f4a_7c15 + number as u64),
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
    /// The policy's.
    pub(crate) fn visit<P: Preparer>(&self, policy: &P) -> Result<(), Error> {
        for index in 0..self.workload.set {
            let piece = self.piece(index, 0);
            let (_, held) = policy.prepare(piece)?;
            policy.release(piece, held)?;
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
    /// The device's, or the policy's.
    pub(crate) fn run<P: Preparer>(
        &mut self,
        policy: &P,
        transfers: u64,
    ) -> Result<Duration, Error> {
        let mut flights: Vec<Option<Flight<P::Held>>> = Vec::new();
        flights.resize_with(self.workload.depth, || None);
        let started = Instant::now();
        let mut aside = Duration::ZERO;
        let (mut begun, mut ended) = (0, 0);
        let mut quiet_since = None;
        let mut polls = 0;
        while ended < transfers {
            while begun < transfers
                && let Some(place) = flights.iter().position(Option::is_none)
            {
                flights[place] = Some(self.begin(policy, place, &mut aside)?);
                begun += 1;
            }
            match self.wire.poll()? {
                Some(place) => {
                    (quiet_since, polls) = (None, 0);
                    if let Some(flight) = flights.get_mut(place).and_then(Option::take) {
                        self.end(policy, flight, &mut aside)?;
                        ended += 1;
                    }
                }
                None => {
                    let since = *quiet_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        return Err(Error::TimedOut { after: PATIENCE });
                    }
                    self.wire.idle(polls);
                    polls = polls.saturating_add(1);
                }
            }
        }
        Ok(started.elapsed().saturating_sub(aside))
    }

    fn begin<P: Preparer>(
        &mut self,
        policy: &P,
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
            *aside += pause(&mut self.random, self.wire.is_software());
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
                fill(self.wire.peer(place)?, seed);
            }
            *aside += filling.elapsed();
        }
        let piece = self.piece(index, place);
        let started = Instant::now();
        let (memory, held, prepared) = if self.begun.is_multiple_of(CPU_SAMPLE) {
            let before = cpu()?;
            let (memory, held) = policy.prepare(piece)?;
            (memory, held, Time::Cpu(cpu()?.saturating_sub(before)))
        } else {
            let (memory, held) = policy.prepare(piece)?;
            (memory, held, Time::Clock(started.elapsed()))
        };
        // SAFETY: the buffers are ours, and not unmapped but by `begin`, which chooses a buffer that may be under way
        // only where the depth is above 1, and that goes without unmapping (`new`). `held` keeps the registration; if it
        // goes early, after an error, the device refuses the key. If this worker goes before the transfer has ended, its
        // wire goes first.
        unsafe { self.wire.post(place, op, memory) }?;
        Ok(Flight {
            piece,
            index,
            held,
            seed,
            started,
            prepared,
        })
    }

    fn end<P: Preparer>(
        &mut self,
        policy: &P,
        flight: Flight<P::Held>,
        aside: &mut Duration,
    ) -> Result<(), Error> {
        let Flight { piece, held, .. } = flight;
        match flight.prepared {
            Time::Clock(prepared) => {
                let releasing = Instant::now();
                policy.release(piece, held)?;
                let now = Instant::now();
                let spent = prepared + (now - releasing);
                self.tally.prepare.saturating_record(nanos(spent));
                let latency = nanos(now - flight.started);
                self.tally.latency.saturating_record(latency);
            }
            Time::Cpu(prepared) => {
                let before = cpu()?;
                policy.release(piece, held)?;
                let spent = prepared + cpu()?.saturating_sub(before);
                self.tally.cpu.saturating_record(nanos(spent));
            }
        }
        self.tally.transfers += 1;
        if self.workload.checked {
            let checking = Instant::now();
            let place = piece.place - self.first.1;
            self.tally.wrong_bytes += if self.workload.op.is_from_buffer() {
                wrong_bytes(self.wire.peer(place)?, flight.seed)
            } else {
                self.buffers.wrong_bytes(flight.index, flight.seed)
            };
            *aside += checking.elapsed();
        }
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Processor time of this thread.
fn cpu() -> Result<Duration, Error> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).trying("read the thread's clock")?;
    Ok(time.into())
}

/// What two clock readings in a row take: the least that a time in a policy can be.
#[must_use]
pub(crate) fn clock_ns() -> f64 {
    const ROUNDS: u32 = 10_000;
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let since = Instant::now();
        std::hint::black_box(since.elapsed());
    }
    started.elapsed().as_nanos() as f64 / f64::from(ROUNDS) / 2.0
}
