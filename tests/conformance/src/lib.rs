//! The conformance suite of monitors: memory changes in every way that Linux knows, a device moves
//! its bytes by cached registrations, and the bytes that arrive are the judge.
//!
//! [`scenarios`] lists the changes, [`matrix`] plays them in columns of one monitor and one device
//! each, [`thread_reuse`] races two threads for an address, and [`allocate_free_fork_and_look_up`]
//! looks for deadlocks. All are generic over the monitor.

mod matrix;
mod race;
mod scenarios;
mod stress;

pub use matrix::{Column, Verdict, matrix, matrix_program, uring_columns};
pub use race::thread_reuse;
pub use scenarios::{BASIC, DEALLOC_THEN_ALLOC, scenarios};
pub use stress::{Progress, allocate_free_fork_and_look_up, stress_program};
