//! The reuse bug, shown by bytes that cross a device.
//!
//! A [`Scenario`] makes memory and later puts other pages behind its addresses. [`reuse`] lets a
//! [`Device`] read the memory before and after that change: a cache without a working monitor hands
//! out the old registration, and the device reads the old pages. [`Uring`] is a device that every
//! Linux machine has, and [`NeverReports`] is the monitor of a naive cache. [`demonstrate`]
//! combines them into what `regcache repro` prints.
//!
//! The conformance suite adds its scenarios and monitors to these.
#![warn(missing_docs)]

mod demonstration;
mod device;
mod memory;
mod monitor_costs;
mod naive;
mod scenario;
mod uring;

pub use demonstration::demonstrate;
pub use device::{Device, Outcome, Result, reuse};
pub use memory::{Memory, map, map_at, mmap, same_address, unmap};
pub use monitor_costs::{Costed, monitor_costs};
pub use naive::NeverReports;
pub use scenario::{
    MUNMAP_THEN_MMAP, Prepared, SCENARIO_LEN, Scenario, Written, map_again, scenario,
};
pub use uring::Uring;

/// The page size of every machine that regcache runs on.
pub const PAGE: usize = 4096;
