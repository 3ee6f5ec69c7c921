//! [`Pages`]: anonymous memory to change under a watch.

use std::fs;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use regcache_conformance::PAGE;

/// Where the next [`Pages`] go: far below where the kernel puts mappings of its own choice, and never
/// the same twice, so that what a test unmaps is not given to another thread.
static NEXT: AtomicUsize = AtomicUsize::new(0x6000_0000_0000);

/// Some pages of anonymous memory, touched, in 4 KiB pages whatever the system's policy on huge
/// ones, at addresses that nothing else uses. Unmapped when dropped, whatever is mapped there by
/// then.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    pages: usize,
}

// SAFETY: only an address; what is done with it is unsafe elsewhere.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// So many of them.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new(pages: usize) -> io::Result<Self> {
        // One page stays free, so that mappings are not merged.
        let start = NEXT.fetch_add((pages + 1) * PAGE, Ordering::Relaxed);
        let start = ptr::with_exposed_provenance_mut(start);
        let start = mmap(start, pages * PAGE, libc::MAP_FIXED_NOREPLACE)?;
        let this = Self { start, pages };
        this.advise(0, pages, libc::MADV_NOHUGEPAGE)?;
        this.touch();
        Ok(this)
    }

    /// The address of page `i`.
    #[must_use]
    pub fn page(&self, i: usize) -> *mut u8 {
        self.start.wrapping_add(i * PAGE)
    }

    /// Length in bytes.
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
        // SAFETY: mapped writable by `new`, or the test faults.
        unsafe { self.page(page).write_volatile(byte) }
    }

    /// munmap of some pages.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn unmap(&self, first: usize, pages: usize) -> io::Result<()> {
        // SAFETY: nobody keeps references to these pages.
        Errno::result(unsafe { libc::munmap(self.page(first).cast(), pages * PAGE) })?;
        Ok(())
    }

    /// A new mapping over some pages.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn map_over(&self, first: usize, pages: usize) -> io::Result<()> {
        mmap(self.page(first), pages * PAGE, libc::MAP_FIXED).map(drop)
    }

    /// madvise of some pages.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn advise(&self, first: usize, pages: usize, advice: i32) -> io::Result<()> {
        // SAFETY: nobody keeps references to these pages.
        let result = unsafe { libc::madvise(self.page(first).cast(), pages * PAGE, advice) };
        Errno::result(result)?;
        Ok(())
    }

    /// mprotect of some pages.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn protect(&self, first: usize, pages: usize, protection: i32) -> io::Result<()> {
        // SAFETY: nobody keeps references to these pages.
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

fn mmap(start: *mut u8, len: usize, how: i32) -> io::Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how;
    // SAFETY: where nothing is, or over pages that nobody keeps references to.
    let start = unsafe { libc::mmap(start.cast(), len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start.cast())
}

/// Kilobytes that this process has pinned.
///
/// # Panics
///
/// If the kernel does not say.
#[must_use]
pub fn pinned() -> u64 {
    status("VmPin:")
}

/// Kilobytes of this process that are in memory.
///
/// # Panics
///
/// If the kernel does not say.
#[must_use]
pub fn resident() -> u64 {
    status("VmRSS:")
}

/// The number in this line of the process's status.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("in every process's directory");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.and_then(|number| number.parse().ok());
    number.expect("in every process's status")
}
