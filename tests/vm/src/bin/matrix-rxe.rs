//! Runs each scenario with each monitor on an RDMA device, and prints a table of the outcomes. The
//! program needs the VM: `cargo xtask vm -- target/release/matrix-rxe`

use std::process::ExitCode;

use regcache_conformance::{matrix_program, scenarios};

fn main() -> ExitCode {
    matrix_program(regcache_tests_vm::rxe_columns(), scenarios())
}
