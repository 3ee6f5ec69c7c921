//! Runs the program `stress` with jemalloc, which gives cached memory back to the kernel.

#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    regcache_conformance::stress_program("jemalloc")
}
