//! [`VaRange`], the virtual addresses that one registration covers.

use std::fmt;

/// A half-open range of virtual addresses, `[start, end)`, in bytes.
///
/// A range is never empty and never wraps around the end of the address space. The constructors
/// return an error in these cases, so no other code has to check for them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaRange {
    start: usize,
    end: usize,
}

/// The reason why an address and a length are not a valid [`VaRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The range is empty.
    #[error("cannot register 0 bytes at {start:#x}: ask for at least one")]
    ZeroLength {
        /// The requested address.
        start: usize,
    },
    /// The range runs past the end of the address space.
    #[error("{len} bytes at {start:#x} run past the end of the address space: check the length")]
    AddressWraps {
        /// The requested address.
        start: usize,
        /// The number of requested bytes.
        len: usize,
    },
}

impl VaRange {
    /// Returns the range of the `len` bytes at `start`.
    ///
    /// # Errors
    ///
    /// Returns [`RangeError::ZeroLength`] if `len` is 0, [`RangeError::AddressWraps`] if the range
    /// runs past the end of the address space.
    pub fn new(start: *const u8, len: usize) -> Result<Self, RangeError> {
        let start = start.addr();
        if len == 0 {
            return Err(RangeError::ZeroLength { start });
        }
        match start.checked_add(len) {
            Some(end) => Ok(Self { start, end }),
            None => Err(RangeError::AddressWraps { start, len }),
        }
    }

    /// Returns the address of the first byte.
    #[inline]
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Returns the address one past the last byte.
    #[inline]
    #[must_use]
    pub fn end(&self) -> usize {
        self.end
    }

    /// Returns the length in bytes, which is never 0.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Returns true if every byte of `other` is in `self`.
    #[inline]
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Returns true if some byte is in both ranges.
    #[inline]
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Rounds the range outward to blocks of `granularity` bytes. The granularity must be a power
    /// of two. Returns `None` if the last block runs past the end of the address space.
    pub(crate) fn aligned(&self, granularity: usize) -> Option<Self> {
        Some(Self {
            start: self.start & !(granularity - 1),
            end: self.end.checked_add(granularity - 1)? & !(granularity - 1),
        })
    }

    /// Returns the number of bytes that a registration of the range pins: the sizes of all pages
    /// that the range touches.
    #[inline]
    pub(crate) fn pinned(&self, page_size: usize) -> usize {
        // The compiler does not know the page size, so a division would be slow. A mask is fast.
        let within = page_size - 1;
        let (first, last) = (self.start & !within, (self.end - 1) | within);
        (last - first).saturating_add(1)
    }

    /// Returns the smallest range that contains `self` and `other`.
    pub(crate) fn hull(&self, other: &Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

/// Converts a slice into the range of its bytes. The conversion fails if the slice is empty.
impl TryFrom<&[u8]> for VaRange {
    type Error = RangeError;

    fn try_from(bytes: &[u8]) -> Result<Self, RangeError> {
        Self::new(bytes.as_ptr(), bytes.len())
    }
}

impl fmt::Display for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end)
    }
}

impl fmt::Debug for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_slice_that_is_not_empty_is_a_range() {
        let bytes = [0_u8; 24];
        let range = VaRange::try_from(&bytes[..]).unwrap();
        let start = bytes.as_ptr().addr();
        assert_eq!((range.start(), range.end()), (start, start + 24));
        assert_eq!(
            range.to_string(),
            format!("[{start:#x}, {:#x})", start + 24)
        );
        assert!(matches!(
            VaRange::try_from(&bytes[..0]),
            Err(RangeError::ZeroLength { .. })
        ));
    }
}
