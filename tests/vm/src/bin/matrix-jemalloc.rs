//! Runs the matrix in a program whose global allocator is jemalloc. These settings make jemalloc
//! return freed memory to the kernel at once: `_RJEM_MALLOC_CONF=dirty_decay_ms:0,muzzy_decay_ms:0
//! target/release/matrix-jemalloc`

use std::process::ExitCode;

use regcache_conformance::{DEALLOC_THEN_ALLOC, matrix_program, uring_columns};

#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    matrix_program(uring_columns(), [DEALLOC_THEN_ALLOC])
}
