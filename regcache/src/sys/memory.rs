//! The sizes of memory, the call that populates pages of this process, and the one that describes
//! its mappings.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::unistd::{SysconfVar, sysconf};

/// A range of pages: `[start, end)`.
pub(crate) type Pages = (usize, usize);

/// The size of the pieces in which memory is populated: the size of a huge page on most machines.
const PIECE: usize = 2 << 20;

/// A flag of a mapping: it may be written.
pub(crate) const WRITABLE: u64 = 2;
/// The flags of a mapping that may be accessed in some way.
#[cfg(feature = "userfaultfd")]
pub(crate) const ACCESSIBLE: u64 = 7;
/// A flag of a mapping: it is shared.
pub(crate) const SHARED: u64 = 8;

/// Returns the size of a page of the running kernel, in bytes.
pub(crate) fn page_size() -> usize {
    system_value(SysconfVar::PAGE_SIZE, 4096)
}

/// Returns the size of the machine's memory, in bytes.
pub(crate) fn physical() -> usize {
    system_value(SysconfVar::_PHYS_PAGES, 1 << 18).saturating_mul(page_size())
}

fn system_value(which: SysconfVar, otherwise: usize) -> usize {
    match sysconf(which) {
        Ok(Some(value)) => usize::try_from(value).unwrap_or(otherwise),
        _ => otherwise,
    }
}

/// Populates the pages of a range as writes to them would. Private pages become pages of their own.
/// Returns false after an error, which ends the call.
///
/// The pages are populated in pieces, so that other threads can change mappings in between.
pub(crate) fn populate((start, end): Pages) -> bool {
    let mut at = start;
    while at < end {
        let next = (at | (PIECE - 1)).saturating_add(1).min(end);
        let address = std::ptr::without_provenance_mut(at);
        // SAFETY: the call has the effect of writing each page's present content to it. So no
        // reader of the memory sees a change.
        if unsafe { libc::madvise(address, next - at, libc::MADV_POPULATE_WRITE) } != 0 {
            return false;
        }
        at = next;
    }
    true
}

/// `struct procmap_query`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mapping {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    pub(crate) vma_end: u64,
    pub(crate) vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    pub(crate) inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<Mapping>() == 104);

/// Returns the mapping at an address. `maps` is `/proc/self/maps`. Linux before 6.11 returns
/// `ENOTTY`.
pub(crate) fn mapping_at(maps: &File, address: usize) -> nix::Result<Mapping> {
    let mut mapping = Mapping {
        size: size_of::<Mapping>() as u64,
        query_addr: address as u64,
        ..Mapping::default()
    };
    // SAFETY: the kernel writes only to the structure. The structure names no buffer, so the kernel
    // writes to no other memory.
    unsafe { ioctl::procmap_query(maps.as_raw_fd(), &raw mut mapping) }?;
    Ok(mapping)
}

mod ioctl {
    use super::Mapping;

    nix::ioctl_readwrite!(
        /// Returns the mapping at an address.
        ///
        /// # Safety
        ///
        /// `data` may be read and written.
        procmap_query, b'f', 17, Mapping
    );
}
