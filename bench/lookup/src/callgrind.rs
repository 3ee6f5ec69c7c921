//! Counts instructions with callgrind.

use std::io;
use std::path::Path;
use std::process::Command;

/// The number of operations in the first run.
const FEW: u32 = 20_000;

/// The number of operations in the second run.
const MANY: u32 = 120_000;

/// Returns whether valgrind is installed.
pub fn is_installed() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

/// Returns the number of instructions of one operation of `program`. This function appends the
/// number of operations to `arguments`.
///
/// The program runs twice, with two different numbers of operations. Only the difference of the two
/// instruction counts is used. So the instructions outside the operations cancel out.
///
/// # Errors
///
/// Returns an error if valgrind or the program fails.
pub fn per_operation(program: &Path, arguments: &[&str]) -> io::Result<f64> {
    per_operation_within(program, arguments, &[])
}

/// Does the same as [`per_operation`], but counts only the instructions of these functions and of
/// those that they call. If there are no functions, counts all instructions.
///
/// # Errors
///
/// Returns an error if valgrind or the program fails.
pub fn per_operation_within(
    program: &Path,
    arguments: &[&str],
    functions: &[&str],
) -> io::Result<f64> {
    let few = count(program, arguments, functions, FEW)?;
    let many = count(program, arguments, functions, MANY)?;
    Ok((many - few) / f64::from(MANY - FEW))
}

fn count(
    program: &Path,
    arguments: &[&str],
    functions: &[&str],
    operations: u32,
) -> io::Result<f64> {
    let only = functions
        .iter()
        .map(|name| format!("--toggle-collect={name}"));
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(only)
        .arg(program)
        .args(arguments)
        .arg(operations.to_string())
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match collected {
        Some(count) if ran.status.success() => Ok(count),
        _ => Err(io::Error::other(format!(
            "valgrind {} {}: {}\n{said}",
            program.display(),
            arguments.join(" "),
            ran.status
        ))),
    }
}
