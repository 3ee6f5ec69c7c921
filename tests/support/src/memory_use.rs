//! Reads the amounts of pinned and of resident memory of this process.

use std::fs;

/// Returns the amount of memory that this process has pinned, in KiB.
///
/// # Panics
///
/// Panics if `/proc/self/status` does not contain the amount.
#[must_use]
pub fn pinned() -> u64 {
    status("VmPin:")
}

/// Returns the amount of resident memory of this process, in KiB.
///
/// # Panics
///
/// Panics if `/proc/self/status` does not contain the amount.
#[must_use]
pub fn resident() -> u64 {
    status("VmRSS:")
}

/// Returns the number in the line of `/proc/self/status` that starts with `name`.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status cannot be read");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.and_then(|number| number.parse().ok());
    number.expect("/proc/self/status does not contain the amount")
}
