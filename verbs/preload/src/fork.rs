//! State that a forked child must not take over from its parent.
//!
//! A child has a copy of its parent's memory. A page under `MADV_WIPEONFORK` is zero there: it
//! tells the two apart, and holds the pointer to all that belongs to one process.

use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread;

use memmap2::MmapMut;
use nix::sys::mman::{MmapAdvise, madvise};

/// Memory that a child finds wiped, that is, zero.
struct Page {
    /// All that belongs to this process, of a type that this module need not know.
    owned: AtomicPtr<()>,
    /// The process's number among those that it was forked from, once it was asked for.
    id: AtomicU64,
}

/// Where the page is. The pointer is not wiped.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// The number of a process that was not forked from one with a number.
pub(crate) const FIRST: u64 = 1;

/// The place for a pointer that children find null; `None` if the kernel cannot mark what children
/// are not to see (before Linux 4.14).
pub(crate) fn owned() -> Option<&'static AtomicPtr<()>> {
    page().map(|page| &page.owned)
}

/// As [`owned`], and `None` if nobody has asked for it yet.
pub(crate) fn owned_already() -> Option<&'static AtomicPtr<()>> {
    // SAFETY: null, or the page, which is never unmapped.
    let page = unsafe { PAGE.load(Ordering::Acquire).as_ref() }?;
    Some(&page.owned)
}

/// Tells this process from those that it was forked from; 0 if the kernel cannot mark what children
/// are not to see.
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

/// A lock for short and rare use. A child finds it open, though another thread of its parent's may
/// have had it when the child was forked.
pub(crate) struct ProcessLock(AtomicU64);

/// The lock, held.
pub(crate) struct Locked<'a>(&'a ProcessLock);

impl ProcessLock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Waits until this thread has the lock.
    pub(crate) fn lock(&self) -> Locked<'_> {
        // Without numbers there are no children to tell apart.
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
                // That thread is not in this process.
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

/// The page that children find wiped.
fn page() -> Option<&'static Page> {
    let mut known = PAGE.load(Ordering::Acquire);
    if known.is_null() {
        let mut page = MmapMut::map_anon(size_of::<Page>()).ok()?;
        let len = page.len();
        let start = NonNull::from(&mut page[..]).cast();
        // SAFETY: this mapping's own page, which nothing has been written to yet.
        unsafe { madvise(start, len, MmapAdvise::MADV_WIPEONFORK) }.ok()?;
        let made = page.as_mut_ptr().cast();
        let installed =
            PAGE.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
        known = match installed {
            Ok(_) => {
                mem::forget(page);
                made
            }
            Err(other) => other,
        };
    }
    // SAFETY: a page that is never unmapped and only used as this; zeros are a null pointer and no
    // number.
    unsafe { known.as_ref() }
}
