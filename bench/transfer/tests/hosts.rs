//! Tests transfers between two hosts, a server and a client. The tests simulate the hosts on one
//! machine. On every kernel the hosts are two processes, and the client connects to the address of
//! an interface. On kernels whose rxe works in network namespaces, one test simulates each host by
//! a namespace. The tests need the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The exit status of hosts.sh if rxe cannot be used in a network namespace.
const NOT_HERE: i32 = 77;

const TRANSFER: &str = env!("CARGO_BIN_EXE_transfer");

/// Runs one test at a time, because the tests make interfaces with the same names.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn script(name: &str, arguments: &[&str]) -> (Output, String) {
    let mut command = Command::new("sh");
    command.arg(format!("{}/{name}", env!("CARGO_MANIFEST_DIR")));
    let output = command.args(arguments).output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    println!("{text}");
    (output, text)
}

/// Runs a server and a client as two processes on one machine. The client connects to the address
/// of an interface.
fn by_an_interface(client: &str) -> (Output, String) {
    let both = format!(
        "timeout 300 {TRANSFER} server 10.78.0.1:18515 --clients 1 & sleep 3; \
         {TRANSFER} client 10.78.0.1 {client}"
    );
    script("interface.sh", &["sh", "-c", &both])
}

/// Returns whether the kernel's rxe opens its sockets in the network namespace of its interface.
fn rxe_has_namespaces() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let major = release.split('.').next().unwrap();
    major.parse::<u32>().unwrap() >= 7
}

#[test]
fn bytes_are_moved_between_namespaces_and_checked_while_their_memory_is_freed() {
    let _alone = alone();
    let (output, text) = script(
        "hosts.sh",
        &[TRANSFER, "--move", "8", "--message", "300000"],
    );
    if rxe_has_namespaces() {
        assert!(output.status.success(), "{:?}", output.status);
        assert!(text.contains("moved 8388608 bytes"));
        assert!(text.contains("stale_bytes=0 monitor=ummunotify"));
    } else {
        // This rxe cannot be used in a network namespace. The next test makes the same transfers in
        // one namespace.
        let status = output.status.code();
        assert_eq!(
            status,
            Some(NOT_HERE),
            "rxe works in a namespace here: remove this branch"
        );
    }
}

#[test]
fn bytes_are_moved_and_checked_while_their_memory_is_freed() {
    let _alone = alone();
    let (output, text) = by_an_interface("--move 8 --message 300000");
    assert!(output.status.success(), "{:?}", output.status);
    assert!(text.contains("moved 8388608 bytes"));
    assert!(text.contains("stale_bytes=0 monitor=ummunotify"));
    assert!(
        !text.contains(" 0 of them at an address"),
        "no message was at an address that was freed before"
    );
}

#[test]
fn the_receiver_finds_a_cache_out_that_is_told_nothing() {
    let _alone = alone();
    let (output, text) = by_an_interface("--move 8 --message 300000 --naive");
    assert!(!output.status.success());
    assert!(text.contains("moved 8388608 bytes"));
    assert!(!text.contains("stale_bytes=0 "));
}

#[test]
fn a_benchmark_runs_against_a_server() {
    let _alone = alone();
    // Each operation uses a separate connection, and the server ends after one connection. So each
    // operation runs with a new server.
    let one = "--size 10000 --depth 4 --seconds 0.1 --strategy regcache --op";
    for op in ["write", "read", "send"] {
        let (output, text) = by_an_interface(&format!("{one} {op}"));
        assert!(output.status.success(), "{:?}", output.status);
        let line = format!("rxe {op}/depth=4 10000 regcache ");
        assert!(text.contains(&line), "no {line}");
    }
}

#[test]
fn where_nobody_listens_it_says_so() {
    let _alone = alone();
    let (output, text) = script(
        "interface.sh",
        &[TRANSFER, "client", "10.78.0.1:18599", "--move", "1"],
    );
    assert!(!output.status.success());
    assert!(text.contains("does a program listen there?"), "{text}");
}
