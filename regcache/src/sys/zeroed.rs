//! [`Zeroed`]: a large array, of which perhaps only a few elements are ever used.
//!
//! The array only reserves address space. When an element is first touched, the kernel adds a
//! zeroed page. So unused elements take no memory. An owner that is about to use many elements can
//! let the kernel add their pages in one call, which takes a fraction of the time of the faults.
//!
//! The kernel may back memory with huge pages. Then the first element would take two megabytes. So
//! the first two megabytes of an array have no huge pages. An array that is in use beyond them is
//! large enough for huge pages.
//!
//! A program may call `mlockall(MCL_FUTURE)`, by which the kernel locks and populates each new
//! mapping. That would take the memory of all elements at once. So the array is first mapped
//! without access, which the kernel cannot populate. It is unlocked before it gets access.
//!
//! The array is mapped, not allocated by malloc. When glibc frees a mapped block, it raises the
//! size above which it maps blocks. So after freeing such an array, glibc would no longer return
//! large blocks of the application to the kernel.

#[cfg(not(loom))]
use crate::sys::sync::{AtomicU32, AtomicU64};

/// Types for which all-zero bytes are a valid value.
///
/// # Safety
///
/// All-zero bytes are a valid value of the type.
#[cfg(not(loom))]
pub(crate) unsafe trait FromZeros: Sized {}

// SAFETY: zero is a valid number.
#[cfg(not(loom))]
unsafe impl FromZeros for AtomicU32 {}
// SAFETY: as above.
#[cfg(not(loom))]
unsafe impl FromZeros for AtomicU64 {}

#[cfg(loom)]
pub(crate) use boxed::Zeroed;
#[cfg(not(loom))]
pub(crate) use mapped::Zeroed;

#[cfg(not(loom))]
mod mapped {
    use std::ffi::c_void;
    use std::io;
    use std::num::NonZeroUsize;
    use std::ops::Range;
    use std::ptr::NonNull;

    use nix::sys::mman::{
        MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, munlock, munmap,
    };

    use super::FromZeros;
    use crate::sys::memory;

    /// The size of the smallest pages of the supported machines, which is the alignment of an
    /// array. The kernel's pages may be larger.
    const PAGE: usize = 4096;

    /// The size of the part of an array that has no huge pages: one huge page of most machines.
    const SMALL_PAGES: usize = 2 << 20;

    /// An array in zeroed memory from the kernel. The kernel reserves no swap space for the array.
    #[derive(Debug)]
    pub(crate) struct Zeroed<T> {
        /// The first element in the mapping. The pointer dangles if the array has no elements.
        first: NonNull<T>,
        len: usize,
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
            const { assert!(align_of::<T>() <= PAGE) };
            let bytes = len
                .checked_mul(size_of::<T>())
                .ok_or(io::ErrorKind::OutOfMemory)?;
            let first = match NonZeroUsize::new(bytes) {
                Some(bytes) => map(bytes)?.cast(),
                None => NonNull::dangling(),
            };
            Ok(Self { first, len })
        }
    }

    /// Maps zeroed memory.
    fn map(bytes: NonZeroUsize) -> io::Result<NonNull<c_void>> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: the mapping is new, so no other code uses its memory.
        unsafe {
            let start = mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, flags)?;
            // Memory that stays locked, or that may have huge pages, is more than is needed. So
            // these errors do no harm. The kernel may have been built without huge pages.
            let _ = munlock(start, bytes.get());
            let small = bytes.get().min(SMALL_PAGES);
            let _ = madvise(start, small, MmapAdvise::MADV_NOHUGEPAGE);
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            if let Err(error) = mprotect(start, bytes.get(), access) {
                let _ = munmap(start, bytes.get());
                return Err(error.into());
            }
            Ok(start)
        }
    }

    /// Returns the bytes of the pages that are whole within the bytes of a range. The kernel rounds
    /// the length of a range up to its own page size. So pages of another size would not do.
    fn whole_pages(bytes: Range<usize>, page: usize) -> Range<usize> {
        bytes.start.next_multiple_of(page)..bytes.end & !(page - 1)
    }

    impl<T> Drop for Zeroed<T> {
        fn drop(&mut self) {
            let bytes = self.len * size_of::<T>();
            if bytes != 0 {
                // SAFETY: the array owns the mapping, and nothing borrows the array any more.
                let _ = unsafe { munmap(self.first.cast(), bytes) };
            }
        }
    }

    impl<T> Zeroed<T> {
        #[inline]
        pub(crate) fn as_slice(&self) -> &[T] {
            // SAFETY: the mapping has room for `len` elements, is page-aligned, and lives as long
            // as `self`. An element whose bytes are all 0 is valid, by the bound of `new`. Only
            // this method gives access to the mapping.
            unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
        }

        /// Adds the pages of the elements in `range`. If the kernel cannot do so (before Linux
        /// 5.14), the pages are added when they are touched.
        pub(crate) fn populate(&self, range: Range<usize>) {
            let bytes = range.start * size_of::<T>()..range.end.min(self.len) * size_of::<T>();
            // The kernel wants the address of a page, and rounds the length up.
            let start = bytes.start & !(memory::page_size() - 1);
            if start < bytes.end {
                // SAFETY: the call has the effect of reading each element and writing it back, so
                // no reader sees a change. The pages are part of the array.
                let _ = unsafe {
                    let first = self.first.byte_add(start).cast();
                    madvise(first, bytes.end - start, MmapAdvise::MADV_POPULATE_WRITE)
                };
            }
        }
    }

    impl<T> Zeroed<T> {
        /// Gives the pages of the elements in `range` back to the kernel, apart from pages that
        /// they share with other elements. The elements in these pages become zeros, if the kernel
        /// takes the pages.
        ///
        /// # Safety
        ///
        /// No thread writes to the elements or borrows them, except for atomics, whose value may
        /// become 0.
        pub(crate) unsafe fn discard(&self, range: Range<usize>) {
            let bytes = range.start * size_of::<T>()..range.end.min(self.len) * size_of::<T>();
            let pages = whole_pages(bytes, memory::page_size());
            if pages.start < pages.end {
                // SAFETY: the pages are part of the array, and by the contract their elements may
                // become zeros.
                let _ = unsafe {
                    let first = self.first.byte_add(pages.start).cast();
                    madvise(first, pages.len(), MmapAdvise::MADV_DONTNEED)
                };
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::process::Command;
        use std::{env, fs};

        use super::*;

        // SAFETY: zero is a valid number.
        unsafe impl FromZeros for u64 {}

        /// Returns true if the mapping that contains the address has this flag in
        /// `/proc/self/smaps`.
        fn has_flag(address: usize, flag: &str) -> bool {
            let contains = |line: &str| {
                let number = |text| usize::from_str_radix(text, 16).ok();
                let (start, end) = line.split(' ').next()?.split_once('-')?;
                Some((number(start)?..number(end)?).contains(&address))
            };
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            let mut from = smaps
                .lines()
                .skip_while(|line| contains(line) != Some(true));
            let flags = from.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
            flags.split(' ').any(|its| its == flag)
        }

        /// Returns the number of pages of an array that are in memory.
        fn resident(array: &Zeroed<u64>) -> usize {
            let bytes = array.len * size_of::<u64>();
            let mut pages = vec![0_u8; bytes / PAGE];
            // SAFETY: the call writes one byte for each page.
            let done =
                unsafe { libc::mincore(array.first.as_ptr().cast(), bytes, pages.as_mut_ptr()) };
            assert_eq!(done, 0);
            pages.iter().filter(|&&page| page & 1 != 0).count()
        }

        fn array() -> (Zeroed<u64>, usize) {
            let array = Zeroed::<u64>::new(1 << 19).unwrap();
            let start = array.as_slice().as_ptr().addr();
            (array, start)
        }

        #[test]
        fn the_first_element_takes_no_huge_page() {
            let (array, start) = array();
            array.populate(0..1);
            assert!(has_flag(start, "nh"));
            assert!(!has_flag(start + SMALL_PAGES, "nh"));
            assert_eq!(resident(&array), 1);
        }

        #[test]
        fn only_whole_pages_are_given_back_and_become_zeros() {
            let (array, _) = array();
            array.populate(0..4 * PAGE);
            let elements = array.as_slice().as_ptr().cast_mut();
            // SAFETY: no other code uses the array.
            unsafe {
                (0..4 * PAGE).for_each(|at| elements.add(at).write(7));
                array.discard(1..3 * PAGE / 8 + 1);
            }
            assert_eq!(resident(&array), 32 - 2);
            let elements = array.as_slice();
            assert_eq!([elements[0], elements[PAGE / 8 - 1]], [7, 7]);
            assert_eq!([elements[PAGE / 8], elements[3 * PAGE / 8 - 1]], [0, 0]);
            assert_eq!(elements[3 * PAGE / 8], 7);
        }

        #[test]
        fn a_page_of_64_kib_is_given_back_only_as_a_whole() {
            let page = 1 << 16;
            assert_eq!(whole_pages(0..page - 1, page), 0..0);
            assert_eq!(whole_pages(1..3 * page - 1, page), page..2 * page);
            assert!(whole_pages(PAGE..2 * PAGE, page).is_empty());
        }

        #[test]
        fn a_program_that_locks_its_memory_does_not_lock_unused_elements() {
            const LOCKED: &str = "REGCACHE_TEST_LOCKED";
            if env::var_os(LOCKED).is_none() {
                let mut child = Command::new(env::current_exe().unwrap());
                child.args(["locks_its_memory", "--nocapture"]);
                let ran = child.env(LOCKED, "1").output().unwrap();
                let said = String::from_utf8_lossy(&ran.stdout);
                assert!(ran.status.success() && said.contains("1 passed"), "{said}");
                return;
            }
            // SAFETY: the call changes only how the kernel treats later mappings.
            assert_eq!(unsafe { libc::mlockall(libc::MCL_FUTURE) }, 0);
            let (array, start) = array();
            array.populate(0..1);
            assert!(!has_flag(start, "lo"));
            assert_eq!(resident(&array), 1);
        }
    }
}

/// An array of default values on the heap, for loom, because an atomic of loom is not valid if its
/// bytes are all 0.
#[cfg(loom)]
mod boxed {
    use std::io;

    #[derive(Debug)]
    pub(crate) struct Zeroed<T>(Box<[T]>);

    impl<T: Default> Zeroed<T> {
        #[expect(
            clippy::unnecessary_wraps,
            reason = "the signature of the mapped array"
        )]
        pub(crate) fn new(len: usize) -> io::Result<Self> {
            Ok(Self((0..len).map(|_| T::default()).collect()))
        }

        pub(crate) fn as_slice(&self) -> &[T] {
            &self.0
        }

        pub(crate) fn populate(&self, _: std::ops::Range<usize>) {}

        pub(crate) unsafe fn discard(&self, _: std::ops::Range<usize>) {}
    }
}
