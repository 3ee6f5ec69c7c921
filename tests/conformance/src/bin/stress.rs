//! Threads that allocate, free, fork and look up for a long time, with malloc's own memory cached: whether anything
//! ever stands still.

fn main() -> std::process::ExitCode {
    regcache_conformance::stress_program("libc's malloc")
}
