//! Measures on a noisy machine.
//!
//! The variants that a benchmark compares run in [rounds](interleave). In each round, every variant
//! takes one [`Sample`] of about a millisecond, in random order.
//!
//! A disturbance that lasts longer than a round slows all variants of the round alike. So
//! benchmarks quote ratios of two samples of the same round. The quoted figure is the median of the
//! ratios over all rounds. The median's confidence interval depends only on the order of the ratios
//! ([`Estimate`]), so a few extreme ratios do not change the interval.
//!
//! A round is discarded if the kernel preempted a measuring thread. A round that uses two threads
//! is also discarded if the two threads shared one CPU. Two threads can share a CPU in a virtual
//! machine, because two virtual CPUs may run on one CPU of the host.
#![warn(missing_docs)]

mod calibration;
mod cpu;
mod rounds;
mod sample;
mod statistics;

pub use calibration::operations_in;
pub use cpu::{Pinned, cpu_count};
pub use regcache_test_support::Random;
pub use rounds::{Effort, Rounds, Variant, interleave, measure};
pub use sample::{Sample, timed, timed_by_two};
pub use statistics::{Estimate, estimate, median};
