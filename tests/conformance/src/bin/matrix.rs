//! Runs each scenario with each monitor on io_uring, and prints a table of the outcomes.

use std::process::ExitCode;

use regcache_conformance::{Column, Verdict, matrix_program, scenarios, uring_columns};
use regcache_hooks::Hooks;

/// Scenarios that change memory without a call of a function that the hooks replace. The hooks miss
/// these changes, so the matrix fails if the cell of such a scenario is not stale. In the other
/// scenarios, the hooks may also be stale.
const UNSEEN: &[&str] = &[
    "raw_munmap_then_mmap",
    "madvise_dontneed_locked",
    "process_madvise_dontneed",
    "munmap_by_a_child_that_shares_the_memory",
    "ftruncate_of_a_memfd",
    "ftruncate_by_another_process",
    "fallocate_hole_in_a_memfd",
];

fn main() -> ExitCode {
    let mut columns = uring_columns();
    let verdict = Verdict::StaleWhere(|scenario| UNSEEN.contains(&scenario.name));
    columns.insert(2, Column::of_uring("hooks", verdict, || Ok(Hooks::new())));
    matrix_program(columns, scenarios())
}
