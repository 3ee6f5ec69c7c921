//! Runs the matrix in a program whose global allocator is mimalloc. This setting makes mimalloc
//! return freed memory to the kernel at once: `MIMALLOC_PURGE_DELAY=0
//! target/release/matrix-mimalloc`

use std::process::ExitCode;

use regcache_conformance::{DEALLOC_THEN_ALLOC, matrix_program, uring_columns};

#[global_allocator]
static MIMALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    matrix_program(uring_columns(), [DEALLOC_THEN_ALLOC])
}
