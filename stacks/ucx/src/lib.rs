//! libregcache-ucx.so: the driver under UCX's registration caches, by `LD_PRELOAD`.
//!
//! UCX caches registrations in `ucs_rcache`, and learns of unmapped memory by patched libc
//! functions. A raw system call, another process, or a thread that has not yet returned from the
//! patched function escapes these patches. This library gives each cache a monitor on the driver,
//! and makes UCX ask the monitor at each lookup.
//!
//! - `interpose.rs` defines the functions of UCX that this library interposes.
//! - `cache.rs` describes one cache of UCX: its monitor, and the two operations that this library
//!   puts in place of the cache's own.
//! - `gate.rs` decides whether a lookup may use a cache, and argues that no lookup returns a stale
//!   registration.
//! - `driver.rs` names the monitor.
//! - `registry.rs` finds the description of a cache by the address of the cache or of its table.
//! - `abi.rs` declares UCX's structures, and lists the versions of UCX whose structures are known.
//! - `real.rs` finds UCX's own functions.
//! - `notice.rs` writes messages for the user, and `counts.rs` counts for the summary at exit.
//!
//! # Rules
//!
//! The library is not linked with UCX. It may be preloaded into any program, and does nothing in a
//! program that does not use UCX. A cache that the library cannot serve keeps UCX's own monitor,
//! and the user is told the reason once.

mod abi;
mod cache;
mod counts;
mod driver;
mod gate;
mod interpose;
mod notice;
mod real;
mod registry;
