//! What of libibverbs can be said without linking it: the access flags, and the parts of its structures
//! that programs see. For what must load where there is no libibverbs, as the preload shim.
//!
//! `regcache-verbs` compares every value and offset here with the header's.
#![warn(missing_docs)]

mod access;
mod structures;

pub use access::Access;
pub use structures::{Context, Mr, Pd};
