//! A memory-registration cache that never returns a stale registration.
//!
//! RDMA adapters, and io_uring's fixed buffers, need memory registered before they can access it.
//! Registering pins pages and is slow, so applications cache registrations. A cached registration
//! becomes stale when the application unmaps the memory and is given the same address again. The
//! adapter then reads and writes pages that nobody has mapped any more.
//!
//! # The promise
//!
//! Let U be any operation that changes which pages back a range: munmap, mremap, brk, a mapping
//! placed over it, `MADV_DONTNEED`, a hole punched in its file, a copy-on-write break. If U
//! returned before a lookup began, the lookup does not return a registration made before U. The
//! same holds if the looking-up thread was given the address by a mapping call that the kernel
//! could only satisfy because U had happened. [`design`] has the protocol and the argument.
//!
//! # Trade-offs
//!
//! - **Hits are cheap, misses are not.** A hit is lock-free and makes no system call with the
//!   ummunotify monitor. A miss takes a lock, and registers.
//! - **Soundness needs the kernel's help.** The [`Ummunotify`](monitor::Ummunotify) monitor needs a
//!   driver. [`Userfaultfd`](monitor::Userfaultfd) needs none; it makes a few system calls at each
//!   lookup, and watches private anonymous memory only. Without either, nothing is cached.
//! - **Memory stays pinned.** Cached registrations keep their pages in place until they are evicted
//!   or invalidated. [`Builder::max_bytes`] bounds that.
//! - **Remote keys live on.** A peer can use a key after the guard is dropped, unless
//!   [`Builder::revoke_remote_keys`] is set.
//! - **fork.** A forked child cannot use its parent's caches: its lookups fail with
//!   [`Error::Forked`].
//!
//! # How it works
//!
//! A [`Registrar`] makes and destroys registrations for one kind of device. A [`Monitor`] reports
//! changes of the memory that it was asked to watch, and raises its generation before the changing
//! call returns. The cache watches a range, then registers it. A lookup compares generations: if
//! nothing has changed, it takes a reference to an entry and returns a [`Guard`]. Otherwise it
//! first reads the reports and unlinks the entries that they name. A registration is deregistered
//! once it is unlinked and its last guard is dropped.
//!
//! # How to use it
//!
//! Implement [`Registrar`] for the device, or take one from `regcache-verbs` or `regcache-uring`.
//! Build one [`Cache`] for each protection domain. Look memory up before each transfer, and keep
//! the guard until the transfer completes.
//!
//! This program runs anywhere, because its device is a list:
//!
//! ```
#![doc = include_str!("../examples/registrar.rs")]
//! ```
//!
//! # When not to use it
//!
//! - **The buffers are fixed.** Register them once, and keep the registrations.
//! - **The transfers are small.** Copying a few KiB into a registered buffer is faster than a miss.
//! - **Each transfer uses new memory.** Every lookup is a miss then. Reuse buffers, or let the
//!   allocator keep memory mapped.
//! - **The device pages on demand.** With on-demand paging, no registration can become stale.
#![warn(missing_docs)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!(
    "regcache needs 64-bit Linux: it loads a 64-bit counter that the kernel maps into the process"
);

mod builder;
mod cache;
mod core;
pub mod design;
pub mod error;
pub mod monitor;
#[cfg(feature = "prometheus")]
mod prometheus;
mod range;
mod registrar;
mod stats;
mod sys;

pub use crate::core::completion::Completion;
pub use crate::core::guard::Guard;
pub use builder::{Builder, DefaultMonitor};
pub use cache::Cache;
pub use error::{Error, RegisterError};
pub use monitor::{Cookie, Monitor};
pub use range::{RangeError, VaRange};
pub use registrar::{Access, Registrar};
pub use stats::Stats;
