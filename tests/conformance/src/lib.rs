//! The conformance suite of monitors. The suite changes memory in many ways that Linux offers.
//! After each change, a device reads the memory by a cached registration. The bytes that the device
//! reads show whether the registration was stale.
//!
//! - [`scenarios`] lists the changes.
//! - [`matrix`] runs the scenarios in columns. Each column is a monitor on a device.
//! - [`thread_reuse`] races two threads for an address.
//! - [`allocate_free_fork_and_look_up`] searches for deadlocks.
//!
//! The matrix, the race and the search for deadlocks run with any monitor.

mod matrix;
mod race;
mod scenarios;
mod stress;

pub use matrix::{Column, Verdict, matrix, matrix_program, uring_columns};
pub use race::thread_reuse;
pub use scenarios::{BASIC, DEALLOC_THEN_ALLOC, scenarios};
pub use stress::{Progress, allocate_free_fork_and_look_up, stress_program};
