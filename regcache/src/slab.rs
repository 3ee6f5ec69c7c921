//! [`Slab`]: where entries live.
//!
//! Entries never move and are not freed before the slab is, so that a reader may look at the state
//! of one whose registration has gone (see `entry.rs`). They are one array, so that a reader finds
//! an entry without another load. It is address space for as many as the cache may hold; the kernel
//! gives memory, zeroed, to those that are used. It is a mapping and not the allocator's: glibc's raises
//! the size from which it maps memory to that of the largest block it has got back, and then keeps
//! what the application frees. (LeakSanitizer does not look into mappings: what only an entry
//! points to it takes for lost, if a cache is never dropped.)

use std::io;

use crossbeam_utils::CachePadded;

use crate::entry::Entry;

/// Index of an entry in the slab.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Slot(pub(crate) u32);

/// Threads that use different entries write different cache lines.
type Padded<T> = CachePadded<Entry<T>>;

#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Array<Padded<T>>,
}

impl<T> Slab<T> {
    /// A slab of `capacity` vacant entries.
    ///
    /// # Errors
    ///
    /// If the kernel does not give the address space.
    pub(crate) fn new(capacity: u32) -> io::Result<Self> {
        Ok(Self {
            entries: Array::new(capacity as usize)?,
        })
    }

    /// The entry at `slot`, if the slab has that many.
    #[inline]
    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry<T>> {
        let padded = self.entries.as_slice().get(slot.0 as usize)?;
        Some(padded)
    }
}

#[cfg(not(loom))]
use mapped::Array;

#[cfg(not(loom))]
mod mapped {
    use std::io;
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    use memmap2::{MmapMut, MmapOptions};

    use super::Padded;

    /// Zeroed memory of the kernel's, which no swap is reserved for.
    #[derive(Debug)]
    pub(super) struct Array<T> {
        /// Of the mapping, or dangling if there are none.
        first: NonNull<T>,
        len: usize,
        _mapping: Option<MmapMut>,
        owns: PhantomData<T>,
    }

    // SAFETY: it owns what it gives out references to.
    unsafe impl<T: Send> Send for Array<T> {}
    // SAFETY: as above.
    unsafe impl<T: Sync> Sync for Array<T> {}

    impl<T> Array<Padded<T>> {
        pub(super) fn new(len: usize) -> io::Result<Self> {
            const { assert!(align_of::<Padded<T>>() <= 4096) };
            let bytes = len
                .checked_mul(size_of::<Padded<T>>())
                .ok_or(io::ErrorKind::OutOfMemory)?;
            if bytes == 0 {
                return Ok(Self {
                    first: NonNull::dangling(),
                    len,
                    _mapping: None,
                    owns: PhantomData,
                });
            }
            let mut mapping = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
            Ok(Self {
                first: NonNull::from(&mut mapping[..]).cast(),
                len,
                _mapping: Some(mapping),
                owns: PhantomData,
            })
        }

        #[inline]
        pub(super) fn as_slice(&self) -> &[Padded<T>] {
            // SAFETY: the mapping has room for `len` of them, aligned as a page is, and zeros are a
            // vacant entry. It lives as long as `self`, and is accessed in no other way.
            unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
        }
    }
}

/// loom's entries are more than zeros.
#[cfg(loom)]
#[derive(Debug)]
struct Array<T>(Box<[T]>);

#[cfg(loom)]
impl<T> Array<Padded<T>> {
    fn new(len: usize) -> io::Result<Self> {
        let vacant = || CachePadded::new(Entry::vacant());
        Ok(Self((0..len).map(|_| vacant()).collect()))
    }

    fn as_slice(&self) -> &[Padded<T>] {
        &self.0
    }
}
