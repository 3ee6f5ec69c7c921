//! The C library, libregcache, with all functions that `regcache.h` declares. The manual page
//! `regcache.3` is the reference of the library.
//!
//! The library dereferences no argument that it can recognise as bad. A handle is a number, which
//! the library looks up in a table. The memory of the table is never freed, and no number is
//! returned twice. So a second put of a guard returns an errno, and so does a lookup in a destroyed
//! cache. This holds with any number of threads.
//!
//! `cbindgen` generates the header from `types.rs` and `api.rs`, in this order. In the following
//! list, a file uses only files below it, except that a new thread record prepares the two tables:
//!
//! - `api.rs`: the functions of the header.
//! - `fast.rs`: the short way of a get that hits and of a put.
//! - `boundary.rs`: the wrapper of every call, which converts panics and errors to errnos and
//!   messages.
//! - `pools.rs`, `caches.rs`: the pools and the caches of the process.
//! - `table.rs`: the type of their tables, and the proof that no object is destroyed while a thread
//!   uses it.
//! - `guards.rs`: the table of guards, and the proof that each is taken back once. It uses the type
//!   of a cache.
//! - `device.rs`: one registrar type for `ibv_mr`s and for the registrations of callbacks.
//! - `thread_record.rs`, `free_slots.rs`: the state of each thread, which is separate so that hits
//!   of several threads share no cache line.
//! - `types.rs`: the structures and constants.
//! - `error.rs`: the errors, with their messages and errnos.
//! - `handle.rs`: the layout of handles.
//! - `membarrier.rs`: the asymmetric fence.
//!
//! The library itself has no locks. So a forked child cannot inherit a locked lock of the library.
#![warn(missing_docs)]

pub mod api;
mod boundary;
mod caches;
mod device;
mod error;
mod fast;
mod free_slots;
mod guards;
mod handle;
mod membarrier;
mod pools;
mod table;
mod thread_record;
pub mod types;

const _: () = assert!(usize::BITS == 64, "handles are 64-bit numbers");
