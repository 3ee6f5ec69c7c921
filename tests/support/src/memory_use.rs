//! How much memory this process has pinned, and how much is resident.

use std::fs;

/// Returns the kilobytes that this process has pinned.
///
/// # Panics
///
/// If `/proc/self/status` has no such line.
#[must_use]
pub fn pinned() -> u64 {
    status("VmPin:")
}

/// Returns the kilobytes of this process that are resident.
///
/// # Panics
///
/// If `/proc/self/status` has no such line.
#[must_use]
pub fn resident() -> u64 {
    status("VmRSS:")
}

/// The number in this line of the process's status.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("in every process's directory");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.and_then(|number| number.parse().ok());
    number.expect("in every process's status")
}
