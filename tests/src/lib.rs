//! What the regression suite shares: the ways in which memory changes under an address, the rig that
//! moves bytes between such memory and a device, and the monitor that makes a cache naive.

mod device;
mod memory;
mod naive;
mod process;
pub mod remap;
mod rig;

pub use device::{Counter, Device};
pub use memory::{PAGE, Pages, pinned};
pub use naive::NeverReports;
pub use process::Child;
pub use rig::{Direction, Outcome, Result, Rig};
