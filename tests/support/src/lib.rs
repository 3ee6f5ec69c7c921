//! Parts that several suites and benchmarks share: the page size, random numbers, memory at chosen
//! addresses, and the monitor of a naive cache.

mod mapping;
mod memory_use;
mod pages;
mod random;

pub use mapping::{map_fixed, unmap};
pub use memory_use::{pinned, resident};
pub use pages::Pages;
pub use random::Random;
/// The tool's demonstration needs both items and must not depend on a test crate. So the
/// demonstration's crate defines them.
pub use regcache_repro::{NeverReports, PAGE};
