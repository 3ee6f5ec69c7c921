//! The parts of libibverbs's API that need no linking: the access flags, and the public fields of
//! the structures. The preload shim uses this crate, because the shim must also load on machines
//! without libibverbs.
//!
//! A test of `regcache-verbs` compares every value and offset in this crate with the header of
//! libibverbs.
#![warn(missing_docs)]

mod access;
mod structures;

pub use access::Access;
pub use structures::{Context, Mr, Pd};
