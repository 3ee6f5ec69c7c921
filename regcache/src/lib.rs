//! A memory-registration cache that never returns a stale registration.
//!
//! RDMA adapters, and io_uring's fixed buffers, need memory registered before they can touch it.
//! Registering pins pages and is slow, so registrations are kept; and a registration that is kept
//! goes stale when the application unmaps the memory and is given the same address again: the
//! adapter then reads and writes pages that nobody has mapped any more.
//!
//! A [`Cache`] is built on two things. A [`Registrar`] makes and destroys registrations, for one
//! kind of device. A [`Monitor`] tells which of the memory that it was asked to watch is no longer
//! what it was; [`monitor::Ummunotify`] asks the kernel.
//!
//! # What is promised
//!
//! Let U be any operation that changes which pages back a range: munmap, mremap, brk, a mapping
//! placed over it, `MADV_DONTNEED`, a hole punched in its file, a copy-on-write break. If U returned
//! before a lookup began, or if the looking-up thread was handed the address by a mapping call that
//! the kernel could only satisfy because U had happened, the lookup does not return a registration
//! made before U. `src/cache.rs` has the argument.
#![warn(missing_docs)]

mod builder;
mod cache;
mod completion;
mod core;
pub mod error;
mod guard;
pub mod monitor;
mod range;
mod registrar;
mod stats;
mod sys;

pub use builder::{Builder, DefaultMonitor};
pub use cache::Cache;
pub use completion::Completion;
pub use error::{Error, RegisterError};
pub use guard::Guard;
pub use monitor::{Cookie, Monitor};
pub use range::{RangeError, VaRange};
pub use registrar::{Access, Registrar};
pub use stats::Stats;
