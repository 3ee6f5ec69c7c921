//! The operating system and the synchronisation primitives, as the cache uses them.

pub(crate) mod cancel;
pub(crate) mod descriptor;
pub(crate) mod file_id;
pub(crate) mod fork;
pub(crate) mod memory;
pub(crate) mod notices;
pub(crate) mod prefetch;
pub(crate) mod sync;
pub(crate) mod thread;
mod thread_word;
pub(crate) mod worker;
pub(crate) mod zeroed;
