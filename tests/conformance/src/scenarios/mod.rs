//! The scenarios: each way in which memory changes under an address, and some in which it does not.
//!
//! The memory is readable and writable again afterwards, at the same addresses. A scenario that
//! needs a newer kernel, or something that an administrator sets up, fails with `Unsupported`.

mod allocator;
mod basic;
mod calls;
mod files;
mod huge;
mod mappings;
mod processes;

use regcache_repro::Scenario;

pub use allocator::DEALLOC_THEN_ALLOC;
pub use basic::BASIC;

/// Returns all scenarios that a program can play whatever its allocator.
pub fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    [
        BASIC,
        mappings::MAPPINGS,
        files::FILES,
        huge::HUGE_PAGES,
        processes::PROCESSES,
    ]
    .into_iter()
    .flatten()
}
