//! [`Array`]: room for many, of which few may ever be used.
//!
//! It is address space; the kernel gives memory, zeroed, to what is used. It is a mapping and not the
//! allocator's: glibc's raises the size from which it maps memory to that of the largest block it has
//! got back, and then keeps what the application frees.

/// What memory that was never written is one of.
///
/// # Safety
///
/// Zeros are one.
#[cfg(not(loom))]
pub(crate) unsafe trait Zeros: Sized {}

/// What loom's memory is filled with.
#[cfg(loom)]
pub(crate) trait Zeros: Sized {
    fn zeros() -> Self;
}

#[cfg(loom)]
pub(crate) use boxed::Array;
#[cfg(not(loom))]
pub(crate) use mapped::Array;

#[cfg(not(loom))]
mod mapped {
    use std::io;
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    use memmap2::{MmapMut, MmapOptions};

    use super::Zeros;

    /// Zeroed memory of the kernel's, which no swap is reserved for.
    #[derive(Debug)]
    pub(crate) struct Array<T> {
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

    impl<T: Zeros> Array<T> {
        /// # Errors
        ///
        /// If the kernel does not give the address space.
        pub(crate) fn new(len: usize) -> io::Result<Self> {
            const { assert!(align_of::<T>() <= 4096) };
            let bytes = len
                .checked_mul(size_of::<T>())
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
        pub(crate) fn as_slice(&self) -> &[T] {
            // SAFETY: the mapping has room for `len` of them, aligned as a page is, and zeros are one. It
            // lives as long as `self`, and is accessed in no other way.
            unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
        }
    }
}

/// loom's atomics are more than zeros.
#[cfg(loom)]
mod boxed {
    use std::io;

    use super::Zeros;

    #[derive(Debug)]
    pub(crate) struct Array<T>(Box<[T]>);

    impl<T: Zeros> Array<T> {
        #[expect(clippy::unnecessary_wraps, reason = "as the other one")]
        pub(crate) fn new(len: usize) -> io::Result<Self> {
            Ok(Self((0..len).map(|_| T::zeros()).collect()))
        }

        pub(crate) fn as_slice(&self) -> &[T] {
            &self.0
        }
    }
}
