//! How a noisy machine is measured.
//!
//! The variants that a benchmark compares run in [rounds](interleave). In each round every variant
//! takes one [`Sample`] of a millisecond or so, in random order. A disturbance that lasts longer
//! than a round disturbs all of them, so the figure to quote is the ratio of two samples of the
//! same round: its median over the rounds, with a confidence interval that depends on the order of
//! the ratios alone ([`Estimate`]).
//!
//! A round in which the kernel took the CPU away is discarded. So is a round of two threads while
//! the machine does not have two CPUs to give, as a virtual machine that shares its CPUs does not.
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
