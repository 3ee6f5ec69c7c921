//! Defines [`Pages`], anonymous memory that tests watch and change.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;

use crate::{PAGE, map_fixed, unmap};

/// The address of the next [`Pages`]. No address is used twice. All addresses are far below the
/// addresses that the kernel chooses. So if a test unmaps its pages, the kernel gives their
/// addresses to no other thread.
static NEXT: AtomicUsize = AtomicUsize::new(0x6000_0000_0000);

/// A range of anonymous memory at addresses that nothing else uses.
///
/// Each page has 4 KiB, even if the system prefers huge pages. All pages are populated from the
/// start. Dropping the value unmaps the addresses, even if a test has mapped other memory there.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    pages: usize,
}

// SAFETY: the value holds only an address. Each access through the address is an unsafe operation
// with its own proof.
unsafe impl Send for Pages {}
// SAFETY: a shared reference gives access only to the address, and the argument for `Send` applies.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps this many pages, and writes to each page.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn new(pages: usize) -> io::Result<Self> {
        // One page after the range stays unmapped. Otherwise the kernel could merge the mappings of
        // two values.
        let start = NEXT.fetch_add((pages + 1) * PAGE, Ordering::Relaxed);
        let start = map_fixed(start, pages * PAGE, libc::MAP_FIXED_NOREPLACE)?;
        let this = Self { start, pages };
        this.advise(0, pages, libc::MADV_NOHUGEPAGE)?;
        this.touch();
        Ok(this)
    }

    /// Returns the address of page `i`.
    #[must_use]
    pub fn page(&self, i: usize) -> *mut u8 {
        self.start.wrapping_add(i * PAGE)
    }

    /// Returns the length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.pages * PAGE
    }

    /// Writes to each page.
    pub fn touch(&self) {
        for i in 0..self.pages {
            self.write(i, 1);
        }
    }

    /// Writes to one page.
    pub fn write(&self, page: usize, byte: u8) {
        // SAFETY: `new` mapped the page writable. If the test has unmapped the page since, the
        // write faults and changes no memory.
        unsafe { self.page(page).write_volatile(byte) }
    }

    /// Unmaps `pages` pages from page `first` on.
    ///
    /// # Errors
    ///
    /// The error of `munmap`.
    pub fn unmap(&self, first: usize, pages: usize) -> io::Result<()> {
        unmap(self.page(first), pages * PAGE)
    }

    /// Maps new memory over `pages` pages from page `first` on.
    ///
    /// # Errors
    ///
    /// The error of `mmap`.
    pub fn map_over(&self, first: usize, pages: usize) -> io::Result<()> {
        let start = self.page(first).expose_provenance();
        map_fixed(start, pages * PAGE, libc::MAP_FIXED).map(drop)
    }

    /// Calls `madvise` for `pages` pages from page `first` on.
    ///
    /// # Errors
    ///
    /// The error of `madvise`.
    pub fn advise(&self, first: usize, pages: usize, advice: i32) -> io::Result<()> {
        // SAFETY: no reference to these pages exists.
        let result = unsafe { libc::madvise(self.page(first).cast(), pages * PAGE, advice) };
        Errno::result(result)?;
        Ok(())
    }

    /// Calls `mprotect` for `pages` pages from page `first` on.
    ///
    /// # Errors
    ///
    /// The error of `mprotect`.
    pub fn protect(&self, first: usize, pages: usize, protection: i32) -> io::Result<()> {
        // SAFETY: no reference to these pages exists.
        let result = unsafe { libc::mprotect(self.page(first).cast(), pages * PAGE, protection) };
        Errno::result(result)?;
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = self.unmap(0, self.pages);
    }
}
