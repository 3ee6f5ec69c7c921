//! [`Zeroed`]: a large array, of which perhaps only a few elements are ever used.
//!
//! The array only reserves address space. When an element is first touched, the kernel adds a
//! zeroed page. So unused elements take no memory. An owner that is about to use many elements can
//! let the kernel add their pages in one call, which takes a fraction of the time of the faults.
//!
//! The array is mapped, not allocated by malloc. When glibc frees a mapped block, it raises the
//! size above which it maps blocks. So after freeing such an array, glibc would no longer return
//! large blocks of the application to the kernel.

/// Types for which all-zero bytes are a valid value.
///
/// # Safety
///
/// All-zero bytes are a valid value of the type.
#[cfg(not(loom))]
pub(crate) unsafe trait FromZeros: Sized {}

/// Types of elements that are constructed one by one under loom.
#[cfg(loom)]
pub(crate) trait FromZeros: Sized {
    fn zeros() -> Self;
}

#[cfg(loom)]
pub(crate) use boxed::Zeroed;
#[cfg(not(loom))]
pub(crate) use mapped::Zeroed;

#[cfg(not(loom))]
mod mapped {
    use std::io;
    use std::marker::PhantomData;
    use std::ops::Range;
    use std::ptr::NonNull;

    use memmap2::{Advice, MmapMut, MmapOptions};

    use super::FromZeros;

    /// The size of the smallest pages of the supported machines. A larger page contains whole pages
    /// of this size.
    const PAGE: usize = 4096;

    /// An array in zeroed memory from the kernel. The kernel reserves no swap space for the array.
    #[derive(Debug)]
    pub(crate) struct Zeroed<T> {
        /// The first element in the mapping. The pointer dangles if the array has no elements.
        first: NonNull<T>,
        len: usize,
        mapping: Option<MmapMut>,
        owns: PhantomData<T>,
    }

    // SAFETY: the array owns its elements, so sending the array sends only values of `T`.
    unsafe impl<T: Send> Send for Zeroed<T> {}
    // SAFETY: by shared reference, the array gives access only to `&T`.
    unsafe impl<T: Sync> Sync for Zeroed<T> {}

    impl<T: FromZeros> Zeroed<T> {
        /// Makes an array of `len` zeroed elements.
        ///
        /// # Errors
        ///
        /// Returns the kernel's error if there is no address space left.
        pub(crate) fn new(len: usize) -> io::Result<Self> {
            const { assert!(align_of::<T>() <= 4096) };
            let bytes = len
                .checked_mul(size_of::<T>())
                .ok_or(io::ErrorKind::OutOfMemory)?;
            if bytes == 0 {
                return Ok(Self {
                    first: NonNull::dangling(),
                    len,
                    mapping: None,
                    owns: PhantomData,
                });
            }
            let mut mapping = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
            Ok(Self {
                first: NonNull::from(&mut mapping[..]).cast(),
                len,
                mapping: Some(mapping),
                owns: PhantomData,
            })
        }

        #[inline]
        pub(crate) fn as_slice(&self) -> &[T] {
            // SAFETY: the mapping has room for `len` elements, is page-aligned, and lives as long
            // as `self`. An element whose bytes are all 0 is valid. Only this method gives access
            // to the mapping.
            unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
        }

        /// Adds the pages of the elements in `range`. If the kernel cannot do so (before Linux
        /// 5.14), the pages are added when they are touched.
        pub(crate) fn populate(&self, range: Range<usize>) {
            let bytes = range.start * size_of::<T>()..range.end.min(self.len) * size_of::<T>();
            // The kernel wants the address of a page, and rounds the length up.
            let start = bytes.start & !(PAGE - 1);
            if let Some(mapping) = &self.mapping
                && start < bytes.end
            {
                let _ = mapping.advise_range(Advice::PopulateWrite, start, bytes.end - start);
            }
        }
    }
}

/// An array on the heap, for loom, because an atomic of loom is not valid if its bytes are all 0.
#[cfg(loom)]
mod boxed {
    use std::io;

    use super::FromZeros;

    #[derive(Debug)]
    pub(crate) struct Zeroed<T>(Box<[T]>);

    impl<T: FromZeros> Zeroed<T> {
        #[expect(
            clippy::unnecessary_wraps,
            reason = "the signature of the mapped array"
        )]
        pub(crate) fn new(len: usize) -> io::Result<Self> {
            Ok(Self((0..len).map(|_| T::zeros()).collect()))
        }

        pub(crate) fn as_slice(&self) -> &[T] {
            &self.0
        }

        pub(crate) fn populate(&self, _: std::ops::Range<usize>) {}
    }
}
