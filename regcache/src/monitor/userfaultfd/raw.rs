//! The parts of `linux/userfaultfd.h` and `linux/fs.h` that the monitor needs.

use std::mem::size_of;

/// The version of the userfaultfd interface.
pub(super) const API: u64 = 0xaa;

/// A flag of `userfaultfd(2)`: handle only faults of user mode, which requires no privilege.
pub(super) const USER_MODE_ONLY: i32 = 1;

pub(super) const FEATURE_EVENT_REMAP: u64 = 1 << 2;
pub(super) const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
pub(super) const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
/// A feature since Linux 6.4. The kernel reports `WPALLOWED` only with this feature.
pub(super) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// A feature since Linux 6.7. The kernel reports `WPALLOWED` only with this feature.
pub(super) const FEATURE_WP_ASYNC: u64 = 1 << 15;

pub(super) const MODE_MISSING: u64 = 1 << 0;
pub(super) const MODE_WP: u64 = 1 << 1;

pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const EVENT_REMAP: u8 = 0x14;
pub(super) const EVENT_REMOVE: u8 = 0x15;
pub(super) const EVENT_UNMAP: u8 = 0x16;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Register {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WriteProtect {
    pub(super) range: Range,
    pub(super) mode: u64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ZeroPage {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) zeroed: i64,
}

/// `struct uffd_msg`. Each event that the reader uses has up to three words in its union.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Message {
    pub(super) event: u8,
    pub(super) reserved: [u8; 7],
    pub(super) words: [u64; 3],
}

/// The category of pages in a mapping that is registered for write protection. The kernel reports
/// it only with `FEATURE_WP_UNPOPULATED` and `FEATURE_WP_ASYNC`.
pub(super) const PAGE_IS_WPALLOWED: u64 = 1;
/// The category of pages that are present. A page is present while a device has it pinned.
pub(super) const PAGE_IS_PRESENT: u64 = 1 << 3;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scan {
    pub(super) size: u64,
    pub(super) flags: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) walk_end: u64,
    pub(super) vec: u64,
    pub(super) vec_len: u64,
    pub(super) max_pages: u64,
    pub(super) category_inverted: u64,
    pub(super) category_mask: u64,
    pub(super) category_anyof_mask: u64,
    pub(super) return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) categories: u64,
}

/// An advice of `asm-generic/mman-common.h`, since Linux 6.13.
pub(super) const MADV_GUARD_INSTALL: i32 = 102;

const _: () = assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32);
const _: () = assert!(size_of::<WriteProtect>() == 24 && size_of::<Message>() == 32);
const _: () = assert!(size_of::<ZeroPage>() == 32);
const _: () = assert!(size_of::<Scan>() == 96);

nix::ioctl_write_int_bad!(
    /// Makes a userfaultfd with these flags, through `/dev/userfaultfd`.
    ///
    /// # Safety
    ///
    /// The call has no preconditions.
    new, nix::request_code_none!(0xaa, 0x00)
);
nix::ioctl_readwrite!(
    /// Negotiates the version and the features of the interface.
    ///
    /// # Safety
    ///
    /// `data` may be read and written.
    api, 0xaa, 0x3f, Api
);
nix::ioctl_readwrite!(
    /// Registers the mappings in a range with the userfaultfd. The kernel splits mappings at the
    /// ends of the range.
    ///
    /// # Safety
    ///
    /// `data` may be read and written.
    register, 0xaa, 0x00, Register
);
nix::ioctl_read!(
    /// Ends the registration of the mappings in a range with the userfaultfd.
    ///
    /// # Safety
    ///
    /// `data` may be read.
    unregister, 0xaa, 0x01, Range
);
nix::ioctl_read!(
    /// Wakes the threads that wait for pages of a range, so that they repeat their access.
    ///
    /// # Safety
    ///
    /// `data` may be read.
    wake, 0xaa, 0x02, Range
);
nix::ioctl_readwrite!(
    /// Supplies pages of zeros for missing pages.
    ///
    /// # Safety
    ///
    /// `data` may be read and written.
    zero_page, 0xaa, 0x04, ZeroPage
);
nix::ioctl_readwrite!(
    /// Write-protects a range, or returns the error that prevents this.
    ///
    /// # Safety
    ///
    /// `data` may be read.
    write_protect, 0xaa, 0x06, WriteProtect
);
nix::ioctl_readwrite!(
    /// Searches a range for pages of given categories, and returns the number of regions found.
    ///
    /// # Safety
    ///
    /// `data` may be read and written. The regions that `data` points to may be written.
    pagemap_scan, b'f', 16, Scan
);
