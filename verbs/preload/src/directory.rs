//! [`Directory`]: maps the address of a libibverbs object to the shim's record of the object.
//!
//! A lookup takes no lock and writes nothing. The places for records are in buckets. No bucket is
//! freed, so a reader can walk a bucket while another thread changes it. A full bucket gets a
//! second bucket, linked behind it.
//!
//! A record is freed after its object was destroyed. A program that uses an object while another
//! thread destroys the object is wrong even without the shim. A lookup of one object never reads
//! the record of another object.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::fork::ProcessLock;

const PLACES: usize = 3;
const BUCKETS: usize = 1024;

#[repr(align(64))]
struct Bucket<T> {
    places: [Place<T>; PLACES],
    next: AtomicPtr<Bucket<T>>,
}

/// A place for one record. `object` is 0 if the place is vacant.
struct Place<T> {
    object: AtomicUsize,
    known: AtomicPtr<T>,
}

/// See the file's head.
pub(crate) struct Directory<T> {
    buckets: [Bucket<T>; BUCKETS],
    writing: ProcessLock,
}

impl<T> Bucket<T> {
    const fn new() -> Self {
        Self {
            places: [const {
                Place {
                    object: AtomicUsize::new(0),
                    known: AtomicPtr::new(ptr::null_mut()),
                }
            }; PLACES],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Returns the bucket that is linked behind this bucket.
    fn next(&self) -> Option<&Self> {
        // SAFETY: the pointer is null or points to a bucket that was leaked.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    /// Returns this bucket and all buckets that are linked behind it.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |bucket| bucket.next())
    }

    fn places(&self) -> impl Iterator<Item = &Place<T>> {
        self.chain().flat_map(|bucket| &bucket.places)
    }
}

impl<T: Send + Sync> Directory<T> {
    pub(crate) const fn new() -> Self {
        Self {
            buckets: [const { Bucket::new() }; BUCKETS],
            writing: ProcessLock::new(),
        }
    }

    #[inline]
    fn bucket(&self, object: usize) -> &Bucket<T> {
        // Objects are allocated at multiples of 16, so the lowest four bits carry no information.
        let spread = (object as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let at = spread >> (u64::BITS - BUCKETS.trailing_zeros());
        #[expect(
            clippy::indexing_slicing,
            reason = "the shift leaves a number below the length"
        )]
        &self.buckets[at as usize]
    }

    /// Returns the record of the object.
    ///
    /// # Safety
    ///
    /// No thread [removes](Self::remove) the record while the result is used.
    #[inline]
    pub(crate) unsafe fn get<'a>(&self, object: usize) -> Option<&'a T> {
        let mut bucket = self.bucket(object);
        loop {
            for place in &bucket.places {
                if place.object.load(Ordering::Acquire) == object {
                    // SAFETY: the pointer is null or comes from an `Arc` that the place owns.
                    return unsafe { place.known.load(Ordering::Acquire).as_ref() };
                }
            }
            bucket = bucket.next()?;
        }
    }

    /// Returns the record, as [`get`](Self::get) does, and shares its ownership.
    ///
    /// # Safety
    ///
    /// No thread removes the record during the call.
    pub(crate) unsafe fn share(&self, object: usize) -> Option<Arc<T>> {
        // SAFETY: the caller keeps the contract of this function.
        let known: *const T = unsafe { self.get(object) }?;
        // SAFETY: the pointer comes from an `Arc`, and the place owns one count of it.
        unsafe {
            Arc::increment_strong_count(known);
            Some(Arc::from_raw(known))
        }
    }

    /// Adds the record of an object. Returns the old record at the same address, if there is one.
    /// The object of the old record was destroyed by a call that the shim did not see.
    pub(crate) fn insert(&self, object: usize, known: Arc<T>) -> Option<Arc<T>> {
        let _writing = self.writing.lock();
        let old = self.take(object);
        let bucket = self.bucket(object);
        let vacant = bucket
            .places()
            .find(|place| place.object.load(Ordering::Relaxed) == 0);
        let fill = |place: &Place<T>| {
            place
                .known
                .store(Arc::into_raw(known).cast_mut(), Ordering::Release);
            place.object.store(object, Ordering::Release);
        };
        match vacant {
            Some(place) => fill(place),
            None => {
                let new = Box::leak(Box::new(Bucket::new()));
                let [first, ..] = &new.places;
                fill(first);
                if let Some(last) = bucket.chain().last() {
                    last.next.store(new, Ordering::Release);
                }
            }
        }
        old
    }

    /// Removes the record of an object, and returns it.
    pub(crate) fn remove(&self, object: usize) -> Option<Arc<T>> {
        let _writing = self.writing.lock();
        self.take(object)
    }

    /// Removes and returns every record for which `is_meant` returns true.
    pub(crate) fn remove_all(&self, is_meant: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let _writing = self.writing.lock();
        let meant = |place: &Place<T>| {
            // SAFETY: the pointer is null or comes from an `Arc` that the place owns. This thread
            // holds the lock, so no other thread removes the record.
            let known = unsafe { place.known.load(Ordering::Relaxed).as_ref() }?;
            is_meant(known).then(|| place.object.load(Ordering::Relaxed))
        };
        let places = self.buckets.iter().flat_map(Bucket::places);
        let objects: Vec<usize> = places.filter_map(meant).collect();
        objects.into_iter().filter_map(|it| self.take(it)).collect()
    }

    /// Removes and returns the record of an object. The caller holds the lock.
    fn take(&self, object: usize) -> Option<Arc<T>> {
        let mut places = self.bucket(object).places();
        let place = places.find(|place| place.object.load(Ordering::Relaxed) == object)?;
        place.object.store(0, Ordering::Release);
        let known = place.known.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: the pointer comes from the `Arc` that the place owned, and the swap took it out.
        (!known.is_null()).then(|| unsafe { Arc::from_raw(known) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_until_they_are_removed_however_many_there_are() {
        static DIRECTORY: Directory<usize> = Directory::new();
        let objects = || (1..10_000).map(|number| number * 16);
        for _ in 0..2 {
            for object in objects() {
                assert!(DIRECTORY.insert(object, Arc::new(object)).is_none());
            }
            for object in objects() {
                // SAFETY: no thread removes the record.
                assert_eq!(unsafe { DIRECTORY.get(object) }, Some(&object));
            }
            assert_eq!(DIRECTORY.insert(16, Arc::new(1)).as_deref(), Some(&16));
            let odd = DIRECTORY.remove_all(|known| known % 32 != 0);
            assert_eq!(odd.len(), 5_000);
            for object in objects() {
                let removed = DIRECTORY.remove(object);
                assert_eq!(removed.is_some(), object.is_multiple_of(32));
                // SAFETY: no thread removes the record.
                assert_eq!(unsafe { DIRECTORY.get(object) }, None);
            }
        }
    }
}
