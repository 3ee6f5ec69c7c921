//! [`Log`]: a ring of the events that the reader has read.
//!
//! Only the reader writes to the log. Other threads read the log under the lock of the monitor's
//! watches. The reader must not allocate memory or wait, so the ring has a fixed size. If the ring
//! is full, the events that do not fit become one entry for all memory. That entry invalidates all
//! watches, so no change is lost.

use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::coverage::Pages;

/// The number of entries of the ring. The ring takes 4 KiB.
const ENTRIES: usize = 256;

/// The lowest bit of an entry's start, which is set if the change is a removal. A page's address
/// never has this bit.
const REMOVAL: usize = 1;

/// The pages of the entry that replaces the events that do not fit: all memory.
const ALL: Pages = (0, usize::MAX);

/// The ring of events; see the head of this file.
#[derive(Debug)]
pub(super) struct Log {
    generation: AtomicU64,
    /// True while the reader may have read events that it has not entered in the log yet.
    reading: AtomicBool,
    /// The number of removals that were ever entered.
    removals: AtomicU64,
    entries: [[AtomicUsize; 2]; ENTRIES],
    /// The number of entries ever written.
    written: AtomicUsize,
    /// The number of entries ever read.
    read: AtomicUsize,
    /// True if some events since the last `take` did not fit.
    overflown: AtomicBool,
}

/// Pages that have changed, or that are about to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) pages: Pages,
    pub(super) is_removal: bool,
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            reading: AtomicBool::new(false),
            removals: AtomicU64::new(0),
            entries: array::from_fn(|_| [AtomicUsize::new(0), AtomicUsize::new(0)]),
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            overflown: AtomicBool::new(false),
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Raises the generation. The reader calls this after it has entered the changes.
    pub(super) fn raise(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Sets or clears the flag `reading`. The reader sets the flag before it reads events, and
    /// clears it after it has entered the events.
    pub(super) fn set_reading(&self, reading: bool) {
        self.reading.store(reading, Ordering::SeqCst);
    }

    /// Returns true if the reader may have read events that it has not entered yet. If the result
    /// is false, the generation was raised for every event that was read.
    pub(super) fn is_reading(&self) -> bool {
        self.reading.load(Ordering::SeqCst)
    }

    /// Returns the number of removals ever entered.
    pub(super) fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Enters a change. Only the reader calls this.
    pub(super) fn enter(&self, change: Change) {
        let written = self.written.load(Ordering::Relaxed);
        if written.wrapping_sub(self.read.load(Ordering::Acquire)) == ENTRIES {
            self.overflown.store(true, Ordering::Release);
            self.removals.fetch_add(1, Ordering::Release);
            return;
        }
        let [start, end] = &self.entries[written % ENTRIES];
        let flag = if change.is_removal { REMOVAL } else { 0 };
        start.store(change.pages.0 | flag, Ordering::Relaxed);
        end.store(change.pages.1, Ordering::Relaxed);
        self.written
            .store(written.wrapping_add(1), Ordering::Release);
        if change.is_removal {
            self.removals.fetch_add(1, Ordering::Release);
        }
    }

    /// Removes the oldest entry and returns it. Only one thread at a time may call this.
    pub(super) fn take(&self) -> Option<Change> {
        if self.overflown.swap(false, Ordering::AcqRel) {
            return Some(Change {
                pages: ALL,
                is_removal: true,
            });
        }
        let read = self.read.load(Ordering::Relaxed);
        if read == self.written.load(Ordering::Acquire) {
            return None;
        }
        let [start, end] = &self.entries[read % ENTRIES];
        let (start, end) = (start.load(Ordering::Relaxed), end.load(Ordering::Relaxed));
        self.read.store(read.wrapping_add(1), Ordering::Release);
        Some(Change {
            pages: (start & !REMOVAL, end),
            is_removal: start & REMOVAL != 0,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn change(i: usize, is_removal: bool) -> Change {
        let start = i * 4096;
        Change {
            pages: (start, start + 4096),
            is_removal,
        }
    }

    #[test]
    fn entries_come_out_in_order() {
        let log = Log::new();
        for i in 0..3 * ENTRIES {
            log.enter(change(i, i % 2 == 0));
            assert_eq!(log.take(), Some(change(i, i % 2 == 0)));
            assert_eq!(log.take(), None);
        }
        assert_eq!(log.removals(), 3 * ENTRIES as u64 / 2);
    }

    #[test]
    fn what_does_not_fit_is_everything() {
        let log = Log::new();
        for i in 0..=ENTRIES {
            log.enter(change(i, false));
        }
        assert_eq!(log.removals(), 1, "it may have been one");
        let all = log.take();
        assert_eq!(all.map(|it| (it.pages, it.is_removal)), Some((ALL, true)));
        for i in 0..ENTRIES {
            assert_eq!(log.take(), Some(change(i, false)));
        }
        assert_eq!(log.take(), None);
    }
}
