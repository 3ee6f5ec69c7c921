//! [`Slab`]: where entries live.
//!
//! Entries never move and are not freed before the slab is, so that a reader may look at the state
//! of one whose registration has gone (see `entry.rs`). They are one array, so that a reader finds
//! an entry without another load. It is address space for as many as the cache may hold; the kernel
//! gives memory, zeroed, to those that are used.

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
    /// If there is no address space for them.
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
use zeroed::Array;

#[cfg(not(loom))]
mod zeroed {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    use super::Padded;

    /// The alignment up to which the standard library has zeroed memory from the allocator, which has it from
    /// the kernel, and does not zero it itself.
    const ALIGN: usize = 16;

    /// Zeroed memory, which takes pages as it is used.
    #[derive(Debug)]
    pub(super) struct Array<T> {
        first: NonNull<T>,
        len: usize,
        /// The block that this is the aligned part of.
        block: NonNull<u8>,
        layout: Layout,
        owns: PhantomData<T>,
    }

    // SAFETY: it owns what it gives out references to.
    unsafe impl<T: Send> Send for Array<T> {}
    // SAFETY: as above.
    unsafe impl<T: Sync> Sync for Array<T> {}

    impl<T> Array<Padded<T>> {
        pub(super) fn new(len: usize) -> io::Result<Self> {
            let align = align_of::<Padded<T>>();
            let size = len
                .checked_mul(size_of::<Padded<T>>())
                .and_then(|size| size.checked_add(align))
                .ok_or(io::ErrorKind::OutOfMemory)?;
            let layout = Layout::from_size_align(size, ALIGN)
                .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            // SAFETY: the size is that of an alignment at least.
            let block = NonNull::new(unsafe { alloc_zeroed(layout) });
            let block = block.ok_or(io::ErrorKind::OutOfMemory)?;
            // SAFETY: less than an alignment, for which there is room behind the entries.
            let first = unsafe { block.add(block.align_offset(align)) }.cast();
            Ok(Self {
                first,
                len,
                block,
                layout,
                owns: PhantomData,
            })
        }

        #[inline]
        pub(super) fn as_slice(&self) -> &[Padded<T>] {
            // SAFETY: the block has room for `len` of them, and zeros are a vacant entry. It lives as long
            // as `self`, and is accessed in no other way.
            unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
        }
    }

    impl<T> Drop for Array<T> {
        fn drop(&mut self) {
            // What is in an entry is taken out before it becomes vacant, and keeps the slab until then.
            // SAFETY: allocated so, and given back once.
            unsafe { dealloc(self.block.as_ptr(), self.layout) }
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
