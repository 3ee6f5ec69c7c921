//! [`Buffers`]: the application's memory, which it may unmap between two transfers, and the payload by which a
//! transfer of the wrong pages is noticed.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use regcache_test_support::PAGE;

use crate::Error;
use crate::error::Trying;

const HUGE: usize = 2 << 20;

/// Where the next buffers go: far below where the kernel puts mappings of its own choice, and never the same twice, so that
/// what is unmapped for a moment is not given to another thread. ThreadSanitizer allows this part of the address space.
static NEXT: AtomicUsize = AtomicUsize::new(0x5700_0000_0000);

/// So many buffers of one size, each on pages of its own.
#[derive(Debug)]
pub(crate) struct Buffers {
    start: *mut u8,
    mapped: usize,
    stride: usize,
    size: usize,
}

// SAFETY: an owned mapping.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Maps and touches them. Below 2 MiB they are in small pages: what happens to one must not reach its
    /// neighbours.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn new(count: usize, size: usize) -> Result<Self, Error> {
        let stride = size.next_multiple_of(PAGE);
        let mapped = stride * count;
        let place = NEXT.fetch_add((mapped + PAGE).next_multiple_of(HUGE), Ordering::Relaxed);
        let start =
            map(ptr::with_exposed_provenance_mut(place), mapped).trying("map the buffers")?;
        let this = Self {
            start,
            mapped,
            stride,
            size,
        };
        this.choose_pages(start, mapped).trying("advise")?;
        for page in (0..mapped).step_by(PAGE) {
            // SAFETY: just mapped, and nobody has references to it.
            unsafe { start.add(page).write_volatile(1) };
        }
        Ok(this)
    }

    fn choose_pages(&self, start: *mut u8, len: usize) -> nix::Result<()> {
        if self.stride >= HUGE {
            return Ok(());
        }
        // SAFETY: our mapping; what is in it stays.
        let advised = unsafe { libc::madvise(start.cast(), len, libc::MADV_NOHUGEPAGE) };
        match Errno::result(advised) {
            // A kernel without huge pages.
            Err(Errno::EINVAL) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The address of one.
    #[must_use]
    pub(crate) fn at(&self, index: usize) -> *mut u8 {
        self.start.wrapping_add(index * self.stride)
    }

    /// Unmaps one, and maps new pages at the same address.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn remap(&mut self, index: usize) -> Result<(), Error> {
        let at = self.at(index);
        // SAFETY: ours, and there is no reference to it: those of `fill` and `wrong_bytes` do not leave them.
        let unmapped = unsafe { libc::munmap(at.cast(), self.stride) };
        Errno::result(unmapped).trying("unmap a buffer")?;
        map(at, self.stride).trying("map a buffer again")?;
        self.choose_pages(at, self.stride).trying("advise")
    }

    /// Writes the payload of this number.
    pub(crate) fn fill(&mut self, index: usize, seed: u64) {
        // SAFETY: mapped, borrowed for the call; a device that writes it meanwhile was posted by the caller.
        fill(
            unsafe { std::slice::from_raw_parts_mut(self.at(index), self.size) },
            seed,
        );
    }

    /// How many bytes of one are not the payload of this number.
    #[must_use]
    pub(crate) fn wrong_bytes(&self, index: usize, seed: u64) -> u64 {
        // SAFETY: as in `fill`.
        wrong_bytes(
            unsafe { std::slice::from_raw_parts(self.at(index), self.size) },
            seed,
        )
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: ours alone; whatever is mapped in it goes.
        unsafe { libc::munmap(self.start.cast(), self.mapped) };
    }
}

fn map(at: *mut u8, len: usize) -> io::Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: where nothing is.
    let start = unsafe { libc::mmap(at.cast(), len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start.cast())
}

/// The word at this place of the payload. Payloads whose numbers differ by less than 2^32 differ in each four bytes: the
/// factor is odd.
fn word(seed: u64, place: usize) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(place as u64 + 1)
}

/// Writes the payload of this number.
pub(crate) fn fill(buffer: &mut [u8], seed: u64) {
    for (place, bytes) in buffer.chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&word(seed, place).to_le_bytes()[..bytes.len()]);
    }
}

/// How many bytes are not the payload of this number, of words counted whole.
#[must_use]
pub(crate) fn wrong_bytes(buffer: &[u8], seed: u64) -> u64 {
    let is_wrong = |(place, bytes): &(usize, &[u8])| {
        *bytes != &word(seed, *place).to_le_bytes()[..bytes.len()]
    };
    let wrong = buffer.chunks(8).enumerate().filter(is_wrong);
    wrong.map(|(_, bytes)| bytes.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_told_from_every_other() -> Result<(), Error> {
        let mut buffers = Buffers::new(3, 100)?;
        buffers.fill(1, 7);
        assert_eq!(buffers.wrong_bytes(1, 7), 0);
        assert_eq!(buffers.wrong_bytes(1, 8), 100);
        assert_eq!(buffers.wrong_bytes(2, 7), 100);
        Ok(())
    }

    #[test]
    fn a_buffer_that_is_mapped_again_is_empty_and_where_it_was() -> Result<(), Error> {
        let mut buffers = Buffers::new(3, PAGE)?;
        for index in 0..3 {
            buffers.fill(index, 7);
        }
        buffers.remap(1)?;
        let wrong = [0, 1, 2].map(|index| buffers.wrong_bytes(index, 7));
        assert_eq!(wrong, [0, PAGE as u64, 0]);
        Ok(())
    }
}
