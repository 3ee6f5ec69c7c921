//! [`Nearest`]: finds the record of a libibverbs object in a few instructions.
//!
//! The lower 16 bits of the object's address select the place of its record. An object whose place
//! is taken by another is not in the table, so callers that find nothing look the object up
//! elsewhere. The table is large, but only the pages with records take up memory.
//!
//! A record is freed after its object was destroyed. A program that uses an object while another
//! thread destroys the object is wrong even without the shim. A lookup of one object never reads
//! the record of another object.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

const PLACES: usize = 1 << 16;

/// No object is at this address. It marks a place that a thread is changing.
const CHANGING: usize = 1;

/// See the file's head.
pub(crate) struct Nearest<T> {
    objects: [AtomicUsize; PLACES],
    records: [AtomicPtr<T>; PLACES],
}

impl<T: Send + Sync> Nearest<T> {
    pub(crate) const fn new() -> Self {
        Self {
            objects: [const { AtomicUsize::new(0) }; PLACES],
            records: [const { AtomicPtr::new(ptr::null_mut()) }; PLACES],
        }
    }

    #[inline]
    #[expect(clippy::indexing_slicing, reason = "the place is below the length")]
    fn place(&self, object: usize) -> (&AtomicUsize, &AtomicPtr<T>) {
        let place = object & (PLACES - 1);
        (&self.objects[place], &self.records[place])
    }

    /// Looks for the object. The first result is 0 if the object is in the table. Only then the
    /// second one points to its record, as long as no thread [removes](Self::remove) the record.
    ///
    /// The caller combines the first result with its other conditions, so that one branch serves
    /// all.
    #[inline]
    pub(crate) fn get(&self, object: usize) -> (usize, *const T) {
        let (objects, records) = self.place(object);
        // `insert` stores the record before the object.
        let found = objects.load(Ordering::Acquire);
        (found ^ object, records.load(Ordering::Relaxed))
    }

    /// Adds the record of an object, if its place is vacant. Removes the record of an earlier
    /// object at the same address, which was destroyed unseen.
    pub(crate) fn insert(&self, object: usize, record: Arc<T>) {
        self.remove(object);
        let (objects, records) = self.place(object);
        let (succeeded, failed) = (Ordering::Acquire, Ordering::Relaxed);
        let taken = objects.compare_exchange(0, CHANGING, succeeded, failed);
        if taken.is_ok() {
            records.store(Arc::into_raw(record).cast_mut(), Ordering::Relaxed);
            objects.store(object, Ordering::Release);
        }
    }

    /// Removes the record of an object.
    pub(crate) fn remove(&self, object: usize) {
        let (objects, records) = self.place(object);
        let (succeeded, failed) = (Ordering::Acquire, Ordering::Relaxed);
        let taken = objects.compare_exchange(object, CHANGING, succeeded, failed);
        if taken.is_ok() {
            let record = records.swap(ptr::null_mut(), Ordering::Relaxed);
            objects.store(0, Ordering::Release);
            // SAFETY: the pointer comes from the `Arc` that the place owned. Only this thread has
            // taken it out.
            drop(unsafe { Arc::from_raw(record) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_unless_its_place_is_taken() {
        static NEAREST: Nearest<usize> = Nearest::new();
        let (first, second, third) = (0x7000_1230, 0x7001_1230, 0x7000_1240);
        let get = |object| match NEAREST.get(object) {
            // SAFETY: no thread removes the record now.
            (0, record) => Some(unsafe { *record }),
            _ => None,
        };
        for (object, record) in [(first, 1), (second, 2), (third, 3)] {
            NEAREST.insert(object, Arc::new(record));
        }
        assert_eq!([first, second, third].map(get), [Some(1), None, Some(3)]);
        NEAREST.remove(second);
        NEAREST.remove(first);
        NEAREST.insert(second, Arc::new(2));
        NEAREST.insert(third, Arc::new(4));
        assert_eq!([first, second, third].map(get), [None, Some(2), Some(4)]);
    }
}
