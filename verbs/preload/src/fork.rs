//! State that a forked child must not take over from its parent.
//!
//! A child has a copy of its parent's memory, except that a page under `MADV_WIPEONFORK` is zero in
//! the child. Such a page holds the number that the shim gives to the process, and the pointer to
//! the state of the process. So a child finds neither the number nor the state of its parent.

use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread;

use memmap2::MmapMut;
use nix::sys::mman::{MmapAdvise, madvise};

/// A page that the kernel fills with zeros in a forked child.
struct Page {
    /// A pointer to the state of this process. Its type does not matter to this module.
    owned: AtomicPtr<()>,
    /// The number of this process; 0 until the first call of [`id`].
    id: AtomicU64,
}

/// Stands for the page before it is mapped, and is never written.
static NOT_MAPPED: Page = Page {
    owned: AtomicPtr::new(ptr::null_mut()),
    id: AtomicU64::new(0),
};

/// The address of the page, or of [`NOT_MAPPED`]. This variable is not in the page, so a child
/// inherits the address.
static PAGE: AtomicPtr<Page> = AtomicPtr::new((&raw const NOT_MAPPED).cast_mut());

/// The first number that [`id`] gives out: that of a process whose ancestors had no number when
/// they forked.
pub(crate) const FIRST: u64 = 1;

/// Returns the place for the pointer to the state of this process. A child finds null in it.
/// Returns `None` if the kernel has no `MADV_WIPEONFORK` (before Linux 4.14).
pub(crate) fn owned() -> Option<&'static AtomicPtr<()>> {
    page().map(|page| &page.owned)
}

/// Returns the pointer to the state of this process; null if there is none. Does not map the page.
#[inline]
pub(crate) fn owned_already() -> *mut () {
    // SAFETY: the pointer is to a static or to the page, which is never unmapped.
    let page = unsafe { &*PAGE.load(Ordering::Acquire) };
    page.owned.load(Ordering::Acquire)
}

/// Returns the number of this process. It differs from the number of every ancestor that had one
/// when it forked. Returns 0 if the kernel has no `MADV_WIPEONFORK`.
pub(crate) fn id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(FIRST);
    let Some(page) = page() else {
        return 0;
    };
    let known = page.id.load(Ordering::Acquire);
    if known != 0 {
        return known;
    }
    let new = NEXT.fetch_add(1, Ordering::Relaxed);
    match page
        .id
        .compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire)
    {
        Ok(_) => new,
        Err(other) => other,
    }
}

/// A lock for short and rare use. A child can take this lock even if another thread of its parent
/// held the lock at the fork.
pub(crate) struct ProcessLock(AtomicU64);

/// A guard that holds the lock until it is dropped.
pub(crate) struct Locked<'a>(&'a ProcessLock);

impl ProcessLock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Waits until this thread has the lock.
    pub(crate) fn lock(&self) -> Locked<'_> {
        // `id` returns 0 if the kernel has no `MADV_WIPEONFORK`. In this lock 0 means unlocked, so
        // the owner's number is at least `FIRST`.
        let this = id().max(FIRST);
        let mut found = 0;
        loop {
            let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
            match self.0.compare_exchange_weak(found, this, acquire, relaxed) {
                Ok(_) => return Locked(self),
                Err(0) => found = 0,
                Err(other) if other == this => {
                    found = 0;
                    thread::yield_now();
                }
                // The owner is a thread of an ancestor, which will never release this copy of the
                // lock. So the next iteration takes the lock over.
                Err(other) => found = other,
            }
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Release);
    }
}

/// Returns the page that a child finds filled with zeros. The first call maps the page.
fn page() -> Option<&'static Page> {
    let mut known = PAGE.load(Ordering::Acquire);
    let none = (&raw const NOT_MAPPED).cast_mut();
    if known == none {
        let mut page = MmapMut::map_anon(size_of::<Page>()).ok()?;
        let len = page.len();
        let start = NonNull::from(&mut page[..]).cast();
        // SAFETY: no other code has the address of the new mapping, and nothing has been written to
        // it yet.
        unsafe { madvise(start, len, MmapAdvise::MADV_WIPEONFORK) }.ok()?;
        let made = page.as_mut_ptr().cast();
        let installed = PAGE.compare_exchange(none, made, Ordering::AcqRel, Ordering::Acquire);
        known = match installed {
            Ok(_) => {
                mem::forget(page);
                made
            }
            Err(other) => other,
        };
    }
    // SAFETY: the page is never unmapped, and it is used only as a `Page`. Zeros are a valid
    // `Page`: a null pointer and the number 0.
    unsafe { known.as_ref() }
}
