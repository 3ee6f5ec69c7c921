//! Recognises huge pages of hugetlbfs.
//!
//! Such pages come from a pool that is sized for the program. A cached registration would keep them
//! out of the pool after `munmap`, until the reaper has run. So the cache keeps none.

use std::ffi::c_void;
use std::io;
use std::ptr;

/// The largest size of ordinary pages, which is also the smallest size of huge pages.
const LARGEST_PAGE: usize = 1 << 16;

/// Returns true if the byte at `addr` is in a huge page of hugetlbfs. Needs Linux 5.16, and returns
/// false on older kernels.
///
/// Only for huge pages does `mremap` refuse an address inside the page with `EINVAL`. If the size
/// stays the same, `mremap` changes nothing.
pub(crate) fn is_huge(addr: usize) -> bool {
    // SAFETY: the call has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page) = usize::try_from(page) else {
        return false;
    };
    let start = addr & !(page - 1);
    let inside = if start.is_multiple_of(LARGEST_PAGE) {
        start + page
    } else {
        start
    };
    let inside: *mut c_void = ptr::without_provenance_mut(inside);
    // SAFETY: the call changes no mapping, because the size stays the same.
    let refused = unsafe { libc::mremap(inside, page, page, 0) } == libc::MAP_FAILED;
    refused && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use memmap2::MmapMut;

    use super::*;

    #[test]
    fn ordinary_memory_and_holes_are_not_huge_and_stay_as_they_are() {
        let mut memory = MmapMut::map_anon(1 << 20).unwrap();
        memory.fill(7);
        let start = memory.as_ptr().addr();
        for offset in [0, 1, 4096, 1 << 16, (1 << 20) - 1] {
            assert!(!is_huge(start + offset), "{offset}");
        }
        assert!(memory.iter().all(|&byte| byte == 7));
        assert!(!is_huge(4096), "nothing is mapped there");
        assert!(!is_huge(usize::MAX));
    }
}
