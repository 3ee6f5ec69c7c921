//! Converts the results of verbs to `io::Result`s.

use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;

/// Converts the result of a verb that returns an `int`: 0 or a positive errno. Some providers
/// instead return -1 and set `errno`, and some return a negative errno.
pub(crate) fn check(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        errno => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
    }
}

/// Converts the result of a verb that returns a pointer. The pointer is null if the verb failed and
/// set `errno`.
pub(crate) fn check_ptr<T>(result: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(result).ok_or_else(io::Error::last_os_error)
}
