//! The parts of libibverbs's API that can be stated without linking it: the access flags, and the
//! fields of its structures that programs see. The preload shim uses them, because it has to load
//! where libibverbs is not installed.
//!
//! A test of `regcache-verbs` compares every value and offset here with the header's.
#![warn(missing_docs)]

mod access;
mod structures;

pub use access::Access;
pub use structures::{Context, Mr, Pd};
