//! `linux/ummunotify.h` in Rust, for programs that talk to the driver themselves.
//!
//! `kernel/Documentation/ummunotify.rst` says what each call promises.

use std::mem::size_of;

/// `struct ummunotify_register_ioctl`: a range to watch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Register {
    /// Address of the first byte.
    pub start: u64,
    /// Address one past the last byte.
    pub end: u64,
    /// Names the range in events and for unregistering.
    pub user_cookie: u64,
    /// Ignored, whatever it holds.
    pub flags: u32,
    /// Ignored, whatever it holds.
    pub reserved: u32,
}

/// `struct ummunotify_register2`: a range to watch, and how.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Register2 {
    /// Size of this structure, as the caller knows it.
    pub size: u32,
    /// [`PROTECTION`] and [`MUST_BE_BACKED`], or neither.
    pub flags: u32,
    /// Address of the first byte.
    pub start: u64,
    /// Address one past the last byte.
    pub end: u64,
    /// Names the range in events and for unregistering.
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

/// `struct ummunotify_event`: what `read` returns, an array of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`INVAL`] or [`LAST`].
    pub kind: u32,
    /// [`HINT`] or 0.
    pub flags: u32,
    /// First byte that may have changed.
    pub hint_start: u64,
    /// One past the last byte that may have changed.
    pub hint_end: u64,
    /// The range's cookie, or the generation counter if this is [`LAST`].
    pub user_cookie_counter: u64,
}

/// A flag of [`Register2`]: changes of protection invalidate the range as well.
pub const PROTECTION: u32 = 1;
/// A flag of [`Register2`]: a range without memory whose changes are announced is refused with `ENXIO`.
pub const MUST_BE_BACKED: u32 = 1 << 1;
/// A watched range was invalidated.
pub const INVAL: u32 = 0;
/// No range is invalid.
pub const LAST: u32 = 1;
/// Exactly one invalidation hit the range, where the hint says.
pub const HINT: u32 = 1;

const _: () = assert!(
    size_of::<Register>() == 32 && size_of::<Register2>() == 32 && size_of::<Event>() == 32
);

nix::ioctl_readwrite! {
    /// Asks which features the driver has; grants none.
    ///
    /// # Safety
    ///
    /// `data` points to a mask that may be written.
    exchange_features, b'U', 1, u32
}
nix::ioctl_write_ptr! {
    /// Watches a range.
    ///
    /// # Safety
    ///
    /// `data` points to a range that may be read.
    register_region, b'U', 2, Register
}
nix::ioctl_write_ptr! {
    /// Stops watching the range with this cookie.
    ///
    /// # Safety
    ///
    /// `data` points to a cookie that may be read.
    unregister_region, b'U', 3, u64
}
nix::ioctl_write_ptr_bad! {
    /// Watches a range, as its flags say. `ENOTTY` if the driver is older than this call.
    ///
    /// # Safety
    ///
    /// `data` points to a range that may be read, and to as many bytes as its size says.
    register_region2, nix::request_code_none!(b'U', 4), Register2
}
