//! Between two hosts, which are two network namespaces. Needs the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};

/// By which hosts.sh says that rxe cannot be used in a namespace.
const NOT_HERE: i32 = 77;

fn hosts(arguments: &[&str]) -> (Output, String) {
    let mut command = Command::new("sh");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/hosts.sh"));
    command.arg(env!("CARGO_BIN_EXE_bench")).args(arguments);
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    println!("{text}");
    (output, text)
}

/// Which the kernel has been since rxe has had its sockets where its interfaces are.
fn rxe_has_namespaces() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let major = release.split('.').next().unwrap();
    major.parse::<u32>().unwrap() >= 7
}

#[test]
fn bytes_are_moved_and_checked_while_their_memory_is_freed() {
    let (output, text) = hosts(&["--move", "8", "--message", "300000"]);
    if rxe_has_namespaces() {
        assert!(output.status.success(), "{:?}", output.status);
        assert!(text.contains("moved 8388608 bytes"));
        assert!(text.contains("stale_bytes=0 monitor=ummunotify"));
    } else {
        // `a_server_checks_what_is_moved_to_it_while_its_memory_is_freed` does the same over lo.
        assert_eq!(
            output.status.code(),
            Some(NOT_HERE),
            "it can be used here: take this away"
        );
    }
}
