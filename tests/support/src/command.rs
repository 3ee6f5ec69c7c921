//! Commands that prepare the machine or a library for a test.

use std::process::Command;

/// Runs a program. Panics with the program's output if the program fails.
pub(crate) fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let succeeded = output.as_ref().is_ok_and(|it| it.status.success());
    assert!(succeeded, "{program} {arguments:?}: {output:?}");
}

/// Runs the command, and returns its output without the end of the line. Panics with the output if
/// the command fails.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output();
    let succeeded = output.as_ref().is_ok_and(|it| it.status.success());
    assert!(succeeded, "{command:?}: {output:?}");
    let stdout = output.map(|it| it.stdout).unwrap_or_default();
    String::from_utf8_lossy(&stdout).trim().to_owned()
}
