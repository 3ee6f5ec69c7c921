//! The matrix's row of a program whose global allocator is mimalloc. It is to be told to give
//! memory back at once: `MIMALLOC_PURGE_DELAY=0 target/release/matrix-mimalloc`

use std::process::ExitCode;

use regcache_conformance::{DEALLOC_THEN_ALLOC, matrix_program, uring_columns};

#[global_allocator]
static MIMALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    matrix_program(uring_columns(), [DEALLOC_THEN_ALLOC])
}
