//! What the regression suite shares: the ways in which memory changes under an address, the rig that
//! moves bytes between such memory and a device, and the monitor that makes a cache naive.

mod naive;
pub mod remap;
mod rig;

pub use naive::NeverReports;
pub use rig::{Direction, Outcome, Result, Rig};
