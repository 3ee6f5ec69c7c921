//! The C library: what `regcache.h` declares. The manual page `regcache.3` has the whole of it.
//!
//! Nothing that C hands in is dereferenced before it is known to be what it should be, as far as that can be known: handles
//! are numbers, looked up in tables whose memory is never given back, and no number is ever given out twice. A put of a
//! guard that was put, and a lookup in a cache that was destroyed, by any number of threads at once, is an errno.
//!
//! - `types.rs`, `api.rs`: the header, in its order. `cbindgen` makes it of these two.
//! - `call.rs`: what goes on around every call: panics end there, errors become numbers and messages.
//! - `guards.rs`: the table of guards, and why a put happens once.
//! - `caches.rs`: the table of caches, and why none is destroyed under somebody who uses it.
//! - `thread.rs`: what a thread has for itself, so that hits of several threads share no cache line.
//! - `device.rs`: `ibv_mr`s and callbacks, one registrar.
//!
//! There are no locks here: whatever a thread was doing when another one forked, the child finds nothing locked.
#![warn(missing_docs)]

pub mod api;
mod caches;
mod call;
mod device;
mod error;
mod fence;
mod guards;
mod number;
mod thread;
pub mod types;

const _: () = assert!(usize::BITS == 64, "handles are 64-bit numbers");
