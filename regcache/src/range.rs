//! [`VaRange`], the virtual addresses that one registration covers.

use std::fmt;

use crate::Error;

/// A half-open range of virtual addresses, `[start, end)`, in bytes.
///
/// Never empty and never wrapping: both are refused when it is made, so that nothing below the
/// cache's front door has to ask again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaRange {
    start: usize,
    end: usize,
}

impl VaRange {
    /// The `len` bytes at `start`.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroLength`] if `len` is 0, [`Error::AddressWraps`] if the range runs past the end
    /// of the address space.
    pub fn new(start: *const u8, len: usize) -> Result<Self, Error> {
        let start = start.addr();
        if len == 0 {
            return Err(Error::ZeroLength { start });
        }
        match start.checked_add(len) {
            Some(end) => Ok(Self { start, end }),
            None => Err(Error::AddressWraps { start, len }),
        }
    }

    /// Address of the first byte.
    #[inline]
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Address one past the last byte.
    #[inline]
    #[must_use]
    pub fn end(&self) -> usize {
        self.end
    }

    /// Length in bytes; never 0.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// True if every byte of `other` is in `self`.
    #[inline]
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// True if some byte is in both.
    #[inline]
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The blocks of `granularity` bytes, a power of two, that this lies in; `None` if the last of them
    /// runs past the end of the address space.
    pub(crate) fn aligned(&self, granularity: usize) -> Option<Self> {
        Some(Self {
            start: self.start & !(granularity - 1),
            end: self.end.checked_add(granularity - 1)? & !(granularity - 1),
        })
    }

    /// The smallest range that contains both.
    pub(crate) fn hull(&self, other: &Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

impl fmt::Debug for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end)
    }
}
