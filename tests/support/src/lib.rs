//! Parts that several suites and benchmarks share: the page size, random numbers, memory at chosen
//! addresses, a second RDMA device, swap space, the monitor of a naive cache, a fake of the driver,
//! and libraries under a sanitizer.

mod command;
mod fake_driver;
mod mapping;
mod memory_use;
mod pages;
mod random;
mod sanitizer;
mod second_device;
mod shared_library;
mod swap;

pub use fake_driver::fake_driver;
pub use mapping::{map_fixed, unmap};
pub use memory_use::{pinned, resident};
pub use pages::Pages;
pub use random::Random;
/// The page size, and the monitor of a naive cache. The crate of the demonstration defines them,
/// because the demonstration must not depend on a test crate.
pub use regcache_repro::{NeverReports, PAGE};
pub use sanitizer::{built_library, ld_preload, runtime};
pub use second_device::SecondDevice;
pub use swap::Swap;
