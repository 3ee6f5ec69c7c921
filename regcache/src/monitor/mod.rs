//! Monitors: the sources that report changes of memory to the cache.
//!
//! A monitor watches ranges of the process's own memory. The monitor raises its generation when the
//! pages behind a watched range change. The cache relies on the rules M1 to M6 of [`Monitor`] to
//! never return a stale registration.

mod auto;
mod contract;
mod none;
mod pile;
mod poll_fd;
mod shared;
mod subscriptions;
mod ummunotify;
#[cfg(feature = "userfaultfd")]
pub mod userfaultfd;

pub use auto::{Auto, auto};
pub use contract::{Cookie, Monitor};
pub use none::NoMonitor;
pub use shared::Shared;
pub use ummunotify::{OpenError, Ummunotify};
#[cfg(feature = "userfaultfd")]
#[doc(inline)]
pub use userfaultfd::{Userfaultfd, UserfaultfdError};
