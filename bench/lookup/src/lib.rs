//! Measures the cost of a lookup, and compares it with the cost in UCX's registration cache.
//!
//! The same [`loops`] call both caches through [`Subject`], with the same [`Addresses`]. The
//! registrations of both caches are dummies. regcache uses [`DummyRegistrar`], and UCX's cache uses
//! the device in `ucx/shim.c`.
//!
//! regcache's monitor is [`FakeMonitor`], or [`DummyMonitor`] for misses. The generation of both
//! monitors is a word of a mapped page, as with the driver. So every figure includes the check of
//! the generation.
//!
//! The program `lookup` measures and prints. `cargo xtask bench` runs this program.
#![warn(missing_docs)]

mod addresses;
mod c_library;

pub mod callgrind;
mod fake;
pub mod figure;
pub mod loops;

mod regcache;
mod subject;
#[cfg(feature = "ucx")]
mod ucx;

use std::io;

pub use addresses::Addresses;
pub use c_library::CLibrary;
pub use fake::{DummyMonitor, DummyRegistrar, FakeMonitor};

pub use regcache::{Regcache, Unwatched};
pub use subject::{Nothing, Subject};
#[cfg(feature = "ucx")]
pub use ucx::Ucx;

/// The cache that regcache is compared with.
#[cfg(feature = "ucx")]
pub type Peer = Ucx;
/// A stand-in for UCX's cache in a build without the feature `ucx`.
#[cfg(not(feature = "ucx"))]
pub type Peer = Nothing;

/// Makes an empty UCX cache of at most `max_entries` entries. Returns `None` without the feature
/// `ucx`.
///
/// # Errors
///
/// Returns an error if UCX cannot create the cache.
pub fn peer(max_entries: usize) -> io::Result<Option<Peer>> {
    #[cfg(feature = "ucx")]
    return Ucx::new(max_entries)
        .map(Some)
        .map_err(|status| io::Error::other(format!("ucs_rcache_create: status {status}")));
    #[cfg(not(feature = "ucx"))]
    {
        let _ = max_entries;
        Ok(None)
    }
}
