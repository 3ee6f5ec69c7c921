//! Commands that prepare the machine for a test.

use std::process::Command;

/// Runs a program. Panics with the program's output if the program fails.
pub(crate) fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let succeeded = output.as_ref().is_ok_and(|it| it.status.success());
    assert!(succeeded, "{program} {arguments:?}: {output:?}");
}
