//! [`Mappings`]: queries the kernel about the mappings of given pages.
//!
//! Only private anonymous memory can be watched. The pages of a file also change if the file is
//! truncated or a hole is punched. Any process can do this through any file descriptor, and
//! userfaultfd does not report it. Memfds and System V segments count as files. Private mappings of
//! a file are refused as well: truncating the file removes even the pages that were copied.
//!
//! Memory that may not be accessed (`PROT_NONE`) has no pages to register. A device may have its
//! own memory at such addresses, and no monitor reports changes of device memory. So `PROT_NONE`
//! memory is refused too.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::PoisonError;

use nix::errno::Errno;

use super::coverage::Pages;
use super::raw;
use crate::sys::descriptor::Private;
use crate::sys::memory;

/// `/proc/self/maps` and `/proc/self/pagemap`, of the process that opened them.
#[derive(Debug)]
pub(super) struct Mappings {
    /// The file `maps`. On old kernels the monitor reads this file as text, and the lock protects
    /// the file's offset.
    maps: Mutex<Private<File>>,
    pagemap: Private<File>,
}

impl Mappings {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            maps: Mutex::new(Private::new(File::open("/proc/self/maps")?)?),
            pagemap: Private::new(File::open("/proc/self/pagemap")?)?,
        })
    }

    /// Returns true if each of the pages belongs to an armed mapping (see `mod.rs`).
    ///
    /// The scan does not report holes, so a second call looks for holes. The second call comes
    /// after the scan, and so also finds holes that were made since. Neither call examines single
    /// pages, so the time does not depend on the number of pages.
    pub(super) fn are_armed(&self, pages: Pages) -> io::Result<bool> {
        let unarmed = raw::Scan {
            category_inverted: raw::PAGE_IS_WPALLOWED,
            category_mask: raw::PAGE_IS_WPALLOWED,
            ..raw::Scan::default()
        };
        Ok(!self.finds(unarmed, pages)? && is_covered(pages))
    }

    /// Returns true if each of the pages is present and belongs to an armed mapping. The call takes
    /// 3 ns for each page or huge page.
    pub(super) fn are_armed_and_present(&self, pages: Pages) -> io::Result<bool> {
        let either = raw::PAGE_IS_WPALLOWED | raw::PAGE_IS_PRESENT;
        let unarmed_or_missing = raw::Scan {
            category_inverted: either,
            category_anyof_mask: either,
            ..raw::Scan::default()
        };
        Ok(!self.finds(unarmed_or_missing, pages)? && is_covered(pages))
    }

    /// Returns true if at least one of the pages meets the conditions of `scan`.
    fn finds(&self, scan: raw::Scan, (start, end): Pages) -> io::Result<bool> {
        let mut found = raw::Region::default();
        let mut scan = raw::Scan {
            size: size_of::<raw::Scan>() as u64,
            start: start as u64,
            end: end as u64,
            vec: (&raw mut found).expose_provenance() as u64,
            vec_len: 1,
            max_pages: 1,
            return_mask: raw::PAGE_IS_WPALLOWED,
            ..scan
        };
        // SAFETY: the kernel writes to the structure and to one region at most, which is `found`.
        Ok(unsafe { raw::pagemap_scan(self.pagemap.unchecked().as_raw_fd(), &raw mut scan) }? > 0)
    }

    /// Returns an error for memory that is not private and anonymous, or that may not be accessed.
    pub(super) fn check_kind(&self, pages: Pages) -> io::Result<()> {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let maps = maps.get()?;
        let mut at = pages.0;
        while at < pages.1 {
            let mapping = match memory::mapping_at(maps, at) {
                // Linux before 6.11 does not have the query.
                Err(Errno::ENOTTY) => return check_text(maps, pages),
                asked => asked?,
            };
            if mapping.inode != 0 || mapping.vma_flags & memory::SHARED != 0 {
                return Err(unsupported());
            }
            if mapping.vma_flags & memory::ACCESSIBLE == 0 {
                return Err(inaccessible());
            }
            at = usize::try_from(mapping.vma_end).map_err(|_| Errno::EOVERFLOW)?;
        }
        Ok(())
    }
}

/// Does the same as [`Mappings::check_kind`], by reading the text of `/proc/self/maps`.
fn check_text(mut maps: &File, (start, end): Pages) -> io::Result<()> {
    let mut text = String::new();
    maps.rewind()?;
    maps.read_to_string(&mut text)?;
    let mut at = start;
    for line in text.lines() {
        let mapping = MapsLine::parse(line).ok_or(io::ErrorKind::InvalidData)?;
        if mapping.end <= at {
            continue;
        }
        if mapping.start > at {
            break;
        }
        if !mapping.is_private_anonymous {
            return Err(unsupported());
        }
        if !mapping.is_accessible {
            return Err(inaccessible());
        }
        at = mapping.end;
        if at >= end {
            return Ok(());
        }
    }
    Err(Errno::ENOENT.into())
}

/// A line of `/proc/self/maps`.
struct MapsLine {
    start: usize,
    end: usize,
    is_private_anonymous: bool,
    is_accessible: bool,
}

impl MapsLine {
    /// Parses a line such as `7f00-7f01 rw-p 00000000 00:00 0 [name]`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?;
        let inode = words.nth(2)?;
        Some(Self {
            start: usize::from_str_radix(start, 16).ok()?,
            end: usize::from_str_radix(end, 16).ok()?,
            is_private_anonymous: permissions.ends_with('p') && inode == "0",
            is_accessible: !permissions.starts_with("---"),
        })
    }
}

/// Returns true if every page of the range is mapped. With `MS_ASYNC`, `msync` does nothing except
/// check the range: it returns an error if a page is not mapped.
fn is_covered((start, end): Pages) -> bool {
    // SAFETY: with `MS_ASYNC` the call changes no memory, whatever is mapped at these addresses.
    unsafe {
        libc::msync(
            std::ptr::without_provenance_mut(start),
            end - start,
            libc::MS_ASYNC,
        ) == 0
    }
}

fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "not private anonymous memory: userfaultfd does not report changes of a file's pages",
    )
}

fn inaccessible() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "memory that may not be accessed: if a device has memory there, its changes are not reported",
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use memmap2::MmapMut;

    use super::*;

    fn pages(map: &MmapMut) -> Pages {
        (map.as_ptr().addr(), map.as_ptr().addr() + map.len())
    }

    #[test]
    fn the_text_says_what_the_query_says() {
        let mappings = Mappings::open().unwrap();
        let maps = mappings.maps.lock().unwrap();
        let maps = maps.get().unwrap();
        let ours = MmapMut::map_anon(2 * 4096).unwrap();
        check_text(maps, pages(&ours)).unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        // SAFETY: no process writes to the program's file while the program runs.
        let file = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.unwrap();
        let private = check_text(maps, pages(&file)).unwrap_err();
        assert_eq!(private.kind(), io::ErrorKind::Unsupported);
        let mut nothing = MmapMut::map_anon(4096).unwrap();
        let (start, len) = (nothing.as_mut_ptr(), nothing.len());
        // SAFETY: the mapping is the test's own, and the test does not touch it any more.
        let closing = unsafe { libc::mprotect(start.cast(), len, libc::PROT_NONE) };
        assert_eq!(closing, 0);
        let refused = check_text(maps, pages(&nothing)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        let hole = check_text(maps, (4096, 8192)).unwrap_err();
        assert_eq!(hole.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_hole_is_no_cover() {
        let map = MmapMut::map_anon(3 * 4096).unwrap();
        let (start, end) = pages(&map);
        assert!(is_covered((start, end)));
        let middle = std::ptr::without_provenance_mut(start + 4096);
        // SAFETY: the page is in the test's own mapping, which is forgotten below.
        assert_eq!(unsafe { libc::munmap(middle, 4096) }, 0);
        assert!(!is_covered((start, end)));
        std::mem::forget(map);
    }
}
