//! What a lookup costs, and beside it what UCX's registration cache takes for the same.
//!
//! Both caches are driven by the same loops through [`Subject`], over the same addresses
//! ([`Addresses`]), with a device that does nothing ([`DummyRegistrar`], and its like in
//! `ucx/shim.c`). regcache's monitor is a model ([`FakeMonitor`]) whose generation is a word of
//! shared memory, as the driver's is, so that every figure has the check of the generation in it.
//!
//! The program `compare` measures and prints; `cargo xtask bench` runs it.
#![warn(missing_docs)]

mod addresses;
pub mod block;
pub mod callgrind;
mod fake;
pub mod figure;
pub mod loops;
mod random;
mod regcache;
mod subject;
#[cfg(feature = "ucx")]
mod ucx;

use std::io;

pub use addresses::Addresses;
pub use fake::{DummyMonitor, DummyRegistrar, FakeMonitor};
pub use random::Random;
pub use regcache::{Regcache, Unwatched};
pub use subject::{Nothing, Subject};
#[cfg(feature = "ucx")]
pub use ucx::Ucx;

/// What regcache is compared with.
#[cfg(feature = "ucx")]
pub type Rival = Ucx;
/// What regcache would be compared with.
#[cfg(not(feature = "ucx"))]
pub type Rival = Nothing;

/// An empty cache of UCX's, of at most so many entries; `None` without the feature `ucx`.
///
/// # Errors
///
/// If UCX refuses.
pub fn rival(max_entries: usize) -> io::Result<Option<Rival>> {
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
