//! Allocates, frees, forks and looks up in threads for a long time, to find deadlocks with malloc.

fn main() -> std::process::ExitCode {
    regcache_conformance::stress_program("libc's malloc")
}
