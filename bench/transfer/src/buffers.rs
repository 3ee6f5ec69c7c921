//! [`Buffers`]: the buffers of the transfers. The benchmark may unmap a buffer between two
//! transfers. A payload in a buffer reveals whether a transfer used the wrong pages.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use regcache_test_support::{PAGE, map_fixed, unmap};

use crate::Error;
use crate::error::Trying;

const HUGE: usize = 2 << 20;

/// The address of the next buffers, which is far below the addresses that the kernel chooses. Two
/// `Buffers` never have an address in common. So while [`Buffers::remap`] has a buffer unmapped, no
/// other thread maps memory at the address of this buffer.
///
/// The addresses are in a part of the address space where ThreadSanitizer allows mappings.
static NEXT: AtomicUsize = AtomicUsize::new(0x5700_0000_0000);

/// Buffers of one size. No two buffers share a page.
#[derive(Debug)]
pub(crate) struct Buffers {
    start: *mut u8,
    mapped: usize,
    stride: usize,
    size: usize,
}

// SAFETY: the pointer points to a mapping that this object owns.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Maps the buffers and writes to each page, so that each page is populated.
    ///
    /// Buffers below 2 MiB use small pages. A huge page would hold several of these buffers, so
    /// unmapping one buffer would split the huge page.
    ///
    /// # Errors
    ///
    /// Returns the kernel's errors.
    pub(crate) fn new(count: usize, size: usize) -> Result<Self, Error> {
        let stride = size.next_multiple_of(PAGE);
        let mapped = stride * count;
        let start = NEXT.fetch_add((mapped + PAGE).next_multiple_of(HUGE), Ordering::Relaxed);
        let start = map(start, mapped).trying("map the buffers")?;
        let this = Self {
            start,
            mapped,
            stride,
            size,
        };
        this.choose_pages(start, mapped)
            .trying("choose the page size of the buffers")?;
        for page in (0..mapped).step_by(PAGE) {
            // SAFETY: the page was mapped above, and no reference to the page exists.
            unsafe { start.add(page).write_volatile(1) };
        }
        Ok(this)
    }

    fn choose_pages(&self, start: *mut u8, len: usize) -> nix::Result<()> {
        if self.stride >= HUGE {
            return Ok(());
        }
        // SAFETY: the range is in our mapping. This advice keeps the contents of the range.
        let advised = unsafe { libc::madvise(start.cast(), len, libc::MADV_NOHUGEPAGE) };
        match Errno::result(advised) {
            // A kernel without huge pages returns EINVAL.
            Err(Errno::EINVAL) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Returns the address of a buffer.
    #[must_use]
    pub(crate) fn at(&self, index: usize) -> *mut u8 {
        self.start.wrapping_add(index * self.stride)
    }

    /// Unmaps a buffer, and maps new pages at the same address.
    ///
    /// # Errors
    ///
    /// Returns the kernel's errors.
    pub(crate) fn remap(&mut self, index: usize) -> Result<(), Error> {
        let at = self.at(index);
        // No reference to the buffer exists, because `fill` and `wrong_bytes` return no references.
        unmap(at, self.stride).trying("unmap a buffer")?;
        map(at.expose_provenance(), self.stride).trying("map a buffer again")?;
        self.choose_pages(at, self.stride)
            .trying("choose the page size of a buffer")
    }

    /// Writes the payload of `seed` into a buffer.
    pub(crate) fn fill(&mut self, index: usize, seed: u64) {
        // SAFETY: the buffer is mapped, and `self` is borrowed for the duration of the call. No
        // transfer in flight accesses the buffer.
        fill(
            unsafe { std::slice::from_raw_parts_mut(self.at(index), self.size) },
            seed,
        );
    }

    /// Returns the number of bytes of a buffer that differ from the payload of `seed`.
    #[must_use]
    pub(crate) fn wrong_bytes(&self, index: usize, seed: u64) -> u64 {
        // SAFETY: as in `fill`, the buffer is mapped, and no transfer in flight writes to the
        // buffer.
        wrong_bytes(
            unsafe { std::slice::from_raw_parts(self.at(index), self.size) },
            seed,
        )
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let _ = unmap(self.start, self.mapped);
    }
}

fn map(start: usize, len: usize) -> io::Result<*mut u8> {
    map_fixed(start, len, libc::MAP_FIXED_NOREPLACE)
}

/// Returns word `index` of the payload of `seed`. The factor of the seed is odd. So if two seeds
/// differ by less than 2^32, their payloads differ in the low four bytes of every word.
fn word(seed: u64, index: usize) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(index as u64 + 1)
}

/// Writes the payload of `seed` into `buffer`.
pub(crate) fn fill(buffer: &mut [u8], seed: u64) {
    for (index, bytes) in buffer.chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&word(seed, index).to_le_bytes()[..bytes.len()]);
    }
}

/// Returns the number of bytes that differ from the payload of `seed`. If any byte of a word
/// differs, all bytes of this word count as different.
#[must_use]
pub(crate) fn wrong_bytes(buffer: &[u8], seed: u64) -> u64 {
    let is_wrong = |(index, bytes): &(usize, &[u8])| {
        *bytes != &word(seed, *index).to_le_bytes()[..bytes.len()]
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
