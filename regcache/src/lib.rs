//! A memory-registration cache that never returns a stale registration.
//!
//! RDMA adapters, and io_uring's fixed buffers, need memory registered before they can access it.
//! Registering pins pages and is slow, so applications cache registrations. A cached registration
//! becomes stale when the application unmaps the memory and later maps other memory at the same
//! address. The adapter then still reads and writes the old pages.
//!
//! # The promise
//!
//! Let U be any operation that changes which pages back a range. Examples are munmap, mremap, brk,
//! `MADV_DONTNEED`, a mapping placed over the range, a hole punched in its file, and a
//! copy-on-write break. If U returned before a lookup began, the lookup does not return a
//! registration made before U. A lookup may also begin before U returns. The same promise holds for
//! such a lookup, if its thread got the address from a mapping call that could succeed only because
//! of U. The module [`design`] describes the protocol and argues that it keeps the promise.
//!
//! # Trade-offs
//!
//! - **Hits are cheap, misses are not.** A hit takes no lock. With the ummunotify monitor, a hit
//!   makes no system call. A miss takes a lock and registers memory.
//! - **Soundness needs the kernel's help.** The [`Ummunotify`](monitor::Ummunotify) monitor needs a
//!   kernel driver. The [`Userfaultfd`](monitor::Userfaultfd) monitor needs no driver. But with it
//!   each lookup makes a few system calls, and only private anonymous memory is cached. Without a
//!   monitor, nothing is cached.
//! - **Memory stays pinned.** Cached registrations keep their pages in place until they are evicted
//!   or invalidated. [`Builder::max_bytes`] limits the bytes that stay pinned.
//! - **Remote keys live on.** A peer can use a remote key after the guard is dropped, unless
//!   [`Builder::revoke_remote_keys`] is set.
//! - **fork.** A forked child cannot use its parent's caches and pools: the child's lookups fail
//!   with [`Error::Forked`].
//!
//! # How it works
//!
//! A [`Registrar`] makes and destroys registrations for one kind of device. A [`Monitor`] watches
//! memory and reports changes. A monitor also has a number, its generation. The generation rises
//! before the call that changed the memory returns.
//!
//! A miss watches the range and then registers it. Each lookup compares the monitor's generation
//! with the generation up to which the cache has read reports. If the two generations are equal, no
//! watched memory has changed since. The lookup then takes a reference to an entry and returns a
//! [`Guard`]. Otherwise the lookup first reads the reports and unlinks the entries that the reports
//! name. A registration is deregistered after its entry was unlinked and its last guard was
//! dropped.
//!
//! # How to use it
//!
//! Implement [`Registrar`] for the device, or use the one from `regcache-verbs` or
//! `regcache-uring`. Build one [`Cache`] for each protection domain. Look memory up before each
//! transfer, and keep the guard until the transfer completes.
//!
//! This program runs without hardware, because its device is a list in memory:
//!
//! ```
#![doc = include_str!("../examples/registrar.rs")]
//! ```
//!
//! # When not to use it
//!
//! - **The buffers are fixed.** Register them once, and keep the registrations.
//! - **The transfers are small.** Copying a few KiB into a registered buffer is faster than a miss.
//! - **Each transfer uses new memory.** Then every lookup is a miss. Reuse buffers, or let the
//!   allocator keep memory mapped.
//! - **The device uses on-demand paging (ODP).** With ODP, no registration can become stale.
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
mod limits;
pub mod monitor;
#[cfg(feature = "prometheus")]
mod prometheus;
mod range;
mod registrar;
#[cfg(feature = "snapshot")]
mod snapshot;
mod stats;
mod sys;

/// Parts that other crates of this workspace share. They are not part of the library's interface.
#[doc(hidden)]
pub mod internal {
    pub use crate::core::at_once::{AtOnce, Contended, NotYet};
    pub use crate::sys::file_id::FileId;
    pub use crate::sys::fork::{ForkMark, before_each};
    pub use crate::sys::notices::Notices;
    pub use crate::sys::thread::spawn;
    pub use crate::sys::worker::{Owner, Wake, Work, Worker};
}

pub use crate::core::completion::Completion;
pub use crate::core::guard::Guard;
pub use crate::core::pool::Pool;
pub use builder::{Builder, DefaultMonitor};
pub use cache::Cache;
pub use error::{Error, RegisterError};
pub use monitor::{Cookie, Monitor};
pub use range::{RangeError, VaRange};
pub use registrar::{Access, Registrar};
#[cfg(feature = "snapshot")]
pub use snapshot::{EntryState, Snapshot, SnapshotEntry};
pub use stats::Stats;
pub use sys::cancel::Uncancelled;
