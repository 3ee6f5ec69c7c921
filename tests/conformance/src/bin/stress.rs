//! Allocates, frees, forks and looks up in several threads, to find deadlocks between the cache and
//! malloc.

fn main() -> std::process::ExitCode {
    regcache_conformance::stress_program("libc's malloc")
}
