//! What the regression suite shares: the ways in which memory changes under an address, the rig that
//! moves bytes between such memory and a device, and the monitor that makes a cache naive.

mod device;
mod memory;
mod process;
mod rig;
mod rxe;

pub use device::{Counter, Device};
pub use memory::{Pages, pinned, resident};
pub use process::Child;
pub use regcache_conformance::{NeverReports, PAGE, Random, remap};
pub use rig::{Direction, Outcome, Result, Rig};
pub use rxe::{Rxe, rxe_columns};
