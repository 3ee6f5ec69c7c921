//! `linux/ummunotify.h` in Rust, for programs that use the driver themselves.
//!
//! `kernel/Documentation/ummunotify.rst` defines each call.

use std::io;
use std::mem::size_of;
use std::os::fd::RawFd;

/// A range to watch: `struct ummunotify_register_ioctl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Register {
    /// The address of the first byte.
    pub start: u64,
    /// The address one past the last byte.
    pub end: u64,
    /// The name of the range in events and for unregistering.
    pub user_cookie: u64,
    /// [`PROTECTION`] or 0.
    pub flags: u32,
    /// A field that the driver ignores.
    pub reserved: u32,
}

/// One event that `read` returns: `struct ummunotify_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`INVAL`] or [`LAST`].
    pub kind: u32,
    /// [`HINT`] or 0.
    pub flags: u32,
    /// The first byte that may have changed.
    pub hint_start: u64,
    /// The address one past the last byte that may have changed.
    pub hint_end: u64,
    /// The range's cookie; in a [`LAST`] event, the generation counter.
    pub user_cookie_counter: u64,
}

/// A flag of [`Register`]: changes of protection invalidate the range as well.
pub const PROTECTION: u32 = 1;
/// A kind of event: a watched range was invalidated.
pub const INVAL: u32 = 0;
/// A kind of event: no range is invalid any more.
pub const LAST: u32 = 1;
/// A flag of an event: exactly one invalidation met the range, at the addresses of the hint.
pub const HINT: u32 = 1;

const _: () = assert!(size_of::<Register>() == 32 && size_of::<Event>() == 32);

/// Asks for the features in a mask. The driver replaces the mask by those that it grants: none.
///
/// # Errors
///
/// The driver's error; `ENOTTY` if `fd` is another file.
///
/// # Safety
///
/// `features` points to a mask that may be read and written.
pub unsafe fn exchange_features(fd: RawFd, features: *mut u32) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ioctl::exchange_features(fd, features) }?;
    Ok(())
}

/// Watches a range.
///
/// # Errors
///
/// The driver's error.
///
/// # Safety
///
/// `region` points to a structure that may be read, or to no memory at all.
pub unsafe fn register_region(fd: RawFd, region: *const Register) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ioctl::register_region(fd, region) }?;
    Ok(())
}

/// Stops watching the range with this cookie.
///
/// # Errors
///
/// The driver's error; `EINVAL` if no range has the cookie.
///
/// # Safety
///
/// `cookie` points to a cookie that may be read, or to no memory at all.
pub unsafe fn unregister_region(fd: RawFd, cookie: *const u64) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ioctl::unregister_region(fd, cookie) }?;
    Ok(())
}

mod ioctl {
    use super::Register;

    nix::ioctl_readwrite!(exchange_features, b'U', 1, u32);
    nix::ioctl_write_ptr!(register_region, b'U', 2, Register);
    nix::ioctl_write_ptr!(unregister_region, b'U', 3, u64);
}
