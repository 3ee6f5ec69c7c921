//! Tests programs that replace the global allocator. The allocator returns freed memory to the
//! kernel. After that, a naive cache must return a stale registration, and a cache with a sound
//! monitor must not return one. These tests do not run under a sanitizer, because a sanitizer also
//! replaces the allocator.
#![cfg(not(any(sanitizer = "address", sanitizer = "thread")))]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

fn ends_well(program: &str, variable: &str, value: &str) {
    let output = Command::new(program).env(variable, value).output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{table}{said}");
    assert!(output.status.success(), "{}", output.status);
    assert!(
        table.contains("| dealloc_then_alloc | STALE |"),
        "the naive cache was not stale"
    );
}

#[test]
fn of_jemalloc() {
    let give_back = "dirty_decay_ms:0,muzzy_decay_ms:0";
    let program = env!("CARGO_BIN_EXE_matrix-jemalloc");
    ends_well(program, "_RJEM_MALLOC_CONF", give_back);
}

#[test]
fn of_mimalloc() {
    let program = env!("CARGO_BIN_EXE_matrix-mimalloc");
    ends_well(program, "MIMALLOC_PURGE_DELAY", "0");
}
