//! [`Budget`]: the limits on entries and bytes, and the entries and bytes in use.
//!
//! An entry is charged once, when it is linked, and released after its deregistration. A
//! registration that is being made is not charged. So a registration that fails evicts nothing, and
//! several that are in the making do not evict each other's room.
//!
//! An unlinked entry that no guard holds is *leaving*: a thread deregisters it soon. It is still
//! charged, but an eviction counts its room as free. Otherwise a slow deregistration would make
//! other threads evict entries whose room is not needed. So the sum of all charges can exceed a
//! limit. In that case a miss deregisters dead entries itself. So they do not pile up.

use crate::core::pool::Pool;

/// The limits of a cache, and the entries and bytes in use.
#[derive(Debug)]
pub(crate) struct Budget {
    max_entries: usize,
    max_bytes: usize,
    /// The number of linked and unlinked entries.
    entries: usize,
    /// The number of bytes that the linked and unlinked entries pin.
    bytes: usize,
    /// The number of entries that are leaving.
    leaving: usize,
    /// The number of bytes that the leaving entries pin.
    leaving_bytes: usize,
    /// The pool to which the cache belongs. The bytes that are not leaving are charged to it too.
    pool: Option<Pool>,
}

impl Budget {
    pub(crate) fn new(max_entries: usize, max_bytes: usize, pool: Option<Pool>) -> Self {
        Self {
            max_entries,
            max_bytes,
            entries: 0,
            bytes: 0,
            leaving: 0,
            leaving_bytes: 0,
            pool,
        }
    }

    /// Changes the limits.
    pub(crate) fn set_limits(&mut self, max_entries: Option<usize>, max_bytes: Option<usize>) {
        self.max_entries = max_entries.unwrap_or(self.max_entries);
        self.max_bytes = max_bytes.unwrap_or(self.max_bytes);
    }

    /// Returns true if the charges exceed a limit, and would do so after the removal of `gone`
    /// other entries, which pin `gone_bytes` bytes together.
    pub(crate) fn exceeds(&self, gone: usize, gone_bytes: usize) -> bool {
        self.entries - gone > self.max_entries || self.bytes - gone_bytes > self.max_bytes
    }

    /// Returns true if the entries that are not leaving are within the limits of the cache and of
    /// its pool.
    pub(crate) fn is_kept(&self) -> bool {
        self.entries - self.leaving <= self.max_entries
            && self.bytes - self.leaving_bytes <= self.max_bytes
            && self.pool.as_ref().is_none_or(Pool::is_kept)
    }

    /// Returns true if an entry that pins `bytes` bytes fits in an empty cache.
    pub(crate) fn could_hold(&self, bytes: usize) -> bool {
        let pool = self.pool.as_ref().map_or(usize::MAX, Pool::max_bytes);
        self.max_entries > 0 && bytes <= self.max_bytes.min(pool)
    }

    /// Charges an entry that pins `bytes` bytes. Its room in the pool was reserved before.
    pub(crate) fn charge(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// Notes that an entry of `bytes` bytes is leaving.
    pub(crate) fn leave(&mut self, bytes: usize) {
        self.leaving += 1;
        self.leaving_bytes += bytes;
        if let Some(pool) = &self.pool {
            pool.leave(bytes);
        }
    }

    /// Releases the room of an entry that pinned `bytes` bytes. `left` is true if the entry was
    /// noted as leaving.
    pub(crate) fn release(&mut self, bytes: usize, left: bool) {
        self.entries -= 1;
        self.bytes -= bytes;
        if left {
            self.leaving -= 1;
            self.leaving_bytes -= bytes;
        }
        match &self.pool {
            Some(pool) if left => pool.left(bytes),
            Some(pool) => pool.release(bytes),
            None => {}
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns true if an entry that pins `bytes` bytes would fit after the leaving entries are
    /// gone, and `gone` other entries, which pin `gone_bytes` bytes together.
    pub(crate) fn would_hold(&self, bytes: usize, gone: usize, gone_bytes: usize) -> bool {
        let sum = (self.bytes - self.leaving_bytes - gone_bytes).checked_add(bytes);
        self.entries - self.leaving - gone < self.max_entries
            && sum.is_some_and(|sum| sum <= self.max_bytes)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn neither_limit_is_exceeded() {
        let mut budget = Budget::new(2, 100, None);
        assert!(!budget.could_hold(101));
        budget.charge(60);
        assert!(!budget.would_hold(41, 0, 0), "bytes");
        assert!(budget.would_hold(40, 0, 0));
        budget.charge(40);
        assert!(!budget.would_hold(0, 0, 0), "entries");
        assert!(!budget.would_hold(usize::MAX, 0, 0), "no overflow");
        assert!(budget.would_hold(60, 1, 60), "after an eviction");
        budget.leave(60);
        assert_eq!(budget.bytes(), 100, "still pinned");
        assert!(budget.would_hold(60, 0, 0), "on its way out");
        budget.charge(60);
        assert!(budget.exceeds(0, 0) && !budget.exceeds(1, 60));
        budget.release(60, true);
        assert!(!budget.exceeds(0, 0));
        budget.release(60, false);
        assert_eq!(budget.bytes(), 40);
        assert!(budget.would_hold(60, 0, 0));
        budget.release(40, false);
        assert_eq!(budget.bytes(), 0);
    }
}
