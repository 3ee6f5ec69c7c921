//! [`Timing`]: the time of one transfer. [`Tally`]: the results of many transfers.

use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};

use crate::Error;
use crate::error::Trying;

/// One of this many transfers measures CPU time instead of wall-clock time. Reading the CPU time is
/// a system call, which takes longer than a hit. So the other transfers do not read the CPU time.
const CPU_SAMPLE: u64 = 8;

/// The largest time that the histograms can hold: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// The times of one transfer, in nanoseconds. As text, a timing is one number or two. A peer sends
/// its timings to the benchmark as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timing {
    /// Wall-clock times. `latency` is the time from before the buffer is prepared until after the
    /// buffer is released. `prepare` is the part of this time in which the strategy prepares and
    /// releases the buffer.
    Clock { latency: u64, prepare: u64 },
    /// The CPU time in which the strategy prepares and releases the buffer.
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

/// A stopwatch for one transfer. [`prepare`](Self::prepare) times the work before the transfer, and
/// [`release`](Self::release) times the work after the transfer.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch {
    started: Instant,
    prepared: Time,
}

/// The time that the strategy took before the transfer: wall-clock time or CPU time.
#[derive(Clone, Copy)]
enum Time {
    Clock(Duration),
    Cpu(Duration),
}

impl Stopwatch {
    /// Calls `prepare` for the transfer `number`, and measures the time of the call. Returns the
    /// result of `prepare` and the running stopwatch.
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

    /// Calls `release`, and measures the time of the call. Returns the times of the transfer. Call
    /// this function after the transfer has completed.
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

/// Returns the CPU time that this thread has used so far.
fn cpu() -> Result<Duration, Error> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).trying("read the thread's clock")?;
    Ok(time.into())
}

/// Measures and returns the nanoseconds that one reading of the clock takes. Reports print this
/// number, because each measured overhead includes two readings.
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

/// The results of all transfers so far.
#[derive(Debug, Clone)]
pub struct Tally {
    /// The latency of each transfer, in nanoseconds: the time from before its buffer is prepared
    /// until after its buffer is released.
    pub latency: Histogram<u64>,
    /// The overhead of each transfer, in nanoseconds: the part of the latency that the strategy
    /// takes.
    pub prepare: Histogram<u64>,
    /// The CPU time that the strategy takes for a transfer, in nanoseconds.
    pub cpu: Histogram<u64>,
    /// The number of transfers that have ended.
    pub transfers: u64,
    /// The number of times that a buffer was unmapped and mapped again.
    pub remaps: u64,
    /// The number of bytes at the other end that differed from the payload.
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

    /// Adds one transfer.
    pub(crate) fn record(&mut self, timing: Timing) {
        match timing {
            Timing::Clock { latency, prepare } => {
                self.latency.saturating_record(latency);
                self.prepare.saturating_record(prepare);
            }
            Timing::Cpu { prepare } => self.cpu.saturating_record(prepare),
        }
        self.transfers += 1;
    }

    /// Adds the results of another thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the histograms have different bounds. This cannot happen, because all
    /// histograms here have the same bounds.
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
    fn a_timing_comes_through_as_text() {
        for timing in [
            Timing::Clock {
                latency: 21_300,
                prepare: 554,
            },
            Timing::Cpu { prepare: 1700 },
        ] {
            assert_eq!(Timing::parse(&timing.to_string()), Some(timing));
        }
        assert_eq!(Timing::parse("cannot"), None);
    }
}
