//! As `stress`, with jemalloc for an allocator: what is cached is memory that it gives back to the
//! kernel.

#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    regcache_conformance::stress_program("jemalloc")
}
