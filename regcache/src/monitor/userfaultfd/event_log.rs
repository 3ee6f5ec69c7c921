//! [`Log`]: what the reader has read, until somebody with a lock looks at it.
//!
//! Written by the reader alone, and read under the lock of the table of watches. The reader may wait
//! for nobody, so the log is of a fixed size; if it is full, all that does not fit becomes one entry
//! for everything there is. Nothing is lost by that, only precision.

use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::coverage::Pages;

/// 4 KiB of them.
const ENTRIES: usize = 256;

/// In the lowest bit of an entry's start, which is a page's.
const REMOVAL: usize = 1;

/// Everything.
const ALL: Pages = (0, usize::MAX);

#[derive(Debug)]
pub(super) struct Log {
    generation: AtomicU64,
    /// While what has been read is not in here yet.
    reading: AtomicBool,
    /// Removals that were ever entered.
    removals: AtomicU64,
    entries: [[AtomicUsize; 2]; ENTRIES],
    /// How many were ever written, and read.
    written: AtomicUsize,
    read: AtomicUsize,
    overflown: AtomicBool,
}

/// Pages that are not what they were, and whether they are about to be so only.
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

    /// Raises the generation, after what it stands for was entered.
    pub(super) fn raise(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// To be called by the reader before it reads, and after it has entered what it read.
    pub(super) fn set_reading(&self, reading: bool) {
        self.reading.store(reading, Ordering::SeqCst);
    }

    /// False if all that has been read is here, and the generation raised.
    pub(super) fn is_reading(&self) -> bool {
        self.reading.load(Ordering::SeqCst)
    }

    /// How many removals were ever entered.
    pub(super) fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// The reader's.
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

    /// Takes the oldest entry out. For one thread at a time.
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
