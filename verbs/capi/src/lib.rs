//! The C library, libregcache: everything that `regcache.h` declares. The manual page `regcache.3`
//! is its reference.
//!
//! No bad argument is dereferenced, as far as it can be told from a good one. A handle is a number,
//! looked up in a table whose memory is never freed, and no number is given out twice. A second put
//! of a guard, or a lookup in a cache that was destroyed, is an errno, with any number of threads.
//!
//! `cbindgen` generates the header from `types.rs` and `api.rs`, in this order. From the top down,
//! no file uses one above it:
//!
//! - `api.rs`: the functions.
//! - `boundary.rs`: the frame around every call. It turns panics and errors into errnos and
//!   messages.
//! - `caches.rs`: the table of caches, and the proof that none is destroyed while a thread uses it.
//! - `guards.rs`: the table of guards, and the proof that each is taken back once.
//! - `device.rs`: one registrar for `ibv_mr`s and for callbacks.
//! - `thread_record.rs`, `free_slots.rs`: each thread's own state, so that hits of several threads
//!   share no cache line.
//! - `types.rs`: the structures and constants.
//! - `error.rs`: the errors, with their messages and errnos.
//! - `handle.rs`: the layout of handles.
//! - `membarrier.rs`: the asymmetric fence.
//!
//! The library has no locks of its own, so that a forked child finds none locked.
#![warn(missing_docs)]

pub mod api;
mod boundary;
mod caches;
mod device;
mod error;
mod free_slots;
mod guards;
mod handle;
mod membarrier;
mod thread_record;
pub mod types;

const _: () = assert!(usize::BITS == 64, "handles are 64-bit numbers");
