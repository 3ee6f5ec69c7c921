//! [`prefetch`]: tells the CPU to load a cache line that the thread will need soon.
//!
//! A locked instruction waits for the loads and stores before it. A miss executes several of them,
//! so the CPU cannot load the lines that come later ahead of their use. A prefetch is not ordered
//! with locked instructions, and its line is loaded during other work.

/// Begins to load the first cache line of the value. Prefetching has no other effect.
#[inline(always)]
pub(crate) fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch accesses no memory, as far as the program can observe, and never
        // faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = value;
}
