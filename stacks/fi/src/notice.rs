//! Writes messages for the user.

use std::fmt;

/// Writes one line to stderr with one call of `write`, so that the lines of several processes do
/// not mix.
pub(crate) fn notice(text: fmt::Arguments<'_>) {
    let line = format!("regcache: {text}\n");
    // SAFETY: the bytes may be read. If the program has closed stderr, the line is lost.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}
