//! `linux/ummunotify.h` in Rust, for programs that use the driver ummunotify directly.
//!
//! The manual page ummunotify(4) describes each call. Most programs should use the crate
//! `regcache`, whose cache is built on this interface.
//!
//! A program opens `/dev/ummunotify` for reading and watches ranges of its own memory. When a
//! watched range changes, `read` returns an [`Event`] with the range's cookie. The first page of
//! the file, mapped with `PROT_READ`, begins with a counter that rises before each change.
#![warn(missing_docs)]

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
    /// The cookie that names the range in events and in [`unregister_region`].
    pub user_cookie: u64,
    /// The driver ignores this field.
    pub flags: u32,
    /// The driver ignores this field.
    pub reserved: u32,
}

/// A range to watch, with options: `struct ummunotify_register2`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Register2 {
    /// The size of this structure in bytes, in the version that the caller was compiled with.
    pub size: u32,
    /// The options: any combination of [`PROTECTION`] and [`MUST_BE_BACKED`], or 0.
    pub flags: u32,
    /// The address of the first byte.
    pub start: u64,
    /// The address one past the last byte.
    pub end: u64,
    /// The cookie that names the range in events and in [`unregister_region`].
    pub user_cookie: u64,
}

impl Default for Register2 {
    fn default() -> Self {
        Self {
            size: size_of::<Self>() as u32,
            flags: 0,
            start: 0,
            end: 0,
            user_cookie: 0,
        }
    }
}

/// One event that `read` returns: `struct ummunotify_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The kind of event: [`INVAL`] or [`LAST`].
    pub kind: u32,
    /// The flags: [`HINT`] or 0.
    pub flags: u32,
    /// The first byte that may have changed.
    pub hint_start: u64,
    /// The address one past the last byte that may have changed.
    pub hint_end: u64,
    /// The range's cookie; in a [`LAST`] event, the generation counter.
    pub user_cookie_counter: u64,
}

/// A flag of [`Register2`]: changes of protection invalidate the range as well.
pub const PROTECTION: u32 = 1;
/// A flag of [`Register2`]: the driver refuses a range with `ENXIO` unless the kernel reports the
/// changes of the memory behind each byte.
pub const MUST_BE_BACKED: u32 = 1 << 1;
/// A kind of event: a watched range was invalidated.
pub const INVAL: u32 = 0;
/// A kind of event: no watched range is invalid any more.
pub const LAST: u32 = 1;
/// A flag of an event: exactly one invalidation met the range, from `hint_start` to `hint_end`.
pub const HINT: u32 = 1;

const _: () = assert!(
    size_of::<Register>() == 32 && size_of::<Register2>() == 32 && size_of::<Event>() == 32
);

/// Requests the features in the mask that `features` points to. The driver replaces the mask by the
/// features that it grants. No features exist yet, so the mask becomes 0.
///
/// # Errors
///
/// Returns the driver's error. The error is `ENOTTY` if `fd` is not the driver's device.
///
/// # Safety
///
/// `features` points to a mask that may be read and written.
pub unsafe fn exchange_features(fd: RawFd, features: *mut u32) -> io::Result<()> {
    // SAFETY: the caller meets the conditions above, and this call needs no others.
    unsafe { ioctl::exchange_features(fd, features) }?;
    Ok(())
}

/// Watches a range.
///
/// # Errors
///
/// Returns the driver's error.
///
/// # Safety
///
/// `region` points to a structure that may be read, or to no memory at all.
pub unsafe fn register_region(fd: RawFd, region: *const Register) -> io::Result<()> {
    // SAFETY: the caller meets the conditions above, and this call needs no others.
    unsafe { ioctl::register_region(fd, region) }?;
    Ok(())
}

/// Watches a range, with the options that its flags set.
///
/// # Errors
///
/// Returns the driver's error. The error is `ENOTTY` if the driver is too old to have this call. It
/// is `EINTR` if a signal interrupted the wait for an invalidation in flight. After an error the
/// range is not watched.
///
/// # Safety
///
/// `region` points to a structure of `size` bytes that may be read, or to no memory at all.
pub unsafe fn register_region2(fd: RawFd, region: *const Register2) -> io::Result<()> {
    // SAFETY: the caller meets the conditions above, and this call needs no others.
    unsafe { ioctl::register_region2(fd, region) }?;
    Ok(())
}

/// Stops watching the range with this cookie.
///
/// # Errors
///
/// Returns the driver's error. The error is `EINVAL` if no range has the cookie.
///
/// # Safety
///
/// `cookie` points to a cookie that may be read, or to no memory at all.
pub unsafe fn unregister_region(fd: RawFd, cookie: *const u64) -> io::Result<()> {
    // SAFETY: the caller meets the conditions above, and this call needs no others.
    unsafe { ioctl::unregister_region(fd, cookie) }?;
    Ok(())
}

mod ioctl {
    use super::{Register, Register2};

    nix::ioctl_readwrite!(exchange_features, b'U', 1, u32);
    nix::ioctl_write_ptr!(register_region, b'U', 2, Register);
    nix::ioctl_write_ptr!(unregister_region, b'U', 3, u64);
    nix::ioctl_write_ptr_bad!(
        register_region2,
        nix::request_code_none!(b'U', 4),
        Register2
    );
}
