//! [`Budget`]: the limits on entries and bytes, and the entries and bytes in use.

/// The limits of a cache, and the entries and bytes in use.
#[derive(Debug)]
pub(crate) struct Budget {
    max_entries: usize,
    max_bytes: usize,
    /// The number of entries that are pending, linked or unlinked.
    entries: usize,
    /// The number of bytes that the pending, linked and unlinked entries pin.
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            max_entries,
            max_bytes,
            entries: 0,
            bytes: 0,
        }
    }

    /// Returns true if an entry that pins `bytes` bytes fits in an empty cache.
    pub(crate) fn could_hold(&self, bytes: usize) -> bool {
        self.max_entries > 0 && bytes <= self.max_bytes
    }

    /// Reserves room for an entry that pins `bytes` bytes. Returns false if there is no room.
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        let fits = self.would_hold(bytes, 0, 0);
        if fits {
            self.entries += 1;
            self.bytes += bytes;
        }
        fits
    }

    /// Releases the room of an entry that pinned `bytes` bytes.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.entries -= 1;
        self.bytes -= bytes;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns true if an entry that pins `bytes` bytes would fit after the removal of `gone`
    /// entries, which pin `gone_bytes` bytes together.
    pub(crate) fn would_hold(&self, bytes: usize, gone: usize, gone_bytes: usize) -> bool {
        let sum = (self.bytes - gone_bytes).checked_add(bytes);
        self.entries - gone < self.max_entries && sum.is_some_and(|sum| sum <= self.max_bytes)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn neither_limit_is_exceeded() {
        let mut budget = Budget::new(2, 100);
        assert!(!budget.could_hold(101));
        assert!(budget.reserve(60));
        assert!(!budget.reserve(41), "bytes");
        assert!(budget.reserve(40));
        assert!(!budget.reserve(0), "entries");
        assert!(!budget.reserve(usize::MAX), "no overflow");
        budget.release(60);
        assert_eq!(budget.bytes(), 40);
        assert!(budget.reserve(60));
    }
}
