//! `libregcache-fi.so`: a memory monitor for libfabric's registration caches, on the ummunotify
//! driver.
//!
//! The library is a provider of libfabric that offers no network. libfabric loads it from its
//! provider directory, or from `FI_PROVIDER_PATH`. The library then imports its monitor in place of
//! libfabric's default one (`provider.rs`). If the library is preloaded too, it also interposes the
//! functions that register memory, so that the first registration of a range can be cached
//! (`verbs.rs`). `docs/guide/stacks.md` describes the use.
//!
//! `watches.rs` argues that no stale registration is used. `process.rs` describes the locks.

mod callbacks;
mod gate;
mod libfabric;
mod notice;
mod process;
mod provider;
mod sync;
mod verbs;
pub mod watches;
