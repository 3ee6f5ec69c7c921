//! What a monitor promises, tried out: memory changes in every way there is, a device moves its bytes by
//! cached registrations, and the bytes tell.
//!
//! Generic over the monitor, and over the [`Device`]; [`Uring`] is the one that every Linux machine has.

mod allocator;
mod costs;
mod demonstration;
mod device;
mod huge;
mod matrix;
mod naive;
mod others;
mod race;
mod random;
pub mod remap;
mod scenarios;
mod stress;
mod uring;

pub use allocator::DEALLOC_THEN_ALLOC;
pub use costs::{Costed, costs};
pub use demonstration::demonstrate;
pub use device::{Device, Outcome, Result, reuse};
pub use matrix::{Column, Verdict, matrix, matrix_program, uring_columns};
pub use naive::NeverReports;
pub use race::thread_reuse;
pub use random::Random;
pub use scenarios::scenarios;
pub use stress::{Progress, allocate_free_fork_and_look_up, stress_program};
pub use uring::Uring;

/// The size of a page on every machine that the suite runs on.
pub const PAGE: usize = 4096;
