//! RDMA verbs for [`regcache`]: what registers memory, and what moves it.
//!
//! - [`MrRegistrar`] is the [`regcache::Registrar`] that makes [`Mr`]s, the registrations of an RDMA
//!   device, in one [protection domain](Pd).
//! - [`Loopback`] is a connection of this process with itself through the device. Its transfers
//!   block, borrow the memory they touch, and are safe to call.
//!
//! ```no_run
//! use regcache::Cache;
//! use regcache_verbs::{Context, Loopback, MrRegistrar, Pd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pd = Pd::alloc(&Context::open_first()?)?;
//! let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;
//! let source = vec![7u8; 4096];
//! let mut destination = vec![0u8; 4096];
//! Loopback::connect(&pd)?.rdma_write(&cache, &source, &mut destination)?;
//! assert_eq!(source, destination);
//! # Ok(())
//! # }
//! ```
//!
//! # Who keeps whom alive
//!
//! A verbs object may be destroyed only after everything made from it. Each holds an [`Arc`] of
//! what it was made from, so the order in which a program drops its handles does not matter:
//!
//! ```text
//! Context <- Pd <- Mr, MrRegistrar, Loopback
//!         <- Cq <- Qp (and Qp -> Pd)
//! ```
//!
//! # Threads and forks
//!
//! libibverbs promises that every verb may be called from any thread at any time on any object, so
//! all handles are [`Send`] and [`Sync`].
//!
//! The objects belong to the process that opened the device. A forked child has the same file
//! descriptor and could destroy its parent's registrations through it, so in a child dropping a
//! handle does nothing and [`Loopback`] refuses with [`Error::ForkedChild`]. Open the device again.
//!
//! [`Arc`]: std::sync::Arc
#![warn(missing_docs)]

mod access;
mod cq;
mod device;
mod errno;
mod error;
mod fork;
mod gid;
mod loopback;
mod mr;
mod pd;
mod port;
mod qp;
mod registrar;
mod route;

pub use access::Access;
pub use cq::{Completion, Cq, WcStatus};
pub use device::{Context, device_names};
pub use error::{End, Error, Operation};
pub use fork::fork_init;
pub use gid::{Gid, GidEntry, GidType};
pub use loopback::Loopback;
pub use mr::Mr;
pub use pd::Pd;
pub use port::{LinkLayer, Port, PortState};
pub use qp::{Qp, RemoteMemory, Sge};
pub use registrar::MrRegistrar;
pub use route::Route;

/// What the notes on threads say, of the types whose parts say it for them.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<MrRegistrar>();
    any_thread::<Loopback>();
};

/// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
