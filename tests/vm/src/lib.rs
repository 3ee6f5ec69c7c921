//! Parts that the suites of the virtual machine share: the driver's file, child processes, and an
//! RDMA device for the conformance suite.

mod driver_file;
mod process;
mod rxe;

pub use driver_file::{Counter, DriverFile};
pub use process::Child;
pub use regcache_test_support::{NeverReports, PAGE, Pages, Random, pinned, resident};
pub use rxe::{Rxe, rxe_columns};
