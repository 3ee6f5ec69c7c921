//! Runs the stress with jemalloc as the global allocator. jemalloc returns memory to the kernel
//! even if the cache has registered it.

#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    regcache_conformance::stress_program("jemalloc")
}
