//! [`Addresses`]: the ranges that the lookups use.

use std::io;

use memmap2::{MmapMut, MmapOptions};

/// Ranges of one length at equal distances.
///
/// Between each range and the next lies a second range. [`loops::fill`](crate::loops::fill) does
/// not register the second ranges.
///
/// The ranges are in one mapping that this value owns, so no other mapping has these addresses. The
/// loops do not access the memory.
#[derive(Debug)]
pub struct Addresses {
    base: usize,
    stride: usize,
    len: usize,
    count: usize,
    _reserved: MmapMut,
}

impl Addresses {
    /// Reserves room for `count` ranges of `len` bytes. `len` must be a power of two and at least a
    /// page.
    ///
    /// # Errors
    ///
    /// Returns an error if the address space has no room.
    pub fn new(count: usize, len: usize) -> io::Result<Self> {
        Self::spaced(count, len, 4 * len)
    }

    /// Reserves room for `count` ranges of `len` bytes that start every `stride` bytes. `stride`
    /// must be a power of two. The ranges may overlap. There are no second ranges, unless `stride`
    /// is at least four times `len`.
    ///
    /// # Errors
    ///
    /// Returns an error if the address space has no room.
    pub fn spaced(count: usize, len: usize, stride: usize) -> io::Result<Self> {
        let alignment = stride.max(4096);
        let reserved = MmapOptions::new()
            .len(count * stride + len + alignment)
            .no_reserve_swap()
            .map_anon()?;
        let base = (reserved.as_ptr() as usize).next_multiple_of(alignment);
        Ok(Self {
            base,
            stride,
            len,
            count,
            _reserved: reserved,
        })
    }

    /// Returns the number of ranges.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the length of each range in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there are no ranges.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the start of range `i`.
    #[inline(always)]
    pub fn entry(&self, i: usize) -> usize {
        self.base + i * self.stride
    }

    /// Returns the start of the second range that follows range `i`. This second range overlaps
    /// neither range `i` nor range `i + 1`.
    #[inline(always)]
    pub fn between(&self, i: usize) -> usize {
        self.entry(i) + self.stride / 2
    }

    /// Returns the number of the range that starts at `start`. Range `i` has the number `2 * i`.
    /// The second range that follows it has the number `2 * i + 1`. So every number is below `2 *
    /// count`.
    #[inline]
    pub(crate) fn number(&self, start: usize) -> usize {
        (start - self.base) >> (self.stride.trailing_zeros() - 1)
    }
}
