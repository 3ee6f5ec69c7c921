//! [`Timing`]: what was measured of one transfer, and [`Tally`]: what all came to.

use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};

use crate::Error;
use crate::error::Trying;

/// Of so many transfers one has its processor time measured, instead of the time on the clock: asking for it is a
/// system call, which would be most of what a hit takes.
const CPU_SAMPLE: u64 = 8;

/// A minute, in nanoseconds: what the histograms reach.
const LONGEST: u64 = 60_000_000_000;

/// Nanoseconds of one transfer. As text, which another process can send: two numbers, or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timing {
    /// On the clock: from before the buffer was prepared to after it was released, and of those in preparing and
    /// releasing.
    Clock { latency: u64, prepare: u64 },
    /// Of the processor, in preparing and releasing.
    Cpu { prepare: u64 },
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clock { latency, prepare } => write!(f, "{latency}:{prepare}"),
            Self::Cpu { prepare } => write!(f, "{prepare}"),
        }
    }
}

impl Timing {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text.split_once(':') {
            Some((latency, prepare)) => Self::Clock {
                latency: latency.parse().ok()?,
                prepare: prepare.parse().ok()?,
            },
            None => Self::Cpu {
                prepare: text.parse().ok()?,
            },
        })
    }
}

/// Measures a transfer: its preparing first, then, when it has ended, its releasing.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch {
    started: Instant,
    prepared: Time,
}

/// Time in the strategy: on the clock, or of the processor.
#[derive(Clone, Copy)]
enum Time {
    Clock(Duration),
    Cpu(Duration),
}

impl Stopwatch {
    /// Prepares for transfer number `number`.
    pub(crate) fn prepare<T>(
        number: u64,
        prepare: impl FnOnce() -> Result<T, Error>,
    ) -> Result<(T, Self), Error> {
        let started = Instant::now();
        let (prepared, time) = if number.is_multiple_of(CPU_SAMPLE) {
            let before = cpu()?;
            let prepared = prepare()?;
            (prepared, Time::Cpu(cpu()?.saturating_sub(before)))
        } else {
            let prepared = prepare()?;
            (prepared, Time::Clock(started.elapsed()))
        };
        let watch = Self {
            started,
            prepared: time,
        };
        Ok((prepared, watch))
    }

    /// Releases after it.
    pub(crate) fn release(
        self,
        release: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Timing, Error> {
        Ok(match self.prepared {
            Time::Clock(prepared) => {
                let releasing = Instant::now();
                release()?;
                let now = Instant::now();
                Timing::Clock {
                    latency: nanos(now - self.started),
                    prepare: nanos(prepared + (now - releasing)),
                }
            }
            Time::Cpu(prepared) => {
                let before = cpu()?;
                release()?;
                Timing::Cpu {
                    prepare: nanos(prepared + cpu()?.saturating_sub(before)),
                }
            }
        })
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

/// What two clock readings in a row take: the least that a time in a strategy can be.
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

/// What transfers came to so far.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Nanoseconds from before a transfer's buffer was prepared to after it was released.
    pub latency: Histogram<u64>,
    /// Of those, the nanoseconds in the strategy: preparing and releasing.
    pub prepare: Histogram<u64>,
    /// Nanoseconds of processor time in the strategy, each of a transfer.
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

    /// A transfer that has ended.
    pub(crate) fn record(&mut self, sample: Timing) {
        match sample {
            Timing::Clock { latency, prepare } => {
                self.latency.saturating_record(latency);
                self.prepare.saturating_record(prepare);
            }
            Timing::Cpu { prepare } => self.cpu.saturating_record(prepare),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_comes_through_as_text() {
        for sample in [
            Timing::Clock {
                latency: 21_300,
                prepare: 554,
            },
            Timing::Cpu { prepare: 1700 },
        ] {
            assert_eq!(Timing::parse(&sample.to_string()), Some(sample));
        }
        assert_eq!(Timing::parse("cannot"), None);
    }
}
