//! Shows the reuse bug by the bytes that a device reads.
//!
//! - A [`Scenario`] makes memory, and later puts other pages behind the memory's addresses.
//! - A [`Device`] reads the memory through the registrations of a cache. [`Uring`] is such a
//!   device, and needs no adapter.
//! - [`reuse`] lets a device read the memory before and after the change. If no monitor reports the
//!   change, the second lookup returns the old registration, and the device reads the old pages.
//! - [`NeverReports`] is the monitor of a naive cache.
//! - [`demonstrate`] compares a naive cache with regcache, and prints the results. `regcache repro`
//!   calls this function.
//! - [`watch()`] compares both caches for a while, and lets its caller show the counts.
//!
//! The conformance suite adds more scenarios and monitors.
#![warn(missing_docs)]

mod demonstration;
mod device;
mod memory;
mod monitor_costs;
mod naive;
mod output;
mod scenario;
mod uring;
mod watch;

pub use demonstration::demonstrate;
pub use device::{Device, Outcome, Result, reuse};
pub use memory::{Memory, map, map_at, mmap, same_address, unmap};
pub use monitor_costs::{Costed, monitor_costs};
pub use naive::NeverReports;
pub use output::end_if_output_fails;
pub use scenario::{
    MUNMAP_THEN_MMAP, Prepared, SCENARIO_LEN, Scenario, Written, map_again, scenario,
};
pub use uring::Uring;
pub use watch::{Counts, Frame, watch};

/// The page size of every machine that regcache runs on.
pub const PAGE: usize = 4096;
