//! The scenarios. Most scenarios change the memory behind an address, each in a different way. Some
//! scenarios change nothing.
//!
//! After each scenario, the memory is readable and writable at the same addresses. A scenario fails
//! with `Unsupported` if it needs a newer kernel, or a setting that only an administrator can make.

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

/// Returns all scenarios that a program can run with any global allocator.
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
