//! [`Guard`]: a registration in use, and what happens when it is not any more.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::ptr::NonNull;

use crate::cache::{Content, Core, Place};
use crate::core::entry::{Entry, Left};
use crate::monitor::{Auto, Monitor};
use crate::sys::sync::{Arc, lock};
use crate::{Registrar, VaRange};

/// A registration in use.
///
/// While a guard lives its registration is not destroyed, even if its memory is unmapped or the
/// cache is dropped: a transfer that was posted with it can complete. It may be sent to the thread
/// that sees the completion, and dropped there.
///
/// Dropping the guard does not end the registration as far as the device is concerned: a peer that
/// was given a remote key can use it until the cache gives the registration up, which may be never.
/// [`Builder::revoke_remote_keys`](crate::Builder::revoke_remote_keys) is for those to whom that
/// matters.
pub struct Guard<R: Registrar, M: Monitor = Auto> {
    /// Owns a reference to this entry.
    entry: NonNull<Entry<Content<R, M>>>,
    owns: PhantomData<Content<R, M>>,
}

// SAFETY: a guard is a counted reference to an entry, which may be released in any thread; the
// content that it reaches is a registration, `Send + Sync` by the trait, and the core, which is
// `Sync` and dropped in whichever thread is last.
unsafe impl<R: Registrar, M: Monitor> Send for Guard<R, M> {}
// SAFETY: by shared reference a guard gives nothing but `&R::Registration` and `Copy` values.
unsafe impl<R: Registrar, M: Monitor> Sync for Guard<R, M> {}

impl<R: Registrar, M: Monitor> Guard<R, M> {
    /// Takes over a reference to `entry` that the caller owns.
    #[inline]
    pub(crate) fn owning(entry: NonNull<Entry<Content<R, M>>>) -> Self {
        Self {
            entry,
            owns: PhantomData,
        }
    }

    #[inline]
    fn entry(&self) -> &Entry<Content<R, M>> {
        // SAFETY: the entry is in a slab that the content keeps alive, by its core, or in a box of
        // its own, until the reference that this guard owns is released.
        unsafe { self.entry.as_ref() }
    }

    #[inline]
    pub(crate) fn content(&self) -> &Content<R, M> {
        // SAFETY: this guard owns a reference, for as long as `self` is borrowed at least.
        unsafe { self.entry().content() }
    }

    /// The registration: what to post a transfer with.
    #[inline]
    pub fn registration(&self) -> &R::Registration {
        &self.content().registration
    }

    /// The addresses that it covers, at least those asked for.
    #[inline]
    pub fn range(&self) -> VaRange {
        self.content().range
    }

    /// The access that it allows, at least the one asked for.
    #[inline]
    pub fn access(&self) -> R::Access {
        self.content().access
    }

    /// False if the registration ends with this guard.
    pub fn is_cached(&self) -> bool {
        matches!(self.content().place, Place::Slab(..))
    }

    /// Drops a guard that was not what the lookup is for.
    #[cold]
    pub(crate) fn decline(self) {
        let entry = self.entry;
        mem::forget(self);
        // SAFETY: the guard owned the reference and is not used any more; what it is a reference to
        // is there until it is given back.
        if unsafe { entry.as_ref().decline() } == Left::Nobody {
            bury_last(entry);
        }
    }
}

impl<R: Registrar, M: Monitor> Drop for Guard<R, M> {
    #[inline]
    fn drop(&mut self) {
        if self.entry().is_fleeting() {
            release_fleeting(self.entry);
            return;
        }
        // SAFETY: this guard owns the reference and is not used after.
        if unsafe { self.entry().release() } == Left::Nobody {
            bury_last(self.entry);
        }
    }
}

/// Destroys the registration whose last guard has gone.
#[cold]
fn bury_last<R: Registrar, M: Monitor>(entry: NonNull<Entry<Content<R, M>>>) {
    // SAFETY: as in `Guard::entry`: the content, and with it the core, is still in place.
    let shared = unsafe { entry.as_ref() };
    // SAFETY: `release` has just said to.
    let content = unsafe { shared.take() };
    if content.core.in_child() {
        // It is the parent's to destroy.
        mem::forget(content);
        return;
    }
    if let Place::Alone(_) = content.place {
        // SAFETY: entries that are not in the slab come from a box, and this was the last reference.
        drop(unsafe { Box::from_raw(entry.as_ptr()) });
    }
    let core = Arc::clone(&content.core);
    core.destroy(content);
}

/// Gives a reference to a fleeting registration back, and the registration up if that was the last
/// guard's.
#[cold]
fn release_fleeting<R: Registrar, M: Monitor>(entry: NonNull<Entry<Content<R, M>>>) {
    // SAFETY: as in `Guard::entry`; the reference is released below.
    let shared = unsafe { entry.as_ref() };
    // SAFETY: as above.
    let content = unsafe { shared.content() };
    let (core, place) = (Arc::clone(&content.core), content.place);
    // SAFETY: the caller's reference, not used after.
    match unsafe { shared.release() } {
        Left::Nobody => bury_last(entry),
        Left::Index if core.in_child() => {}
        Left::Index => {
            if let Place::Slab(slot, cookie) = place {
                lock(&core.ledger).let_go(&core.slab, slot, cookie);
            }
            Core::bury(&core);
        }
        Left::Others => {}
    }
}

impl<R: Registrar, M: Monitor> fmt::Debug for Guard<R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("range", &self.range())
            .field("access", &self.access())
            .field("cached", &self.is_cached())
            .finish_non_exhaustive()
    }
}
