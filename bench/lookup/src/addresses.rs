//! [`Addresses`]: the memory that is looked up.

use std::io;

use memmap2::{MmapMut, MmapOptions};

/// Ranges of one length at equal distances, and between each and the next another one that is not
/// registered to begin with.
///
/// The addresses are this process's own, so that nothing else can be there; none is ever touched.
#[derive(Debug)]
pub struct Addresses {
    base: usize,
    stride: usize,
    len: usize,
    count: usize,
    _reserved: MmapMut,
}

impl Addresses {
    /// Room for `count` ranges of `len` bytes, a power of two of at least a page.
    ///
    /// # Errors
    ///
    /// If there is not that much address space.
    pub fn new(count: usize, len: usize) -> io::Result<Self> {
        let stride = 4 * len;
        let reserved = MmapOptions::new()
            .len((count + 1) * stride)
            .no_reserve_swap()
            .map_anon()?;
        let base = (reserved.as_ptr() as usize).next_multiple_of(stride);
        Ok(Self {
            base,
            stride,
            len,
            count,
            _reserved: reserved,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of each.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Start of range `i`.
    #[inline(always)]
    pub fn entry(&self, i: usize) -> usize {
        self.base + i * self.stride
    }

    /// Start of the range that lies between `i` and the next, and touches neither.
    #[inline(always)]
    pub fn between(&self, i: usize) -> usize {
        self.entry(i) + self.stride / 2
    }

    /// Numbers all starts, of both kinds, from 0 to `2 * count`.
    #[inline]
    pub(crate) fn place(&self, start: usize) -> usize {
        (start - self.base) >> (self.stride.trailing_zeros() - 1)
    }
}
