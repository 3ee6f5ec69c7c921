//! The scenarios. Most scenarios change the memory behind an address, each in a different way. Some
//! scenarios change nothing.
//!
//! After each scenario, the memory is readable and writable at the same addresses. A scenario fails
//! with `Unsupported` if it needs a newer kernel, or a setting that only an administrator can make.
//!
//! To add a scenario:
//!
//! 1. Add the scenario to the list in the module that fits. `BASIC` is only for scenarios in which
//!    a naive cache is stale, and after which the changed part reads as zeros.
//! 2. Set `replaces: false` if the pages may stay. Otherwise the matrix requires that a naive cache
//!    is stale.
//! 3. If the hooks miss the change, and the pages never stay, add the name of the scenario to
//!    `UNSEEN` in `tests/conformance/src/bin/matrix.rs`.
//! 4. If userfaultfd can watch the memory but sends no event for the change, extend `is_silent` in
//!    `tests/conformance/src/matrix.rs`.
//! 5. If the result can depend on libc, add the name to `STATIC_SCENARIOS` in
//!    `xtask/src/matrix.rs`.
//! 6. Correct the number of scenarios in `docs/design/why-a-driver.md`. Then run
//!    `cargo xtask test --matrix`, which writes the new table into this document.

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
